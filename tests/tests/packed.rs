//! The packed model is the measured model: packed models are reloaded, decoded bit by bit, and compared with their source.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;
use std::path::Path;

use half::f16;
use oq_calib::{JOURNAL, Outcome, quantize};
use oq_data::segments;
use oq_eval::{logits, perplexity};
use oq_formats::{Checkpoint, Dtype, OutTensor, TensorView, write_shard};
use oq_models::Model;
use oq_quant_core::{QuantSpec, Symmetry};
use oq_recipe::{Method, Overrides, Recipe};
use oq_tests::{block_losses, calibration, files, fixture, in_f32, relative_error, tokens};
use serde_json::Value;
use tch::{Device, Kind, Tensor};
use tempfile::TempDir;

/// Size of a run, small enough to try every scheme.
const QUICK: Size = Size { samples: 4, seqlen: 64, epochs: 2 };

#[derive(Clone, Copy)]
struct Size {
    samples: usize,
    seqlen: usize,
    epochs: usize,
}

fn recipe(scheme: &str, method: Method, size: Size) -> Recipe {
    let overrides = Overrides::default()
        .method(method)
        .samples(size.samples)
        .seqlen(size.seqlen)
        .epochs(size.epochs)
        .tune_epochs(0);
    Recipe::resolve(scheme.parse().unwrap(), None, None, &overrides).unwrap()
}

/// Arbitrary token ids below `vocab`, for models without a tokenizer.
fn noise(recipe: &Recipe, vocab: usize) -> Vec<Vec<u32>> {
    let c = &recipe.calibration;
    let ids: Vec<u32> = (0..4096u64).map(|i| (i * i * 2_654_435_761 % 104_729 % vocab as u64) as u32).collect();
    segments(&ids, c.samples, c.seqlen, c.seed).unwrap()
}

fn quantized(source: &Path, recipe: &Recipe, segments: &[Vec<u32>]) -> (TempDir, Outcome) {
    let out = tempfile::tempdir().unwrap();
    let model = Model::open(source).unwrap();
    let outcome =
        quantize(&model, recipe, segments, &in_f32(out.path(), false), &mut |_| ControlFlow::Continue(())).unwrap();
    assert_eq!(outcome.blocks.len(), model.decoder().dims().n_layers);
    (out, outcome)
}

fn answer(model: &Model) -> Vec<f32> {
    let vocab = model.decoder().dims().vocab as i64;
    let ids = (Tensor::arange(2 * 24, (Kind::Int64, Device::Cpu)) * 37 + 11).remainder(vocab).view([2, 24]);
    Vec::try_from(logits(model, &ids, Device::Cpu).unwrap().view(-1)).unwrap()
}

fn bits_of(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

/// The packed layout, decoded one bit at a time.
mod by_hand {
    use super::*;

    fn words(view: TensorView<'_>) -> Vec<u32> {
        assert_eq!(view.dtype, Dtype::I32, "{}", view.name);
        view.bytes.as_chunks().0.iter().map(|bytes| u32::from_le_bytes(*bytes)).collect()
    }

    /// Code number `index` of `n_bits` bits in a stream whose bit 0 is the lowest bit of the first word.
    fn code(stream: &dyn Fn(usize) -> u32, index: usize, n_bits: usize) -> u32 {
        let bit = |at: usize| stream(at / 32) >> (at % 32) & 1;
        (0..n_bits).map(|i| bit(index * n_bits + i) << i).sum()
    }

    /// The shape, and `scale * (code - zero point)` in f64, `[out, in]`.
    fn dequantize(packed: &Checkpoint, linear: &str, n_bits: usize) -> ([usize; 2], Vec<f64>) {
        let part = |part: &str| packed.tensor(&format!("{linear}.{part}")).unwrap();
        let shape = part("weight_shape");
        assert_eq!((shape.dtype, shape.shape), (Dtype::I64, &[2][..]), "{linear}");
        let shape: Vec<usize> =
            shape.bytes.as_chunks().0.iter().map(|bytes| i64::from_le_bytes(*bytes) as usize).collect();
        let [rows, cols] = shape[..] else { panic!("{linear}: {shape:?}") };

        let codes = words(part("weight_packed"));
        let row_words = codes.len() / rows;
        assert_eq!(row_words, (cols * n_bits).div_ceil(32), "{linear}");
        let scales = part("weight_scale");
        assert_eq!(scales.dtype, Dtype::F16, "{linear}");
        let groups = scales.shape[1];
        let scales: Vec<f16> = scales.bytes.as_chunks().0.iter().map(|bytes| f16::from_le_bytes(*bytes)).collect();
        let zeros = packed.contains(&format!("{linear}.weight_zero_point")).then(|| words(part("weight_zero_point")));

        let mut weight = Vec::with_capacity(rows * cols);
        for row in 0..rows {
            for col in 0..cols {
                let group = col / (cols / groups);
                let q = code(&|word| codes[row * row_words + word], col, n_bits);
                let z = match &zeros {
                    // Each column of zero points is a stream of its own.
                    Some(zeros) => code(&|word| zeros[word * groups + group], row, n_bits),
                    None => 1 << (n_bits - 1),
                };
                weight.push(f64::from(scales[row * groups + group]) * (f64::from(q) - f64::from(z)));
            }
        }
        ([rows, cols], weight)
    }

    /// Writes the packed model as a full-precision one. Tensors that are not packed must equal those of `source`, byte for byte.
    pub(super) fn dense(packed: &Path, source: &Path) -> TempDir {
        let dir = tempfile::tempdir().unwrap();
        let mut config: Value = serde_json::from_slice(&std::fs::read(packed.join("config.json")).unwrap()).unwrap();
        let quantization = config.as_object_mut().unwrap().remove("quantization_config").unwrap();
        let n_bits = quantization["config_groups"]["group_0"]["weights"]["num_bits"].as_u64().unwrap() as usize;
        std::fs::write(dir.path().join("config.json"), config.to_string()).unwrap();

        let (packed, source) = (Checkpoint::open(packed).unwrap(), Checkpoint::open(source).unwrap());
        let linears: BTreeSet<&str> = packed.names().filter_map(|name| name.strip_suffix(".weight_packed")).collect();
        let mut tensors = Vec::new();
        for view in source.tensors() {
            match view.name.strip_suffix(".weight").filter(|linear| linears.contains(linear)) {
                None => {
                    assert_eq!(packed.tensor(view.name).unwrap(), view);
                    tensors.push(OutTensor::copy_of(view));
                }
                Some(linear) => {
                    let (shape, weight) = dequantize(&packed, linear, n_bits);
                    let narrow: Vec<f32> = weight.iter().map(|&value| value as f32).collect();
                    // The product of an 11-bit scale and an 8-bit code fits in 24 bits.
                    assert!(narrow.iter().zip(&weight).all(|(&narrow, &wide)| f64::from(narrow) == wide), "{linear}");
                    tensors.push(OutTensor::from_f32(view.name, &shape, &narrow, Dtype::F32).unwrap());
                }
            }
        }
        assert_eq!(linears.len() % 7, 0, "LLaMA has seven linears in a block");
        write_shard(&dir.path().join("model.safetensors"), &tensors).unwrap();
        dir
    }
}

/// Expected bytes of codes, scales, zero points and all other tensors.
fn expected_bytes(model: &Model, spec: QuantSpec) -> f64 {
    let mut bits = 0;
    let layout = model.decoder().layer(0);
    for linear in &layout.linears {
        let (weights, n_bits) = (linear.out_features * linear.in_features, spec.weight.bits.get() as usize);
        let groups = linear.out_features * spec.weight.group.count(linear.in_features);
        let zeros = match spec.weight.symmetry {
            Symmetry::Asymmetric => groups * n_bits,
            Symmetry::Symmetric | Symmetry::FullRange => 0,
        };
        bits += weights * n_bits + groups * 16 + zeros;
    }
    let is_linear =
        |name: &str| layout.linears.iter().any(|linear| name.ends_with(&format!("{}.weight", linear.name.0)));
    let dense: usize = model.checkpoint().tensors().filter(|t| !is_linear(t.name)).map(|t| t.bytes.len()).sum();
    (bits * model.decoder().dims().n_layers / 8 + dense) as f64
}

/// Quantizes tiny-llama with both methods, and compares the written model with results computed in memory.
#[track_caller]
fn check(scheme: &str) {
    /// For the files' headers: names, types and offsets of some 150 tensors.
    const HEADERS: f64 = 0.03;
    let source = fixture("tiny-llama");
    let spec: QuantSpec = scheme.parse().unwrap();
    let in_memory = Model::open(&source).unwrap().with_round_to_nearest(spec).unwrap();
    let mut answers = BTreeMap::new();
    for method in [Method::Rtn, Method::Omniquant] {
        let recipe = recipe(scheme, method, QUICK);
        let (out, _) = quantized(&source, &recipe, &calibration(&recipe));
        let packed = Model::open(out.path()).unwrap();
        assert_eq!(packed.quantization(), Some(&spec.into()));
        let got = answer(&packed);
        assert!(got.iter().all(|x| x.is_finite()));
        let dense = by_hand::dense(out.path(), &source);
        assert_eq!(bits_of(&answer(&Model::open(dense.path()).unwrap())), bits_of(&got), "{scheme} {method}: by hand");
        answers.insert(method.to_string(), got);

        let bytes = packed.checkpoint().total_bytes() as f64;
        let expected = expected_bytes(&in_memory, spec);
        assert!((bytes / expected - 1.0).abs() < HEADERS, "{scheme}: {bytes} bytes on disk, expected {expected}");
    }
    assert_eq!(bits_of(&answer(&in_memory)), bits_of(&answers["rtn"]), "{scheme}: rounded as it is loaded");
    assert_ne!(bits_of(&answers["omniquant"]), bits_of(&answers["rtn"]), "{scheme}: nothing was learned");
}

#[test]
fn a_packed_model_is_the_measured_one() {
    check("w4a16g64");
    check("w3a16g32");
    check("w2a16");
    check("w3a16g64sym");
}

#[test]
fn a_run_repeated_gives_the_same_bytes() {
    let recipe = recipe("w3a16g64", Method::Omniquant, QUICK);
    let run = || quantized(&fixture("tiny-llama"), &recipe, &calibration(&recipe));
    let ((first, first_outcome), (second, second_outcome)) = (run(), run());
    // The journal has timings.
    let without_journal = |dir: &TempDir| {
        let mut files = files(dir.path());
        files.remove(JOURNAL).unwrap();
        files
    };
    let (first, second) = (without_journal(&first), without_journal(&second));
    assert_eq!(first.keys().collect::<Vec<_>>(), second.keys().collect::<Vec<_>>());
    // Shards of 4 blocks and of the rest, index, config, tokenizer.
    assert!(first.len() >= 8, "{:?}", first.keys());
    for (name, bytes) in &first {
        assert!(bytes == &second[name], "{name} differs");
    }
    for (a, b) in first_outcome.blocks.iter().zip(&second_outcome.blocks) {
        assert_eq!((&a.losses, a.final_loss), (&b.losses, b.final_loss));
    }
}

#[test]
fn learning_beats_rounding_to_nearest() {
    /// Full precision has 18.3, round-to-nearest 35.2, this run 27.3.
    const PERPLEXITY: f64 = 30.0;
    let source = fixture("tiny-llama");
    let recipe = recipe("w2a16g64", Method::Omniquant, Size { samples: 8, seqlen: 256, epochs: 30 });
    let segments = calibration(&recipe);
    let (out, outcome) = quantized(&source, &recipe, &segments);
    let open = || Model::open(&source).unwrap();
    let rounded = open().with_round_to_nearest(recipe.scheme).unwrap();
    for (block, rounded) in outcome.blocks.iter().zip(block_losses(&open(), &rounded, &segments)) {
        let learned = block.final_loss.unwrap();
        assert!(learned < rounded, "block {}: loss {learned}, {rounded} when rounded to nearest", block.index);
        let (first, last) = (block.losses[0], block.losses[block.losses.len() - 1]);
        assert!(last < first, "block {}: losses {:?}", block.index, block.losses);
    }
    let packed = Model::open(out.path()).unwrap();
    let got = perplexity(&packed, &tokens("eval.txt"), 256, None, Device::Cpu, &mut |_| {}).unwrap().value();
    println!("perplexity {got}");
    assert!(got < PERPLEXITY, "perplexity {got}");
}

#[test]
fn every_kind_of_checkpoint_is_packed() {
    /// 8 bits in groups of eight: each weight has an error within 0.2 % of its group's range.
    const EIGHT_BITS: f64 = 0.05;
    for name in ["attention-bias", "mlp-bias", "sharded", "bf16", "f32", "gqa-tied", "head-dim"] {
        let source = fixture("llama-variants").join(name);
        let full = Model::open(&source).unwrap();
        let vocab = full.decoder().dims().vocab;
        for (scheme, method) in [("w8a16g8", Method::Rtn), ("w3a16g8", Method::Omniquant)] {
            let recipe = recipe(scheme, method, QUICK);
            let (out, _) = quantized(&source, &recipe, &noise(&recipe, vocab));
            let got = answer(&Model::open(out.path()).unwrap());
            let dense = by_hand::dense(out.path(), &source);
            assert_eq!(bits_of(&answer(&Model::open(dense.path()).unwrap())), bits_of(&got), "{name} {scheme}");
            if method == Method::Rtn {
                let error = relative_error(&got, &answer(&full));
                assert!(error > 0.0 && error < EIGHT_BITS, "{name} {scheme}: relative error {error}");
            }
        }
    }
}
