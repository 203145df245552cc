//! The vocabulary of a GGUF file, and its form for each kind of tokenizer.

use std::collections::BTreeMap;

use serde_json::Value as Json;

use super::metadata::required;
use super::{GgufError, Metadata};
use crate::sentencepiece::{NORMAL, added_tokens, vocabulary};

pub(super) const TOKENS: &str = "tokenizer.ggml.tokens";
const TOKEN_TYPES: &str = "tokenizer.ggml.token_type";

/// Tokens by id, with their types.
pub(super) struct Vocabulary<'a> {
    tokens: &'a [String],
    types: Option<&'a [i64]>,
}

impl<'a> Vocabulary<'a> {
    pub(super) fn read(metadata: &'a Metadata, limit: usize) -> Result<Self, GgufError> {
        let tokens = required(TOKENS, metadata.texts(TOKENS)?)?;
        if tokens.len() > limit {
            let expected = format!("at most {limit}, the rows of the embedding");
            return Err(GgufError::wrong(TOKENS, format!("{} tokens", tokens.len()), expected));
        }
        let types = metadata.integers(TOKEN_TYPES)?;
        if let Some(types) = types.filter(|types| types.len() != tokens.len()) {
            let expected = format!("{}, one per token", tokens.len());
            return Err(GgufError::wrong(TOKEN_TYPES, format!("{} types", types.len()), expected));
        }
        let mut ids = BTreeMap::new();
        for (id, token) in tokens.iter().enumerate() {
            if let Some(other) = ids.insert(token, id) {
                let got = format!("\"{}\" as {other} and as {id}", token.escape_debug());
                return Err(GgufError::wrong(TOKENS, got, "every token once"));
            }
        }
        Ok(Self { tokens, types })
    }

    /// Number of tokens.
    pub(super) fn len(&self) -> usize {
        self.tokens.len()
    }

    /// The token with this id, which must be in the vocabulary.
    pub(super) fn text(&self, id: u64) -> &'a str {
        &self.tokens[id as usize]
    }

    fn kind(&self, id: usize) -> i64 {
        self.types.map_or(NORMAL, |types| types[id])
    }

    /// Tokens that text consists of, with their ids.
    pub(super) fn normal(&self) -> impl Iterator<Item = (usize, &'a str)> {
        self.tokens
            .iter()
            .enumerate()
            .filter(|&(id, _)| self.kind(id) == NORMAL)
            .map(|(id, token)| (id, token.as_str()))
    }

    /// The `vocab` of tokenizer.json.
    pub(super) fn json(&self) -> Json {
        vocabulary(self.tokens)
    }

    /// The `added_tokens` of tokenizer.json: they are cut out of a text first.
    pub(super) fn added(&self) -> Json {
        added_tokens(self.tokens.iter().enumerate().map(|(id, token)| (token, self.kind(id))))
    }
}

/// The parts of a tokenizer.json that differ between the two kinds.
pub(super) struct Pipeline {
    pub(super) normalizer: Json,
    pub(super) pre_tokenizer: Json,
    pub(super) decoder: Json,
    pub(super) model: Json,
}
