//! A small packed model with random codes.

#![allow(dead_code, reason = "each test program uses a part")]

use std::path::Path;

use oq_export::{ExportError, Exported, Options, export, find};
use oq_formats::packed::packed_tensors;
use oq_formats::{Dtype, OutTensor, PackedCheckpoint, PackedWriter, Quantization};
use oq_quant_core::{ActSpec, QuantSpec, QuantizedTensor};
use serde_json::{Value, json};
use tempfile::TempDir;

/// Linears of the model: name and shape, `[out, in]`.
pub const LINEARS: [(&str, [usize; 2]); 3] = [
    ("model.layers.0.self_attn.q_proj", [64, 256]),
    ("model.layers.0.mlp.down_proj", [64, 384]),
    ("model.layers.1.self_attn.q_proj", [64, 128]),
];

pub fn spec(scheme: &str) -> QuantSpec {
    scheme.parse().unwrap()
}

/// Weights of about one, the same for each seed.
fn weights(len: usize, seed: u64) -> Vec<f32> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..len).map(|_| next() * next() + 0.1).collect()
}

/// A packed model; the scheme of each linear is the one at its place, or the last.
pub fn packed(schemes: &[&str], config: &Value) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("source");
    std::fs::create_dir(&source).unwrap();
    std::fs::write(source.join("tokenizer.json"), "{}").unwrap();
    let writer = PackedWriter::create(&dir.path().join("packed"), &source, 2).unwrap();
    let mut specs = Vec::new();
    let mut blocks = [Vec::new(), Vec::new()];
    for (idx, (name, [rows, cols])) in LINEARS.into_iter().enumerate() {
        let spec = spec(schemes[idx.min(schemes.len() - 1)]);
        specs.push((name.to_owned(), spec.weight));
        let tensor = QuantizedTensor::quantize(&weights(rows * cols, idx as u64), rows, cols, spec.weight).unwrap();
        let block = usize::from(name.contains("layers.1"));
        blocks[block].extend(packed_tensors(name, &tensor));
    }
    let bias = OutTensor::from_f32("model.layers.0.self_attn.q_proj.bias", &[64], &weights(64, 7), Dtype::F32);
    blocks[0].push(bias.unwrap());
    blocks.iter().enumerate().for_each(|(idx, block)| writer.write_block(idx, block).unwrap());
    let rest = OutTensor::from_f32("model.embed_tokens.weight", &[10, 256], &weights(2560, 9), Dtype::BF16).unwrap();
    writer.write_rest(&[rest]).unwrap();
    let act = spec(schemes[0]).act;
    writer.finish(config, &Quantization::of_linears(act, specs), &["lm_head"]).unwrap();
    dir
}

pub fn llama() -> Value {
    json!({"model_type": "llama", "dtype": "bfloat16", "rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}})
}

pub fn open(dir: &TempDir) -> PackedCheckpoint {
    PackedCheckpoint::open(&dir.path().join("packed")).unwrap()
}

pub fn try_export(dir: &TempDir, format: &str, out: &Path) -> Result<Exported, ExportError> {
    export(&open(dir), find(format).unwrap(), out, &Options::default(), &mut |_| {})
}

/// A scheme that differs in activations only.
pub fn with_act(scheme: &str, act: ActSpec) -> QuantSpec {
    QuantSpec { act, ..spec(scheme) }
}
