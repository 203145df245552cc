//! `omniquant generate`: continues a text.

use std::fmt::Display;
use std::io::{self, Read};
use std::path::Path;

use anyhow::Result;
use oq_data::{AddSpecial, Generation, Tokenizer};
use oq_formats::without_mark;
use oq_generate::{End, Generated, Loaded, Sampler, Session, generate};
use serde_json::{Value, json};

use crate::args::GenerateArgs;
use crate::commands::running::{Interrupt, check, emit, load, open, record_of, settings};
use crate::exit::CliError;
use crate::machine;
use crate::output::Output;

pub fn run(args: &GenerateArgs, out: &Output) -> Result<()> {
    // Mistakes are reported before anything is loaded.
    check(&args.sampling)?;
    let text = match (&args.prompt, &args.file) {
        (Some(prompt), _) => prompt.clone(),
        (None, Some(file)) => read(file)?,
        (None, None) => return Err(CliError::Usage("--prompt or --file is needed".to_owned()).into()),
    };
    let opened = open(&args.model, &args.run, out)?;
    let (tokenizer, generation) = (Tokenizer::open(opened.dir())?, Generation::open(opened.dir())?);
    let (settings, sampling) = settings(&args.sampling, &generation, tokenizer.eos(), out)?;
    let prompt = tokenizer.encode(&text, AddSpecial::Yes)?;
    if let (Some(bos), [first, second, ..]) = (tokenizer.bos(), &prompt[..])
        && [*first, *second] == [bos; 2]
    {
        out.note("note: the prompt begins with the beginning-of-sequence token, and the tokenizer adds one: the model gets it twice");
    }
    let loaded = load(opened, out)?;
    let mut sampler = Sampler::new(sampling)?;
    let mut session = loaded.session();
    let interrupt = Interrupt::install(None)?;
    let mut emit = emit(out, &interrupt);
    let generated =
        interrupt.during(|| generate(&mut session, &prompt, (&settings, &mut sampler, &tokenizer), &mut emit))?;
    if out.is_json() {
        let mut value = record(&loaded, &session, prompt.len(), &generated);
        value["seed"] = args.sampling.seed.into();
        value["sampling"] = record_of(&sampling);
        out.result(&value, String::new)?;
    } else {
        out.piece("\n");
        out.note(&summary(prompt.len(), &generated));
    }
    if generated.end == End::Interrupted && interrupt.was_asked() { Err(CliError::Stopped.into()) } else { Ok(()) }
}

fn read(file: &Path) -> Result<String, CliError> {
    let missing = |place: &dyn Display, error: &dyn Display| {
        CliError::Missing(format!("{place}: the text cannot be read: {error}"))
    };
    let (place, bytes): (Box<dyn Display>, _) = if file == Path::new("-") {
        let mut bytes = Vec::new();
        (Box::new("stdin"), io::stdin().read_to_end(&mut bytes).map(|_| bytes))
    } else {
        (Box::new(file.display()), std::fs::read(file))
    };
    let bytes = bytes.map_err(|e| missing(&place, &e))?;
    let text = std::str::from_utf8(without_mark(&bytes)).map_err(|e| missing(&place, &e))?;
    Ok(text.to_owned())
}

/// The result and its speed, for scripts.
pub fn record(loaded: &Loaded, session: &Session<'_>, prompt_tokens: usize, generated: &Generated) -> Value {
    let form = loaded.form();
    let stop = match &generated.end {
        End::Stop(stop) => Some(stop),
        _ => None,
    };
    json!({"text": generated.text, "ids": generated.ids, "end": generated.end.name(), "stop": stop,
        "prompt_tokens": prompt_tokens, "prefill_secs": generated.prefill_secs, "decode_secs": generated.decode_secs,
        "kernels": form.kernels.name(), "compute": form.compute.name(), "head": form.head.name(), "prefill": form.prefill.name(),
        "device": machine::device_name(loaded.device()), "weight_bytes": loaded.weight_bytes(), "cache_bytes": session.cache_bytes(), "peak_bytes": machine::peak_bytes()})
}

/// The same in one line of text.
pub fn summary(prompt_tokens: usize, generated: &Generated) -> String {
    let rate = |tokens: usize, secs: f64| tokens as f64 / secs.max(1e-9);
    let prefill = rate(prompt_tokens, generated.prefill_secs);
    let decode = rate(generated.ids.len(), generated.decode_secs);
    let end = match &generated.end {
        End::Token(_) => "end of sequence".to_owned(),
        End::Stop(stop) => format!("ended before {stop:?}"),
        End::MaxTokens => "--max-tokens reached".to_owned(),
        End::Context => "the model's context is full".to_owned(),
        End::Interrupted => "stopped".to_owned(),
    };
    let tokens = generated.ids.len();
    format!(
        "prefill {prompt_tokens} tokens, {prefill:.1} per second; decode {tokens} tokens, {decode:.1} per second; {end}"
    )
}
