//! A model's tokenizer, from `tokenizer.json` or from the older `vocab.json` + `merges.txt`.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde_json::Value;
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{AddedToken, Model};

use crate::error::{DataError, read_json, read_text};
use crate::guard;

/// Whether the tokens that a tokenizer puts around a text (BOS for most families) are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AddSpecial {
    /// As the family reads a text from its start.
    Yes,
    /// The text alone, for a continuation.
    No,
}

/// Text to token ids and back.
#[derive(Clone, Debug)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    path: PathBuf,
    bos: Option<u32>,
    eos: Vec<u32>,
    fix_bos: Option<FixBos>,
    id_bound: u32,
}

/// What `add_bos_token` of tokenizer_config.json asks beyond what tokenizer.json does.
#[derive(Clone, Copy, Debug)]
enum FixBos {
    Prepend(u32),
    Drop(u32),
}

const TOKENIZER: &str = "tokenizer.json";
const VOCAB: &str = "vocab.json";
const MERGES: &str = "merges.txt";

impl Tokenizer {
    /// The tokenizer of a model's directory: `tokenizer.json`, else `vocab.json` + `merges.txt` read as GPT-2's byte-level
    /// BPE (OPT). Special tokens come from `tokenizer_config.json`, `special_tokens_map.json` and, for the ends of
    /// generation, `generation_config.json`.
    ///
    /// An explicit `add_bos_token` in `tokenizer_config.json` decides over what `tokenizer.json` adds by itself.
    pub fn open(dir: &Path) -> Result<Self, DataError> {
        let config = read_optional_json(&dir.join("tokenizer_config.json"))?;
        let special = read_optional_json(&dir.join("special_tokens_map.json"))?;
        let generation = read_optional_json(&dir.join("generation_config.json"))?;
        let named = |key: &str| added_token(&config[key]).or_else(|| added_token(&special[key]));

        let path = dir.join(TOKENIZER);
        let (inner, path) = if path.is_file() {
            (from_tokenizer_json(&path)?, path)
        } else if dir.join(VOCAB).is_file() && dir.join(MERGES).is_file() {
            let prefix_space = config["add_prefix_space"].as_bool().unwrap_or(false);
            let named = ["bos_token", "eos_token", "unk_token", "pad_token"].into_iter().filter_map(named).collect();
            (from_vocab_and_merges(dir, prefix_space, named)?, dir.join(VOCAB))
        } else {
            let looked_for = "tokenizer.json, or vocab.json with merges.txt";
            return Err(DataError::MissingTokenizer { dir: dir.to_path_buf(), looked_for });
        };

        let id_of = |key: &str| named(key).and_then(|token| inner.token_to_id(&token.content));
        let bos = id_of("bos_token");
        // Chat models end on more tokens than their tokenizer's one.
        let generation_ends: Vec<u32> = match &generation["eos_token_id"] {
            Value::Array(ids) => ids.iter().filter_map(as_id).collect(),
            id => as_id(id).into_iter().collect(),
        };
        let eos: BTreeSet<u32> = id_of("eos_token").into_iter().chain(generation_ends).collect();

        let largest_id = inner.get_vocab(true).into_values().max();
        let id_bound = largest_id.map_or(0, |id| id.saturating_add(1));
        let mut tokenizer = Self { inner, path, bos, eos: eos.into_iter().collect(), fix_bos: None, id_bound };
        tokenizer.fix_bos = tokenizer.fix_for(config["add_bos_token"].as_bool())?;
        Ok(tokenizer)
    }

    /// The ids of `text`, tokenized at once, `[t]`.
    pub fn encode(&self, text: &str, with_special: AddSpecial) -> Result<Vec<u32>, DataError> {
        let with_special = with_special == AddSpecial::Yes;
        let encoding = guarded(|| self.inner.encode_fast(text, with_special));
        let encoding = encoding.map_err(|e| self.refused("encode the text", e))?;
        let ids = encoding.get_ids();
        // A post-processor writes whatever ids its file gives it.
        if let Some(id) = ids.iter().find(|&&id| id >= self.id_bound) {
            let reason = format!("id {id} is not of the vocabulary, whose ids are below {}", self.id_bound);
            return Err(self.refused("encode the text", reason.into()));
        }
        Ok(match self.fix_bos {
            Some(FixBos::Prepend(bos)) if with_special => std::iter::once(bos).chain(ids.iter().copied()).collect(),
            Some(FixBos::Drop(bos)) if with_special && ids.first() == Some(&bos) => ids[1..].to_vec(),
            _ => ids.to_vec(),
        })
    }

    /// The text of `ids`; special tokens (BOS, EOS, padding) are left out.
    pub fn decode(&self, ids: &[u32]) -> Result<String, DataError> {
        guarded(|| self.inner.decode(ids, true)).map_err(|e| self.refused("decode the ids", e))
    }

    /// The token that begins a text, where the tokenizer names one.
    pub fn bos(&self) -> Option<u32> {
        self.bos
    }

    /// The tokens that end a generation, ascending; empty where none is named.
    pub fn eos(&self) -> &[u32] {
        &self.eos
    }

    /// One more than the largest id that [`encode`](Self::encode) can give: a model needs at least so many embeddings.
    pub fn id_bound(&self) -> u32 {
        self.id_bound
    }

    fn fix_for(&self, add_bos: Option<bool>) -> Result<Option<FixBos>, DataError> {
        let (Some(wanted), Some(bos)) = (add_bos, self.bos) else {
            return Ok(None);
        };
        let adds = self.encode("", AddSpecial::Yes)?.first() == Some(&bos);
        Ok(match (wanted, adds) {
            (true, false) => Some(FixBos::Prepend(bos)),
            (false, true) => Some(FixBos::Drop(bos)),
            _ => None,
        })
    }

    fn refused(&self, action: &'static str, e: tokenizers::Error) -> DataError {
        DataError::Tokenize { path: self.path.clone(), action, reason: e.to_string() }
    }
}

fn from_tokenizer_json(path: &Path) -> Result<tokenizers::Tokenizer, DataError> {
    let bad = |e: tokenizers::Error| DataError::corrupt(path, format!("not readable as a tokenizer: {e}"));
    let text = read_text(path)?;
    let mut tokenizer = guarded(|| tokenizers::Tokenizer::from_bytes(text)).map_err(bad)?;
    // Published files may carry the truncation of somebody's training run.
    tokenizer.with_truncation(None).map_err(bad)?;
    tokenizer.with_padding(None);
    Ok(tokenizer)
}

/// Lets the library beneath do its work, and turns its panics into its errors: merges shorter than their prefix, or pieces of no
/// length, make it panic. What that leaves half done is a tokenizer that is dropped, or the cache of one that is only read.
fn guarded<T>(work: impl FnOnce() -> tokenizers::Result<T>) -> tokenizers::Result<T> {
    guard::guarded(work).unwrap_or_else(|panic| Err(format!("its settings contradict each other ({panic})").into()))
}

fn from_vocab_and_merges(
    dir: &Path,
    add_prefix_space: bool,
    special: Vec<AddedToken>,
) -> Result<tokenizers::Tokenizer, DataError> {
    let (vocab_path, merges_path) = (dir.join(VOCAB), dir.join(MERGES));
    let vocab = read_vocab(&vocab_path)?;
    let mut merges = Vec::new();
    for (i, line) in read_text(&merges_path)?.lines().enumerate() {
        if line.is_empty() || (i == 0 && line.starts_with("#version")) {
            continue;
        }
        let bad = |what| DataError::corrupt(&merges_path, format!("line {}: {line:?} {what}", i + 1));
        let (left, right) = line.split_once(' ').ok_or_else(|| bad("is not two tokens with a space between"))?;
        if !vocab.contains_key(&format!("{left}{right}")) {
            return Err(bad("makes a token that is not in vocab.json"));
        }
        merges.push((left.to_owned(), right.to_owned()));
    }
    let bpe = BPE::builder()
        .vocab_and_merges(vocab, merges)
        .build()
        .map_err(|e| DataError::corrupt(&merges_path, format!("does not fit {VOCAB}: {e}")))?;
    // A special token outside the vocabulary would get an id that the model has no embedding for.
    let special: Vec<_> = special.into_iter().filter(|token| bpe.token_to_id(&token.content).is_some()).collect();
    let mut tokenizer = tokenizers::Tokenizer::new(bpe);
    tokenizer.with_pre_tokenizer(Some(ByteLevel::new(add_prefix_space, true, true)));
    tokenizer.with_decoder(Some(ByteLevel::default()));
    tokenizer
        .add_special_tokens(special)
        .map_err(|e| DataError::corrupt(&vocab_path, format!("special tokens: {e}")))?;
    Ok(tokenizer)
}

fn read_vocab(path: &Path) -> Result<Vocab, DataError> {
    let Value::Object(entries) = read_json(path)? else {
        return Err(DataError::corrupt(path, "not an object of tokens and ids"));
    };
    let ids = entries.into_iter().map(|(token, id)| Some((token, as_id(&id)?)));
    ids.collect::<Option<Vocab>>().ok_or_else(|| DataError::corrupt(path, "an id is not a number below 2^32"))
}

/// A special token as the configs write it: its text, or an object with its text in `content`.
fn added_token(value: &Value) -> Option<AddedToken> {
    let content = value.as_str().or_else(|| value["content"].as_str())?;
    let flag = |key: &str| value[key].as_bool().unwrap_or(false);
    let token = AddedToken::from(content, true);
    Some(token.single_word(flag("single_word")).lstrip(flag("lstrip")).rstrip(flag("rstrip")))
}

fn as_id(value: &Value) -> Option<u32> {
    value.as_u64().and_then(|id| u32::try_from(id).ok())
}

fn read_optional_json(path: &Path) -> Result<Value, DataError> {
    if path.is_file() { read_json(path) } else { Ok(Value::Null) }
}
