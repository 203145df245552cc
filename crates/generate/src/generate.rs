//! The loop: process tokens, choose the next one, emit its text, repeat.

use std::ops::ControlFlow;
use std::time::Instant;

use oq_data::Tokenizer;

use crate::error::GenerateError;
use crate::sampler::Sampler;
use crate::session::Session;
use crate::stream::TextStream;

/// When generation stops.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Settings {
    /// After this many tokens.
    pub max_tokens: usize,
    /// Before one of these strings.
    pub stops: Vec<String>,
    /// At one of these end-of-sequence tokens.
    pub ends: Vec<u32>,
}

impl Settings {
    /// Ends after so many tokens, and at nothing else.
    pub fn new(max_tokens: usize) -> Self {
        Self { max_tokens, ..Self::default() }
    }

    /// The same, which also ends before one of these strings.
    pub fn with_stops(self, stops: Vec<String>) -> Self {
        Self { stops, ..self }
    }

    /// The same, which also ends at one of these tokens.
    pub fn with_ends(self, ends: Vec<u32>) -> Self {
        Self { ends, ..self }
    }
}

/// Why generation stopped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// The model produced this end-of-sequence token.
    Token(u32),
    /// This stop string occurred.
    Stop(String),
    /// The requested number of tokens was reached.
    MaxTokens,
    /// The model has no more positions.
    Context,
    /// The caller stopped it.
    Interrupted,
}

impl End {
    /// Name of the reason in records.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Token(_) => "end",
            Self::Stop(_) => "stop",
            Self::MaxTokens => "max_tokens",
            Self::Context => "context",
            Self::Interrupted => "interrupted",
        }
    }
}

/// The generated text.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Generated {
    /// The tokens, without the end-of-sequence token.
    pub ids: Vec<u32>,
    /// Their text.
    pub text: String,
    /// Why generation stopped.
    pub end: End,
    /// Seconds of prefill.
    pub prefill_secs: f64,
    /// Seconds of everything after it.
    pub decode_secs: f64,
}

/// Feeds `prompt` to the session, after what it has processed before, and continues it. `tell` is called once per token with the new piece
/// of text, which is often empty; it can stop the generation.
///
/// On return the session has processed all tokens but the last. An end-of-sequence token is not processed.
pub fn generate(
    session: &mut Session<'_>,
    prompt: &[u32],
    (settings, sampler, tokenizer): (&Settings, &mut Sampler, &Tokenizer),
    tell: &mut dyn FnMut(&str) -> ControlFlow<()>,
) -> Result<Generated, GenerateError> {
    let started = Instant::now();
    let mut logits = session.extend(prompt)?;
    let prefill_secs = started.elapsed().as_secs_f64();
    let started = Instant::now();
    let mut stream = TextStream::new(tokenizer, session.ids(), &settings.stops)?;
    let (mut ids, mut text) = (Vec::new(), String::new());
    let mut end = loop {
        if ids.len() >= settings.max_tokens {
            break End::MaxTokens;
        }
        let id = sampler.choose(&logits, session.ids());
        if settings.ends.contains(&id) {
            break End::Token(id);
        }
        ids.push(id);
        let piece = stream.push(id)?;
        text.push_str(&piece.text);
        let flow = tell(&piece.text);
        if let Some(stop) = piece.stop {
            break End::Stop(stop);
        }
        if flow.is_break() {
            break End::Interrupted;
        }
        if session.ids().len() >= session.limit() {
            break End::Context;
        }
        if ids.len() < settings.max_tokens {
            logits = session.extend(&[id])?;
        }
    };
    if !matches!(end, End::Stop(_)) {
        let rest = stream.finish();
        text.push_str(&rest.text);
        // Generation ends here in any case.
        let _ = tell(&rest.text);
        if let Some(stop) = rest.stop {
            end = End::Stop(stop);
        }
    }
    Ok(Generated { ids, text, end, prefill_secs, decode_secs: started.elapsed().as_secs_f64() })
}
