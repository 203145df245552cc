//! Forward pass and perplexity against golden files from Hugging Face transformers. The scripts that made them are in the same directory.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;

use oq_data::{AddSpecial, Hub, Rows, Split, Tokenizer, load_text};
use oq_eval::{Divergence, Reference, divergence, logits, perplexity};
use oq_formats::{Checkpoint, Dtype, OutTensor, write_shard};
use oq_models::{DenseOps, Model};
use oq_quant_core::QuantSpec;
use oq_tests::{fixture, omniquant, relative_error, run_json, tokens};
use serde_json::{Value, json};
use tch::{Device, Tensor};

/// f32 results are within 3e-6 of f64 ones. Leaving out a variant's feature changes its logits by 6e-4 or more.
const TOLERANCE: f64 = 1e-4;
/// Angles of up to 48 radians in f32 have an error of 48 * 2^-24 = 3e-6.
const ANGLE_TOLERANCE: f64 = 1e-5;
/// A perplexity averages over thousands of tokens, so rounding causes far less than this.
const PERPLEXITY_TOLERANCE: f64 = 1e-3;
/// The table of rounded models has two decimals and was computed with scales in f32; ours are f16.
const ROUNDED_TOLERANCE: f64 = 1e-2;

fn golden_ids(golden: &Checkpoint) -> Tensor {
    let view = golden.tensor("input_ids").unwrap();
    assert_eq!(view.dtype, Dtype::I64);
    let ids: Vec<i64> = view.bytes.as_chunks().0.iter().map(|bytes| i64::from_le_bytes(*bytes)).collect();
    Tensor::from_slice(&ids).view([view.shape[0] as i64, view.shape[1] as i64])
}

fn values(tensor: &Tensor) -> Vec<f32> {
    Vec::try_from(tensor.contiguous().view(-1)).unwrap()
}

#[track_caller]
fn check_close(what: &str, got: &[f32], expected: &[f32], tolerance: f64) {
    let error = relative_error(got, expected);
    assert!(error <= tolerance, "{what}: relative error {error:.1e}");
}

#[track_caller]
fn check(folder: &str, golden: &str) {
    let dir = fixture(folder);
    let golden = Checkpoint::open_file(&dir.join(golden)).unwrap();
    let model = Model::open(&dir).unwrap();
    let ids = golden_ids(&golden);
    let name = |part: &str| format!("{folder}: {part}");

    let _no_grad = tch::no_grad_guard();
    let got = logits(&model, &ids, Device::Cpu).unwrap();
    check_close(&name("logits"), &values(&got), &golden.values("logits").unwrap(), TOLERANCE);

    let decoder = model.decoder();
    let outer = model.outer(Device::Cpu);
    let t = ids.size()[1] as usize;
    let ctx = decoder.context(t, Device::Cpu);
    let mut x = decoder.embed(&outer, &ids).unwrap();
    let n_layers = decoder.dims().n_layers;
    for block_idx in 0..n_layers {
        let hidden = format!("hidden.{block_idx}");
        check_close(&name(&hidden), &values(&x), &golden.values(&hidden).unwrap(), TOLERANCE);
        let weights = model.load_block(block_idx, Device::Cpu).unwrap();
        x = decoder.block(block_idx, &DenseOps::new(&weights), &ctx, &x);
    }
    let last = decoder.finish(&outer, &x).unwrap();
    let hidden = format!("hidden.{n_layers}");
    check_close(&name(&hidden), &values(&last), &golden.values(&hidden).unwrap(), TOLERANCE);

    if golden.contains("rope.inv_freq") {
        let frequencies = golden.values("rope.inv_freq").unwrap();
        let factor = golden.values("rope.attention_scaling").unwrap()[0];
        let table = |f: fn(f32) -> f32| -> Vec<f32> {
            // The row of a position has every pair's value twice.
            let row = |p: usize| frequencies.repeat(2).into_iter().map(move |w| factor * f(p as f32 * w));
            (0..t).flat_map(row).collect()
        };
        let rotary = ctx.of(0).rotary.as_ref().unwrap();
        check_close(&name("cosines"), &values(&rotary.cos), &table(f32::cos), ANGLE_TOLERANCE);
        check_close(&name("sines"), &values(&rotary.sin), &table(f32::sin), ANGLE_TOLERANCE);
    }
}

#[test]
fn models_answer_as_transformers() {
    for folder in
        ["tiny-llama", "tiny-llama-256", "tiny-qwen3", "tiny-mixtral", "tiny-qwen3-moe", "llama-mha", "llama-gqa-tied"]
    {
        check(folder, "golden.safetensors");
    }
}

/// Checks the variants that a folder's manifest lists.
#[track_caller]
fn check_variants(folder: &str, at_least: usize) {
    let manifest = std::fs::read(fixture(folder).join("manifest.json")).unwrap();
    let manifest: Value = serde_json::from_slice(&manifest).unwrap();
    let variants = manifest["variants"].as_array().unwrap();
    assert!(variants.len() >= at_least, "the manifest lists {}", variants.len());
    for variant in variants {
        let name = variant["name"].as_str().unwrap();
        for golden in variant["goldens"].as_array().unwrap() {
            check(&format!("{folder}/{name}"), golden.as_str().unwrap());
        }
    }
}

#[test]
fn variants_answer_as_transformers() {
    check_variants("llama-variants", 20);
}

#[test]
fn other_families_answer_as_transformers() {
    check_variants("family-variants", 36);
}

#[track_caller]
fn check_perplexity(model: &Model, expected: f64, tolerance: f64) {
    let result = perplexity(model, &tokens("eval.txt"), 256, None, Device::Cpu, &mut |_| {}).unwrap();
    assert_eq!(result.window_nll.len(), 39);
    let got = result.value();
    assert!((got / expected - 1.0).abs() <= tolerance, "perplexity {got}, expected {expected}");
}

#[test]
fn perplexity_is_that_of_transformers() {
    for folder in ["tiny-llama", "tiny-llama-256", "tiny-qwen3", "tiny-mixtral", "tiny-qwen3-moe"].map(fixture) {
        let golden: Value = serde_json::from_slice(&std::fs::read(folder.join("golden.json")).unwrap()).unwrap();
        let model = Model::open(&folder).unwrap();
        check_perplexity(&model, golden["perplexity"].as_f64().unwrap(), PERPLEXITY_TOLERANCE);
    }
}

#[test]
fn divergence_is_that_of_transformers() {
    // Divergences of positions are small differences of logarithms in f32; those of the quantiles are single ones.
    const DIVERGENCE_TOLERANCE: f64 = 1e-4;
    let golden: Value = serde_json::from_slice(&std::fs::read(fixture("divergence.json")).unwrap()).unwrap();
    let [llama, mixtral] = ["tiny-llama", "tiny-mixtral"].map(|name| Model::open(&fixture(name)).unwrap());
    let compare = |full: &Model, other: &Model, windows| {
        divergence(full, other, &tokens("eval.txt"), 256, windows, Device::Cpu, &mut |_| {}).unwrap()
    };
    let result: Divergence = compare(&llama, &mixtral, None);
    assert_eq!(result.window_divergence.len() as u64, golden["windows"].as_u64().unwrap());
    let close = |got: f64, expected: &Value| {
        let expected = expected.as_f64().unwrap();
        assert!((got / expected - 1.0).abs() <= DIVERGENCE_TOLERANCE, "{got}, expected {expected}");
    };
    let expected = &golden["divergence"];
    close(result.mean(), &expected["mean"]);
    close(result.mean_error().unwrap(), &expected["mean_error"]);
    for (name, q) in [("median", 0.5), ("p90", 0.9), ("p99", 0.99), ("p99_9", 0.999), ("max", 1.0)] {
        close(result.quantile(q), &expected[name]);
    }
    // One position more or less, where two tokens are as likely as each other.
    assert!((result.agreement() - golden["agreement"].as_f64().unwrap()).abs() < 1.5 / result.positions() as f64);
    close(result.agreement_error().unwrap(), &golden["agreement_error"]);
    for (perplexity, name) in [(&result.full, "full"), (&result.quantized, "other")] {
        close(perplexity.value(), &golden["perplexity"][name]);
        close(perplexity.error().unwrap(), &golden["perplexity_error"][name]);
    }
    close(result.nll_increase(), &golden["nll_increase"]);
    close(result.nll_increase_error().unwrap(), &golden["nll_increase_error"]);

    // What is computed once for several models gives each the same result, also where states are narrowed before the head.
    let opt = Model::open(&fixture("opt-postnorm-proj")).unwrap();
    let rounded = opt.reopened().unwrap().with_round_to_nearest("w3a16".parse::<QuantSpec>().unwrap()).unwrap();
    let vocab = opt.decoder().dims().vocab as u32;
    let few: Vec<u32> = tokens("eval.txt").iter().take(100).map(|id| id % vocab).collect();
    let disk = tempfile::tempdir().unwrap();
    for (full, others, ids, seqlen) in
        [(&llama, [&mixtral, &llama], tokens("eval.txt"), 256), (&opt, [&rounded, &opt], few, 16)]
    {
        let again = |other| divergence(full, other, &ids, seqlen, None, Device::Cpu, &mut |_| {}).unwrap();
        let reference = Reference::new(full, &ids, seqlen, None, Device::Cpu, disk.path(), &mut |_| {}).unwrap();
        for other in others {
            assert_eq!(reference.divergence(other, &mut |_| {}).unwrap(), again(other));
        }
    }

    // A model agrees with itself; one window does not show how much windows differ.
    let same = compare(&llama, &llama, Some(1));
    assert_eq!((same.mean(), same.quantile(1.0), same.agreement(), same.nll_increase()), (0.0, 0.0, 1.0, 0.0));
    assert_eq!((same.mean_error(), same.agreement_error(), same.full.error()), (None, None, None));
    let other = Model::open(&fixture("tiny-llama-256")).unwrap();
    if other.decoder().dims().vocab != llama.decoder().dims().vocab {
        let error = divergence(&llama, &other, &tokens("eval.txt"), 256, Some(1), Device::Cpu, &mut |_| {});
        assert!(error.unwrap_err().to_string().contains("vocabularies"));
    }
}

#[test]
fn rounding_to_nearest_costs_what_it_costs_elsewhere() {
    // From a PyTorch quantizer of a few lines on the same weights and text. Routers stay as they are.
    let table = [
        ("tiny-llama", [("w4a16g64", 19.50), ("w3a16g64", 20.95), ("w2a16g64", 35.24), ("w2a16", 44.13)]),
        ("tiny-qwen3", [("w4a16g64", 17.62), ("w3a16g64", 18.40), ("w2a16g64", 23.86), ("w2a16", 27.785)]),
        ("tiny-mixtral", [("w4a16g64", 17.15), ("w3a16g64", 17.67), ("w2a16g64", 21.41), ("w2a16", 22.85)]),
        ("tiny-qwen3-moe", [("w4a16g64", 16.93), ("w3a16g64", 17.55), ("w2a16g64", 20.93), ("w2a16", 22.24)]),
    ];
    for (folder, rows) in table {
        for (scheme, expected) in rows {
            let spec: QuantSpec = scheme.parse().unwrap();
            let model = Model::open(&fixture(folder)).unwrap().with_round_to_nearest(spec).unwrap();
            check_perplexity(&model, expected, ROUNDED_TOLERANCE);
        }
    }
}

/// Runs `omniquant logits` on token ids and returns the values it wrote.
fn logits_by_command(folder: &str, ids: OutTensor<'_>, shape: [usize; 3]) -> Vec<f32> {
    let dir = tempfile::tempdir().unwrap();
    let (input, output) = (dir.path().join("ids.safetensors"), dir.path().join("logits.safetensors"));
    write_shard(&input, &[ids]).unwrap();
    let said = run_json(
        omniquant().arg("logits").arg(fixture(folder)).arg("--ids").arg(&input).arg("--out").arg(&output).arg("--json"),
    );
    assert_eq!(said, json!({"out": output, "shape": shape}));
    let written = Checkpoint::open_file(&output).unwrap();
    let view = written.tensor("logits").unwrap();
    assert_eq!((view.dtype, view.shape), (Dtype::F32, &shape[..]));
    written.values("logits").unwrap()
}

#[test]
fn the_logits_command_answers_as_transformers() {
    const FOLDER: &str = "llama-gqa-tied";
    let golden = Checkpoint::open_file(&fixture(FOLDER).join("golden.safetensors")).unwrap();
    let (ids, expected) = (golden.tensor("input_ids").unwrap(), golden.tensor("logits").unwrap());
    let shape: [usize; 3] = expected.shape.try_into().unwrap();
    let wide = logits_by_command(FOLDER, OutTensor::copy_of(ids), shape);
    check_close("logits", &wide, &golden.values("logits").unwrap(), TOLERANCE);

    // Ids are small and little-endian, so the lower half of each is its i32 form.
    let narrow: Vec<u8> = ids.bytes.chunks(8).flat_map(|bytes| bytes[..4].to_vec()).collect();
    let narrow = OutTensor::new("input_ids", Dtype::I32, ids.shape, narrow).unwrap();
    assert_eq!(logits_by_command(FOLDER, narrow, shape), wide);
}

/// SmolLM2-135M-Instruct in full precision on WikiText-2, in windows of 2048, against transformers.
#[test]
fn a_real_model_has_its_perplexity() {
    let (Some(dir), Some(data)) = (std::env::var_os("OMNIQUANT_SMOLLM2"), std::env::var_os("OMNIQUANT_DATA")) else {
        println!("skipped: OMNIQUANT_SMOLLM2 (a directory) or OMNIQUANT_DATA is not set");
        return;
    };
    let model = Model::open(Path::new(&dir)).unwrap();
    let text = load_text("wikitext2", Split::Test, Some(Path::new(&data)), &Hub::from_env(), Rows::default()).unwrap();
    let ids = Tokenizer::open(model.dir()).unwrap().encode(&text.text, AddSpecial::Yes).unwrap();
    assert_eq!(ids.len(), 304_978);
    let first = perplexity(&model, &ids, 2048, Some(1), Device::Cpu, &mut |_| {}).unwrap().value();
    // The reference has two decimals.
    assert!((first / 15.15 - 1.0).abs() <= 5e-3, "perplexity of the first window: {first}");
}
