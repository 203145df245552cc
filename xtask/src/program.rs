//! The program `omniquant`: built, then run. `cargo xtask synth` is one run of it.

use anyhow::Result;

use crate::{libtorch, locate, process};

/// Provides libtorch and builds the program.
pub fn build() -> Result<()> {
    libtorch::ensure_ready()?;
    process::run(locate::cargo().args(["build", "--release", "--package", "oq-cli"]).current_dir(locate::repository()))
}

/// Runs the built program from the repository's root, where the paths of `configs/` and `out/` start.
pub fn run(args: &[String]) -> Result<()> {
    let mut cargo = locate::cargo();
    cargo.args(["run", "--quiet", "--release", "--package", "oq-cli", "--bin", "omniquant", "--"]).args(args);
    process::run(cargo.current_dir(locate::repository()))
}

/// Builds the program and has it write a model of random weights.
pub fn synth(args: &[String]) -> Result<()> {
    build()?;
    run(&[&["synth".to_owned()], args].concat())
}
