//! SentencePiece BPE with byte fallback: the tokenizer of Llama 1 and 2. A file has scores where tokenizer.json has merges.

use std::collections::HashSet;

use serde_json::{Value as Json, json};

use super::metadata::required;
use super::tokenizer::{Pipeline, TOKENS, Vocabulary};
use super::{GgufError, Metadata};

const SCORES: &str = "tokenizer.ggml.scores";
/// Longest token that is joined from others, in bytes. SentencePiece stops at 16 characters unless told otherwise; a damaged file
/// could take quadratic time.
const LONGEST: usize = 1024;
/// Most merges for each token, on average. A vocabulary that was trained has two; one that was made for it, of `a`, `aa`, `aaa` and so on,
/// could take memory with the cube of its length.
const MOST_MERGES: usize = 16;
/// What SentencePiece writes for a space.
const SPACE: &str = "\u{2581}";

/// The parts of tokenizer.json; `unknown`: the token for what has no other.
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
    let prefix = metadata.flag("tokenizer.ggml.add_space_prefix")?.unwrap_or(true);
    let replace = |from: &str, to: &str| json!({ "type": "Replace", "pattern": { "String": from }, "content": to });

    let mut normalizers = vec![replace(" ", SPACE)];
    let mut decoders = vec![replace(SPACE, " "), json!({ "type": "ByteFallback" }), json!({ "type": "Fuse" })];
    if prefix {
        normalizers.insert(0, json!({ "type": "Prepend", "prepend": SPACE }));
        decoders.push(json!({ "type": "Strip", "content": " ", "start": 1, "stop": 0 }));
    }
    Ok(Pipeline {
        normalizer: json!({ "type": "Sequence", "normalizers": normalizers }),
        pre_tokenizer: Json::Null,
        decoder: json!({ "type": "Sequence", "decoders": decoders }),
        model: json!({
            "type": "BPE",
            "dropout": null,
            "unk_token": unknown,
            "continuing_subword_prefix": null,
            "end_of_word_suffix": null,
            "fuse_unk": true,
            "byte_fallback": true,
            "ignore_merges": false,
            "vocab": vocabulary.json(),
            "merges": merges(vocabulary, scores)?,
        }),
    })
}

/// SentencePiece joins the two neighbours whose union has the best score; merges say the same as an ordered list of pairs. Every
/// way of cutting a token into two tokens is a merge, ordered by the token's score; cuts of one token, the longest left part
/// first, as transformers does.
fn merges(vocabulary: &Vocabulary<'_>, scores: &[f64]) -> Result<Vec<String>, GgufError> {
    let known: HashSet<&str> = vocabulary.normal().map(|(_, token)| token).collect();
    let mut pairs: Vec<(f64, &str, &str)> = Vec::new();
    for (id, token) in vocabulary.normal().filter(|(_, token)| token.len() <= LONGEST) {
        for (cut, _) in token.char_indices().skip(1) {
            let (left, right) = token.split_at(cut);
            if known.contains(left) && known.contains(right) {
                pairs.push((scores[id], left, right));
            }
        }
        if pairs.len() > MOST_MERGES * vocabulary.len() {
            let expected = format!("at most {MOST_MERGES} for each of {} tokens", vocabulary.len());
            return Err(GgufError::wrong(TOKENS, "tokens that are made of others in too many ways", expected));
        }
    }
    // Stable: equal scores and lengths keep the order of ids.
    pairs.sort_by(|a, b| b.0.total_cmp(&a.0).then_with(|| chars(b.1).cmp(&chars(a.1))));
    Ok(pairs.into_iter().map(|(_, left, right)| format!("{left} {right}")).collect())
}

fn chars(text: &str) -> usize {
    text.chars().count()
}
