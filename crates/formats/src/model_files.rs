//! The names and the index of a model directory's shards.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Map, Value, json};

use crate::FormatError;
use crate::atomic::atomic_write;
use crate::checkpoint::{INDEX, shard_contents};

/// The usual name of shard `shard_idx`, counted from 0, of `n_shards`.
pub fn shard_name(shard_idx: usize, n_shards: usize) -> String {
    format!("model-{:05}-of-{n_shards:05}.safetensors", shard_idx + 1)
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
