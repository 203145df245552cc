//! The keys of a request, each taken once. What is left at the end is refused.

use std::ops::RangeInclusive;

use serde_json::{Map, Value};

use crate::refusal::Refusal;

/// Keys that change nothing about the answer.
const HARMLESS: &[&str] = &[
    "metadata",
    "parallel_tool_calls",
    "prompt_cache_key",
    "prompt_cache_retention",
    "safety_identifier",
    "service_tier",
    "store",
    "user",
];

/// Keys that this server lacks, with the value in JSON at which they change nothing. Of other keys, nothing is known.
const NEUTRAL: &[(&str, &str)] = &[
    ("best_of", "1"),
    ("frequency_penalty", "0"),
    ("functions", "[]"),
    ("logit_bias", "{}"),
    ("min_p", "0"),
    ("modalities", r#"["text"]"#),
    ("n", "1"),
    ("presence_penalty", "0"),
    ("response_format", r#"{"type": "text"}"#),
    ("suffix", r#""""#),
    ("tool_choice", r#""none""#),
    ("tools", "[]"),
];

/// The keys of an object that were not read yet.
pub(crate) struct Keys {
    left: Map<String, Value>,
    /// What stands before a key in messages.
    place: String,
}

impl Keys {
    /// The keys of a whole request.
    pub(crate) fn new(body: &[u8]) -> Result<Self, Refusal> {
        match serde_json::from_slice(body) {
            Ok(Value::Object(left)) => Ok(Self { left, place: String::new() }),
            Ok(_) => Err(Refusal::unreadable("the request is not a JSON object")),
            Err(error) => Err(Refusal::unreadable(format!("the request is not JSON: {error}"))),
        }
    }

    /// The keys of an object inside of a request.
    pub(crate) fn inside(place: String, value: Value) -> Result<Self, Refusal> {
        match value {
            Value::Object(left) => Ok(Self { left, place: place + "." }),
            other => Err(Refusal::value(&place, format!("{} instead of an object", shown(&other)))),
        }
    }

    /// A key as messages name it.
    pub(crate) fn name(&self, key: &str) -> String {
        format!("{}{key}", self.place)
    }

    /// Takes a value. `null` is none.
    pub(crate) fn take(&mut self, key: &str) -> Option<Value> {
        self.left.remove(key).filter(|value| !value.is_null())
    }

    fn wrong(&self, key: &str, value: &Value, expected: &str) -> Refusal {
        Refusal::value(&self.name(key), format!("{} instead of {expected}", shown(value)))
    }

    /// Takes a value that `read` understands.
    fn read<T>(
        &mut self,
        key: &str,
        expected: &str,
        read: impl FnOnce(&Value) -> Option<T>,
    ) -> Result<Option<T>, Refusal> {
        let Some(value) = self.take(key) else { return Ok(None) };
        read(&value).map(Some).ok_or_else(|| self.wrong(key, &value, expected))
    }

    pub(crate) fn text(&mut self, key: &str) -> Result<Option<String>, Refusal> {
        self.read(key, "a string", |value| value.as_str().map(str::to_owned))
    }

    /// A switch that is off unless it is given.
    pub(crate) fn flag(&mut self, key: &str) -> Result<bool, Refusal> {
        Ok(self.read(key, "true or false", Value::as_bool)?.unwrap_or(false))
    }

    pub(crate) fn integer(&mut self, key: &str) -> Result<Option<i64>, Refusal> {
        self.read(key, "a whole number", Value::as_i64)
    }

    pub(crate) fn number(&mut self, key: &str, range: RangeInclusive<f64>) -> Result<Option<f64>, Refusal> {
        let expected = format!("a number from {} to {}", range.start(), range.end());
        self.read(key, &expected, |value| value.as_f64().filter(|number| range.contains(number)))
    }

    pub(crate) fn count(&mut self, key: &str, range: RangeInclusive<u64>) -> Result<Option<usize>, Refusal> {
        let expected = match *range.end() {
            u64::MAX => format!("a whole number of at least {}", range.start()),
            end => format!("a whole number from {} to {end}", range.start()),
        };
        let within = |value: &Value| value.as_u64().filter(|count| range.contains(count))?.try_into().ok();
        self.read(key, &expected, within)
    }

    /// Refuses what is left, unless it changes nothing.
    pub(crate) fn finish(self) -> Result<(), Refusal> {
        let changes = |key: &&String| {
            let value = &self.left[*key];
            let neutral = NEUTRAL.iter().find(|(name, _)| name == key).map(|(_, neutral)| neutral);
            let is_neutral =
                neutral.is_some_and(|neutral| same(value, &serde_json::from_str(neutral).expect("the table has JSON")));
            !(value.is_null() || is_neutral || HARMLESS.contains(&key.as_str()))
        };
        match self.left.keys().find(changes) {
            Some(key) => Err(Refusal::unsupported(&self.name(key))),
            None => Ok(()),
        }
    }

    /// Refuses what is left, unless it is empty: for objects whose keys all matter.
    pub(crate) fn finish_empty(self) -> Result<(), Refusal> {
        let is_empty = |value: &Value| value.is_null() || value.as_array().is_some_and(Vec::is_empty);
        match self.left.iter().find(|(_, value)| !is_empty(value)) {
            Some((key, _)) => Err(Refusal::unsupported(&self.name(key))),
            None => Ok(()),
        }
    }
}

/// Equality of values, where 0 and 0.0 are the same.
fn same(a: &Value, b: &Value) -> bool {
    match (a.as_f64(), b.as_f64()) {
        (Some(a), Some(b)) => a == b,
        _ => a == b,
    }
}

/// A value in a message; of what is long, only the kind.
pub(crate) fn shown(value: &Value) -> String {
    match value {
        Value::Array(_) => "a list".to_owned(),
        Value::Object(_) => "an object".to_owned(),
        Value::String(text) if text.len() > 40 => "a string".to_owned(),
        other => other.to_string(),
    }
}
