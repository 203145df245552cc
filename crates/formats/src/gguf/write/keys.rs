//! Typed access to a Hugging Face `config.json`. Every error names the key.

use serde_json::Value as Json;

use crate::gguf::GgufError;

/// Largest size that is accepted: far above that of any model, and small enough that products of two sizes cannot overflow.
const MAX: u64 = 1 << 24;

/// A JSON object; `null` counts as absent.
#[derive(Clone, Copy)]
pub(super) struct Config<'a>(pub(super) &'a Json);

impl<'a> Config<'a> {
    pub(super) fn get(self, key: &str) -> Option<&'a Json> {
        self.0.get(key).filter(|value| !value.is_null())
    }

    pub(super) fn wrong(self, key: &str, expected: impl Into<String>) -> GgufError {
        let value = self.get(key).map_or_else(|| "missing".to_owned(), Json::to_string);
        GgufError::Config { key: key.to_owned(), value, expected: expected.into() }
    }

    pub(super) fn size(self, key: &str) -> Result<Option<usize>, GgufError> {
        match self.get(key).map(Json::as_u64) {
            None => Ok(None),
            Some(Some(n)) if (1..=MAX).contains(&n) => Ok(Some(n as usize)),
            Some(_) => Err(self.wrong(key, format!("a whole number from 1 to {MAX}"))),
        }
    }

    pub(super) fn needed(self, key: &str) -> Result<usize, GgufError> {
        self.size(key)?.ok_or_else(|| self.wrong(key, "a positive whole number"))
    }

    pub(super) fn number(self, key: &str) -> Result<Option<f64>, GgufError> {
        match self.get(key).map(Json::as_f64) {
            None => Ok(None),
            Some(Some(x)) if x.is_finite() && x > 0.0 => Ok(Some(x)),
            Some(_) => Err(self.wrong(key, "a positive number")),
        }
    }

    /// A positive number; 0 counts as absent.
    pub(super) fn number_unless_zero(self, key: &str) -> Result<Option<f64>, GgufError> {
        if self.get(key).and_then(Json::as_f64) == Some(0.0) { Ok(None) } else { self.number(key) }
    }

    pub(super) fn flag(self, key: &str, default: bool) -> Result<bool, GgufError> {
        self.get(key).map_or(Ok(default), |value| value.as_bool().ok_or_else(|| self.wrong(key, "true or false")))
    }

    pub(super) fn text(self, key: &str) -> Option<&'a str> {
        self.get(key)?.as_str()
    }

    /// Refuses every value of a flag or number but this one, which is also that of a missing key.
    pub(super) fn is(self, key: &str, allowed: impl Into<Json>, why: &str) -> Result<(), GgufError> {
        let allowed = allowed.into();
        match self.get(key) {
            Some(value) if *value != allowed && value.as_f64().is_none_or(|x| Some(x) != allowed.as_f64()) => {
                Err(self.wrong(key, format!("{allowed}: {why}")))
            }
            _ => Ok(()),
        }
    }

    /// Refuses every value but this one.
    pub(super) fn only(self, key: &str, allowed: &str) -> Result<(), GgufError> {
        match self.text(key).unwrap_or(allowed) {
            value if value == allowed => Ok(()),
            _ => Err(self.wrong(key, format!("{allowed}: llama.cpp computes no other"))),
        }
    }
}
