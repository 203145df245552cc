//! The one thread that computes: answers take turns, token by token.

use std::collections::VecDeque;
use std::sync::mpsc::Receiver;

use oq_data::Tokenizer;
use oq_generate::{Continuation, End, GenerateError, Loaded, Sampler, Session};

use crate::job::{Event, Job, Order, Score, Usage};
use crate::refusal::Refusal;
use crate::scores::Scorer;

/// Answers what is ordered until it is told to stop. What is unanswered then is dropped, so its clients' channels close.
pub(crate) fn work(loaded: &Loaded, tokenizer: &Tokenizer, parallel: usize, orders: Receiver<Order>) {
    let mut engine =
        Engine { loaded, tokenizer, parallel, idle: Vec::new(), running: Vec::new(), waiting: VecDeque::new() };
    loop {
        // Only an engine without work waits.
        let first = if engine.has_work() { None } else { Some(orders.recv().unwrap_or(Order::Stop)) };
        for order in first.into_iter().chain(orders.try_iter()) {
            match order {
                Order::Answer(job) => engine.waiting.push_back(*job),
                Order::Stop => return,
            }
        }
        engine.round();
    }
}

struct Engine<'a> {
    loaded: &'a Loaded,
    tokenizer: &'a Tokenizer,
    /// The number of sessions, running or idle.
    parallel: usize,
    /// Sessions whose answers are complete, the oldest first.
    idle: Vec<Session<'a>>,
    running: Vec<Running<'a>>,
    waiting: VecDeque<Job>,
}

/// An answer that is being generated.
struct Running<'a> {
    job: Job,
    session: Session<'a>,
    text: Continuation<'a>,
    sampler: Sampler,
    /// The alternatives per token, and how tokens are spelled, if log-probabilities are told.
    scorer: Option<(usize, Scorer<'a>)>,
    /// Tokens of the prompt that the session had processed before.
    cached: usize,
}

impl<'a> Engine<'a> {
    fn has_work(&self) -> bool {
        !self.running.is_empty() || !self.waiting.is_empty()
    }

    /// Begins one answer, if one is waiting and a session is free, and continues each by a token.
    fn round(&mut self) {
        // One at a time, because a long prompt makes the others wait.
        if self.running.len() < self.parallel
            && let Some(job) = self.waiting.pop_front()
        {
            // Nobody waits for it any more otherwise.
            if !job.told.is_closed() {
                self.begin(job);
            }
        }
        for mut running in std::mem::take(&mut self.running) {
            match running.step() {
                Ok(false) => self.running.push(running),
                Ok(true) => self.idle.push(running.session),
                // The session may be damaged.
                Err(error) => running.job.tell(Event::Failed(refusal(&error))),
            }
        }
    }

    fn begin(&mut self, job: Job) {
        let mut session = self.session_for(&job);
        let cached = session.ids().len();
        match prefilled(&job, &mut session, self.tokenizer) {
            Ok((text, scorer)) => {
                let sampler = job.sampler.clone();
                self.running.push(Running { job, session, text, sampler, scorer, cached });
            }
            Err(error) => job.tell(Event::Failed(refusal(&error))),
        }
    }

    /// The idle session that the prompt continues, of several the longest, or else a new one in place of the oldest.
    fn session_for(&mut self, job: &Job) -> Session<'a> {
        // Where the prompt is scored, all of it must be processed.
        let continues = |session: &Session<'_>| {
            job.scoring.prompt.is_none() && job.prompt.strip_prefix(session.ids()).is_some_and(|rest| !rest.is_empty())
        };
        let found = self.idle.iter().enumerate().filter(|(_, session)| continues(session));
        if let Some((at, _)) = found.max_by_key(|(_, session)| session.ids().len()) {
            return self.idle.remove(at);
        }
        if self.running.len() + self.idle.len() >= self.parallel {
            self.idle.remove(0);
        }
        self.loaded.session()
    }
}

impl Running<'_> {
    /// Continues by a token; returns whether that was the last one.
    fn step(&mut self) -> Result<bool, GenerateError> {
        if self.job.told.is_closed() {
            tracing::info!(answer = self.text.ids().len(), "the client has gone");
            return Ok(true);
        }
        let step = self.text.step(&mut self.session, &mut self.sampler)?;
        let ended_by = match step.end {
            Some(End::Token(id)) => Some(id),
            _ => None,
        };
        if let Some(id) = step.id.or(ended_by) {
            let score = match &mut self.scorer {
                Some((top, scorer)) => Some(scorer.next(self.text.logits(), id, *top)?),
                None => None,
            };
            // The text beside an end-of-sequence token is the rest.
            let text = if step.id.is_some() { step.text.clone() } else { String::new() };
            self.job.tell(Event::Token { text, score });
        }
        let Some(end) = step.end else { return Ok(false) };
        let text = if step.id.is_some() { String::new() } else { step.text };
        let answer = self.text.ids().len() + usize::from(ended_by.is_some());
        let usage = Usage { prompt: self.job.prompt.len(), cached: self.cached, answer };
        tracing::info!(prompt = usage.prompt, cached = usage.cached, answer, end = end.name(), "answered");
        self.job.tell(Event::End { text, end, usage });
        Ok(true)
    }
}

/// What continues a text, and what scores its tokens if that is asked for, with so many alternatives.
type Begun<'a> = (Continuation<'a>, Option<(usize, Scorer<'a>)>);

/// Processes a job's prompt, except what the session has processed before.
fn prefilled<'a>(job: &Job, session: &mut Session<'a>, tokenizer: &'a Tokenizer) -> Result<Begun<'a>, GenerateError> {
    let logits = match job.scoring.prompt {
        None => session.extend(&job.prompt[session.ids().len()..])?,
        Some(top) => {
            let (logits, scores) = scored(session, &job.prompt, top, tokenizer)?;
            job.tell(Event::Prompt(scores));
            logits
        }
    };
    let text = Continuation::new(session, logits, job.settings.clone(), tokenizer)?;
    let scorer = match job.scoring.answer {
        None => None,
        Some(top) => Some((top, Scorer::new(tokenizer, &job.prompt)?)),
    };
    Ok((text, scorer))
}

/// Processes a prompt: the logits of what follows it, and the score of each of its tokens with the `top` most likely ones.
fn scored(
    session: &mut Session<'_>,
    prompt: &[u32],
    top: usize,
    tokenizer: &Tokenizer,
) -> Result<(Vec<f32>, Vec<Score>), GenerateError> {
    let mut scorer = Scorer::new(tokenizer, &[])?;
    let mut scores = vec![scorer.first(prompt[0])];
    let logits = session.extend_and_tell(prompt, &mut |logits| {
        // Logits after the last token are of the answer.
        if let Some(&id) = prompt.get(scores.len()) {
            scores.push(scorer.next(logits, id, top));
        }
    })?;
    Ok((logits, scores.into_iter().collect::<Result<_, _>>()?))
}

fn refusal(error: &GenerateError) -> Refusal {
    tracing::error!("an answer failed: {error}");
    Refusal::failed(error.to_string())
}
