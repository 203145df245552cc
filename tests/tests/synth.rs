//! Models with random weights can be opened, run and quantized, and the same seed gives the same model.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use oq_data::{AddSpecial, Tokenizer};
use oq_formats::Dtype;
use oq_models::Model;
use oq_tests::{omniquant, run, run_json};
use serde_json::Value;
use tch::{Device, Kind, Tensor};

const LAYERS: usize = 2;

#[track_caller]
fn synth(model: &str, seed: u64, dtype: &str, out: &Path) -> Value {
    let words = ["synth", model, "--layers", &LAYERS.to_string(), "--seed", &seed.to_string(), "--dtype", dtype, "-q"];
    run_json(omniquant().args(words).args(["--json", "--out"]).arg(out))
}

fn files(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    entries.map(|path| (path.file_name().unwrap().to_str().unwrap().to_owned(), fs::read(&path).unwrap())).collect()
}

/// The largest distance from the mean, and the standard deviation.
fn spread(values: &[f32]) -> (f64, f64) {
    let n = values.len() as f64;
    let mean = values.iter().map(|&x| f64::from(x)).sum::<f64>() / n;
    let distances = values.iter().map(|&x| (f64::from(x) - mean).abs());
    let squares = distances.clone().map(|distance| distance * distance).sum::<f64>();
    (distances.fold(0.0, f64::max), (squares / n).sqrt())
}

#[track_caller]
fn check(name: &str, dtype: Dtype, dtype_name: &str, n_tensors: usize) {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let said = synth(name, 1, dtype_name, &at("one"));
    synth(name, 1, dtype_name, &at("same"));
    synth(name, 2, dtype_name, &at("other"));

    let one = files(&at("one"));
    assert_eq!(one, files(&at("same")), "{name}: the same seed");
    let other = files(&at("other"));
    assert!(one.keys().eq(other.keys()));
    for (file, bytes) in &one {
        let is_shard = file.ends_with(".safetensors");
        assert_eq!(*bytes != other[file], is_shard, "{name}: {file} with another seed");
    }
    // One shard per block, and one for the other tensors.
    assert_eq!(one.keys().filter(|file| file.ends_with(".safetensors")).count(), LAYERS + 1);

    let model = Model::open(&at("one")).unwrap();
    let checkpoint = model.checkpoint();
    assert_eq!(model.decoder().dims().n_layers, LAYERS);
    assert_eq!((checkpoint.names().len(), &said["tensors"]), (n_tensors, &n_tensors.into()), "{name}");
    assert_eq!(checkpoint.tensors().map(|tensor| tensor.bytes.len() as u64).sum::<u64>(), said["bytes"], "{name}");
    for tensor in checkpoint.tensors() {
        assert_eq!(tensor.dtype, dtype, "{}", tensor.name);
        let values = tensor.to_finite_f32_vec().unwrap();
        let (farthest, deviation) = spread(&values);
        let expected = if tensor.name.ends_with(".bias") { 0.002 } else { 0.02 };
        // Four standard errors: 4 / sqrt(2 * 128) for the smallest tensors.
        assert!((deviation / expected - 1.0).abs() < 0.25, "{}: deviation {deviation}", tensor.name);
        // Above 2 sqrt(3) there is only the error of a mean of 128 values and the rounding of numbers near 1 to bf16 (2^-8).
        assert!(farthest < 4.0 * expected, "{}: {farthest} from the mean", tensor.name);
    }

    let text = "Ein Satz für jedes Byte.\n";
    let tokenizer = Tokenizer::open(&at("one")).unwrap();
    let ids = tokenizer.encode(text, AddSpecial::Yes).unwrap();
    assert_eq!((ids.len(), tokenizer.id_bound()), (text.len(), 256));
    assert_eq!(tokenizer.decode(&ids).unwrap(), text);
    let ids: Vec<i64> = ids.into_iter().map(i64::from).collect();
    let _no_grad = tch::no_grad_guard();
    let logits = oq_eval::logits(&model, &Tensor::from_slice(&ids).view([1, -1]), Device::Cpu).unwrap();
    assert!(bool::try_from(logits.isfinite().all()).unwrap(), "{name}: logits");
    // Equal logits would mean that nothing was computed.
    assert!(logits.std(false).to_kind(Kind::Double).double_value(&[]) > 1e-3, "{name}: logits");

    let recipe = ["--calib", "tests/fixtures/calib.txt", "--samples", "2", "--seqlen", "128", "--epochs", "1"];
    let mut quantize = omniquant();
    quantize.arg("quantize").arg(at("one")).args(["--scheme", "w4a16g128", "-q", "--json"]).args(recipe);
    run_json(quantize.arg("--out").arg(at("packed")));
    assert!(Model::open(&at("packed")).unwrap().quantization().is_some());
}

#[test]
fn llama() {
    // Nine tensors per block; embedding, norm, head.
    check("tiny-llama", Dtype::F16, "f16", 9 * LAYERS + 3);
}

#[test]
fn opt() {
    // Six linears and two norms per block, all with biases; embedding, positions, norm.
    check("tiny-opt", Dtype::F32, "f32", 16 * LAYERS + 4);
}

#[test]
fn falcon() {
    // Four linears and a norm with bias per block; embedding, norm.
    check("tiny-falcon", Dtype::BF16, "bf16", 6 * LAYERS + 3);
}

#[test]
fn what_cannot_be_written_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let refused = |model: &str, out: &Path, code: i32, why: &str| {
        let output = run(omniquant().args(["synth", model, "--out"]).arg(out), code);
        let message = String::from_utf8(output.stderr).unwrap();
        assert!(message.contains(why), "{message}");
    };
    fs::write(dir.path().join("notes.txt"), "mine").unwrap();
    refused("tiny-opt", dir.path(), 2, "the directory is not empty");
    refused("tiny-opt", &dir.path().join("notes.txt"), 2, "notes.txt");
    assert_eq!(files(dir.path()), BTreeMap::from([("notes.txt".to_owned(), b"mine".to_vec())]));
    refused("my-model", &dir.path().join("new"), 3, "names are");
    assert!(!dir.path().join("new").exists());
}
