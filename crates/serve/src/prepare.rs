//! From a request to what the engine works on: token ids, sampling, stopping.

use std::hash::{BuildHasher, Hasher, RandomState};

use oq_data::{AddSpecial, ChatTemplate, DataError, Generation, Tokenizer};
use oq_generate::{Choice, Sampler, Sampling, Settings};

use crate::job::Scoring;
use crate::refusal::Refusal;
use crate::request::{Prompt, Request};

/// What is known of the model outside of the engine.
pub(crate) struct Known {
    pub tokenizer: Tokenizer,
    /// None for models that were not trained to chat.
    pub template: Option<ChatTemplate>,
    /// The model's own sampling settings.
    pub generation: Generation,
    /// Positions of its context.
    pub limit: usize,
    /// Size of its vocabulary.
    pub vocab: usize,
}

/// An answer to be generated.
#[derive(Debug)]
pub(crate) struct Task {
    /// `[t]`, from 1 to the model's context.
    pub prompt: Vec<u32>,
    /// The text that the answer begins with, if it is to repeat the prompt.
    pub echo: Option<String>,
    pub settings: Settings,
    pub sampler: Sampler,
    pub scoring: Scoring,
}

impl Known {
    /// One task per prompt.
    pub(crate) fn tasks(&self, request: &Request) -> Result<Vec<Task>, Refusal> {
        // Without a seed, each request draws anew.
        let seed = request.seed.map_or_else(|| RandomState::new().build_hasher().finish(), |seed| seed as u64);
        let scoring = Scoring { answer: request.logprobs, prompt: request.logprobs.filter(|_| request.echo) };
        let task = |(i, prompt): (usize, &Prompt)| {
            let ids = self.ids(prompt)?;
            let echo = match (request.echo, prompt) {
                (false, _) => None,
                (true, Prompt::Text(text)) => Some(text.clone()),
                (true, _) => Some(self.tokenizer.decode(&ids).map_err(|e| Refusal::failed(e.to_string()))?),
            };
            let settings = Settings::new(request.max_tokens.unwrap_or(usize::MAX));
            let settings = settings.with_stops(request.stops.clone()).with_ends(self.tokenizer.eos().to_vec());
            let sampling = self.sampling(request).with_seed(seed.wrapping_add(i as u64));
            let sampler = Sampler::new(sampling).map_err(|e| Refusal::value("temperature", e.to_string()))?;
            Ok(Task { prompt: ids, echo, settings, sampler, scoring })
        };
        request.prompts.iter().enumerate().map(task).collect()
    }

    fn ids(&self, prompt: &Prompt) -> Result<Vec<u32>, Refusal> {
        let param = match prompt {
            Prompt::Messages(_) => "messages",
            Prompt::Text(_) | Prompt::Ids(_) => "prompt",
        };
        let wrong = |error: DataError| Refusal::value(param, error.to_string());
        let ids = match prompt {
            Prompt::Messages(messages) => {
                let template = self
                    .template
                    .as_ref()
                    .ok_or_else(|| Refusal::value(param, "this model has no chat template: use /v1/completions"))?;
                let text = template.render(messages, true).map_err(wrong)?;
                self.tokenizer.encode(&text, AddSpecial::No).map_err(wrong)?
            }
            Prompt::Text(text) => self.tokenizer.encode(text, AddSpecial::Yes).map_err(wrong)?,
            Prompt::Ids(ids) => ids.clone(),
        };
        if ids.is_empty() {
            return Err(Refusal::value(param, "it has no tokens"));
        }
        if ids.len() > self.limit {
            return Err(Refusal::too_long(param, ids.len(), self.limit));
        }
        match ids.iter().find(|&&id| id as usize >= self.vocab) {
            Some(id) => Err(Refusal::value(param, format!("token {id}, but the model has {} of them", self.vocab))),
            None => Ok(ids),
        }
    }

    /// The request's settings, else the model's own. Where neither says whether to sample, `top_p` or `top_k` do.
    fn sampling(&self, request: &Request) -> Sampling {
        let of_model = match &self.generation {
            own if own.draws => own.temperature.unwrap_or(1.0),
            _ if request.top_p.is_some() || request.top_k.is_some() => 1.0,
            _ => 0.0,
        };
        let choice = match request.temperature.unwrap_or(of_model) {
            0.0 => Choice::Greedy,
            temperature => Choice::Draw {
                temperature,
                // Of the API's 0, the likeliest token is left.
                top_p: request.top_p.or(self.generation.top_p).unwrap_or(1.0).max(f64::MIN_POSITIVE),
                top_k: request.top_k.or(self.generation.top_k).filter(|&k| k > 0),
            },
        };
        let penalty = request.repetition_penalty.or(self.generation.repetition_penalty).unwrap_or(1.0);
        Sampling::new(choice).with_repetition_penalty(penalty)
    }
}
