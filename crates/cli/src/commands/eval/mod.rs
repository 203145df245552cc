//! `omniquant eval`: perplexity, divergence from the model in full precision, zero-shot tasks.

mod answers;
mod harness;
mod opened;
mod outcome;
mod subject;
mod tasks;
mod text;

use anyhow::Result;
use serde_json::json;

use self::opened::Opened;
use self::outcome::{Outcome, table};
use crate::args::EvalArgs;
use crate::exit::CliError;
use crate::output::Output;
use crate::ranks::{Team, shared};

pub use self::subject::{Subject, tokens};

pub fn run(args: &EvalArgs, out: &Output) -> Result<()> {
    shared(args.ranks, out, |team, out| run_as(team, args, out))
}

/// The command on one of the ranks: each has its part of the windows or items, and the first one shows and writes the whole.
fn run_as(team: &Team, args: &EvalArgs, out: &Output) -> Result<()> {
    if args.models.len() > 1 && args.harness.is_some() {
        return Err(CliError::Usage("--harness: a file of the harness is about one model: give one".to_owned()).into());
    }
    let (rank, size) = (team.ranks.rank(), team.ranks.size());
    if size > 1 && args.answers.is_some() {
        let message =
            format!("--answers: one process writes this file, and this is rank {rank} of {size}: start it alone");
        return Err(CliError::Usage(message).into());
    }
    // All of them are opened before the first is evaluated.
    let opened = args.models.iter().map(|name| Opened::new(name, team, args, out)).collect::<Result<Vec<_>>>()?;
    let measure = |opened: &Opened| match args.tasks.is_empty() {
        true => text::measure(args, opened, &team.ranks, out),
        false => tasks::ask(args, opened, &team.ranks, out),
    };
    let outcomes = opened.iter().map(measure).collect::<Result<Vec<Outcome>>>()?;
    if !team.ranks.is_first() {
        return Ok(());
    }
    match &outcomes[..] {
        [one] => out.result(&one.record, || one.text.clone()),
        all => {
            let records: Vec<_> = all.iter().map(|outcome| &outcome.record).collect();
            out.result(&json!({"models": records}), || table(all))
        }
    }
}
