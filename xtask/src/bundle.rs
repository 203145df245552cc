//! What [`crate::dist`] and [`crate::pip`] share: the program, linked to find libtorch where it will lie, and the licences of what is in it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::libtorch::{self, LICENSES};
use crate::{locate, process, program};

/// The version of all packages.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Read by `crates/cli/build.rs`.
const RUN_PATH: &str = "OMNIQUANT_RUN_PATH";

/// Provides libtorch and gives its folder.
pub fn libtorch() -> Result<PathBuf> {
    ensure!(
        cfg!(all(target_os = "linux", target_arch = "x86_64")),
        "only for x86-64 Linux, of which this machine is not"
    );
    libtorch::ensure_ready()?;
    match locate::provided(&locate::libtorch_link(), locate::process_env) {
        None => Ok(fs::canonicalize(locate::libtorch_link())?),
        Some(locate::Provided::Folder(folder)) => Ok(fs::canonicalize(folder)?),
        Some(locate::Provided::Python) => {
            bail!(
                "LIBTORCH_USE_PYTORCH is set: unset it, so that libtorch and its licences come from the pinned wheels"
            )
        }
    }
}

/// Builds the program so that it looks for libtorch in `run_path`, with more arguments for the linker, and copies it to `to`. What lies in
/// `target` is then built as it was, to run here.
pub fn build(run_path: &str, link: &[String], to: &Path) -> Result<()> {
    let mut cargo = locate::cargo();
    cargo.args(["rustc", "--release", "--package", "oq-cli", "--bin", "omniquant", "--"]);
    cargo.args(link.iter().map(|argument| format!("-Clink-arg={argument}")));
    process::run(cargo.env(RUN_PATH, run_path).current_dir(locate::repository()))?;
    // cargo runs xtask from where it puts all programs of the profile.
    let built = std::env::current_exe()?.with_file_name("omniquant");
    let copied = fs::copy(&built, to).with_context(|| format!("cannot copy {} to {}", built.display(), to.display()));
    program::build()?;
    copied.map(drop)
}

/// Writes the licences of the program, of the crates in it and, with `libtorch`, of that library's wheels, below `into`.
pub fn write_licenses(into: &Path, libtorch: Option<&Path>) -> Result<()> {
    fs::create_dir_all(into)?;
    for name in ["LICENSE-APACHE", "LICENSE-MIT"] {
        fs::copy(locate::repository().join(name), into.join(name))?;
    }
    fs::write(into.join("crates.txt"), of_crates(&crates()?)?)?;
    let Some(libtorch) = libtorch else { return Ok(()) };
    let from = libtorch.join(LICENSES);
    ensure!(
        from.is_dir(),
        "{} has no licences: it was set up before they were kept, or by yourself; run `cargo xtask setup --force`, or put them there",
        from.display()
    );
    copy_all(&from, &into.join("libtorch"))
}

fn copy_all(from: &Path, into: &Path) -> Result<()> {
    fs::create_dir_all(into)?;
    for entry in fs::read_dir(from)? {
        let path = entry?.path();
        let to = into.join(path.file_name().expect("entries have names"));
        if path.is_dir() { copy_all(&path, &to)? } else { fs::copy(&path, &to).map(drop)? }
    }
    Ok(())
}

/// A crate that is compiled into the program.
struct Crate {
    name: String,
    license: String,
    folder: PathBuf,
}

/// The crates of others in the program, sorted.
fn crates() -> Result<Vec<Crate>> {
    let host = host()?;
    let tree =
        ["tree", "--package", "oq-cli", "--edges", "normal", "--prefix", "none", "--format", "{p}", "--target", &host];
    let tree = output(locate::cargo().args(tree).current_dir(locate::repository()))?;
    let linked: BTreeSet<&str> = tree.lines().filter_map(|line| line.get(..line.find(" v")?)).collect();
    let metadata = ["metadata", "--format-version", "1", "--filter-platform", &host];
    let metadata: Value =
        serde_json::from_str(&output(locate::cargo().args(metadata).current_dir(locate::repository()))?)?;
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let mut crates = Vec::new();
    for package in metadata["packages"].as_array().context("cargo lists packages")? {
        // Ours come from no registry.
        if package["source"].is_null() || !linked.contains(&*text(&package["name"])) {
            continue;
        }
        let name = format!("{} {}", text(&package["name"]), text(&package["version"]));
        let manifest = PathBuf::from(text(&package["manifest_path"]));
        let folder = manifest.parent().context("a manifest lies in a folder")?.to_owned();
        crates.push(Crate { name, license: text(&package["license"]), folder });
    }
    crates.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(crates)
}

/// The target that cargo builds for where none is named.
fn host() -> Result<String> {
    let about = output(locate::cargo().arg("-vV"))?;
    let host = about.lines().find_map(|line| line.strip_prefix("host: "));
    host.map(str::to_owned).context("cargo says which host it is for")
}

/// Each crate with its licence, then each text with the crates that it came with.
fn of_crates(crates: &[Crate]) -> Result<String> {
    let mut texts: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    let mut list = "Crates of others in this program, by the licences that they name:\n\n".to_owned();
    for Crate { name, license, folder } in crates {
        list.push_str(&format!("{name}: {license}\n"));
        for entry in fs::read_dir(folder).with_context(|| format!("cannot list {}", folder.display()))? {
            let path = entry?.path();
            if path.is_file() && path.file_name().is_some_and(|name| is_license(&name.to_string_lossy())) {
                let text = String::from_utf8_lossy(&fs::read(&path)?).into_owned();
                texts.entry(text).or_default().push(name);
            }
        }
    }
    for (text, mut names) in texts {
        names.dedup();
        list.push_str(&format!("\n{}\n{}\n\n{}\n", "=".repeat(80), names.join(", "), text.trim_end()));
    }
    Ok(list)
}

fn is_license(file: &str) -> bool {
    let upper = file.to_uppercase();
    ["LICENSE", "LICENCE", "COPYING", "COPYRIGHT", "NOTICE", "UNLICENSE"].iter().any(|start| upper.starts_with(start))
}

/// The names of the shared libraries that a file needs.
pub fn needed(file: &Path) -> Result<Vec<String>> {
    Ok(needed_in(&output(Command::new("readelf").arg("-d").arg(file).env("LC_ALL", "C"))?))
}

/// ` 0x0000000000000001 (NEEDED)             Shared library: [libc10.so]`
fn needed_in(dynamic: &str) -> Vec<String> {
    let lines = dynamic.lines().filter(|line| line.contains("(NEEDED)"));
    let name = |line: &str| Some(line.split_once('[')?.1.split_once(']')?.0.to_owned());
    lines.filter_map(name).collect()
}

/// What a program prints.
fn output(command: &mut Command) -> Result<String> {
    let shown = process::shown(command);
    let output = command.output().with_context(|| format!("cannot start `{shown}`"))?;
    if !output.status.success() {
        eprint!("{}", String::from_utf8_lossy(&output.stderr));
    }
    process::ended(shown, output.status)?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn needed_libraries_are_named_in_brackets() {
        let dynamic = "
 0x000000000000001d (RUNPATH)            Library runpath: [$ORIGIN/lib]
 0x0000000000000001 (NEEDED)             Shared library: [libtorch_cpu.so]
 0x0000000000000001 (NEEDED)             Shared library: [libc.so.6]
 0x000000000000000c (INIT)               0x1000";
        assert_eq!(needed_in(dynamic), ["libtorch_cpu.so", "libc.so.6"]);
    }

    #[test]
    fn licences_are_found_by_name() {
        let found = |name: &&str| is_license(name);
        let names =
            ["LICENSE", "LICENSE-MIT", "license.txt", "COPYING", "NOTICE.md", "UNLICENSE", "README.md", "lib.rs"];
        assert_eq!(names.into_iter().filter(|name| found(name)).count(), 6);
    }

    #[test]
    fn a_text_that_crates_share_stands_once() {
        let folder = tempfile::tempdir().unwrap();
        let crates = ["a 1.0.0", "b 2.0.0"].map(|name| {
            let folder = folder.path().join(name);
            fs::create_dir(&folder).unwrap();
            fs::write(folder.join("LICENSE"), "Do as you like.\n").unwrap();
            Crate { name: name.to_owned(), license: "MIT".to_owned(), folder }
        });
        let text = of_crates(&crates).unwrap();
        assert!(text.contains("a 1.0.0: MIT\nb 2.0.0: MIT\n"), "{text}");
        assert!(text.contains("a 1.0.0, b 2.0.0\n\nDo as you like.\n"), "{text}");
        assert_eq!(text.matches("Do as you like.").count(), 1);
    }
}
