//! What identifies a run, and what may differ when it is resumed.

use std::cell::OnceCell;
use std::collections::{BTreeMap, BTreeSet};

use oq_formats::{Checkpoint, FormatError};
use oq_models::{Compute, Model, has_own_attention};
use oq_recipe::Recipe;
use oq_runtime::LIBTORCH;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};
use tch::Device;

/// Everything that decides a run's result: in equal [`Surroundings`], two runs with equal identities write the same bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Identity {
    /// Version of this program.
    pub(crate) version: String,
    /// The resolved recipe, as JSON.
    pub(crate) recipe: String,
    /// sha256 of `config.json`, of the tensors' names, types and shapes, of the shards' sizes, and of all tensors outside the blocks.
    pub(crate) model: String,
    /// sha256 of the calibration token ids.
    pub(crate) calibration: String,
    /// The type that products are computed in.
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
        // Each tensor once: a head that shares the embedding's weights has the embedding's name.
        let outer: BTreeSet<&str> = outer.iter().map(|param| model.stored_name(param.name)).collect();
        of_model.update(digest_of(model.checkpoint(), outer)?);
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

    /// The parts that differ in the run requested now, and the settings of the recipe that do.
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
            Some(format!("{key} was {there} and is now {asked}"))
        });
        let changed: Vec<String> = changed.collect();
        match changed.is_empty() {
            true => names.join(", "),
            false => format!("{} ({})", names.join(", "), changed.join(", ")),
        }
    }
}

/// The hardware and software that compute a run. They affect its bytes, because sums are taken in a different order, but not its
/// quality. So a run may be resumed in other surroundings.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Surroundings {
    /// Version of libtorch.
    pub(crate) libtorch: String,
    /// Such as `cpu` or `cuda:0`.
    pub(crate) device: String,
    /// libtorch's threads on the CPU.
    pub(crate) threads: usize,
    /// Whose attention is used: `own` or `libtorch`.
    pub(crate) attention: String,
    /// Number of processes.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub(crate) ranks: usize,
}

fn one() -> usize {
    1
}

fn is_one(ranks: &usize) -> bool {
    *ranks == 1
}

impl Surroundings {
    /// Those of a run on `ranks` processes like this one, on segments of `tokens` tokens.
    pub(crate) fn here(model: &Model, tokens: usize, (device, compute): (Device, Compute), ranks: usize) -> Self {
        let decoder = model.decoder();
        let is_own = has_own_attention(device, compute.kind())
            && (0..decoder.dims().n_layers).all(|layer| decoder.has_plain_scores(layer, tokens));
        Self {
            libtorch: LIBTORCH.to_owned(),
            device: match device {
                Device::Cuda(index) if oq_cuda::of(device).is_some() => format!("cuda:{index}, own kernels"),
                Device::Cuda(index) => format!("cuda:{index}"),
                other => format!("{other:?}").to_lowercase(),
            },
            threads: usize::try_from(tch::get_num_threads()).unwrap_or_default(),
            attention: if is_own { "own" } else { "libtorch" }.to_owned(),
            ranks,
        }
    }

    /// What differs here, with both values; empty if nothing does.
    pub(crate) fn differences(&self, here: &Self) -> String {
        let [there, threads] = [self, here].map(|side| side.threads.to_string());
        let [ranks_there, ranks] = [self, here].map(|side| side.ranks.to_string());
        let parts = [
            ("libtorch", &self.libtorch, &here.libtorch),
            ("device", &self.device, &here.device),
            ("threads", &there, &threads),
            ("attention", &self.attention, &here.attention),
            ("ranks", &ranks_there, &ranks),
        ];
        let changed = parts.into_iter().filter(|(_, there, here)| there != here);
        let changed = changed.map(|(name, there, here)| format!("{name} was {there} and is now {here}"));
        changed.collect::<Vec<_>>().join(", ")
    }
}

/// The weights that the blocks of a model are made from.
pub(crate) struct Sources<'a> {
    model: &'a Model,
    /// Of the blocks that were requested so far.
    digests: Vec<OnceCell<String>>,
}

impl<'a> Sources<'a> {
    /// Reads nothing yet.
    pub(crate) fn new(model: &'a Model) -> Self {
        Self { model, digests: vec![OnceCell::new(); model.decoder().dims().n_layers] }
    }

    /// sha256 of the names and bytes of a block's tensors, computed once. With SHA instructions one core hashes 1.8 GB/s: 8 seconds for
    /// all blocks of LLaMA-2-7B in 16 bits. So all bytes are hashed.
    pub(crate) fn of(&self, block_idx: usize) -> Result<&str, FormatError> {
        let digest = &self.digests[block_idx];
        if let Some(known) = digest.get() {
            return Ok(known);
        }
        let prefix = self.model.decoder().block_prefix(block_idx);
        let checkpoint = self.model.checkpoint();
        let made = digest_of(checkpoint, checkpoint.names().filter(|name| name.starts_with(&prefix)))?;
        Ok(digest.get_or_init(|| made))
    }
}

/// Hashes the tensors in pieces, and returns the memory of each piece.
fn digest_of<'a>(checkpoint: &Checkpoint, names: impl IntoIterator<Item = &'a str>) -> Result<String, FormatError> {
    let mut hash = Sha256::new();
    for name in names {
        hash.update(format!("{name}\n"));
        checkpoint.for_each_piece(name, |_, bytes| {
            hash.update(bytes);
            Ok::<_, FormatError>(())
        })?;
    }
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

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::testing::fixture;

    #[test]
    fn every_byte_of_a_block_is_part_of_its_source() {
        let model = fixture("tiny-llama");
        let name = "model.layers.2.mlp.up_proj.weight";
        let bytes = model.checkpoint().tensor(name).unwrap().bytes;
        let weights = model.checkpoint().shards()[0].path();
        let (whole, dir) = (fs::read(weights).unwrap(), tempfile::tempdir().unwrap());
        fs::copy(model.dir().join("config.json"), dir.path().join("config.json")).unwrap();
        let start = whole.windows(bytes.len()).position(|window| window == bytes).unwrap();
        let before = Sources::new(&model);
        for changed in [0, bytes.len() / 2, bytes.len() - 1] {
            let mut other = whole.clone();
            other[start + changed] ^= 1;
            fs::write(dir.path().join("model.safetensors"), other).unwrap();
            let other = Model::open(dir.path()).unwrap();
            let after = Sources::new(&other);
            for block in 0..4 {
                let is_same = before.of(block).unwrap() == after.of(block).unwrap();
                assert_eq!(is_same, block != 2, "block {block}, byte {changed} of {}", bytes.len());
            }
        }
    }

    #[test]
    fn surroundings_that_differ_are_named_with_both_values() {
        let here = |threads, device: &str| Surroundings {
            libtorch: "2.13.0".to_owned(),
            device: device.to_owned(),
            threads,
            attention: "own".to_owned(),
            ranks: 1,
        };
        assert_eq!(here(1, "cpu").differences(&here(1, "cpu")), "");
        let differences = here(1, "cpu").differences(&here(16, "cuda:0"));
        assert_eq!(differences, "device was cpu and is now cuda:0, threads was 1 and is now 16");
        let on_two = Surroundings { ranks: 2, ..here(1, "cpu") };
        assert_eq!(on_two.differences(&here(1, "cpu")), "ranks was 2 and is now 1");
        let one = serde_json::to_string(&here(1, "cpu")).unwrap();
        assert!(!one.contains("ranks") && serde_json::from_str::<Surroundings>(&one).unwrap().ranks == 1);
    }
}
