//! SentencePiece BPE with byte fallback, from GGUF metadata.

use super::metadata::required;
use super::vocabulary::{Pipeline, TOKENS, Vocabulary};
use super::{GgufError, Metadata};
use crate::sentencepiece::{self, MOST_MERGES, SpacePrefix};

const SCORES: &str = "tokenizer.ggml.scores";

/// The parts of tokenizer.json; `unknown` is the token for unknown input.
pub(super) fn pipeline(
    metadata: &Metadata,
    vocabulary: &Vocabulary<'_>,
    unknown: Option<&str>,
) -> Result<Pipeline, GgufError> {
    let scores = required(SCORES, metadata.floats(SCORES)?)?;
    if scores.len() != vocabulary.len() {
        let expected = format!("{}, one per token", vocabulary.len());
        return Err(GgufError::wrong(SCORES, format!("{} scores", scores.len()), expected));
    }
    let normal: Vec<(usize, &str)> = vocabulary.normal().collect();
    let merges = sentencepiece::merges(&normal, scores).ok_or_else(|| {
        let expected = format!("at most {MOST_MERGES} for each of {} tokens", vocabulary.len());
        GgufError::wrong(TOKENS, "tokens that are made of others in too many ways", expected)
    })?;
    let has_prefix = metadata.flag("tokenizer.ggml.add_space_prefix")?.unwrap_or(true);
    let prefix = if has_prefix { SpacePrefix::EveryPart } else { SpacePrefix::Never };
    let [normalizer, pre_tokenizer, decoder] = sentencepiece::steps(prefix);
    let model = sentencepiece::model(vocabulary.json(), merges, unknown);
    Ok(Pipeline { normalizer, pre_tokenizer, decoder, model })
}
