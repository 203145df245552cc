//! How byte-level BPE splits a text before merging: `tokenizer.ggml.pre` and the `pre_tokenizer` of tokenizer.json.

use serde_json::{Value as Json, json};

use super::{GgufError, Metadata};
use crate::word_split;

/// How a text is split before merging.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Splitter {
    /// GPT-2's regular expression.
    Gpt2,
    /// Single digits, then GPT-2's regular expression.
    Digits,
    /// Llama 3's regular expression; words that are tokens are taken whole, without merging.
    Llama3,
    /// Llama 3's regular expression, and all words are merged.
    Dbrx,
    /// Qwen 2's regular expression: Llama 3's with single digits.
    Qwen2,
    /// Punctuation, GPT-2's regular expression, then digits in threes.
    Falcon,
    /// Mistral's regular expression since Nemo, which splits words before capital letters; words that are tokens are taken whole.
    Tekken,
    /// GPT-4o's regular expression: Tekken's with contractions, and digits in threes.
    Gpt4o,
    /// Seed's regular expression: Qwen 2's, with line breaks apart from other characters.
    SeedCoder,
}

/// GPT-4o's regular expression.
const GPT4O: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// Seed's regular expression.
const SEED_CODER: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1}| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+";
/// Mistral Nemo's regular expression.
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// Falcon's digits.
const THREE_DIGITS: &str = "[0-9][0-9][0-9]";

impl Splitter {
    const ALL: [Self; 9] = [
        Self::Gpt2,
        Self::Digits,
        Self::Llama3,
        Self::Dbrx,
        Self::Qwen2,
        Self::Falcon,
        Self::Tekken,
        Self::Gpt4o,
        Self::SeedCoder,
    ];

    /// Its name in llama.cpp.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Gpt2 => "gpt-2",
            Self::Digits => "smollm",
            Self::Llama3 => "llama-bpe",
            Self::Dbrx => "dbrx",
            Self::Qwen2 => "qwen2",
            Self::Falcon => "falcon",
            Self::Tekken => "tekken",
            Self::Gpt4o => "gpt-4o",
            Self::SeedCoder => "seed-coder",
        }
    }

    /// All names, for errors.
    pub(super) fn names() -> String {
        Self::ALL.map(Self::name).join(", ")
    }

    /// Reads the key. A file without it uses GPT-2's, as in llama.cpp before the key was introduced.
    pub(super) fn read(metadata: &Metadata) -> Result<Self, GgufError> {
        let key = "tokenizer.ggml.pre";
        match metadata.text(key)?.unwrap_or("default") {
            "default" | "olmo" => Ok(Self::Gpt2),
            "refact" | "starcoder" => Ok(Self::Digits),
            "glm4" | "chatglm-bpe" | "smaug-bpe" => Ok(Self::Dbrx),
            "llama4" => Ok(Self::Gpt4o),
            "llama3" | "llama-v3" => Ok(Self::Llama3),
            "deepseek-r1-qwen" => Ok(Self::Qwen2),
            name => Self::ALL
                .into_iter()
                .find(|splitter| splitter.name() == name)
                .ok_or_else(|| GgufError::wrong(key, name, Self::names())),
        }
    }

    /// Recognizes the `pre_tokenizer` of tokenizer.json; `ignores_merges` says that words that are tokens are taken whole.
    pub(super) fn of_json(pre_tokenizer: &Json, ignores_merges: bool) -> Option<Self> {
        let steps = steps(pre_tokenizer);
        Self::ALL.into_iter().find(|splitter| {
            splitter.ignores_merges() == ignores_merges && steps == self::steps(&splitter.json()) && !steps.is_empty()
        })
    }

    /// Whether words that are tokens are taken whole.
    pub(super) fn ignores_merges(self) -> bool {
        matches!(self, Self::Llama3 | Self::Tekken)
    }

    /// Whether a text begins with the beginning-of-sequence token if the file does not say.
    pub(super) fn adds_bos(self) -> bool {
        matches!(self, Self::Llama3 | Self::Tekken)
    }

    /// The `normalizer` of tokenizer.json. GGUF files do not name it.
    pub(super) fn normalizer(self) -> Json {
        if self == Self::Qwen2 { json!({ "type": "NFC" }) } else { Json::Null }
    }

    /// The `pre_tokenizer` of tokenizer.json.
    pub(super) fn json(self) -> Json {
        let byte_level = |use_regex: bool| json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": use_regex });
        let sequence = |steps: Vec<Json>| json!({ "type": "Sequence", "pretokenizers": steps });
        let digits = |individual: bool| json!({ "type": "Digits", "individual_digits": individual });
        let split = |regex: &str| json!({ "type": "Split", "pattern": { "Regex": regex }, "behavior": "Isolated", "invert": false });
        match self {
            Self::Gpt2 => byte_level(true),
            Self::Digits => sequence(vec![digits(true), byte_level(true)]),
            Self::Llama3 | Self::Dbrx => sequence(vec![split(&word_split(3)), byte_level(false)]),
            Self::Qwen2 => sequence(vec![split(&word_split(1)), byte_level(false)]),
            Self::Falcon => sequence(vec![
                json!({ "type": "Punctuation", "behavior": "Contiguous" }),
                byte_level(true),
                digits(false),
                split(THREE_DIGITS),
            ]),
            Self::Tekken => sequence(vec![split(TEKKEN), byte_level(false)]),
            Self::Gpt4o => sequence(vec![split(GPT4O), byte_level(false)]),
            Self::SeedCoder => sequence(vec![split(SEED_CODER), byte_level(false)]),
        }
    }
}

/// The steps of a `pre_tokenizer`, with what decides how a text is split; the defaults are those of the `tokenizers` library.
fn steps(pre_tokenizer: &Json) -> Vec<String> {
    let flag = |key: &str, default: bool| pre_tokenizer[key].as_bool().unwrap_or(default);
    let text = |value: &Json| value.as_str().unwrap_or_default().to_owned();
    let step = match pre_tokenizer["type"].as_str() {
        Some("Sequence") => {
            let steps = pre_tokenizer["pretokenizers"].as_array();
            return steps.into_iter().flatten().flat_map(self::steps).collect();
        }
        Some("ByteLevel") => {
            format!("bytes, words {}, space {}", flag("use_regex", true), flag("add_prefix_space", true))
        }
        Some("Digits") => format!("digits, single {}", flag("individual_digits", false)),
        Some("Punctuation") => format!("punctuation {}", text(&pre_tokenizer["behavior"])),
        Some("Split") => {
            let pattern = &pre_tokenizer["pattern"];
            // A pattern for words matches all of a text: what is kept of it, then, are the matches either way.
            match (pre_tokenizer["behavior"].as_str().unwrap_or_default(), flag("invert", false)) {
                ("Removed", true) if pattern["Regex"] != THREE_DIGITS => format!("split Isolated false {pattern}"),
                (behavior, invert) => format!("split {behavior} {invert} {pattern}"),
            }
        }
        _ => pre_tokenizer.to_string(),
    };
    vec![step]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn splitters_are_recognized_by_their_own_form() {
        for splitter in Splitter::ALL {
            assert_eq!(Splitter::of_json(&splitter.json(), splitter.ignores_merges()), Some(splitter));
        }
        // As published: Falcon-7B's leaves out what is the default.
        let falcon = json!({ "type": "Sequence", "pretokenizers": [
            { "type": "Punctuation", "behavior": "Contiguous" },
            { "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true },
            { "type": "Digits", "individual_digits": false },
            { "type": "Split", "pattern": { "Regex": "[0-9][0-9][0-9]" }, "behavior": "Isolated", "invert": false },
        ]});
        assert_eq!(Splitter::of_json(&falcon, false), Some(Splitter::Falcon));
        let spaced = json!({ "type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true });
        assert_eq!(Splitter::of_json(&spaced, false), None, "llama.cpp adds no space");
        assert_eq!(Splitter::of_json(&Json::Null, false), None);
        assert_eq!(Splitter::of_json(&Splitter::Qwen2.json(), true), None);
        // As published with Phi-4-mini.
        let mut inverted = Splitter::Gpt4o.json();
        inverted["pretokenizers"][0]["behavior"] = "Removed".into();
        inverted["pretokenizers"][0]["invert"] = true.into();
        assert_eq!(Splitter::of_json(&inverted, false), Some(Splitter::Gpt4o));
    }
}
