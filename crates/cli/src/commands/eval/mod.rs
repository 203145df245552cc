//! `omniquant eval`: perplexity, divergence from the model in full precision, zero-shot accuracy.

mod opened;
mod subject;
mod tasks;
mod text;

use anyhow::Result;

use self::opened::Opened;
use crate::args::EvalArgs;
use crate::output::Output;

pub use self::subject::{Subject, tokens};

pub fn run(args: &EvalArgs, out: &Output) -> Result<()> {
    let opened = Opened::new(args, out)?;
    if args.tasks.is_empty() { text::measure(args, &opened, out) } else { tasks::ask(args, &opened, out) }
}
