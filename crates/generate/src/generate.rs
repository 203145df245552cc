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

/// A text while it is being generated, token by token. Several of them can take turns, each with a session of its own.
pub struct Continuation<'a> {
    settings: Settings,
    stream: TextStream<'a>,
    logits: Vec<f32>,
    ids: Vec<u32>,
}

/// What one step of a [`Continuation`] adds.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Step {
    /// The new token; none if the text ended without one.
    pub id: Option<u32>,
    /// The new piece of text, which is often empty.
    pub text: String,
    /// Why the text ends here, if it does.
    pub end: Option<End>,
}

impl<'a> Continuation<'a> {
    /// Continues what the session has processed, whose last logits, `[vocab]`, are given.
    pub fn new(
        session: &Session<'_>,
        logits: Vec<f32>,
        settings: Settings,
        tokenizer: &'a Tokenizer,
    ) -> Result<Self, GenerateError> {
        let stream = TextStream::new(tokenizer, session.ids(), &settings.stops)?;
        Ok(Self { settings, stream, logits, ids: Vec::new() })
    }

    /// Processes the last token and chooses the next one. Nothing may follow a step that ends the text. On return the session has processed
    /// all tokens but the last. An end-of-sequence token is not processed.
    pub fn step(&mut self, session: &mut Session<'_>, sampler: &mut Sampler) -> Result<Step, GenerateError> {
        let last = self.ids.last().copied();
        if last.is_some() && session.ids().len() >= session.limit() {
            return Ok(self.finish(End::Context));
        }
        if self.ids.len() >= self.settings.max_tokens {
            return Ok(self.finish(End::MaxTokens));
        }
        if let Some(last) = last {
            self.logits = session.extend(&[last])?;
        }
        let id = sampler.choose(&self.logits, session.ids());
        if self.settings.ends.contains(&id) {
            return Ok(self.finish(End::Token(id)));
        }
        self.ids.push(id);
        let piece = self.stream.push(id)?;
        Ok(Step { id: Some(id), text: piece.text, end: piece.stop.map(End::Stop) })
    }

    /// Ends the text: the rest of it, which may still contain a stop string.
    pub fn finish(&mut self, end: End) -> Step {
        let rest = self.stream.finish();
        Step { id: None, text: rest.text, end: Some(rest.stop.map_or(end, End::Stop)) }
    }

    /// The logits that the last token was chosen from, `[vocab]`.
    pub fn logits(&self) -> &[f32] {
        &self.logits
    }

    /// The tokens so far, without an end-of-sequence token.
    pub fn ids(&self) -> &[u32] {
        &self.ids
    }
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
    let logits = session.extend(prompt)?;
    let prefill_secs = started.elapsed().as_secs_f64();
    let started = Instant::now();
    let mut continuation = Continuation::new(session, logits, settings.clone(), tokenizer)?;
    let mut text = String::new();
    let mut add = |piece: &str| {
        text.push_str(piece);
        tell(piece)
    };
    let end = loop {
        let step = continuation.step(session, sampler)?;
        let flow = add(&step.text);
        if let Some(end) = step.end {
            break end;
        }
        if flow.is_break() {
            let rest = continuation.finish(End::Interrupted);
            // Generation ends here in any case.
            let _ = add(&rest.text);
            break rest.end.unwrap_or(End::Interrupted);
        }
    };
    Ok(Generated { ids: continuation.ids, text, end, prefill_secs, decode_secs: started.elapsed().as_secs_f64() })
}
