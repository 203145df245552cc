//! The tokenizer of a Hugging Face directory as GGUF metadata.
//!
//! tokenizer.json is the source. Of the other files only what it lacks is read: the names of special tokens, and the chat template.

use std::path::{Path, PathBuf};

use serde_json::Value as Json;

use super::pairs::{Pairs, Value};
use super::scores::scores;
use crate::gguf::GgufError;
use crate::gguf::splitter::Splitter;
use crate::{FormatError, SentencePieceModel, SpacePrefix, without_mark};

// Token types.
const NORMAL: i32 = 1;
const UNKNOWN: i32 = 2;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;
const UNUSED: i32 = 5;
const BYTE: i32 = 6;

/// The files of a tokenizer.
struct Files {
    /// tokenizer.json, or what it would be.
    tokenizer: Json,
    /// Named in errors.
    path: PathBuf,
    config: Json,
    special: Json,
    model: Json,
    generation: Json,
}

/// Tokens by id, with their types.
struct Tokens {
    texts: Vec<String>,
    types: Vec<i32>,
}

/// The metadata; `vocab` is the number of rows of the embedding.
pub(super) fn metadata(dir: &Path, vocab: usize) -> Result<Pairs, GgufError> {
    let files = Files::read(dir)?;
    let model = &files.tokenizer["model"];
    if model["type"].as_str().unwrap_or("BPE") != "BPE" {
        return Err(files.refused(format!("a {} model: BPE is written", model["type"])));
    }
    let tokens = files.tokens(vocab)?;
    let mut pairs = Pairs::default();
    if model["byte_fallback"].as_bool() == Some(true) {
        pairs.put("tokenizer.ggml.model", "llama");
        pairs.put("tokenizer.ggml.pre", "default");
        pairs.put("tokenizer.ggml.add_space_prefix", files.adds_space()?);
        let normal: Vec<(usize, &str)> = tokens.normal().collect();
        let scores = scores(&normal, tokens.texts.len(), &files.merges()?).map_err(|why| files.refused(why))?;
        pairs.put("tokenizer.ggml.scores", Value::Floats(scores));
    } else {
        pairs.put("tokenizer.ggml.model", "gpt2");
        pairs.put("tokenizer.ggml.pre", files.splitter()?.name());
        let merges = files.merges()?.into_iter().map(|(left, right)| format!("{left} {right}")).collect();
        pairs.put("tokenizer.ggml.merges", Value::Texts(merges));
    }
    pairs.extend(files.special_tokens(&tokens)?);
    pairs.put("tokenizer.ggml.tokens", Value::Texts(tokens.texts));
    pairs.put("tokenizer.ggml.token_type", Value::Ints(tokens.types));
    if let Some(template) = files.chat_template(dir)? {
        pairs.put("tokenizer.chat_template", template);
    }
    Ok(pairs)
}

/// A JSON file; `null` if there is none.
fn read_json(path: &Path) -> Result<Json, FormatError> {
    let bytes = match std::fs::read(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Json::Null),
        read => read.map_err(|source| FormatError::reading(path, source))?,
    };
    serde_json::from_slice(without_mark(&bytes))
        .map_err(|error| FormatError::Json { path: path.to_owned(), why: error.to_string() })
}

/// The text of a token, as files write it: alone, or in an object.
fn content(token: &Json) -> Option<&str> {
    token.as_str().or_else(|| token["content"].as_str())
}

/// The two tokens of a merge: a text with a space between, or a list.
fn merged(merge: &Json) -> Option<(&str, &str)> {
    match merge {
        Json::String(text) => text.split_once(' '),
        _ => Some((merge[0].as_str()?, merge[1].as_str()?)),
    }
}

impl Files {
    fn read(dir: &Path) -> Result<Self, GgufError> {
        let read = |name: &str| read_json(&dir.join(name));
        let config = read("tokenizer_config.json")?;
        let (mut path, mut tokenizer) = (dir.join("tokenizer.json"), read("tokenizer.json")?);
        if tokenizer.is_null() {
            path = dir.join("tokenizer.model");
            if !path.is_file() {
                let why = "not there, and no tokenizer.model either: a GGUF file contains its tokenizer".to_owned();
                return Err(GgufError::Tokenizer { path: dir.join("tokenizer.json"), why });
            }
            let adds_space = config["add_prefix_space"].as_bool().unwrap_or(true);
            let prefix = if adds_space { SpacePrefix::EveryPart } else { SpacePrefix::Never };
            tokenizer = SentencePieceModel::read(&path)?.tokenizer_json(prefix)?;
        }
        Ok(Self {
            tokenizer,
            path,
            config,
            special: read("special_tokens_map.json")?,
            model: read("config.json")?,
            generation: read("generation_config.json")?,
        })
    }

    fn refused(&self, why: impl Into<String>) -> GgufError {
        GgufError::Tokenizer { path: self.path.clone(), why: why.into() }
    }

    fn tokens(&self, vocab: usize) -> Result<Tokens, GgufError> {
        let model = &self.tokenizer["model"];
        let has_bytes = model["byte_fallback"].as_bool() == Some(true);
        let unknown = model["unk_token"].as_str();
        let mut tokens: Vec<Option<(&str, i32)>> = vec![None; vocab];
        let place = |id: Option<u64>, text: &str, kind: i32| {
            let slot = id.and_then(|id| usize::try_from(id).ok()).filter(|&id| id < vocab);
            let why = || self.refused(format!("token {text:?} has no row of the embedding's {vocab}"));
            slot.ok_or_else(why).map(|id| (id, kind))
        };
        let listed = model["vocab"].as_object().ok_or_else(|| self.refused("a vocabulary that is not an object"))?;
        for (text, id) in listed {
            let is_byte = has_bytes && text.len() == 6 && text.starts_with("<0x") && text.ends_with('>');
            let (id, kind) = place(id.as_u64(), text, if is_byte { BYTE } else { NORMAL })?;
            tokens[id] = Some((text, kind));
        }
        let of_config = self.config["added_tokens_decoder"].as_object().into_iter().flatten();
        let of_config = of_config.map(|(id, token)| (id.parse().ok(), token));
        let of_tokenizer = self.tokenizer["added_tokens"].as_array().into_iter().flatten();
        let of_tokenizer = of_tokenizer.map(|token| (token["id"].as_u64(), token));
        for (id, token) in of_config.chain(of_tokenizer) {
            let text = content(token).ok_or_else(|| self.refused("an added token without text"))?;
            let is_special = token["special"].as_bool().unwrap_or(false);
            let kind = match is_special {
                _ if has_bytes && unknown == Some(text) => UNKNOWN,
                true => CONTROL,
                false => USER_DEFINED,
            };
            let (id, kind) = place(id, text, kind)?;
            tokens[id] = Some((text, kind));
        }
        let named = |(id, token): (usize, Option<(&str, i32)>)| match token {
            Some((text, kind)) => (text.to_owned(), kind),
            // Rows that no token has, as llama.cpp's own converter names them.
            None => (format!("[PAD{id}]"), UNUSED),
        };
        let (texts, types) = tokens.into_iter().enumerate().map(named).unzip();
        Ok(Tokens { texts, types })
    }

    /// Pairs of tokens, the first to be merged first.
    fn merges(&self) -> Result<Vec<(&str, &str)>, GgufError> {
        let listed = self.tokenizer["model"]["merges"].as_array().ok_or_else(|| self.refused("no list of merges"))?;
        let bad = || self.refused("a merge that is not two tokens");
        listed.iter().map(|merge| merged(merge).ok_or_else(bad)).collect()
    }

    /// How byte-level BPE splits a text.
    fn splitter(&self) -> Result<Splitter, GgufError> {
        let ignores_merges = self.tokenizer["model"]["ignore_merges"].as_bool().unwrap_or(false);
        let is_known_normalizer = matches!(self.tokenizer["normalizer"]["type"].as_str(), None | Some("NFC"));
        let found = Splitter::of_json(&self.tokenizer["pre_tokenizer"], ignores_merges);
        found.filter(|_| is_known_normalizer).ok_or_else(|| {
            let known = Splitter::names();
            self.refused(format!("splits text in a way of its own: llama.cpp has the ways of {known}"))
        })
    }

    /// Whether SentencePiece's vocabulary begins a text with a space.
    fn adds_space(&self) -> Result<bool, GgufError> {
        let steps = [&self.tokenizer["normalizer"], &self.tokenizer["pre_tokenizer"]].map(|step| {
            let parts = step["normalizers"].as_array().or_else(|| step["pretokenizers"].as_array());
            parts.map_or_else(|| vec![step], |parts| parts.iter().collect())
        });
        let mut adds = false;
        for step in steps.concat() {
            match step["type"].as_str() {
                None | Some("Replace") => {}
                Some("Prepend") => adds = true,
                Some("Metaspace") => adds = step["prepend_scheme"].as_str() != Some("never"),
                Some(other) => {
                    return Err(self.refused(format!("a step {other}, which llama.cpp does not take before merging")));
                }
            }
        }
        Ok(adds)
    }

    /// Ids of special tokens, and which of them are put around a text.
    fn special_tokens(&self, tokens: &Tokens) -> Result<Pairs, GgufError> {
        let named = |name: &str| {
            let key = format!("{name}_token");
            let text = content(&self.config[&key]).or_else(|| content(&self.special[&key]));
            let id = text.and_then(|text| tokens.texts.iter().position(|token| token == text));
            id.or_else(|| self.ids_of(&self.model, name).first().copied())
        };
        let unknown = self.tokenizer["model"]["unk_token"].as_str();
        let unknown = unknown.and_then(|text| tokens.texts.iter().position(|token| token == text));
        let (first, last) = self.around_a_text()?;
        let bos = named("bos").or(first);
        let ends = self.ids_of(&self.generation, "eos");
        let eos = named("eos").or(last).or(ends.first().copied());
        for (what, found, id) in [("begins", first, bos), ("ends", last, eos)] {
            if found.is_some() && found != id {
                let why = format!("a text {what} with token {found:?}, which is not the one that llama.cpp adds");
                return Err(self.refused(why));
            }
        }
        // An explicit key overrides what tokenizer.json puts around a text, as in transformers.
        let asked = |key: &str, found: Option<usize>| self.config[key].as_bool().unwrap_or(found.is_some());

        let mut pairs = Pairs::default();
        let end_of_turn = ends.iter().copied().find(|&id| Some(id) != eos);
        let ids = [("bos", bos), ("eos", eos), ("eot", end_of_turn), ("unknown", unknown), ("padding", named("pad"))];
        for (name, id) in ids {
            if let Some(id) = id.filter(|&id| id < tokens.texts.len()) {
                pairs.put(format!("tokenizer.ggml.{name}_token_id"), id as u32);
            }
        }
        pairs.put("tokenizer.ggml.add_bos_token", bos.is_some() && asked("add_bos_token", first));
        pairs.put("tokenizer.ggml.add_eos_token", eos.is_some() && asked("add_eos_token", last));
        Ok(pairs)
    }

    /// `NAME_token_id` of a config: a number or several.
    fn ids_of(&self, config: &Json, name: &str) -> Vec<usize> {
        let id = |value: &Json| value.as_u64().map(|id| id as usize);
        match &config[format!("{name}_token_id")] {
            Json::Array(ids) => ids.iter().filter_map(id).collect(),
            one => id(one).into_iter().collect(),
        }
    }

    /// The ids of the tokens before and after a text, by the template of tokenizer.json.
    fn around_a_text(&self) -> Result<(Option<usize>, Option<usize>), GgufError> {
        let processor = &self.tokenizer["post_processor"];
        let parts = processor["processors"].as_array();
        let steps = parts.map_or_else(|| vec![processor], |parts| parts.iter().collect());
        let mut around = (None, None);
        for step in steps {
            match step["type"].as_str() {
                None | Some("ByteLevel") => {}
                Some("TemplateProcessing") => {
                    let pieces = step["single"].as_array().map_or(&[][..], Vec::as_slice);
                    let id = |piece: &Json| {
                        let name = piece["SpecialToken"]["id"].as_str()?;
                        step["special_tokens"][name]["ids"][0].as_u64().map(|id| id as usize)
                    };
                    around = match pieces {
                        [_text] => (None, None),
                        [first, text] if id(text).is_none() => (id(first), None),
                        [text, last] if id(text).is_none() => (None, id(last)),
                        [first, _text, last] => (id(first), id(last)),
                        _ => return Err(self.refused("puts several tokens around a text: llama.cpp adds one")),
                    };
                }
                Some(other) => return Err(self.refused(format!("a post-processor {other}, which llama.cpp lacks"))),
            }
        }
        Ok(around)
    }

    /// `chat_template.jinja`, else the template in tokenizer_config.json; of several the one named `default`.
    fn chat_template(&self, dir: &Path) -> Result<Option<String>, GgufError> {
        let path = dir.join("chat_template.jinja");
        match std::fs::read_to_string(&path) {
            Ok(template) => return Ok(Some(template)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(source) => return Err(FormatError::reading(&path, source).into()),
        }
        let template = match &self.config["chat_template"] {
            Json::Array(named) => named.iter().find(|entry| entry["name"] == "default").map(|entry| &entry["template"]),
            one => Some(one),
        };
        Ok(template.and_then(Json::as_str).map(str::to_owned))
    }
}

impl Tokens {
    /// Tokens that text consists of, with their ids.
    fn normal(&self) -> impl Iterator<Item = (usize, &str)> {
        let typed = self.texts.iter().zip(&self.types).enumerate();
        typed.filter(|(_, (_, kind))| **kind == NORMAL).map(|(id, (text, _))| (id, text.as_str()))
    }
}
