//! Builds and runs the program `omniquant`. `cargo xtask synth` is one run of it.

use std::process::{Command, Stdio};

use anyhow::Result;

use crate::{libtorch, locate, process};

/// Provides libtorch and builds the program.
pub fn build() -> Result<()> {
    if locate::prepared().is_some() {
        return Ok(());
    }
    libtorch::ensure_ready()?;
    process::run(locate::cargo().args(["build", "--release", "--package", "oq-cli"]).current_dir(locate::repository()))
}

/// Runs the built program in the repository's root, so that `configs/` and `out/` are found. Its stdout is shown, unless `is_silent`
/// because another program reads ours.
pub fn run(args: &[String], is_silent: bool) -> Result<()> {
    let mut program = command(args);
    if is_silent {
        program.stdout(Stdio::null());
    }
    process::run(&mut program)
}

/// [`run`] as the last step, replacing this process.
pub fn hand_over(args: &[String]) -> Result<()> {
    process::hand_over(&mut command(args))
}

/// A run of the built program in the repository's root.
pub fn command(args: &[String]) -> Command {
    if let Some(folder) = locate::prepared() {
        let mut program = Command::new(folder.join("bin/omniquant"));
        program.args(args).current_dir(folder);
        return program;
    }
    let mut cargo = locate::cargo();
    cargo.args(["run", "--quiet", "--release", "--package", "oq-cli", "--bin", "omniquant", "--"]).args(args);
    cargo.current_dir(locate::repository());
    cargo
}

/// Builds the program, and lets it write a model with random weights.
pub fn synth(args: &[String]) -> Result<()> {
    build()?;
    hand_over(&[&["synth".to_owned()], args].concat())
}
