//! OPT, Falcon and LLaMA-like models: forward pass and perplexity against Hugging Face transformers, and quantization runs.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::ops::ControlFlow;
use std::path::Path;

use oq_calib::quantize;
use oq_eval::logits;
use oq_formats::packed::{Experts, experts_of};
use oq_formats::{Checkpoint, OutTensor, read_config, write_shard};
use oq_models::family::decoder_of;
use oq_models::{Decoder, DenseOps, Model, ModelError};
use oq_quant_core::QuantSpec;
use oq_recipe::{Method, Overrides, Recipe};
use oq_tests::{checkpoints, copied, fixture, in_f32, measure, omniquant, relative_error, tokens};
use serde_json::{Value, json};
use tch::{Device, Tensor};

/// f32 results are within 3e-6 of f64 ones. Leaving out a variant's feature changes its logits by 1e-3 or more.
const TOLERANCE: f64 = 1e-4;
/// A perplexity averages over thousands of tokens, so rounding causes far less than this.
const PERPLEXITY_TOLERANCE: f64 = 1e-3;
/// The table of rounded models has two decimals and was computed with scales in f32; ours are f16.
const ROUNDED_TOLERANCE: f64 = 1e-2;

const TINY: [&str; 2] = ["tiny-opt", "tiny-falcon"];

fn spec(scheme: &str) -> QuantSpec {
    scheme.parse().unwrap()
}

#[track_caller]
fn check_close(what: &str, got: &Tensor, golden: &Checkpoint, name: &str) {
    let got: Vec<f32> = Vec::try_from(got.contiguous().view(-1)).unwrap();
    let error = relative_error(&got, &golden.values(name).unwrap());
    assert!(error <= TOLERANCE, "{what}: {name}: relative error {error:.1e}");
}

/// Compares hidden states after each block and logits with those of a fixture's directory.
#[track_caller]
fn check(folder: &str) {
    let golden = Checkpoint::open_file(&fixture(folder).join("golden.safetensors")).unwrap();
    let model = Model::open(&fixture(folder)).unwrap();
    let view = golden.tensor("input_ids").unwrap();
    let ids: Vec<i64> = view.bytes.as_chunks().0.iter().map(|bytes| i64::from_le_bytes(*bytes)).collect();
    let ids = Tensor::from_slice(&ids).view([view.shape[0] as i64, view.shape[1] as i64]);

    let _no_grad = tch::no_grad_guard();
    check_close(folder, &logits(&model, &ids, Device::Cpu).unwrap(), &golden, "logits");

    let (decoder, outer) = (model.decoder(), model.outer(Device::Cpu));
    let ctx = decoder.context(view.shape[1], Device::Cpu);
    let mut x = decoder.embed(&outer, &ids).unwrap();
    let n_layers = decoder.dims().n_layers;
    for block_idx in 0..n_layers {
        check_close(folder, &x, &golden, &format!("hidden.{block_idx}"));
        let weights = model.load_block(block_idx, Device::Cpu).unwrap();
        x = decoder.block(block_idx, &DenseOps::new(&weights), &ctx, &x);
    }
    check_close(folder, &decoder.finish(&outer, &x).unwrap(), &golden, &format!("hidden.{n_layers}"));
}

/// The decoder for a small config with these additional keys.
fn configured(keys: &Value) -> Result<Box<dyn Decoder>, ModelError> {
    let mut config = json!({"hidden_size": 256, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 64,
        "vocab_size": 10});
    config.as_object_mut().unwrap().extend(keys.as_object().unwrap().clone());
    decoder_of(&config)
}

#[test]
fn keys_that_are_not_written_mean_what_transformers_means() {
    #[track_caller]
    fn check(keys: &Value, kv_heads: usize, positions: usize, sees_all: bool) {
        let decoder = configured(keys).unwrap();
        let dims = decoder.dims();
        assert_eq!((dims.n_kv_heads, dims.max_positions), (kv_heads, positions));
        assert_eq!((decoder.mask_heads(0, 4096), decoder.mask_heads(0, 4097)), (0, usize::from(!sees_all)));
    }
    check(&json!({"model_type": "llama"}), 64, 2048, true);
    check(&json!({"model_type": "mistral"}), 8, 131_072, false);
    check(&json!({"model_type": "mistral", "sliding_window": null, "num_key_value_heads": null}), 64, 131_072, true);
    check(&json!({"model_type": "mistral", "num_key_value_heads": 4, "max_position_embeddings": 512}), 4, 512, false);
    check(&json!({"model_type": "qwen2"}), 32, 32_768, true);
    let yarn = json!({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32_768});
    check(&json!({"model_type": "qwen2", "rope_scaling": yarn}), 32, 131_072, true);
}

#[test]
fn windows_of_some_blocks_are_read() {
    // Which of two blocks has a window of 2 positions.
    let windows = |keys: Value| {
        let mut keys = keys.as_object().unwrap().clone();
        keys.extend([("model_type".to_owned(), "qwen2".into()), ("use_sliding_window".to_owned(), true.into())]);
        keys.entry("sliding_window").or_insert(2.into());
        configured(&keys.into()).map(|decoder| [0, 1].map(|layer| decoder.mask_heads(layer, 3) > 0))
    };
    assert_eq!(windows(json!({"max_window_layers": 1})).unwrap(), [false, true]);
    assert_eq!(windows(json!({"layer_types": ["sliding_attention", "full_attention"]})).unwrap(), [true, false]);
    // The first 28 blocks have no window.
    assert_eq!(windows(json!({})).unwrap(), [false, false]);
    assert_eq!(windows(json!({"max_window_layers": 0})).unwrap(), [true, true]);
    assert_eq!(windows(json!({"max_window_layers": 0, "sliding_window": null})).unwrap(), [false, false]);
    let nothing_slides = json!({"layer_types": ["full_attention", "full_attention"], "max_window_layers": 0});
    assert_eq!(windows(nothing_slides).unwrap(), [false, false]);
    let no_window = json!({"layer_types": ["full_attention", "sliding_attention"], "sliding_window": null});
    assert!(windows(no_window).err().unwrap().to_string().contains("there is no sliding_window"));
    assert!(
        windows(json!({"layer_types": ["full_attention"]})).err().unwrap().to_string().contains("each of 2 layers")
    );
}

#[test]
fn a_head_that_differs_from_the_embedding_is_a_head() {
    const EMBEDDING: &str = "model.embed_tokens.weight";
    let tied = Model::open(&fixture("llama-gqa-tied")).unwrap();
    let checkpoint = tied.checkpoint();
    let embedding = checkpoint.tensor(EMBEDDING).unwrap();
    let values = checkpoint.values(EMBEDDING).unwrap();
    let ids = Tensor::from_slice(&[1i64, 5, 9, 2]).unsqueeze(0);
    let _no_grad = tch::no_grad_guard();
    let with_head = |factor: f32| {
        let dir = copied("llama-gqa-tied");
        let head: Vec<f32> = values.iter().map(|x| factor * x).collect();
        let head = OutTensor::from_f32("lm_head.weight", embedding.shape, &head, embedding.dtype).unwrap();
        let tensors = checkpoint.names().map(|name| OutTensor::copy_from(checkpoint, name).unwrap());
        write_shard(&dir.path().join("model.safetensors"), &tensors.chain([head]).collect::<Vec<_>>()).unwrap();
        let model = Model::open(dir.path()).unwrap();
        (model.decoder().head(), logits(&model, &ids, Device::Cpu).unwrap())
    };
    let expected = logits(&tied, &ids, Device::Cpu).unwrap();
    assert_eq!(with_head(1.0), (EMBEDDING, expected.shallow_clone()));
    // Doubling is exact in every type.
    assert_eq!(with_head(2.0), ("lm_head.weight", expected * 2.0));
}

#[test]
fn models_answer_as_transformers() {
    for folder in TINY.into_iter().chain(["opt-prenorm", "opt-postnorm-proj", "falcon-7b-like", "falcon-40b-like"]) {
        check(folder);
    }
}

#[track_caller]
fn check_variants(folder: &str, at_least: usize) {
    let manifest = std::fs::read(fixture(folder).join("manifest.json")).unwrap();
    let manifest: Value = serde_json::from_slice(&manifest).unwrap();
    let variants = manifest["variants"].as_array().unwrap();
    assert!(variants.len() >= at_least, "the manifest lists {}", variants.len());
    for variant in variants {
        check(&format!("{folder}/{}", variant["name"].as_str().unwrap()));
    }
}

#[test]
fn variants_answer_as_transformers() {
    check_variants("opt-falcon-variants", 14);
    check_variants("llama-like-variants", 4);
}

#[track_caller]
fn check_perplexity(what: &str, got: f64, expected: f64, tolerance: f64) {
    assert!((got / expected - 1.0).abs() <= tolerance, "{what}: perplexity {got}, expected {expected}");
}

#[test]
fn perplexity_is_that_of_transformers() {
    for folder in TINY {
        let golden: Value =
            serde_json::from_slice(&std::fs::read(fixture(folder).join("golden.json")).unwrap()).unwrap();
        let got = measure(&Model::open(&fixture(folder)).unwrap());
        check_perplexity(folder, got, golden["perplexity"].as_f64().unwrap(), PERPLEXITY_TOLERANCE);
    }
}

#[test]
fn rounding_to_nearest_costs_what_it_costs_elsewhere() {
    // From a PyTorch quantizer of a few lines on the same weights and text.
    let table = [
        ("tiny-opt", [("w4a16g64", 29.53), ("w3a16g64", 30.74), ("w2a16g64", 37.77), ("w2a16", 40.83)]),
        ("tiny-falcon", [("w4a16g64", 21.63), ("w3a16g64", 22.41), ("w2a16g64", 27.32), ("w2a16", 29.27)]),
    ];
    for (folder, rows) in table {
        for (scheme, expected) in rows {
            let model = Model::open(&fixture(folder)).unwrap().with_round_to_nearest(spec(scheme)).unwrap();
            check_perplexity(&format!("{folder} {scheme}"), measure(&model), expected, ROUNDED_TOLERANCE);
        }
    }
}

/// Quantizes the model in `dir` into `out`, with a few segments of the calibration text.
fn quantized(dir: &Path, scheme: &str, method: Method, out: &Path) -> Model {
    const SEQLEN: usize = 256;
    let overrides = Overrides::default().method(method).samples(16).seqlen(SEQLEN).epochs(10).tune_epochs(0);
    let recipe = Recipe::resolve(spec(scheme), None, None, &overrides).unwrap();
    let ids = tokens("calib.txt");
    let segments: Vec<Vec<u32>> = ids.chunks_exact(SEQLEN).take(16).map(<[u32]>::to_vec).collect();
    let model = Model::open(dir).unwrap();
    quantize(&model, &recipe, &segments, &in_f32(out, false), &mut |_| ControlFlow::Continue(())).unwrap();
    Model::open(out).unwrap()
}

#[test]
fn learned_clipping_beats_rounding_to_nearest() {
    const SCHEME: &str = "w2a16g64";
    for folder in TINY {
        let out = tempfile::tempdir().unwrap();
        let rounded = measure(&quantized(&fixture(folder), SCHEME, Method::Rtn, &out.path().join("rtn")));
        let in_memory = Model::open(&fixture(folder)).unwrap().with_round_to_nearest(spec(SCHEME)).unwrap();
        assert_eq!(rounded, measure(&in_memory), "{folder}");

        let learned = quantized(&fixture(folder), SCHEME, Method::Omniquant, &out.path().join("learned"));
        assert_eq!(learned.quantization(), Some(&spec(SCHEME).into()));
        let learned = measure(&learned);
        assert!(learned < 0.97 * rounded, "{folder}: {learned} learned, {rounded} rounded");
    }
}

#[test]
fn every_variant_is_packed_and_read_back() {
    for folder in ["opt-350m-like", "opt-no-affine", "opt-published", "falcon-rw-like", "falcon-180b-like"] {
        let dir = fixture(&format!("opt-falcon-variants/{folder}"));
        let out = tempfile::tempdir().unwrap();
        let packed = quantized(&dir, "w4a16g16", Method::Rtn, out.path());
        let rounded = Model::open(&dir).unwrap().with_round_to_nearest(spec("w4a16g16")).unwrap();
        let ids = Tensor::from_slice(&[1i64, 5, 9, 60]).view([1, 4]);
        let answers = [packed, rounded].map(|model| logits(&model, &ids, Device::Cpu).unwrap());
        assert_eq!(answers[0], answers[1], "{folder}");
    }
}

#[test]
fn matrices_outside_the_blocks_are_declared_to_loaders() {
    let out = tempfile::tempdir().unwrap();
    quantized(&fixture("opt-falcon-variants/opt-350m-like"), "w4a16", Method::Rtn, out.path());
    let config = read_config(out.path()).unwrap();
    let names =
        ["embed_tokens", "embed_positions", "project_in", "project_out"].map(|name| format!("model.decoder.{name}"));
    let ignore: Vec<&str> = std::iter::once("lm_head").chain(names.iter().map(String::as_str)).collect();
    assert_eq!(config["quantization_config"]["ignore"], json!(ignore));
    let packed = Checkpoint::open(out.path()).unwrap();
    assert!(
        packed.contains("model.decoder.layers.0.fc1.bias")
            && packed.contains("model.decoder.layers.1.fc2.weight_packed")
    );
}

/// Changes one key of a variant's config and opens it.
#[track_caller]
fn check_refused(folder: &str, key: &str, value: Value, part: &str) {
    let dir = copied(&format!("opt-falcon-variants/{folder}"));
    let mut config = read_config(dir.path()).unwrap();
    config[key] = value;
    std::fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
    let message = Model::open(dir.path()).err().expect("it is refused").to_string();
    assert!(message.contains(part), "{message}");
}

#[test]
fn configs_that_cannot_be_are_refused() {
    check_refused(
        "opt-gelu",
        "num_attention_heads",
        json!(5),
        "num_attention_heads is 5: must divide hidden_size = 32",
    );
    check_refused("opt-gelu", "activation_function", json!("selu"), "activation_function is \"selu\"");
    check_refused(
        "opt-gelu",
        "word_embed_proj_dim",
        json!(16),
        "embed_tokens.weight: shape [64, 32] in the checkpoint",
    );
    check_refused(
        "falcon-11b-like",
        "num_kv_heads",
        json!(3),
        "num_kv_heads is 3: must divide num_attention_heads = 4",
    );
    check_refused(
        "falcon-11b-like",
        "num_ln_in_parallel_attn",
        json!(3),
        "num_ln_in_parallel_attn is 3: must be 1 or 2",
    );
    check_refused("falcon-11b-like", "parallel_attn", json!(false), "parallel_attn is false");
    check_refused("falcon-11b-like", "num_ln_in_parallel_attn", json!(2), "no tensor `transformer.h.0.ln_attn.weight`");
}

#[test]
fn a_sequence_beyond_the_learned_positions_is_refused() {
    let model = Model::open(&fixture("opt-falcon-variants/opt-gelu")).unwrap();
    let ids = Tensor::zeros([1, 65], (tch::Kind::Int64, Device::Cpu));
    let error = logits(&model, &ids, Device::Cpu).unwrap_err();
    assert!(matches!(error, ModelError::TooLong { tokens: 65, positions: 64 }), "{error}");
}

/// Checks the shapes of linears that `omniquant plan` prints for a model that is not downloaded.
#[track_caller]
fn check_plan(model: &str, scheme: &str, expected: &[(&str, usize, usize)]) {
    let output = omniquant().args(["plan", model, "--scheme", scheme, "--json"]).output().unwrap();
    // Exit code 4 if this machine is too small; the plan is printed all the same.
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(matches!(output.status.code(), Some(0 | 4)), "{model}: {stderr}");
    let plan: Value = serde_json::from_slice(&output.stdout).expect("stdout is one JSON object");
    let linears: Vec<(&str, usize, usize)> = plan["plan"]["linears"]
        .as_array()
        .unwrap()
        .iter()
        .map(|l| {
            let size = |key: &str| l[key].as_u64().unwrap() as usize;
            (l["name"].as_str().unwrap(), size("out_features"), size("in_features"))
        })
        .collect();
    assert_eq!(linears, expected, "{model}");
}

#[test]
fn plans_know_the_shapes_of_published_models() {
    let opt = |hidden: usize| {
        let attention = ["q_proj", "k_proj", "v_proj", "out_proj"].map(|name| format!("self_attn.{name}"));
        let mut linears: Vec<(String, usize, usize)> = attention.map(|name| (name, hidden, hidden)).into();
        linears.extend([("fc1".to_owned(), 4 * hidden, hidden), ("fc2".to_owned(), hidden, 4 * hidden)]);
        linears
    };
    for (model, hidden) in [("opt-125m", 768), ("opt-350m", 1024), ("opt-66b", 9216)] {
        let linears = opt(hidden);
        let linears: Vec<(&str, usize, usize)> = linears.iter().map(|(name, o, i)| (name.as_str(), *o, *i)).collect();
        check_plan(model, "w3a16g128", &linears);
    }
    // Rows of the fused linear: query, key and value heads of 64 channels each.
    let heads = [("falcon-7b", 4544, 71 + 2), ("falcon-40b", 8192, 128 + 2 * 8), ("falcon-180b", 14848, 232 + 2 * 8)];
    for (model, hidden, heads) in heads {
        check_plan(
            model,
            "w3a16g64",
            &[
                ("self_attention.query_key_value", heads * 64, hidden),
                ("self_attention.dense", hidden, hidden),
                ("mlp.dense_h_to_4h", 4 * hidden, hidden),
                ("mlp.dense_4h_to_h", hidden, 4 * hidden),
            ],
        );
    }
}

#[test]
fn families_with_experts_are_known_by_their_name() {
    let mut seen = std::collections::BTreeSet::new();
    for folder in checkpoints() {
        let config = read_config(&folder).unwrap();
        let (decoder, stored) = (decoder_of(&config).unwrap(), Checkpoint::open(&folder).unwrap());
        let name = config["model_type"].as_str().unwrap();
        let experts = experts_of(name);
        let with_experts = (0..decoder.dims().n_layers).find(|&layer| !decoder.layer(layer).experts.is_empty());
        assert_eq!(experts.is_some(), with_experts.is_some(), "{}", folder.display());
        let layer = with_experts.unwrap_or(0);
        let prefix = decoder.block_prefix(layer);
        let is_stored = |fused: &oq_models::Fused| stored.contains(&format!("{prefix}{}", fused.name));
        if experts == Some(Experts::Together) {
            assert!(decoder.fused(layer).iter().any(is_stored), "{}", folder.display());
        }
        seen.extend(experts.map(|_| name.to_owned()));
    }
    assert_eq!(seen.len(), 6, "{seen:?}");
}
