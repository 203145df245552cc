//! One file per command.

pub mod convert;
pub mod doctor;
pub mod eval;
pub mod inspect;
pub mod logits;
pub mod plan;
pub mod quantize;

use clap::CommandFactory;

/// Prints a completion script.
pub fn completions(shell: clap_complete::Shell) -> anyhow::Result<()> {
    clap_complete::generate(shell, &mut crate::args::Cli::command(), "omniquant", &mut std::io::stdout());
    Ok(())
}
