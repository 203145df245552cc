//! One file per command.

pub mod bench;
pub mod chat;
pub mod convert;
pub mod doctor;
pub mod eval;
pub mod export;
pub mod formats;
pub mod generate;
pub mod inspect;
pub mod judge;
pub mod logits;
pub mod merge;
pub mod plan;
pub mod progress;
pub mod quantize;
pub mod report;
pub mod running;
pub mod serve;
pub mod sweep;
pub mod synth;

use clap::CommandFactory;
use serde_json::json;

use crate::output::Output;

/// Prints a completion script.
pub fn completions(shell: clap_complete::Shell, out: &Output) -> anyhow::Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut crate::args::Cli::command(), "omniquant", &mut script);
    let script = String::from_utf8(script)?;
    out.result(&json!({"shell": shell.to_string(), "script": script}), || script.clone())
}
