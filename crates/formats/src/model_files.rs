//! What a model directory holds beside its weights: the index of its shards, and the files that are copied from model to model.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;

use serde_json::{Map, Value, json};

use crate::FormatError;
use crate::atomic::{atomic_write, atomic_write_with};
use crate::checkpoint::{INDEX, shard_contents};

/// Files of a model directory, besides weights and `config.json`, that are copied if they exist.
const SIDE_FILES: [&str; 11] = [
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "generation_config.json",
    "chat_template.jinja",
    "chat_template.json",
    "preprocessor_config.json",
];

/// The usual name of shard `shard_idx`, counted from 0, of `n_shards`.
pub fn shard_name(shard_idx: usize, n_shards: usize) -> String {
    format!("model-{:05}-of-{n_shards:05}.safetensors", shard_idx + 1)
}

/// Copies tokenizer, chat template and generation settings, as far as they exist.
///
/// # Errors
/// When a file cannot be read or written.
pub fn copy_side_files(from: &Path, to: &Path) -> Result<(), FormatError> {
    SIDE_FILES.iter().try_for_each(|name| copy_if_there(&from.join(name), &to.join(name)))
}

/// Writes `model.safetensors.index.json`: which of the `shards`, files in `dir`, has which tensor.
///
/// # Errors
/// [`FormatError::MissingShard`] when a shard is not there; [`FormatError::TwiceWritten`] when two contain the same name.
pub fn write_index(dir: &Path, shards: &[String]) -> Result<(), FormatError> {
    let index = dir.join(INDEX);
    let (mut places, mut total) = (BTreeMap::new(), 0);
    for shard in shards {
        let path = dir.join(shard);
        let contents = shard_contents(&path).map_err(|error| match error {
            FormatError::MissingFile { path } => FormatError::MissingShard { path, index: index.clone() },
            other => other,
        })?;
        for (tensor, bytes) in contents {
            total += bytes;
            if places.insert(tensor.clone(), shard.clone()).is_some() {
                return Err(FormatError::TwiceWritten { path, tensor });
            }
        }
    }
    let weight_map: Map<String, Value> = places.into_iter().map(|(tensor, shard)| (tensor, shard.into())).collect();
    write_json(&index, &json!({"metadata": {"total_size": total}, "weight_map": weight_map}))
}

/// Writes `value` to `path` atomically, indented.
pub fn write_json(path: &Path, value: &Value) -> Result<(), FormatError> {
    let mut text = format!("{value:#}");
    text.push('\n');
    atomic_write(path, text.as_bytes())
}

fn copy_if_there(from: &Path, to: &Path) -> Result<(), FormatError> {
    match fs::File::open(from) {
        Ok(mut file) => atomic_write_with(to, |out| io::copy(&mut file, out).map(drop)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(FormatError::reading(from, error)),
    }
}
