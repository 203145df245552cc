//! What makes two runs the same.

use std::collections::BTreeMap;

use oq_formats::FormatError;
use oq_models::{Compute, Model};
use oq_recipe::Recipe;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};

/// Everything that decides a run's bytes on one machine with one number of threads: there, two runs with equal identities end in
/// equal files.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Identity {
    /// Version of this program.
    pub(crate) version: String,
    /// The recipe as resolved, as JSON.
    pub(crate) recipe: String,
    /// sha256 of `config.json`, of the tensors' names, types and shapes, of the shards' sizes, and of the first bytes of what lies outside the blocks.
    pub(crate) model: String,
    /// sha256 of the calibration token ids.
    pub(crate) calibration: String,
    /// What products are computed in.
    pub(crate) compute: String,
}

impl Identity {
    /// Of a run on the calibration token ids `segments`.
    pub(crate) fn of(
        model: &Model,
        recipe: &Recipe,
        segments: &[Vec<u32>],
        compute: Compute,
    ) -> Result<Self, FormatError> {
        let mut of_model = Sha256::new();
        of_model.update(model.config().to_string());
        for tensor in model.checkpoint().tensors() {
            of_model.update(format!("{} {:?} {:?}\n", tensor.name, tensor.dtype, tensor.shape));
        }
        for shard in model.checkpoint().shards() {
            of_model.update(format!("{}\n", shard.bytes()));
        }
        let outer = model.decoder().outer_params();
        of_model.update(digest_of(model, outer.iter().map(|param| model.stored_name(param.name)))?);
        let mut of_ids = Sha256::new();
        for id in segments.iter().flatten() {
            of_ids.update(id.to_le_bytes());
        }
        Ok(Self {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            recipe: serde_json::to_string(recipe).expect("a recipe is plain data"),
            model: hex(&of_model.finalize()),
            calibration: hex(&of_ids.finalize()),
            compute: compute.name().to_owned(),
        })
    }

    /// Which parts differ from those that are asked for now, and which settings of the recipe.
    pub(crate) fn differences(&self, asked: &Self) -> String {
        let parts = [
            ("program version", self.version != asked.version),
            ("recipe", self.recipe != asked.recipe),
            ("model", self.model != asked.model),
            ("calibration tokens", self.calibration != asked.calibration),
            ("compute", self.compute != asked.compute),
        ];
        let names: Vec<&str> = parts.iter().filter(|(_, differs)| *differs).map(|(name, _)| *name).collect();
        let asked = settings(&asked.recipe);
        let changed = settings(&self.recipe).into_iter().filter_map(|(key, there)| {
            let asked = asked.get(&key).filter(|asked| **asked != there)?;
            Some(format!("{key} is {there} there and {asked} here"))
        });
        let changed: Vec<String> = changed.collect();
        match changed.is_empty() {
            true => names.join(", "),
            false => format!("{} ({})", names.join(", "), changed.join(", ")),
        }
    }
}

/// Bytes of a tensor that tell whose it is.
const FIRST: usize = 4 << 10;

/// sha256 of the names and first bytes of the tensors that a block is made from: another for weights of another training.
pub(crate) fn source_of(model: &Model, block_idx: usize) -> Result<String, FormatError> {
    let prefix = model.decoder().block_prefix(block_idx);
    digest_of(model, model.checkpoint().names().filter(|name| name.starts_with(&prefix)))
}

fn digest_of<'a>(model: &Model, names: impl Iterator<Item = &'a str>) -> Result<String, FormatError> {
    let checkpoint = model.checkpoint();
    let mut hash = Sha256::new();
    for name in names {
        let bytes = checkpoint.tensor(name)?.bytes;
        hash.update(format!("{name}\n"));
        hash.update(&bytes[..bytes.len().min(FIRST)]);
    }
    checkpoint.release();
    Ok(hex(&hash.finalize()))
}

/// The settings of a recipe by their keys, such as `learn.epochs`.
fn settings(recipe: &str) -> BTreeMap<String, String> {
    fn flatten(prefix: &str, value: &Value, into: &mut BTreeMap<String, String>) {
        match value {
            Value::Object(fields) => fields.iter().for_each(|(key, value)| {
                let dot = if prefix.is_empty() { "" } else { "." };
                flatten(&format!("{prefix}{dot}{key}"), value, into);
            }),
            value => drop(into.insert(prefix.to_owned(), value.to_string())),
        }
    }
    let mut settings = BTreeMap::new();
    flatten("", &serde_json::from_str(recipe).unwrap_or_default(), &mut settings);
    settings
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
