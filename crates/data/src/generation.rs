//! How a model's authors want it to generate: `generation_config.json`.

use std::path::Path;

use serde_json::Value;

use crate::error::{DataError, read_optional_json};
use crate::tokenizer::special::as_id;

/// Defaults of generation, as transformers takes them: from `generation_config.json`; the ends from
/// `config.json` where that file names none. What a file does not say is none.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Generation {
    /// Tokens that end a sequence (`eos_token_id`, a number or a list).
    pub ends: Vec<u32>,
    /// Whether tokens are drawn (`do_sample`), or the likeliest is taken.
    pub draws: bool,
    /// Divides logits before a draw.
    pub temperature: Option<f64>,
    /// Draws from the likeliest tokens that are as probable as this together.
    pub top_p: Option<f64>,
    /// Draws from so many of the likeliest. Where there is a file and it does not say, 50, the default of its format; 0 means all, and is
    /// none here.
    pub top_k: Option<usize>,
    /// Divides logits of tokens that are in the text already.
    pub repetition_penalty: Option<f64>,
    /// Settings of the file that change which token is chosen, and that are not known here.
    pub unknown: Vec<String>,
}

const FILE: &str = "generation_config.json";
/// `top_k` where a file does not say.
const TOP_K: usize = 50;
/// Settings that change which token is chosen, with the values by which they do not.
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
    /// Of a model's directory.
    ///
    /// # Errors
    /// When a file is not JSON, or a value is not of its kind.
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
        // Some configs say so that there is none.
        Value::Number(number) if number.as_i64().is_some_and(|number| number < 0) => Ok(Vec::new()),
        value => Ok(vec![id(value)?]),
    }
}
