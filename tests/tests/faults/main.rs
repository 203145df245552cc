//! Errors: their exit codes and messages, and that no partially written files are left behind.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test fails by panicking and says what it skipped")]

mod inputs;
mod outputs;

use std::fs;
use std::path::Path;
use std::process::Command;

use oq_tests::{omniquant, run};

const USAGE: i32 = 2;
const INPUT: i32 = 3;
const DOES_NOT_FIT: i32 = 4;
const NUMERIC: i32 = 5;

const TINY: &str = "tests/fixtures/tiny-llama";
const CALIB: &str = "tests/fixtures/calib.txt";

/// Checks that a command fails with `code` and that its message contains all of `parts`.
#[track_caller]
fn check(command: &mut Command, code: i32, parts: &[&str]) {
    let output = run(command, code);
    let stderr = String::from_utf8(output.stderr).unwrap();
    for part in parts {
        assert!(stderr.contains(part), "no {part:?} in\n{stderr}");
    }
    assert!(stderr.contains("error: ") && output.stdout.is_empty(), "{stderr}");
}

/// A small run. Later arguments override these.
fn quantize(model: impl AsRef<Path>, out: &Path) -> Command {
    let mut command = omniquant();
    command.arg("quantize").arg(model.as_ref()).args(["--samples", "2", "--seqlen", "32", "--epochs", "1"]);
    command.arg("--out").arg(out);
    command
}

/// [`check`] for a run with the default scheme and text, which must leave no partially written files.
#[track_caller]
fn check_quantize(model: impl AsRef<Path>, code: i32, parts: &[&str]) {
    check_quantize_with(model, &["--scheme", "w4a16g64", "--calib", CALIB], code, parts);
}

#[track_caller]
fn check_quantize_with(model: impl AsRef<Path>, args: &[&str], code: i32, parts: &[&str]) {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    check(quantize(model, &out).args(args), code, parts);
    let left = names(&out);
    let unfinished = left.iter().all(|name| name != "config.json" && !name.starts_with('.'));
    assert!(unfinished, "left behind: {left:?}");
}

/// Names of a directory's entries; empty if there is no such directory.
fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries.map(|entry| entry.file_name().into_string().unwrap()).collect();
    names.sort();
    names
}
