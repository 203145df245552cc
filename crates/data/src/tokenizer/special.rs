//! What a model's files say about its tokenizer besides the vocabulary: its class, its special tokens, and added tokens.

use std::path::Path;

use serde_json::Value;
use tokenizers::AddedToken;

use crate::error::{DataError, read_optional_json};

/// The class, whose rules a vocabulary is read by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Class {
    /// Byte-level BPE of GPT-2: OPT's, and Falcon's without tokenizer.json.
    Gpt2,
    /// Byte-level BPE of normalized text, with its own pre-tokenization.
    Qwen2,
    /// SentencePiece BPE with byte fallback.
    Llama,
    /// Defined by tokenizer.json alone.
    Generic,
    /// A class that is not supported.
    Other(String),
}

/// Keys of named special tokens.
const NAMED: [&str; 7] = ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

impl Class {
    fn of_name(name: &str) -> Self {
        match name.strip_suffix("Fast").unwrap_or(name) {
            "GPT2Tokenizer" => Self::Gpt2,
            "Qwen2Tokenizer" => Self::Qwen2,
            "LlamaTokenizer" => Self::Llama,
            "PreTrainedTokenizer" | "TokenizersBackend" => Self::Generic,
            _ => Self::Other(name.to_owned()),
        }
    }

    /// The class that transformers uses for a model of this `model_type` if its files name none.
    fn of_model_type(model_type: &str) -> Option<Self> {
        match model_type {
            "gpt2" | "opt" => Some(Self::Gpt2),
            "qwen2" | "qwen3" => Some(Self::Qwen2),
            "llama" | "mistral" => Some(Self::Llama),
            // Falcon's is published as tokenizer.json only.
            _ => None,
        }
    }

    /// The default of a named special token.
    fn default_token(&self, key: &str) -> Option<&'static str> {
        match (self, key) {
            (Self::Gpt2, "bos_token" | "eos_token" | "unk_token") => Some("<|endoftext|>"),
            (Self::Qwen2, "eos_token" | "unk_token" | "pad_token") => Some("<|endoftext|>"),
            (Self::Llama, "bos_token") => Some("<s>"),
            (Self::Llama, "eos_token") => Some("</s>"),
            (Self::Llama, "unk_token") => Some("<unk>"),
            _ => None,
        }
    }
}

/// `tokenizer_config.json`, with what other files add to it.
#[derive(Clone, Debug)]
pub(crate) struct TokenizerConfig {
    pub(crate) json: Value,
    special: Value,
    added: Value,
    /// The class that a file names, else that of the model's type; none if neither is known.
    pub(crate) class: Option<Class>,
    /// Whether a file names the class.
    pub(crate) names_class: bool,
}

impl TokenizerConfig {
    pub(crate) fn open(dir: &Path) -> Result<Self, DataError> {
        let read = |name: &str| read_optional_json(&dir.join(name));
        let json = read("tokenizer_config.json")?;
        let model = read("config.json")?;
        let named = json["tokenizer_class"].as_str().or_else(|| model["tokenizer_class"].as_str()).map(Class::of_name);
        let of_type = || model["model_type"].as_str().and_then(Class::of_model_type);
        let names_class = named.is_some();
        let class = named.or_else(of_type);
        Ok(Self {
            json,
            special: read("special_tokens_map.json")?,
            added: read("added_tokens.json")?,
            class,
            names_class,
        })
    }

    /// A named special token, such as `bos_token`; the class's default if no file names it.
    pub(crate) fn named(&self, key: &str) -> Option<AddedToken> {
        let written = |value: &Value| added_token(value, true);
        // `null` means that there is none.
        if self.json.get(key).is_some_and(Value::is_null) {
            return None;
        }
        let default = || Some(AddedToken::from(self.class.as_ref()?.default_token(key)?, true));
        written(&self.json[key]).or_else(|| written(&self.special[key])).or_else(default)
    }

    /// All named special tokens with their keys.
    pub(crate) fn all_named(&self) -> impl Iterator<Item = (&'static str, AddedToken)> {
        NAMED.into_iter().filter_map(|key| Some((key, self.named(key)?)))
    }

    /// Special tokens without a name.
    pub(crate) fn extra(&self) -> Vec<AddedToken> {
        let lists = ["additional_special_tokens", "extra_special_tokens"].map(|key| {
            let written = self.json.get(key).filter(|value| !value.is_null());
            written.unwrap_or(&self.special[key])
        });
        let entries = lists.into_iter().flat_map(|list| match list {
            Value::Array(list) => list.iter().collect(),
            Value::Object(map) => map.values().collect(),
            _ => Vec::new(),
        });
        entries.filter_map(|entry| added_token(entry, true)).collect()
    }

    /// Tokens with their required ids, ascending: `added_tokens_decoder` of tokenizer_config.json, else `added_tokens.json`, as in older
    /// models.
    pub(crate) fn added(&self) -> Vec<(u32, AddedToken)> {
        let mut added: Vec<(u32, AddedToken)> = match &self.json["added_tokens_decoder"] {
            Value::Object(entries) => {
                entries.iter().filter_map(|(id, token)| Some((id.parse().ok()?, added_token(token, false)?))).collect()
            }
            _ => {
                let entries = self.added.as_object().into_iter().flatten();
                let special: Vec<AddedToken> = self.all_named().map(|(_, token)| token).chain(self.extra()).collect();
                let is_special = |text: &str| special.iter().any(|token| token.content == text);
                let token = |text: &String| AddedToken::from(text.as_str(), is_special(text));
                entries.filter_map(|(text, id)| Some((as_id(id)?, token(text)))).collect()
            }
        };
        added.sort_by_key(|(id, _)| *id);
        added
    }
}

/// A token as files represent it: its text, or an object with the text in `content`.
fn added_token(value: &Value, is_special: bool) -> Option<AddedToken> {
    let content = value.as_str().or_else(|| value["content"].as_str())?;
    let flag = |key: &str, default: bool| value[key].as_bool().unwrap_or(default);
    let token = AddedToken::from(content, flag("special", is_special));
    let normalized = flag("normalized", !token.special);
    Some(
        token
            .single_word(flag("single_word", false))
            .lstrip(flag("lstrip", false))
            .rstrip(flag("rstrip", false))
            .normalized(normalized),
    )
}

pub(crate) fn as_id(value: &Value) -> Option<u32> {
    value.as_u64().and_then(|id| u32::try_from(id).ok())
}
