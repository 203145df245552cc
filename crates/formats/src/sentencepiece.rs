//! SentencePiece vocabularies as `tokenizer.json`, for GGUF files and `tokenizer.model`.
//!
//! Only BPE with byte fallback is supported, the tokenizer of LLaMA 1 and 2. A vocabulary has scores where tokenizer.json has merges.
//!
//! `tokenizer.model` is a protocol buffer
//! (<https://github.com/google/sentencepiece/blob/master/src/sentencepiece_model.proto>).

use std::collections::HashSet;
use std::path::Path;

use prost::Message;
use serde_json::{Map, Value as Json, json};

use crate::{FormatError, lfs};

/// Longest token that is merged from others, in bytes. SentencePiece's default limit is 16 characters; a damaged file could take quadratic
/// time.
const LONGEST: usize = 1024;
/// Maximum number of merges per token, on average. A trained vocabulary has two; a malicious one, of `a`, `aa`, `aaa` and so on, could take
/// memory with the cube of its length.
pub(crate) const MOST_MERGES: usize = 16;
/// SentencePiece's representation of a space.
const SPACE: &str = "\u{2581}";

/// Token types, with the same numbers as in GGUF.
pub(crate) const NORMAL: i64 = 1;
const UNKNOWN: i64 = 2;
const CONTROL: i64 = 3;
const USER_DEFINED: i64 = 4;

/// Where a space is added that the text does not have. Special tokens split a text into parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SpacePrefix {
    /// Nowhere.
    Never,
    /// Before every part.
    EveryPart,
    /// Before every part that does not begin with a space.
    EveryPartWithout,
    /// Before the first part, if it begins the text and does not begin with a space.
    FirstWithout,
}

/// A parsed `tokenizer.model`.
#[derive(Clone, Debug)]
pub struct SentencePieceModel {
    tokens: Vec<String>,
    scores: Vec<f64>,
    kinds: Vec<i64>,
}

#[derive(Clone, PartialEq, Message)]
struct ModelProto {
    #[prost(message, repeated, tag = "1")]
    pieces: Vec<Piece>,
    #[prost(message, optional, tag = "2")]
    trainer: Option<TrainerSpec>,
    #[prost(message, optional, tag = "3")]
    normalizer: Option<NormalizerSpec>,
}

#[derive(Clone, PartialEq, Message)]
struct Piece {
    #[prost(string, optional, tag = "1")]
    piece: Option<String>,
    #[prost(float, optional, tag = "2")]
    score: Option<f32>,
    #[prost(int32, optional, tag = "3")]
    kind: Option<i32>,
}

#[derive(Clone, PartialEq, Message)]
struct TrainerSpec {
    #[prost(int32, optional, tag = "3")]
    model_type: Option<i32>,
    #[prost(bool, optional, tag = "35")]
    byte_fallback: Option<bool>,
}

#[derive(Clone, PartialEq, Message)]
struct NormalizerSpec {
    #[prost(string, optional, tag = "1")]
    name: Option<String>,
    #[prost(bytes = "vec", optional, tag = "2")]
    precompiled_charsmap: Option<Vec<u8>>,
    #[prost(bool, optional, tag = "4")]
    remove_extra_whitespaces: Option<bool>,
}

/// `model_type` of the trainer.
const BPE: i32 = 2;

impl SentencePieceModel {
    /// Parses a `tokenizer.model`.
    ///
    /// # Errors
    /// When the file is something else or of an unsupported kind: unigram models, normalization of the text, no byte fallback.
    pub fn read(path: &Path) -> Result<Self, FormatError> {
        let bytes = std::fs::read(path).map_err(|source| FormatError::reading(path, source))?;
        lfs::refuse_pointer(path, &bytes)?;
        let bad = |why: &str| FormatError::SentencePiece { path: path.to_owned(), why: why.to_owned() };
        if is_tiktoken(&bytes) {
            return Err(bad("a vocabulary in tiktoken's form"));
        }
        // Other bytes may happen to be a message with unknown fields.
        let proto = ModelProto::decode(&*bytes).ok().filter(|proto| !proto.pieces.is_empty());
        let proto = proto.ok_or_else(|| bad("no SentencePiece model"))?;
        let trainer = proto.trainer.unwrap_or_default();
        let normalizer = proto.normalizer.unwrap_or_default();
        // The field's default is 1, a unigram model.
        if trainer.model_type.unwrap_or(1) != BPE {
            return Err(bad("a SentencePiece model that is not BPE (unigram, word or char)"));
        }
        if !trainer.byte_fallback.unwrap_or(false) {
            return Err(bad("a SentencePiece model without byte fallback"));
        }
        if normalizer.precompiled_charsmap.is_some_and(|map| !map.is_empty()) {
            let name = normalizer.name.unwrap_or_default();
            return Err(bad(&format!("a SentencePiece model that normalizes text first ({name})")));
        }
        // The field's default is true.
        if normalizer.remove_extra_whitespaces.unwrap_or(true) {
            return Err(bad("a SentencePiece model that removes extra spaces"));
        }
        let mut seen = HashSet::new();
        let mut model = Self { tokens: Vec::new(), scores: Vec::new(), kinds: Vec::new() };
        for (id, Piece { piece, score, kind }) in proto.pieces.into_iter().enumerate() {
            let token = piece.unwrap_or_default();
            if !seen.insert(token.clone()) {
                return Err(bad(&format!("token {id}, {token:?}, occurs twice")));
            }
            model.tokens.push(token);
            model.scores.push(score.unwrap_or_default().into());
            model.kinds.push(kind.map_or(NORMAL, i64::from));
        }
        Ok(model)
    }

    /// The same as a `tokenizer.json` that adds no tokens around a text.
    ///
    /// # Errors
    /// When tokens can be merged from others in more ways than in any trained vocabulary.
    pub fn tokenizer_json(&self, prefix: SpacePrefix) -> Result<Json, FormatError> {
        let normal = self.tokens.iter().enumerate().filter(|(id, _)| self.kinds[*id] == NORMAL);
        let normal: Vec<(usize, &str)> = normal.map(|(id, token)| (id, token.as_str())).collect();
        let merges = merges(&normal, &self.scores).ok_or_else(|| FormatError::SentencePiece {
            path: "tokenizer.model".into(),
            why: format!("tokens that are made of others in more than {MOST_MERGES} ways each"),
        })?;
        let unknown = self.kinds.iter().position(|&kind| kind == UNKNOWN).map(|id| self.tokens[id].as_str());
        let [normalizer, mut pre_tokenizer, decoder] = steps(prefix);
        let mut model = model(vocabulary(&self.tokens), merges, unknown);
        let mut defined: Vec<&str> = self
            .tokens
            .iter()
            .zip(&self.kinds)
            .filter(|(_, kind)| **kind == USER_DEFINED)
            .map(|(token, _)| token.as_str())
            .collect();
        let mut kinds = self.kinds.clone();
        if prefix == SpacePrefix::EveryPart && !defined.is_empty() {
            // User-defined symbols do not split a text into parts: they are found in the text with its spaces.
            kinds.iter_mut().filter(|kind| **kind == USER_DEFINED).for_each(|kind| *kind = NORMAL);
            defined.sort_by_key(|symbol| std::cmp::Reverse(symbol.len()));
            let pattern = defined.into_iter().map(regex::escape).collect::<Vec<_>>().join("|");
            pre_tokenizer =
                json!({ "type": "Split", "pattern": { "Regex": pattern }, "behavior": "Isolated", "invert": false });
            model["ignore_merges"] = true.into();
        }
        Ok(json!({
            "version": "1.0",
            "truncation": null,
            "padding": null,
            "added_tokens": added_tokens(self.tokens.iter().zip(kinds)),
            "normalizer": normalizer,
            "pre_tokenizer": pre_tokenizer,
            "post_processor": null,
            "decoder": decoder,
            "model": model,
        }))
    }
}

/// Whether the bytes are lines of a base64 token and its rank.
fn is_tiktoken(bytes: &[u8]) -> bool {
    let line = bytes.split(|&byte| byte == b'\n').next().unwrap_or_default();
    let Some((token, rank)) = std::str::from_utf8(line).ok().and_then(|line| line.split_once(' ')) else {
        return false;
    };
    let is_base64 = |c: char| c.is_ascii_alphanumeric() || matches!(c, '+' | '/' | '=');
    !token.is_empty() && token.chars().all(is_base64) && rank.trim().parse::<u32>().is_ok()
}

/// The `vocab` of tokenizer.json.
pub(crate) fn vocabulary(tokens: &[String]) -> Json {
    tokens.iter().enumerate().map(|(id, token)| (token.clone(), json!(id))).collect::<Map<_, _>>().into()
}

/// The `added_tokens` of tokenizer.json, from all tokens with their types: they are cut out of a text first.
pub(crate) fn added_tokens<'a>(tokens: impl Iterator<Item = (&'a String, i64)>) -> Json {
    let entry = |(id, (token, kind)): (usize, (&String, i64))| {
        let special = match kind {
            CONTROL | UNKNOWN => true,
            USER_DEFINED => false,
            _ => return None,
        };
        Some(json!({
            "id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": special,
        }))
    };
    tokens.enumerate().filter_map(entry).collect()
}

/// Normalizer, pre-tokenizer and decoder of tokenizer.json.
pub(crate) fn steps(prefix: SpacePrefix) -> [Json; 3] {
    let replace = |from: &str, to: &str| json!({ "type": "Replace", "pattern": { "String": from }, "content": to });
    let mut decoders = vec![replace(SPACE, " "), json!({ "type": "ByteFallback" }), json!({ "type": "Fuse" })];
    if prefix != SpacePrefix::Never {
        decoders.push(json!({ "type": "Strip", "content": " ", "start": 1, "stop": 0 }));
    }
    let metaspace =
        |scheme: &str| json!({ "type": "Metaspace", "replacement": SPACE, "prepend_scheme": scheme, "split": false });
    let normalizers = |normalizers: Vec<Json>| json!({ "type": "Sequence", "normalizers": normalizers });
    let prepend = || json!({ "type": "Prepend", "prepend": SPACE });
    let (normalizer, pre_tokenizer) = match prefix {
        SpacePrefix::Never => (normalizers(vec![replace(" ", SPACE)]), Json::Null),
        SpacePrefix::EveryPart => (normalizers(vec![prepend(), replace(" ", SPACE)]), Json::Null),
        SpacePrefix::EveryPartWithout => (Json::Null, metaspace("always")),
        SpacePrefix::FirstWithout => (Json::Null, metaspace("first")),
    };
    [normalizer, pre_tokenizer, json!({ "type": "Sequence", "decoders": decoders })]
}

/// The `model` of tokenizer.json; `unknown` is the token for unknown input.
pub(crate) fn model(vocab: Json, merges: Vec<String>, unknown: Option<&str>) -> Json {
    json!({
        "type": "BPE",
        "dropout": null,
        "unk_token": unknown,
        "continuing_subword_prefix": null,
        "end_of_word_suffix": null,
        "fuse_unk": true,
        "byte_fallback": true,
        "ignore_merges": false,
        "vocab": vocab,
        "merges": merges,
    })
}

/// SentencePiece joins the two neighbours whose union has the best score. Merges express this as an ordered list of pairs: every way of
/// splitting a token into two tokens is a merge, ordered by the token's score, and for one token with the longest left part first, as in
/// transformers. `normal` are the tokens that text consists of, with their ids. None if there are too many merges.
pub(crate) fn merges(normal: &[(usize, &str)], scores: &[f64]) -> Option<Vec<String>> {
    let known: HashSet<&str> = normal.iter().map(|(_, token)| *token).collect();
    let mut pairs: Vec<(f64, &str, &str)> = Vec::new();
    for &(id, token) in normal.iter().filter(|(_, token)| token.len() <= LONGEST) {
        for (cut, _) in token.char_indices().skip(1) {
            let (left, right) = token.split_at(cut);
            if known.contains(left) && known.contains(right) {
                pairs.push((scores[id], left, right));
            }
        }
        if pairs.len() > MOST_MERGES * scores.len() {
            return None;
        }
    }
    // Stable: equal scores and lengths keep the order of ids.
    let chars = |text: &str| text.chars().count();
    pairs.sort_by(|a, b| b.0.total_cmp(&a.0).then_with(|| chars(b.1).cmp(&chars(a.1))));
    Some(pairs.into_iter().map(|(_, left, right)| format!("{left} {right}")).collect())
}
