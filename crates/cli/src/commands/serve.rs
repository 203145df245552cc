//! `omniquant serve`: answers other programs over HTTP.

use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Result;
use oq_data::{ChatTemplate, DataError, Generation, Tokenizer};
use oq_serve::{Options, Served, Server};
use serde_json::json;

use crate::args::ServeArgs;
use crate::commands::running::{load, open};
use crate::exit::CliError;
use crate::output::Output;
use crate::resolve::Named;

pub fn run(args: &ServeArgs, out: &Output) -> Result<()> {
    // Mistakes are reported before anything is loaded.
    if args.token.as_ref().is_some_and(String::is_empty) {
        return Err(CliError::Usage("--token: an empty token is none: leave it out".to_owned()).into());
    }
    let name = match &args.served_name {
        Some(name) => name.clone(),
        None => Named::new(&args.model)?.stem(),
    };
    let options = Options::new(&name)
        .with_token(args.token.clone())
        .with_parallel(args.parallel.into())
        .with_queue(args.queue.into());
    let server = Server::bind(&args.host, args.port, options)?;
    let address = server.address()?;
    if !address.ip().is_loopback() && args.token.is_none() {
        out.note(&format!("note: everyone who can reach {address} can use the model: a --token would keep others out"));
    }

    let opened = open(&args.model, &args.run, out)?;
    let dir = opened.dir().to_owned();
    let template = match ChatTemplate::open(&dir) {
        Ok(template) => Some(template),
        Err(DataError::NoChatTemplate { .. }) => {
            out.note("note: the model has no chat template, so /v1/chat/completions is refused");
            None
        }
        Err(error) => return Err(error.into()),
    };
    let has_template = template.is_some();
    let served = Served { tokenizer: Tokenizer::open(&dir)?, template, generation: Generation::open(&dir)? };
    let loaded = load(opened, out)?;

    let (stop, was_asked) = (server.stopper(), AtomicBool::new(false));
    let handler = move || {
        if was_asked.swap(true, Ordering::Relaxed) {
            std::process::exit(130);
        }
        stop.stop();
    };
    ctrlc::set_handler(handler).map_err(|e| CliError::Usage(format!("signals cannot be handled: {e}")))?;
    let url = format!("http://{address}/v1");
    let value = json!({"url": url, "model": name, "chat": has_template, "context": loaded.model().decoder().dims().max_positions,
        "parallel": args.parallel, "queue": args.queue, "weight_bytes": loaded.weight_bytes()});
    out.result(&value, || format!("{name} is served at {url}; Ctrl-C ends it"))?;
    Ok(server.run(&loaded, served)?)
}
