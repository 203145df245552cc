//! A model's generation defaults: `generation_config.json`.

use std::path::Path;

use serde_json::Value;

use crate::error::{DataError, read_optional_json};
use crate::tokenizer::special::as_id;

/// Generation defaults, as transformers reads them: from `generation_config.json`, with the end-of-sequence tokens from `config.json` if
/// that file names none. `None` means not specified.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Generation {
    /// End-of-sequence tokens (`eos_token_id`, a number or a list).
    pub ends: Vec<u32>,
    /// Whether to sample (`do_sample`) or to decode greedily.
    pub draws: bool,
    /// Logits are divided by it before sampling.
    pub temperature: Option<f64>,
    /// Samples only from the most likely tokens whose probabilities add up to this.
    pub top_p: Option<f64>,
    /// Samples only from this many of the most likely tokens. If the file exists but does not specify it, it is 50, the default of the
    /// format. 0 means all tokens, and is none here.
    pub top_k: Option<usize>,
    /// Logits of tokens that are already in the text are divided by it.
    pub repetition_penalty: Option<f64>,
    /// Settings in the file that change which token is chosen but are not supported.
    pub unknown: Vec<String>,
}

const FILE: &str = "generation_config.json";
/// `top_k` if a file does not specify it.
const TOP_K: usize = 50;
/// Settings that change which token is chosen, with their neutral values.
const OTHERS: [(&str, &[f64]); 10] = [
    ("min_p", &[0.0]),
    ("typical_p", &[1.0]),
    ("epsilon_cutoff", &[0.0]),
    ("eta_cutoff", &[0.0]),
    ("top_h", &[]),
    ("no_repeat_ngram_size", &[0.0]),
    ("encoder_repetition_penalty", &[1.0]),
    ("num_beams", &[1.0]),
    ("penalty_alpha", &[0.0]),
    ("min_new_tokens", &[0.0]),
];

impl Generation {
    /// Reads those of a model directory.
    ///
    /// # Errors
    /// When a file is not JSON, or a value has the wrong type.
    pub fn open(dir: &Path) -> Result<Self, DataError> {
        let path = dir.join(FILE);
        let json = read_optional_json(&path)?;
        let mut ends = ends_of(&path, &json)?;
        if ends.is_empty() {
            let path = dir.join("config.json");
            ends = ends_of(&path, &read_optional_json(&path)?)?;
        }
        if json.is_null() {
            return Ok(Self { ends, ..Self::default() });
        }
        let given = |key: &str| json.get(key).filter(|value| !value.is_null());
        let wrong = |key: &str, expected: &str| {
            DataError::corrupt(&path, format!("{key} is {}: {expected} is needed", json[key]))
        };
        let number =
            |key: &str| given(key).map(|value| value.as_f64().ok_or_else(|| wrong(key, "a number"))).transpose();
        let top_k = match given("top_k") {
            None => TOP_K,
            Some(value) => value.as_u64().ok_or_else(|| wrong("top_k", "a whole number"))? as usize,
        };
        let draws = given("do_sample").map(|value| value.as_bool().ok_or_else(|| wrong("do_sample", "true or false")));
        let unknown = OTHERS.iter().filter(|(key, neutral)| {
            given(key).is_some_and(|value| value.as_f64().is_none_or(|value| !neutral.contains(&value)))
        });
        Ok(Self {
            ends,
            draws: draws.transpose()?.unwrap_or(false),
            temperature: number("temperature")?,
            top_p: number("top_p")?,
            top_k: (top_k > 0).then_some(top_k),
            repetition_penalty: number("repetition_penalty")?,
            unknown: unknown.map(|(key, _)| (*key).to_owned()).collect(),
        })
    }
}

fn ends_of(path: &Path, json: &Value) -> Result<Vec<u32>, DataError> {
    let wrong = |value: &Value| DataError::corrupt(path, format!("eos_token_id: {value} is not a token's id"));
    let id = |value: &Value| as_id(value).ok_or_else(|| wrong(value));
    match &json["eos_token_id"] {
        Value::Null => Ok(Vec::new()),
        Value::Array(ids) => ids.iter().map(id).collect(),
        // Some configs say this way that there is none.
        Value::Number(number) if number.as_i64().is_some_and(|number| number < 0) => Ok(Vec::new()),
        value => Ok(vec![id(value)?]),
    }
}
