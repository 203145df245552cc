//! The loop: read, choose, tell, and again.

use std::ops::ControlFlow;
use std::time::Instant;

use oq_data::Tokenizer;

use crate::error::GenerateError;
use crate::sampler::Sampler;
use crate::session::Session;
use crate::stream::TextStream;

/// When a text ends.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// After so many tokens.
    pub max_tokens: usize,
    /// Before one of these strings.
    pub stops: Vec<String>,
    /// At one of these tokens.
    pub ends: Vec<u32>,
}

/// Why a text ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// The model ended it, by this token.
    Token(u32),
    /// This string came.
    Stop(String),
    /// There are as many tokens as were asked for.
    MaxTokens,
    /// There are as many positions as the model has.
    Context,
    /// The caller wanted no more.
    Interrupted,
}

impl End {
    /// As records write it.
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

/// What was generated.
#[derive(Clone, Debug)]
pub struct Generated {
    /// The tokens, without the one that ended the text.
    pub ids: Vec<u32>,
    /// Their text.
    pub text: String,
    /// Why it ended.
    pub end: End,
    /// Seconds that reading the prompt took.
    pub prefill_secs: f64,
    /// Seconds of all that came after.
    pub decode_secs: f64,
}

/// Reads `prompt` after what the session has read before, and continues it. `tell` hears each piece of text as soon as it is known,
/// often an empty one, once for each token; it may break off.
///
/// The session has read all but the last token when this returns; what ended the text is not read.
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
        // It ends here whatever is wanted.
        let _ = tell(&rest.text);
        if let Some(stop) = rest.stop {
            end = End::Stop(stop);
        }
    }
    Ok(Generated { ids, text, end, prefill_secs, decode_secs: started.elapsed().as_secs_f64() })
}
