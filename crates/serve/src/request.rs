//! Requests as clients send them.

use serde_json::Value;

use oq_data::Message;

use crate::keys::{Keys, shown};
use crate::refusal::Refusal;

/// Number of stop strings; OpenAI takes four.
const MAX_STOPS: usize = 16;
/// Number of alternatives per token that are told, as OpenAI has it: chat, completions.
const MAX_TOP: [u64; 2] = [20, 5];
/// Number of prompts in one request.
const MAX_PROMPTS: usize = 256;
/// Tokens of a completion, unless the request says it; OpenAI's default.
const COMPLETION_TOKENS: usize = 16;

/// Which of the two kinds of requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Chat,
    Completion,
}

/// What is to be continued.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Prompt {
    Messages(Vec<Message>),
    Text(String),
    Ids(Vec<u32>),
}

/// A request.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Request {
    pub kind: Kind,
    pub model: Option<String>,
    /// One answer for each.
    pub prompts: Vec<Prompt>,
    /// Up to the end of the context if there is none.
    pub max_tokens: Option<usize>,
    pub temperature: Option<f64>,
    pub top_p: Option<f64>,
    /// 0 is all.
    pub top_k: Option<usize>,
    pub repetition_penalty: Option<f64>,
    pub seed: Option<i64>,
    pub stops: Vec<String>,
    /// Whether log-probabilities are told, and those of how many alternatives.
    pub logprobs: Option<usize>,
    /// Whether the answer begins with the prompt.
    pub echo: bool,
    pub stream: bool,
    /// Whether the last piece of a stream has the number of tokens.
    pub include_usage: bool,
}

impl Request {
    /// Reads the body of a request.
    pub(crate) fn read(kind: Kind, body: &[u8]) -> Result<Self, Refusal> {
        let mut keys = Keys::new(body)?;
        let prompts = match kind {
            Kind::Chat => vec![Prompt::Messages(messages(&mut keys)?)],
            Kind::Completion => prompts(&mut keys)?,
        };
        let least = u64::from(kind == Kind::Chat);
        let max_tokens = keys.count("max_tokens", least..=u64::MAX)?;
        let (max_tokens, logprobs, echo) = match kind {
            Kind::Chat => {
                let newer = keys.count("max_completion_tokens", least..=u64::MAX)?;
                let top = keys.count("top_logprobs", 0..=MAX_TOP[0])?;
                let logprobs = match (keys.flag("logprobs")?, top) {
                    (false, Some(1..)) => return Err(Refusal::value("top_logprobs", "it needs logprobs: true")),
                    (false, _) => None,
                    (true, top) => Some(top.unwrap_or(0)),
                };
                (newer.or(max_tokens), logprobs, false)
            }
            Kind::Completion => {
                let logprobs = keys.count("logprobs", 0..=MAX_TOP[1])?;
                (Some(max_tokens.unwrap_or(COMPLETION_TOKENS)), logprobs, keys.flag("echo")?)
            }
        };
        let stream = keys.flag("stream")?;
        let request = Self {
            kind,
            model: keys.text("model")?,
            prompts,
            max_tokens,
            temperature: keys.number("temperature", 0.0..=2.0)?,
            top_p: keys.number("top_p", 0.0..=1.0)?,
            top_k: top_k(&mut keys)?,
            repetition_penalty: keys.number("repetition_penalty", 0.01..=100.0)?,
            seed: keys.integer("seed")?,
            stops: stops(&mut keys)?,
            logprobs,
            echo,
            stream,
            include_usage: include_usage(&mut keys, stream)?,
        };
        keys.finish()?;
        Ok(request)
    }
}

fn messages(keys: &mut Keys) -> Result<Vec<Message>, Refusal> {
    let list = match keys.take("messages") {
        Some(Value::Array(list)) if !list.is_empty() => list,
        Some(other) => return Err(Refusal::value("messages", format!("{}: messages are needed", shown(&other)))),
        None => return Err(Refusal::value("messages", "they are missing")),
    };
    list.into_iter().enumerate().map(|(i, value)| message(format!("messages[{i}]"), value)).collect()
}

fn message(place: String, value: Value) -> Result<Message, Refusal> {
    let mut keys = Keys::inside(place, value)?;
    let role = keys.text("role")?.unwrap_or_default();
    let role = match role.as_str() {
        "system" | "user" | "assistant" => role,
        // OpenAI's newer name of it.
        "developer" => "system".to_owned(),
        other => {
            let expected = "instead of system, user or assistant";
            return Err(Refusal::value(&keys.name("role"), format!("{other:?} {expected}")));
        }
    };
    let name = keys.name("content");
    let content = match keys.take("content") {
        Some(Value::String(text)) => text,
        Some(Value::Array(parts)) => {
            let parts = parts.into_iter().enumerate();
            parts.map(|(i, part)| part_of(format!("{name}[{i}]"), part)).collect::<Result<_, _>>()?
        }
        Some(other) => return Err(Refusal::value(&name, format!("{} instead of a string", shown(&other)))),
        None => return Err(Refusal::value(&name, "it is missing")),
    };
    keys.finish_empty()?;
    Ok(Message { role, content })
}

/// The text of one part of a message's content.
fn part_of(place: String, value: Value) -> Result<String, Refusal> {
    let mut keys = Keys::inside(place, value)?;
    let kind = keys.text("type")?.unwrap_or_default();
    if kind != "text" {
        return Err(Refusal::value(&keys.name("type"), format!("{kind:?}, but this server reads text alone")));
    }
    let text = keys.text("text")?;
    let text = text.ok_or_else(|| Refusal::value(&keys.name("text"), "it is missing"))?;
    keys.finish_empty()?;
    Ok(text)
}

/// A text, ids, or a list of either.
fn prompts(keys: &mut Keys) -> Result<Vec<Prompt>, Refusal> {
    let wrong = |value: &Value| {
        Refusal::value("prompt", format!("{} instead of a text, token ids, or a list of either", shown(value)))
    };
    let value = keys.take("prompt").ok_or_else(|| Refusal::value("prompt", "it is missing"))?;
    let list = match value {
        Value::Array(list) if !list.iter().all(Value::is_number) => list,
        // No prompts at all are as wrong as a prompt of no tokens.
        one => vec![one],
    };
    if list.len() > MAX_PROMPTS {
        return Err(Refusal::value("prompt", format!("{} prompts, but {MAX_PROMPTS} at most", list.len())));
    }
    let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok()).ok_or_else(|| wrong(value));
    let prompt = |value: Value| match value {
        Value::String(text) => Ok(Prompt::Text(text)),
        Value::Array(ids) => Ok(Prompt::Ids(ids.iter().map(id).collect::<Result<_, _>>()?)),
        other => Err(wrong(&other)),
    };
    list.into_iter().map(prompt).collect()
}

/// -1 and 0 are all, as other servers have it.
fn top_k(keys: &mut Keys) -> Result<Option<usize>, Refusal> {
    match keys.integer("top_k")? {
        Some(-1) => Ok(Some(0)),
        Some(k) => {
            let expected = "instead of a count";
            Ok(Some(usize::try_from(k).map_err(|_| Refusal::value("top_k", format!("{k} {expected}")))?))
        }
        None => Ok(None),
    }
}

fn stops(keys: &mut Keys) -> Result<Vec<String>, Refusal> {
    let list = match keys.take("stop") {
        None => return Ok(Vec::new()),
        Some(Value::Array(list)) => list,
        Some(one) => vec![one],
    };
    if list.len() > MAX_STOPS {
        return Err(Refusal::value("stop", format!("{} strings, but {MAX_STOPS} at most", list.len())));
    }
    let stop = |value: Value| match value {
        Value::String(text) if !text.is_empty() => Ok(text),
        Value::String(_) => Err(Refusal::value("stop", "an empty string would end every text before it began")),
        other => Err(Refusal::value("stop", format!("{} instead of a string", shown(&other)))),
    };
    list.into_iter().map(stop).collect()
}

fn include_usage(keys: &mut Keys, stream: bool) -> Result<bool, Refusal> {
    let Some(value) = keys.take("stream_options") else { return Ok(false) };
    if !stream {
        return Err(Refusal::value("stream_options", "it needs stream: true"));
    }
    let mut options = Keys::inside("stream_options".to_owned(), value)?;
    let include_usage = options.flag("include_usage")?;
    // Padding that hides the lengths of pieces, which this server does not add.
    options.flag("include_obfuscation")?;
    options.finish_empty()?;
    Ok(include_usage)
}
