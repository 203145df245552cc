//! Byte-level BPE, from GGUF metadata.

use serde_json::json;

use super::metadata::required;
use super::splitter::Splitter;
use super::vocabulary::{Pipeline, Vocabulary};
use super::{GgufError, Metadata};

const MERGES: &str = "tokenizer.ggml.merges";

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
        normalizer: splitter.normalizer(),
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
            "ignore_merges": splitter.ignores_merges(),
            "vocab": vocabulary.json(),
            "merges": merges,
        }),
    })
}
