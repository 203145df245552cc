//! What HTTP and the engine tell each other.

use std::sync::Arc;

use oq_generate::{End, Sampler, Settings};
use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::mpsc::UnboundedSender;

use crate::refusal::Refusal;

/// A message to the engine.
pub(crate) enum Order {
    Answer(Box<Job>),
    Stop,
}

/// One prompt to be continued.
pub(crate) struct Job {
    /// The number of the prompt in its request.
    pub index: usize,
    /// `[t]`, not empty, fewer than the context.
    pub prompt: Vec<u32>,
    pub settings: Settings,
    pub sampler: Sampler,
    pub scoring: Scoring,
    /// Where the answer goes: closed once nobody waits for it.
    pub told: UnboundedSender<(usize, Event)>,
    /// The request's place in the queue, free again when all of its jobs are gone.
    pub _place: Arc<OwnedSemaphorePermit>,
}

impl Job {
    /// Tells a part of the answer. If nobody waits for it any more, it is lost, and the engine will notice.
    pub(crate) fn tell(&self, event: Event) {
        let _ = self.told.send((self.index, event));
    }
}

/// Whose log-probabilities are told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Scoring {
    /// Of new tokens, with so many alternatives.
    pub answer: Option<usize>,
    /// Of the prompt's tokens, with so many alternatives.
    pub prompt: Option<usize>,
}

/// A part of an answer.
pub(crate) enum Event {
    /// The log-probabilities of the prompt, one per token.
    Prompt(Vec<Score>),
    /// A token: its text, which is often empty, and its log-probability if that was asked for.
    Token { text: String, score: Option<Score> },
    /// The end, with the rest of the text. Nothing follows.
    End { text: String, end: End, usage: Usage },
    /// The failure that ends the answer.
    Failed(Refusal),
}

/// Numbers of tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Usage {
    pub prompt: usize,
    /// Those of the prompt that an earlier session had processed.
    pub cached: usize,
    /// With an end-of-sequence token.
    pub answer: usize,
}

/// A token's log-probability by the model itself, before temperature and penalties.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Score {
    pub token: Spelled,
    /// None for the first token of a text, which nothing predicts.
    pub logprob: Option<f64>,
    /// The most likely tokens, the likeliest first.
    pub top: Vec<(Spelled, f64)>,
}

/// A token as text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Spelled {
    /// The text that it adds. Of a token without a text of its own (special, or a part of a character) the name in the vocabulary.
    pub text: String,
    pub is_text: bool,
}
