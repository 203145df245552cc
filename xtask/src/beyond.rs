//! Checks of `cargo xtask ci` that need more than a Rust toolchain. A machine that lacks it says so, and the step passes;
//! `.github/workflows/beyond.yml` runs them where nothing is lacking.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::Result;

use crate::{locate, process};

/// Needs no C compiler for that processor: Rust's own linker and start-up files do.
const NEON: &str = "aarch64-unknown-linux-musl";
const EMULATOR: &str = "qemu-aarch64";

/// Licences, versions and sources of what the workspace and the fuzz targets depend on. Advisories are left out: they are a database that
/// has to be fetched.
pub fn deny() -> Result<()> {
    if !answers(locate::cargo().args(["deny", "--version"])) {
        return skipped("cargo-deny is not installed (`cargo install cargo-deny --locked`)");
    }
    for manifest in ["Cargo.toml", "fuzz/Cargo.toml"] {
        let mut cargo = locate::cargo();
        cargo.args(["deny", "--locked", "--manifest-path", manifest, "--config", "deny.toml"]);
        process::run(cargo.args(["check", "bans", "licenses", "sources"]).current_dir(locate::repository()))?;
    }
    Ok(())
}

/// Tests of the packages that have NEON code, under emulation.
pub fn neon() -> Result<()> {
    let library = Command::new("rustc").args(["--print", "target-libdir", "--target", NEON]).output();
    let library = library.map(|output| PathBuf::from(String::from_utf8_lossy(&output.stdout).trim()));
    if !library.is_ok_and(|library| library.is_dir()) {
        return skipped(
            "Rust's library for another processor is missing (`rustup target add aarch64-unknown-linux-musl`)",
        );
    }
    if !answers(Command::new(EMULATOR).arg("--version")) {
        return skipped("qemu-aarch64 is missing (Debian and Ubuntu: `apt-get install qemu-user`)");
    }
    let mut cargo = locate::cargo();
    cargo.args(["test", "--release", "--locked", "--target", NEON]);
    cargo.args(["--package", "oq-kernels", "--package", "oq-attention", "--package", "oq-quant-core"]);
    // It starts itself, and the system cannot start a program for another processor.
    cargo.args(["--", "--skip", "the_environment_chooses"]);
    let of_target = |what: &str| format!("CARGO_TARGET_{}_{what}", NEON.to_uppercase().replace('-', "_"));
    cargo.env(of_target("LINKER"), "rust-lld").env(of_target("RUNNER"), EMULATOR);
    process::run(cargo.current_dir(locate::repository()))
}

fn skipped(why: &str) -> Result<()> {
    eprintln!("skipped: {why}");
    Ok(())
}

/// Whether a program is there and runs.
fn answers(command: &mut Command) -> bool {
    command.stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|status| status.success())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_is_missing_or_fails_does_not_answer() {
        assert!(answers(locate::cargo().arg("--version")));
        assert!(!answers(locate::cargo().arg("no-such-command-here")));
        assert!(!answers(&mut Command::new("no-such-program-here")));
    }
}
