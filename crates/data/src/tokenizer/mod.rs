//! A model's tokenizer: from `tokenizer.json`, or from the older files of its class.

mod files;
pub(crate) mod special;
pub(crate) mod stream;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use tokenizers::AddedToken;

use self::special::TokenizerConfig;
use crate::error::DataError;
use crate::generation::Generation;
use crate::guard::tokenizing;

/// Whether to add the tokens that a tokenizer puts around a text (beginning-of-sequence for most families).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AddSpecial {
    /// Add them: the text is the beginning of a sequence.
    Yes,
    /// Only the text, as a continuation.
    No,
}

/// Converts text to token ids and back.
#[derive(Clone, Debug)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    path: PathBuf,
    bos: Option<u32>,
    ends: Vec<u32>,
    first: Option<Change>,
    last: Option<Change>,
    /// Ids of special tokens, which decoding omits.
    special: BTreeSet<u32>,
    id_bound: u32,
}

/// What `add_bos_token` or `add_eos_token` changes about tokenizer.json.
#[derive(Clone, Copy, Debug)]
enum Change {
    Add(u32),
    Drop(u32),
}

impl Tokenizer {
    /// The tokenizer of a model directory: `tokenizer.json`, else the files of its class (from `tokenizer_class` or the model's type, as in
    /// transformers): `vocab.json` + `merges.txt` for GPT-2's (OPT) and Qwen 2's, `tokenizer.model` for LLaMA's.
    ///
    /// Added and special tokens come from `tokenizer_config.json`, `special_tokens_map.json` and `added_tokens.json`. The end-of-sequence
    /// tokens are those of [`Generation`] and the tokenizer's own `eos_token`. An explicit `add_bos_token` or `add_eos_token` overrides
    /// what `tokenizer.json` puts around a text. With a `tokenizer.model`, a text begins with `bos_token` unless configured otherwise.
    ///
    /// # Errors
    /// When there is none, when its class is not supported, or when a file is broken.
    pub fn open(dir: &Path) -> Result<Self, DataError> {
        let config = TokenizerConfig::open(dir)?;
        let (mut inner, path) = files::read(dir, &config)?;
        add_tokens(&mut inner, &path, &config)?;
        let id_of = |key: &str| config.named(key).and_then(|token| inner.token_to_id(&token.content));
        let (bos, eos) = (id_of("bos_token"), id_of("eos_token"));
        let ends: BTreeSet<u32> = Generation::open(dir)?.ends.into_iter().chain(eos).collect();
        let vocab = inner.get_vocab(true);
        let added = inner.get_added_vocabulary();
        let special =
            vocab.iter().filter(|(token, _)| added.is_special_token(token.as_str())).map(|(_, &id)| id).collect();
        let id_bound = vocab.into_values().max().map_or(0, |id| id.saturating_add(1));
        let ends = ends.into_iter().collect();
        let is_json = path.extension().is_some_and(|extension| extension == "json");
        let mut tokenizer = Self { inner, path, bos, ends, first: None, last: None, special, id_bound };
        let asked = |key: &str| config.json[key].as_bool();
        let adds_bos = asked("add_bos_token").or((!is_json).then_some(true));
        let adds_eos = asked("add_eos_token");
        if adds_bos.is_some() || adds_eos.is_some() {
            let [around, text] = [AddSpecial::Yes, AddSpecial::No].map(|special| tokenizer.encode("a", special));
            let (around, text) = (around?, text?);
            let at = around.windows(text.len().max(1)).position(|window| window == text).unwrap_or(0);
            tokenizer.first = change(adds_bos, bos, around[..at].first());
            tokenizer.last = change(adds_eos, eos, around[at + text.len()..].last());
        }
        Ok(tokenizer)
    }

    /// The ids of `text`, tokenized as a whole, `[t]`.
    pub fn encode(&self, text: &str, with_special: AddSpecial) -> Result<Vec<u32>, DataError> {
        let with_special = with_special == AddSpecial::Yes;
        let encoding = tokenizing(|| self.inner.encode_fast(text, with_special));
        let encoding = encoding.map_err(|e| self.refused("encode the text", e))?;
        let mut ids = encoding.get_ids().to_vec();
        // A post-processor inserts the ids in its file without checking them.
        if let Some(id) = ids.iter().find(|&&id| id >= self.id_bound) {
            let reason = format!("id {id} is not in the vocabulary, whose ids are below {}", self.id_bound);
            return Err(self.refused("encode the text", reason.into()));
        }
        if with_special {
            match self.last {
                Some(Change::Add(eos)) => ids.push(eos),
                Some(Change::Drop(eos)) if ids.last() == Some(&eos) => drop(ids.pop()),
                _ => {}
            }
            match self.first {
                Some(Change::Add(bos)) => ids.insert(0, bos),
                Some(Change::Drop(bos)) if ids.first() == Some(&bos) => drop(ids.remove(0)),
                _ => {}
            }
        }
        Ok(ids)
    }

    /// The text of `ids`, without special tokens (beginning and end of sequence, padding).
    pub fn decode(&self, ids: &[u32]) -> Result<String, DataError> {
        tokenizing(|| self.inner.decode(ids, true)).map_err(|e| self.refused("decode the ids", e))
    }

    /// The token `id` as the vocabulary spells it, such as `</s>` or `\u{120}the`.
    pub fn token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// The beginning-of-sequence token, if the tokenizer names one.
    pub fn bos(&self) -> Option<u32> {
        self.bos
    }

    /// The end-of-sequence tokens, ascending; empty if none is named.
    pub fn eos(&self) -> &[u32] {
        &self.ends
    }

    /// One more than the largest id that [`encode`](Self::encode) can return: a model needs at least this many embeddings.
    pub fn id_bound(&self) -> u32 {
        self.id_bound
    }

    fn refused(&self, action: &'static str, e: tokenizers::Error) -> DataError {
        DataError::Tokenize { path: self.path.clone(), action, reason: e.to_string() }
    }
}

/// The change that makes `token` present, or absent, at `found`.
fn change(wanted: Option<bool>, token: Option<u32>, found: Option<&u32>) -> Option<Change> {
    let token = token?;
    match (wanted?, found == Some(&token)) {
        (true, false) => Some(Change::Add(token)),
        (false, true) => Some(Change::Drop(token)),
        _ => None,
    }
}

/// Adds the tokens that are listed outside the vocabulary, like transformers: with the next free ids, those of `added_tokens_decoder`
/// first.
fn add_tokens(inner: &mut tokenizers::Tokenizer, path: &Path, config: &TokenizerConfig) -> Result<(), DataError> {
    let bad = |e: tokenizers::Error| DataError::corrupt(path, format!("its added tokens: {e}"));
    let listed = config.added();
    inner.add_tokens(listed.iter().map(|(_, token)| token.clone())).map_err(bad)?;
    for (id, token) in &listed {
        let got = inner.token_to_id(&token.content);
        if got != Some(*id) {
            // Like transformers, which counts on from the vocabulary, whatever ids are written.
            let content = &token.content;
            tracing::warn!(
                token = content,
                written = id,
                ?got,
                "a token's id is not the one that the tokenizer's files write"
            );
        }
    }
    let known: BTreeSet<String> = inner.get_added_tokens_decoder().into_values().map(|token| token.content).collect();
    // An id outside the vocabulary would have no embedding in the model.
    let is_new = |token: &AddedToken| !known.contains(&token.content) && inner.token_to_id(&token.content).is_some();
    let special: Vec<AddedToken> =
        config.all_named().map(|(_, token)| token).chain(config.extra()).filter(is_new).collect();
    inner.add_special_tokens(special).map_err(bad)?;
    Ok(())
}
