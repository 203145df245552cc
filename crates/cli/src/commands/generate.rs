//! `omniquant generate`: continues a text.

use std::fmt::Display;
use std::io::{self, Read};
use std::path::Path;

use anyhow::Result;
use oq_data::{AddSpecial, Tokenizer};
use oq_generate::{End, Generated, Loaded, Session, generate};
use serde_json::{Value, json};

use crate::args::GenerateArgs;
use crate::commands::running::{Interrupt, load, settings, tell};
use crate::exit::CliError;
use crate::machine;
use crate::output::Output;

pub fn run(args: &GenerateArgs, out: &Output) -> Result<()> {
    // A mistake is told before anything is loaded.
    settings(&args.sampling, &[])?;
    let prompt = match (&args.prompt, &args.file) {
        (Some(prompt), _) => prompt.clone(),
        (None, Some(file)) => read(file)?,
        (None, None) => return Err(CliError::Usage("--prompt or --file is needed".to_owned()).into()),
    };
    let loaded = load(&args.model, &args.run, out)?;
    let tokenizer = Tokenizer::open(loaded.model().dir())?;
    let (settings, mut sampler) = settings(&args.sampling, tokenizer.eos())?;
    let prompt = tokenizer.encode(&prompt, AddSpecial::Yes)?;
    let mut session = loaded.session();
    let interrupt = Interrupt::install(None)?;
    let mut tell = tell(out, &interrupt);
    let generated =
        interrupt.during(|| generate(&mut session, &prompt, (&settings, &mut sampler, &tokenizer), &mut tell))?;
    if out.is_json() {
        let mut value = record(&loaded, &session, prompt.len(), &generated);
        value["seed"] = args.sampling.seed.into();
        out.result(&value, String::new)?;
    } else {
        out.piece("\n");
        out.note(&told(prompt.len(), &generated));
    }
    if generated.end == End::Interrupted && interrupt.was_asked() { Err(CliError::Stopped.into()) } else { Ok(()) }
}

fn read(file: &Path) -> Result<String, CliError> {
    let missing = |place: &dyn Display, error: &io::Error| {
        CliError::Missing(format!("{place}: the text cannot be read: {error}"))
    };
    if file == Path::new("-") {
        let mut text = String::new();
        let read = io::stdin().read_to_string(&mut text);
        return read.map(|_| text).map_err(|e| missing(&"stdin", &e));
    }
    std::fs::read_to_string(file).map_err(|e| missing(&file.display(), &e))
}

/// What was generated and how fast, for scripts.
pub fn record(loaded: &Loaded, session: &Session<'_>, prompt_tokens: usize, generated: &Generated) -> Value {
    let form = loaded.form();
    let stop = match &generated.end {
        End::Stop(stop) => Some(stop),
        _ => None,
    };
    json!({"text": generated.text, "ids": generated.ids, "end": generated.end.name(), "stop": stop,
        "prompt_tokens": prompt_tokens, "prefill_secs": generated.prefill_secs, "decode_secs": generated.decode_secs,
        "kernels": form.kernels.name(), "compute": form.compute.name(), "head": form.head.name(),
        "device": machine::device_name(loaded.device()), "weight_bytes": loaded.weight_bytes(), "cache_bytes": session.cache_bytes(), "peak_bytes": machine::peak_bytes()})
}

/// The same in a line.
pub fn told(prompt_tokens: usize, generated: &Generated) -> String {
    let rate = |tokens: usize, secs: f64| tokens as f64 / secs.max(1e-9);
    let read = rate(prompt_tokens, generated.prefill_secs);
    let written = rate(generated.ids.len(), generated.decode_secs);
    let end = match &generated.end {
        End::Token(_) => "the model ended it".to_owned(),
        End::Stop(stop) => format!("ended before {stop:?}"),
        End::MaxTokens => "--max-tokens reached".to_owned(),
        End::Context => "the model's context is full".to_owned(),
        End::Interrupted => "stopped".to_owned(),
    };
    let tokens = generated.ids.len();
    format!("{prompt_tokens} tokens read at {read:.1} per second, {tokens} written at {written:.1} per second; {end}")
}
