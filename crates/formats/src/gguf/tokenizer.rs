//! The tokenizer of a GGUF file as `tokenizer.json` and `tokenizer_config.json`.
//!
//! Two kinds are supported: byte-level BPE (`gpt2`) and SentencePiece BPE with byte fallback (`llama`). This module has what they share:
//! special tokens, and the tokens around a text.

use serde_json::{Map, Value as Json, json};

use super::metadata::required;
use super::splitter::Splitter;
use super::vocabulary::Vocabulary;
use super::{GgufError, Metadata, bpe, sentencepiece};

/// A tokenizer, as described by the metadata.
pub(super) struct Tokenizer<'a> {
    metadata: &'a Metadata,
    vocabulary: Vocabulary<'a>,
    model: Model,
    bos: Option<u64>,
    eos: Option<u64>,
    unknown: Option<u64>,
    padding: Option<u64>,
    end_of_turn: Option<u64>,
    add_bos: bool,
    add_eos: bool,
}

#[derive(Clone, Copy)]
enum Model {
    ByteLevel(Splitter),
    SentencePiece,
}

impl<'a> Tokenizer<'a> {
    /// Reads the description; `vocab` is the number of rows of the embedding.
    pub(super) fn read(metadata: &'a Metadata, vocab: usize) -> Result<Self, GgufError> {
        let vocabulary = Vocabulary::read(metadata, vocab)?;
        let key = "tokenizer.ggml.model";
        let model = match required(key, metadata.text(key)?)? {
            "gpt2" => Model::ByteLevel(Splitter::read(metadata)?),
            "llama" => Model::SentencePiece,
            other => return Err(GgufError::wrong(key, other, "gpt2 (byte-level BPE) or llama (SentencePiece BPE)")),
        };
        // llama.cpp's default.
        let bos_by_default = match model {
            Model::ByteLevel(splitter) => splitter.adds_bos(),
            Model::SentencePiece => true,
        };
        let id = |name: &str| special_id(metadata, name, &vocabulary);
        let tokenizer = Self {
            metadata,
            model,
            bos: id("bos")?,
            eos: id("eos")?,
            unknown: id("unknown")?,
            padding: id("padding")?,
            end_of_turn: id("eot")?,
            add_bos: metadata.flag("tokenizer.ggml.add_bos_token")?.unwrap_or(bos_by_default),
            add_eos: metadata.flag("tokenizer.ggml.add_eos_token")?.unwrap_or(false),
            vocabulary,
        };
        required("tokenizer.ggml.bos_token_id", tokenizer.bos.or((!tokenizer.add_bos).then_some(0)))?;
        required("tokenizer.ggml.eos_token_id", tokenizer.eos.or((!tokenizer.add_eos).then_some(0)))?;
        metadata.text("tokenizer.chat_template")?;
        Ok(tokenizer)
    }

    /// `tokenizer.json`.
    pub(super) fn json(&self) -> Result<Json, GgufError> {
        let pipeline = match self.model {
            Model::ByteLevel(splitter) => bpe::pipeline(self.metadata, &self.vocabulary, splitter)?,
            Model::SentencePiece => {
                let unknown = self.unknown.map(|id| self.vocabulary.text(id));
                sentencepiece::pipeline(self.metadata, &self.vocabulary, unknown)?
            }
        };
        Ok(json!({
            "version": "1.0",
            "truncation": null,
            "padding": null,
            "added_tokens": self.vocabulary.added(),
            "normalizer": pipeline.normalizer,
            "pre_tokenizer": pipeline.pre_tokenizer,
            "post_processor": self.post_processor(),
            "decoder": pipeline.decoder,
            "model": pipeline.model,
        }))
    }

    /// The tokens around a text: beginning and end of sequence, if the model uses them.
    fn post_processor(&self) -> Json {
        let first = self.bos.filter(|_| self.add_bos);
        let last = self.eos.filter(|_| self.add_eos);
        if first.is_none() && last.is_none() {
            return Json::Null;
        }
        let around = |sequence: &str, type_id: u32| {
            let special = |id: Option<u64>| {
                id.map(|id| json!({ "SpecialToken": { "id": self.vocabulary.text(id), "type_id": type_id } }))
            };
            let text = Some(json!({ "Sequence": { "id": sequence, "type_id": type_id } }));
            [special(first), text, special(last)].into_iter().flatten().collect::<Vec<_>>()
        };
        let definition = |id: u64| {
            let text = self.vocabulary.text(id);
            (text.to_owned(), json!({ "id": text, "ids": [id], "tokens": [text] }))
        };
        let pair = [around("A", 0), around("B", 1)].concat();
        json!({
            "type": "TemplateProcessing",
            "single": around("A", 0),
            "pair": pair,
            "special_tokens": first.into_iter().chain(last).map(definition).collect::<Map<_, _>>(),
        })
    }

    /// `tokenizer_config.json`; `context` is the model's context length.
    pub(super) fn config(&self, context: usize) -> Json {
        let mut config = Map::new();
        let mut put = |key: &str, value: Json| config.insert(key.to_owned(), value);
        put("tokenizer_class", json!("PreTrainedTokenizerFast"));
        put("model_max_length", json!(context));
        put("clean_up_tokenization_spaces", json!(false));
        put("add_bos_token", json!(self.add_bos));
        put("add_eos_token", json!(self.add_eos));
        let specials = [("bos", self.bos), ("eos", self.eos), ("unk", self.unknown), ("pad", self.padding)];
        for (name, id) in specials {
            if let Some(id) = id {
                put(&format!("{name}_token"), json!(self.vocabulary.text(id)));
            }
        }
        if let Ok(Some(template)) = self.metadata.text("tokenizer.chat_template") {
            put("chat_template", json!(template));
        }
        config.into()
    }

    /// `bos_token_id`, `eos_token_id` and `pad_token_id` for config.json, if the file has them.
    pub(super) fn ids(&self) -> Map<String, Json> {
        let ids = [("bos_token_id", self.bos), ("eos_token_id", self.eos), ("pad_token_id", self.padding)];
        ids.into_iter().filter_map(|(key, id)| Some((key.to_owned(), json!(id?)))).collect()
    }

    /// `generation_config.json`. Chat models end a turn with a special token of their own, besides end-of-text.
    pub(super) fn generation_config(&self) -> Json {
        let mut config = self.ids();
        if let (Some(eos), Some(end_of_turn)) = (self.eos, self.end_of_turn)
            && eos != end_of_turn
        {
            config.insert("eos_token_id".to_owned(), json!([eos, end_of_turn]));
        }
        config.into()
    }
}

/// The id in `tokenizer.ggml.NAME_token_id`, checked against the vocabulary.
fn special_id(metadata: &Metadata, name: &str, vocabulary: &Vocabulary<'_>) -> Result<Option<u64>, GgufError> {
    let key = format!("tokenizer.ggml.{name}_token_id");
    let id = metadata.unsigned(&key)?;
    match id.filter(|&id| id >= vocabulary.len() as u64) {
        Some(id) => Err(GgufError::wrong(&key, id, format!("an id below {}", vocabulary.len()))),
        None => Ok(id),
    }
}
