//! Answers in OpenAI's form: whole, or in pieces.

use oq_generate::End;
use serde_json::{Map, Value, json};

use crate::job::{Event, Score, Spelled, Usage};
use crate::refusal::Refusal;
use crate::request::Kind;

/// What all pieces of an answer have in common.
#[derive(Clone, Debug)]
pub(crate) struct Heading {
    pub kind: Kind,
    pub id: String,
    /// Seconds since 1970.
    pub created: u64,
    pub model: String,
}

impl Heading {
    fn object(&self, is_piece: bool, choices: Vec<Value>) -> Value {
        let object = match (self.kind, is_piece) {
            (Kind::Chat, false) => "chat.completion",
            (Kind::Chat, true) => "chat.completion.chunk",
            (Kind::Completion, _) => "text_completion",
        };
        json!({"id": self.id, "object": object, "created": self.created, "model": self.model, "choices": choices})
    }
}

/// One of a request's answers, as far as it is known.
#[derive(Debug, Default)]
struct Choice {
    text: String,
    scores: Vec<Score>,
    end: Option<End>,
    usage: Usage,
    /// Characters before the next token, for its offset.
    offset: usize,
    /// Whether a piece of it was sent.
    begun: bool,
}

impl Choice {
    /// Adds a part. Returns what failed, if it did.
    fn add(&mut self, event: Event) -> Result<(), Refusal> {
        match event {
            Event::Prompt(scores) => self.scores.extend(scores),
            Event::Token { text, score } => {
                self.text.push_str(&text);
                self.scores.extend(score);
            }
            Event::End { text, end, usage } => {
                self.text.push_str(&text);
                self.end = Some(end);
                self.usage = usage;
            }
            Event::Failed(refusal) => return Err(refusal),
        }
        Ok(())
    }

    fn finish_reason(&self) -> Option<&'static str> {
        self.end.as_ref().map(|end| match end {
            End::Token(_) | End::Stop(_) => "stop",
            End::MaxTokens | End::Context | End::Interrupted => "length",
        })
    }

    /// Takes the log-probabilities, which are `null` where they were not asked for.
    fn logprobs(&mut self, kind: Kind, asked: bool) -> Value {
        let scores = std::mem::take(&mut self.scores);
        match kind {
            _ if !asked => Value::Null,
            Kind::Chat => json!({"content": scores.iter().map(in_chat).collect::<Vec<_>>(), "refusal": null}),
            Kind::Completion => in_completion(&scores, &mut self.offset),
        }
    }
}

/// The answers to one request.
pub(crate) struct Answers {
    heading: Heading,
    choices: Vec<Choice>,
    asked_logprobs: bool,
    /// Whether streamed pieces tell the number of tokens.
    include_usage: bool,
}

impl Answers {
    /// Of a request whose answers begin with `echoes`.
    pub(crate) fn new(
        heading: Heading,
        echoes: Vec<Option<String>>,
        asked_logprobs: bool,
        include_usage: bool,
    ) -> Self {
        let choice = |echo: Option<String>| Choice { text: echo.unwrap_or_default(), ..Choice::default() };
        Self { heading, choices: echoes.into_iter().map(choice).collect(), asked_logprobs, include_usage }
    }

    /// Adds a part.
    ///
    /// # Errors
    /// The failure that it tells of.
    pub(crate) fn add(&mut self, index: usize, event: Event) -> Result<(), Refusal> {
        self.choices[index].add(event)
    }

    pub(crate) fn are_complete(&self) -> bool {
        self.choices.iter().all(|choice| choice.end.is_some())
    }

    fn usage(&self) -> Value {
        let sum = |of: fn(&Usage) -> usize| self.choices.iter().map(|choice| of(&choice.usage)).sum::<usize>();
        let (prompt, answer) = (sum(|usage| usage.prompt), sum(|usage| usage.answer));
        json!({"prompt_tokens": prompt, "completion_tokens": answer, "total_tokens": prompt + answer,
            "prompt_tokens_details": {"cached_tokens": sum(|usage| usage.cached)}})
    }

    /// The whole answer, once it is complete.
    pub(crate) fn whole(mut self) -> Value {
        let usage = self.usage();
        let (kind, asked) = (self.heading.kind, self.asked_logprobs);
        let choice = |(index, choice): (usize, &mut Choice)| {
            let reason = choice.finish_reason();
            let logprobs = choice.logprobs(kind, asked);
            match kind {
                Kind::Chat => json!({"index": index, "message": {"role": "assistant", "content": choice.text,
                    "refusal": null}, "logprobs": logprobs, "finish_reason": reason}),
                Kind::Completion => json!({"index": index, "text": choice.text, "logprobs": logprobs,
                    "finish_reason": reason}),
            }
        };
        let choices = self.choices.iter_mut().enumerate().map(choice).collect();
        let mut whole = self.heading.object(false, choices);
        whole["usage"] = usage;
        whole
    }

    /// The pieces that tell what was added to one answer since they were last taken.
    pub(crate) fn pieces(&mut self, index: usize) -> Vec<Value> {
        let kind = self.heading.kind;
        let choice = &mut self.choices[index];
        let mut pieces = Vec::new();
        if kind == Kind::Chat && !choice.begun {
            pieces.push(json!({"index": index, "delta": {"role": "assistant", "content": ""}, "logprobs": null,
                "finish_reason": null}));
        }
        choice.begun = true;
        let text = std::mem::take(&mut choice.text);
        let has_scores = !choice.scores.is_empty();
        if !text.is_empty() || has_scores {
            let logprobs = choice.logprobs(kind, has_scores);
            pieces.push(match kind {
                Kind::Chat => json!({"index": index, "delta": {"content": text}, "logprobs": logprobs,
                    "finish_reason": null}),
                Kind::Completion => json!({"index": index, "text": text, "logprobs": logprobs, "finish_reason": null}),
            });
        }
        if let Some(reason) = choice.finish_reason() {
            pieces.push(match kind {
                Kind::Chat => json!({"index": index, "delta": {}, "logprobs": null, "finish_reason": reason}),
                Kind::Completion => json!({"index": index, "text": "", "logprobs": null, "finish_reason": reason}),
            });
        }
        let piece = |choice| {
            let mut piece = self.heading.object(true, vec![choice]);
            if self.include_usage {
                piece["usage"] = Value::Null;
            }
            piece
        };
        pieces.into_iter().map(piece).collect()
    }

    /// The last piece of a stream, if it was asked for.
    pub(crate) fn usage_piece(&self) -> Option<Value> {
        self.include_usage.then(|| {
            let mut piece = self.heading.object(true, Vec::new());
            piece["usage"] = self.usage();
            piece
        })
    }
}

fn in_chat(score: &Score) -> Value {
    let one = |token: &Spelled, logprob: Option<f64>| {
        let bytes = token.is_text.then_some(token.text.as_bytes());
        json!({"token": token.text, "logprob": logprob, "bytes": bytes})
    };
    let mut value = one(&score.token, score.logprob);
    value["top_logprobs"] = score.top.iter().map(|(token, logprob)| one(token, Some(*logprob))).collect();
    value
}

fn in_completion(scores: &[Score], offset: &mut usize) -> Value {
    let top = |score: &Score| {
        let logprob = score.logprob?;
        let mut top = Map::new();
        // Tokens that are spelled alike are the likeliest of them.
        for (token, logprob) in
            score.top.iter().map(|(token, logprob)| (token, *logprob)).chain([(&score.token, logprob)])
        {
            top.entry(&*token.text).or_insert_with(|| logprob.into());
        }
        Some(top)
    };
    let offsets = scores.iter().map(|score| {
        let start = *offset;
        *offset += if score.token.is_text { score.token.text.chars().count() } else { 0 };
        start
    });
    json!({
        "text_offset": offsets.collect::<Vec<_>>(),
        "tokens": scores.iter().map(|score| &score.token.text).collect::<Vec<_>>(),
        "token_logprobs": scores.iter().map(|score| score.logprob).collect::<Vec<_>>(),
        "top_logprobs": scores.iter().map(top).collect::<Vec<_>>(),
    })
}
