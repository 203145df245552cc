//! The `omniquant` command: quantizes, evaluates, runs and inspects models.

mod args;
mod card;
mod commands;
mod exit;
mod last_part;
mod machine;
mod nvidia;
mod output;
mod profile;
mod ranks;
mod resolve;
mod size;

use std::process::ExitCode;

use clap::Parser;

use crate::args::{Cli, Command};

fn main() -> ExitCode {
    let cli = Cli::parse();
    let settled = oq_runtime::settle();
    output::init_logs(&cli.global);
    if let Err(error) = settled {
        tracing::debug!(%error, "the program could not re-execute itself");
    }
    let ranks = match &cli.command {
        Command::Quantize(args) => args.ranks,
        Command::Eval(args) => args.ranks,
        _ => None,
    };
    if let Some(threads) = ranks::threads(cli.global.threads, ranks) {
        machine::set_threads(threads);
    }
    let out = output::Output::new(&cli.global);
    let result = oq_isa::Isa::chosen().map_err(Into::into).and_then(|_| match &cli.command {
        Command::Quantize(args) => commands::quantize::run(args, &out),
        Command::Sweep(args) => commands::sweep::run(args, &cli.global, &out),
        Command::Eval(args) => commands::eval::run(args, &out),
        Command::Generate(args) => machine::in_pool(|| commands::generate::run(args, &out)),
        Command::Chat(args) => machine::in_pool(|| commands::chat::run(args, &out)),
        Command::Serve(args) => machine::in_pool(|| commands::serve::run(args, &out)),
        Command::Judge(args) => machine::in_pool(|| commands::judge::run(args, &out)),
        Command::Bench(args) => machine::in_pool(|| commands::bench::run(args, &out)),
        Command::Plan(args) => commands::plan::run(args, &out),
        Command::Report(args) => commands::report::run(args, &out),
        Command::Inspect(args) => commands::inspect::run(args, &out),
        Command::Logits(args) => commands::logits::run(args, &out),
        Command::Merge(args) => commands::merge::run(args, &out),
        Command::Convert(args) => commands::convert::run(args, &out),
        Command::Export(args) => commands::export::run(args, &out),
        Command::Formats(args) => commands::formats::run(args, &out),
        Command::Synth(args) => commands::synth::run(args, &out),
        Command::Doctor => commands::doctor::run(&out),
        Command::Completions { shell } => commands::completions(*shell, &out),
    });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            out.error(&error);
            ExitCode::from(exit::code_of(&error))
        }
    }
}
