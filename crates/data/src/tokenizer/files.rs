//! Builds a tokenizer from the files of a directory, by the rules of its class.

use std::path::{Path, PathBuf};

use oq_formats::{FormatError, SentencePieceModel, SpacePrefix, word_split};
use serde_json::Value;
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::normalizers::unicode::NFC;
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{SplitDelimiterBehavior, Tokenizer};

use super::special::{Class, TokenizerConfig, as_id};
use crate::error::{DataError, read_json, read_text};
use crate::guard::tokenizing;

const TOKENIZER: &str = "tokenizer.json";
const VOCAB: &str = "vocab.json";
const MERGES: &str = "merges.txt";
const SENTENCEPIECE: &str = "tokenizer.model";

/// The tokenizer of `dir`, and the file that errors name.
pub(super) fn read(dir: &Path, config: &TokenizerConfig) -> Result<(Tokenizer, PathBuf), DataError> {
    if has(dir, TOKENIZER) {
        let path = dir.join(TOKENIZER);
        return Ok((of_json(&path)?, path));
    }
    let has_vocab = has(dir, VOCAB) && has(dir, MERGES);
    match &config.class {
        // GPT-2's tokenizer was published as these two files, without the name of a class.
        Some(Class::Gpt2) | None if has_vocab => {
            Ok((of_vocab(dir, PreTokenizerWrapper::ByteLevel(byte_level(config, true)))?, dir.join(VOCAB)))
        }
        Some(Class::Qwen2) if has_vocab => {
            let pattern = SplitPattern::Regex(word_split(1));
            let split = Split::new(pattern, SplitDelimiterBehavior::Isolated, false).expect("the pattern is correct");
            let parts =
                vec![PreTokenizerWrapper::Split(split), PreTokenizerWrapper::ByteLevel(byte_level(config, false))];
            let mut tokenizer = of_vocab(dir, PreTokenizerWrapper::Sequence(Sequence::new(parts)))?;
            tokenizer.with_normalizer(Some(NFC)).map_err(|e| DataError::corrupt(&dir.join(VOCAB), e))?;
            Ok((tokenizer, dir.join(VOCAB)))
        }
        Some(Class::Llama) | None if has(dir, SENTENCEPIECE) => of_sentencepiece(dir, config),
        class => Err(refusal(dir, class.as_ref())),
    }
}

/// Whether `dir` has a file of this name.
fn has(dir: &Path, name: &str) -> bool {
    dir.join(name).is_file()
}

/// Why the files in `dir` cannot be read as a tokenizer.
fn refusal(dir: &Path, class: Option<&Class>) -> DataError {
    // Vocabularies of other programs and classes.
    let files = [VOCAB, MERGES, SENTENCEPIECE, "tokenizer.tiktoken", "tekken.json", "spiece.model", "vocab.txt"];
    let there: Vec<&str> = files.into_iter().filter(|name| has(dir, name)).collect();
    let class = match class {
        Some(Class::Other(name)) => Some(name.as_str()),
        Some(Class::Gpt2) => Some("GPT2Tokenizer"),
        Some(Class::Qwen2) => Some("Qwen2Tokenizer"),
        Some(Class::Llama) => Some("LlamaTokenizer"),
        Some(Class::Generic) | None => None,
    };
    let class = class.filter(|_| !there.is_empty()).map(str::to_owned);
    DataError::MissingTokenizer { dir: dir.to_owned(), there: there.join(", "), class }
}

fn of_json(path: &Path) -> Result<Tokenizer, DataError> {
    let bad = |e: tokenizers::Error| DataError::corrupt(path, format!("not readable as a tokenizer: {e}"));
    let text = read_text(path)?;
    let mut tokenizer = tokenizing(|| Tokenizer::from_bytes(text)).map_err(bad)?;
    // Published files may contain the truncation of a training run.
    tokenizer.with_truncation(None).map_err(bad)?;
    tokenizer.with_padding(None);
    Ok(tokenizer)
}

fn byte_level(config: &TokenizerConfig, use_regex: bool) -> ByteLevel {
    ByteLevel::new(config.json["add_prefix_space"].as_bool().unwrap_or(false), true, use_regex)
}

/// Byte-level BPE.
fn of_vocab(dir: &Path, split: PreTokenizerWrapper) -> Result<Tokenizer, DataError> {
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
    let mut tokenizer = Tokenizer::new(bpe);
    tokenizer.with_pre_tokenizer(Some(split));
    tokenizer.with_decoder(Some(ByteLevel::default()));
    Ok(tokenizer)
}

/// The ids of the tokens in a vocab.json.
fn read_vocab(path: &Path) -> Result<Vocab, DataError> {
    let Value::Object(entries) = read_json(path)? else {
        return Err(DataError::corrupt(path, "not an object of tokens and ids"));
    };
    let ids = entries.into_iter().map(|(token, id)| Some((token, as_id(&id)?)));
    ids.collect::<Option<Vocab>>().ok_or_else(|| DataError::corrupt(path, "an id is not a number below 2^32"))
}

/// LLaMA's `tokenizer.model`, read as transformers reads it for the named class; if no class is named, as it reads the file alone.
fn of_sentencepiece(dir: &Path, config: &TokenizerConfig) -> Result<(Tokenizer, PathBuf), DataError> {
    let path = dir.join(SENTENCEPIECE);
    let refused = |e: FormatError| DataError::TokenizerModel(Box::new(e));
    let flag = |key: &str, default: bool| config.json[key].as_bool().unwrap_or(default);
    let prefix = match (flag("add_prefix_space", true), config.names_class, flag("legacy", false)) {
        (false, ..) => SpacePrefix::Never,
        (true, false, _) => SpacePrefix::EveryPart,
        (true, true, true) => SpacePrefix::EveryPartWithout,
        (true, true, false) => SpacePrefix::FirstWithout,
    };
    let json = SentencePieceModel::read(&path).and_then(|model| model.tokenizer_json(prefix)).map_err(refused)?;
    let bad = |e: tokenizers::Error| DataError::corrupt(&path, format!("not readable as a tokenizer: {e}"));
    let tokenizer = tokenizing(|| Tokenizer::from_bytes(json.to_string())).map_err(bad)?;
    Ok((tokenizer, path))
}
