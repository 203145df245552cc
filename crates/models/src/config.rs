//! Typed access to `config.json`, as transformers 4 and 5 write it.

use serde_json::Value;

use crate::error::ModelError;

/// Largest size that is accepted: far above that of any model, and small enough that products of two sizes cannot overflow.
pub(crate) const MAX: usize = 1 << 24;

/// Largest number of layers that is accepted. It is smaller because each layer gets a description in memory.
const MAX_LAYERS: usize = 1 << 20;

/// A view of one JSON object. Every error names the key.
#[derive(Clone, Copy)]
pub(crate) struct Config<'a> {
    json: &'a Value,
}

impl<'a> Config<'a> {
    pub(crate) fn new(json: &'a Value) -> Self {
        Self { json }
    }

    /// The value of a key; `null` counts as absent.
    pub(crate) fn get(&self, key: &str) -> Option<&'a Value> {
        self.json.get(key).filter(|value| !value.is_null())
    }

    /// Whether a key is present, even as `null`.
    pub(crate) fn is_written(&self, key: &str) -> bool {
        self.json.get(key).is_some()
    }

    pub(crate) fn object(&self, key: &str) -> Result<Option<Config<'a>>, ModelError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        if value.is_object() { Ok(Some(Config::new(value))) } else { Err(self.wrong(key, "an object is needed")) }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.json.as_object().is_none_or(serde_json::Map::is_empty)
    }

    /// A positive whole number.
    pub(crate) fn size(&self, key: &str) -> Result<usize, ModelError> {
        self.size_or_none(key)?.ok_or_else(|| self.wrong(key, "a positive whole number is needed"))
    }

    /// Number of layers.
    pub(crate) fn layers(&self, key: &str) -> Result<usize, ModelError> {
        match self.size(key)? {
            n if n > MAX_LAYERS => Err(self.wrong(key, format!("no model has more than {MAX_LAYERS} layers"))),
            n => Ok(n),
        }
    }

    pub(crate) fn size_or(&self, key: &str, default: usize) -> Result<usize, ModelError> {
        Ok(self.size_or_none(key)?.unwrap_or(default))
    }

    /// A whole number that may be 0.
    pub(crate) fn count_or(&self, key: &str, default: usize) -> Result<usize, ModelError> {
        let Some(value) = self.get(key) else { return Ok(default) };
        let count = value.as_u64().and_then(|n| usize::try_from(n).ok());
        count.ok_or_else(|| self.wrong(key, "a whole number is needed"))
    }

    pub(crate) fn size_or_none(&self, key: &str) -> Result<Option<usize>, ModelError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match value.as_u64() {
            Some(n) if (1..=MAX as u64).contains(&n) => Ok(Some(n as usize)),
            Some(n) if n > MAX as u64 => Err(self.wrong(key, format!("no model has more than {MAX}"))),
            _ => Err(self.wrong(key, "a positive whole number is needed")),
        }
    }

    /// A positive finite number.
    pub(crate) fn number_or(&self, key: &str, default: f64) -> Result<f64, ModelError> {
        Ok(self.number(key)?.unwrap_or(default))
    }

    pub(crate) fn number(&self, key: &str) -> Result<Option<f64>, ModelError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match value.as_f64() {
            Some(x) if x.is_finite() && x > 0.0 => Ok(Some(x)),
            _ => Err(self.wrong(key, "a positive number is needed")),
        }
    }

    /// A positive finite number; 0 counts as absent.
    pub(crate) fn number_unless_zero(&self, key: &str) -> Result<Option<f64>, ModelError> {
        if self.get(key).and_then(Value::as_f64) == Some(0.0) { Ok(None) } else { self.number(key) }
    }

    /// A list of positive finite numbers.
    pub(crate) fn numbers(&self, key: &str, n: usize) -> Result<Vec<f64>, ModelError> {
        let values = self.get(key).and_then(Value::as_array).filter(|values| values.len() == n);
        let number = |value: &Value| value.as_f64().filter(|x| x.is_finite() && *x > 0.0);
        let numbers = values.and_then(|values| values.iter().map(number).collect());
        numbers.ok_or_else(|| self.wrong(key, format!("{n} positive numbers are needed")))
    }

    pub(crate) fn flag_or(&self, key: &str, default: bool) -> Result<bool, ModelError> {
        let Some(value) = self.get(key) else { return Ok(default) };
        value.as_bool().ok_or_else(|| self.wrong(key, "true or false is needed"))
    }

    pub(crate) fn text(&self, key: &str) -> Result<Option<&'a str>, ModelError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        value.as_str().map(Some).ok_or_else(|| self.wrong(key, "a text is needed"))
    }

    pub(crate) fn wrong(&self, key: &str, expected: impl Into<String>) -> ModelError {
        let value = self.get(key).map_or_else(|| "missing".to_owned(), Value::to_string);
        ModelError::ConfigKey { key: key.to_owned(), value, expected: expected.into() }
    }
}
