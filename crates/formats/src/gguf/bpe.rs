//! Byte-level BPE: GPT-2's, and the pre-tokenization of later models.

use serde_json::{Value as Json, json};

use super::metadata::required;
use super::vocabulary::{Pipeline, Vocabulary};
use super::{GgufError, Metadata};
use crate::word_split;

const MERGES: &str = "tokenizer.ggml.merges";

/// How a text is split before merging, `tokenizer.ggml.pre`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Splitter {
    /// GPT-2's regular expression.
    Gpt2,
    /// Single digits, then GPT-2's regular expression.
    Digits,
    /// Llama 3's regular expression; words that are tokens are taken whole, without merging.
    Llama3,
}

impl Splitter {
    /// Reads the key. A file without it uses GPT-2's, as in llama.cpp before the key was introduced.
    pub(super) fn read(metadata: &Metadata) -> Result<Self, GgufError> {
        let key = "tokenizer.ggml.pre";
        match metadata.text(key)?.unwrap_or("default") {
            "gpt-2" | "default" => Ok(Self::Gpt2),
            "smollm" => Ok(Self::Digits),
            "llama-bpe" | "llama3" | "llama-v3" => Ok(Self::Llama3),
            other => Err(GgufError::wrong(key, other, "gpt-2, smollm or llama-bpe")),
        }
    }

    /// Whether a text begins with the beginning-of-sequence token if the file does not say.
    pub(super) fn adds_bos(self) -> bool {
        self == Self::Llama3
    }

    fn json(self) -> Json {
        let byte_level = |use_regex: bool| json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": use_regex });
        let sequence = |first: Json, second: Json| json!({ "type": "Sequence", "pretokenizers": [first, second] });
        match self {
            Self::Gpt2 => byte_level(true),
            Self::Digits => sequence(json!({ "type": "Digits", "individual_digits": true }), byte_level(true)),
            Self::Llama3 => sequence(
                json!({
                    "type": "Split", "pattern": { "Regex": word_split(3) }, "behavior": "Isolated", "invert": false,
                }),
                byte_level(false),
            ),
        }
    }
}

/// The parts of tokenizer.json.
pub(super) fn pipeline(
    metadata: &Metadata,
    vocabulary: &Vocabulary<'_>,
    splitter: Splitter,
) -> Result<Pipeline, GgufError> {
    let merges = required(MERGES, metadata.texts(MERGES)?)?;
    // Tokens never contain a space: byte-level tokens represent it by another letter.
    if let Some(merge) = merges.iter().find(|merge| merge.split(' ').filter(|part| !part.is_empty()).count() != 2) {
        return Err(GgufError::wrong(
            MERGES,
            format!("\"{}\"", merge.escape_debug()),
            "two tokens with a space between",
        ));
    }
    Ok(Pipeline {
        normalizer: Json::Null,
        pre_tokenizer: splitter.json(),
        decoder: json!({ "type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true }),
        model: json!({
            "type": "BPE",
            "dropout": null,
            "unk_token": null,
            "continuing_subword_prefix": null,
            "end_of_word_suffix": null,
            "fuse_unk": false,
            "byte_fallback": false,
            "ignore_merges": splitter == Splitter::Llama3,
            "vocab": vocabulary.json(),
            "merges": merges,
        }),
    })
}
