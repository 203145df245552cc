//! `cargo xtask package`: the crates as the registry would hand them out, each compiled from its own tarball.
//!
//! `cargo package` verifies too, but builds every package anew in the development profile, libtorch's C++ wrappers included. Here the
//! unpacked tarballs are a workspace of their own, of which cargo checks libraries, programs and examples; what they depend on is shared
//! with the other steps of CI.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::{libtorch, locate, process};

/// Packages that nobody else takes.
const UNPUBLISHED: [&str; 5] = ["oq-benches", "oq-emulated", "oq-protected", "oq-tests", "xtask"];

/// Profile and resolver of the workspace, so that what is compiled already serves here too.
const SETTINGS: &str = "resolver = \"3\"\n\n[profile.release]\ndebug = false\nstrip = \"debuginfo\"\n";

/// Packs every published crate, unpacks them below `target/package`, and compiles them there.
pub fn package() -> Result<()> {
    libtorch::ensure_ready()?;
    let target = locate::repository().join("target");
    let packed = target.join("package");
    // Of an earlier version.
    if packed.exists() {
        fs::remove_dir_all(&packed).with_context(|| format!("cannot remove {}", packed.display()))?;
    }
    let mut pack = locate::cargo();
    pack.args(["package", "--workspace", "--no-verify", "--allow-dirty", "--target-dir"]).arg(&target);
    for name in UNPUBLISHED {
        pack.args(["--exclude", name]);
    }
    process::run(pack.current_dir(locate::repository()))?;

    let apart = packed.join("apart");
    let names = unpack(&packed, &apart)?;
    ensure!(!names.is_empty(), "cargo packed nothing into {}", packed.display());
    fs::write(apart.join("Cargo.toml"), manifest(&names))?;
    // The same versions of everything else.
    fs::copy(locate::repository().join("Cargo.lock"), apart.join("Cargo.lock"))?;
    let mut check = locate::cargo();
    check.args(["check", "--release", "--workspace", "--lib", "--bins", "--examples", "--target-dir"]).arg(&target);
    process::run(check.current_dir(&apart))
}

/// Unpacks the tarballs in `packed`, each into its folder `NAME-VERSION` of `into`; gives these names.
fn unpack(packed: &Path, into: &Path) -> Result<Vec<String>> {
    fs::create_dir_all(into)?;
    let mut names = Vec::new();
    for entry in fs::read_dir(packed)? {
        let path = entry?.path();
        if path.extension().is_none_or(|extension| extension != "crate") {
            continue;
        }
        let mut tar = Command::new("tar");
        tar.arg("-xzf").arg(&path).arg("-C").arg(into);
        let status = tar.status().context("cannot start tar")?;
        process::ended(process::shown(&tar), status)?;
        names.push(path.file_stem().expect("it has an extension").to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}

/// The manifest of a workspace of unpacked crates, which depend on each other instead of on the registry's.
fn manifest(folders: &[String]) -> String {
    let mut text = format!("[workspace]\nmembers = {folders:?}\n{SETTINGS}\n[patch.crates-io]\n");
    for folder in folders {
        let (name, _version) = folder.rsplit_once('-').expect("cargo names tarballs NAME-VERSION");
        writeln!(text, "{name} = {{ path = {folder:?} }}").expect("a String can be written");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unpacked_crates_take_each_other() {
        let manifest = manifest(&["oq-lwc-0.1.0".to_owned(), "oq-torch-link-0.1.0".to_owned()]);
        assert!(
            manifest.starts_with("[workspace]\nmembers = [\"oq-lwc-0.1.0\", \"oq-torch-link-0.1.0\"]\n"),
            "{manifest}"
        );
        assert!(manifest.ends_with("oq-torch-link = { path = \"oq-torch-link-0.1.0\" }\n"), "{manifest}");
    }
}
