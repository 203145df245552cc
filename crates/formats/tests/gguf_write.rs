//! GGUF files that are written: read back to the same tensors and tokenizers, and refused where llama.cpp would compute something else.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on may panic, in its helpers too")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use oq_formats::gguf::{Array, Gguf, Value, WriteOptions, Written, convert_to_hf, write_gguf};
use oq_formats::{Checkpoint, OutTensor, PackedCheckpoint, Quantization, packed_tensors, write_shard};
use oq_quant_core::{QuantSpec, QuantizedTensor};
use serde_json::{Value as Json, json};
use tempfile::TempDir;
use tokenizers::Tokenizer;

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn fixture(name: &str) -> PathBuf {
    repository().join("tests/fixtures").join(name)
}

fn read_json(path: &Path) -> Json {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

/// A tokenizer of five tokens: byte-level BPE with one merge.
fn small_tokenizer() -> Json {
    json!({
        "added_tokens": [{ "id": 0, "content": "<s>", "special": true }, { "id": 1, "content": "</s>", "special": true }],
        "pre_tokenizer": { "type": "ByteLevel", "add_prefix_space": false, "use_regex": true },
        "model": { "type": "BPE", "vocab": { "<s>": 0, "</s>": 1, "a": 2, "b": 3, "ab": 4 }, "merges": ["a b"] },
    })
}

/// A copy of a model whose `config.json` is edited, with a small tokenizer if it has none.
fn model(name: &str, edit: impl FnOnce(&mut Json)) -> TempDir {
    let (from, dir) = (fixture(name), tempfile::tempdir().unwrap());
    for file in fs::read_dir(&from).unwrap() {
        let name = file.unwrap().file_name();
        if !name.to_string_lossy().starts_with("golden") {
            fs::copy(from.join(&name), dir.path().join(&name)).unwrap();
        }
    }
    if !from.join("tokenizer.json").exists() {
        fs::write(dir.path().join("tokenizer.json"), small_tokenizer().to_string()).unwrap();
    }
    let mut config = read_json(&from.join("config.json"));
    edit(&mut config);
    fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
    dir
}

fn write(model: &Path, options: &WriteOptions) -> Result<(TempDir, Written), String> {
    let out = tempfile::tempdir().unwrap();
    let written = write_gguf(model, &out.path().join("model.gguf"), options, &mut |_| {});
    written.map(|written| (out, written)).map_err(|error| error.to_string())
}

// ---- round trips

/// Everything but the name of keys that transformers versions spell differently, and what only training needs.
const KEPT: [&str; 32] = [
    "model_type",
    "hidden_size",
    "intermediate_size",
    "ffn_hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "vocab_size",
    "rms_norm_eps",
    "layer_norm_epsilon",
    "tie_word_embeddings",
    "attention_bias",
    "mlp_bias",
    "attention_out_bias",
    "head_dim",
    "query_pre_attn_scalar",
    "attn_logit_softcapping",
    "final_logit_softcapping",
    "layer_types",
    "no_rope_layers",
    "partial_rotary_factor",
    "rope_local_base_freq",
    "embedding_multiplier",
    "residual_multiplier",
    "attention_multiplier",
    "logits_scaling",
    "num_experts",
    "num_local_experts",
    "num_experts_per_tok",
    "moe_intermediate_size",
    "shared_expert_intermediate_size",
    "norm_topk_prob",
];

#[track_caller]
fn check_round_trip(name: &str) -> (Json, Json) {
    back(model(name, |_| {}).path(), name)
}

/// Writes a model and converts it back: the same tensors. Returns its config before and after.
#[track_caller]
fn back(model: &Path, name: &str) -> (Json, Json) {
    let (file, written) = write(model, &WriteOptions::default()).unwrap();
    assert_eq!((written.file_type, written.bytes), ("F16", fs::metadata(&written.path).unwrap().len()), "{name}");
    let back = file.path().join("back");
    convert_to_hf(&written.path, &back, &mut |_| {}).unwrap();
    let (ours, theirs) = (Checkpoint::open(model).unwrap(), Checkpoint::open(&back).unwrap());
    assert!(theirs.tensors().len() > 10, "{name}");
    for tensor in theirs.tensors() {
        let expected = ours.tensor(tensor.name).unwrap();
        assert_eq!(tensor.shape, expected.shape, "{name}: {}", tensor.name);
        let halves = |values: Vec<f32>| values.into_iter().map(half::f16::from_f32).collect::<Vec<_>>();
        assert_eq!(
            halves(tensor.to_f32_vec().unwrap()),
            halves(expected.to_f32_vec().unwrap()),
            "{name}: {}",
            tensor.name
        );
    }
    let (before, after) = (read_json(&model.join("config.json")), read_json(&back.join("config.json")));
    for key in KEPT.into_iter().filter(|key| !before[*key].is_null() && !after[*key].is_null()) {
        // To llama.cpp a Mistral is a LLaMA.
        let expected = if before[key] == "mistral" { &json!("llama") } else { &before[key] };
        assert_eq!(expected, &after[key], "{name}: {key}");
    }
    (before, after)
}

#[test]
fn models_of_every_architecture_come_back() {
    for name in ["tiny-llama", "tiny-falcon", "llama-gqa-tied", "llama-mha", "falcon-7b-like", "falcon-40b-like"] {
        check_round_trip(name);
    }
    for name in ["attention-bias", "mlp-bias", "bf16", "f32", "head-dim", "eps-1e-5", "rope-theta-only"] {
        check_round_trip(&format!("llama-variants/{name}"));
    }
    for name in ["falcon-11b-like", "falcon-180b-like", "falcon-multi-head"] {
        check_round_trip(&format!("opt-falcon-variants/{name}"));
    }
    for name in ["qwen2", "qwen3", "mistral-no-window"] {
        check_round_trip(&format!("llama-like-variants/{name}"));
    }
    // llama.cpp has no window; up to its length there is no difference.
    let (before, after) = check_round_trip("llama-like-variants/mistral-window");
    assert_eq!((&before["sliding_window"], &after["max_position_embeddings"]), (&json!(16), &json!(16)));
}

#[test]
fn younger_families_come_back() {
    let check = |name: &str, edit: fn(&mut Json)| {
        let dir = model(&format!("family-variants/{name}"), edit);
        back(dir.path(), name)
    };
    let same: fn(&mut Json) = |_| {};
    for name in [
        "glm4",
        "glm4-no-bias",
        "granite",
        "olmo2",
        "olmo3-published",
        "olmoe",
        "seed-oss",
        "mixtral",
        "qwen2-moe",
        "qwen3-moe",
    ] {
        check(name, same);
    }
    check("gemma", |config| config["hidden_act"] = json!("gelu_pytorch_tanh"));
    let (before, after) = check("gemma2", |config| config["query_pre_attn_scalar"] = json!(16));
    assert_eq!((&before["layer_types"], &after["sliding_window"]), (&after["layer_types"], &json!(8)));
    let (_, after) = check("gemma3-published", |config| config["query_pre_attn_scalar"] = json!(16));
    assert_eq!(after["layer_types"], json!(["sliding_attention", "full_attention"]));
    assert_eq!(after["rope_scaling"], json!({ "rope_type": "linear", "factor": 4.0 }));
    check("smollm3", |config| config["no_rope_layers"] = json!([1, 1]));
    check("granitemoe", same);
    let (before, after) = check("ministral3", same);
    for key in ["rope_theta", "factor", "llama_4_scaling_beta", "original_max_position_embeddings"] {
        assert_eq!(after["rope_parameters"][key].as_f64(), before["rope_parameters"][key].as_f64(), "{key}");
    }
    // Both weights of YaRN's temperature are 1. In files it is relative to YaRN's own, in f32.
    assert!((after["rope_parameters"]["attention_factor"].as_f64().unwrap() - 1.0).abs() < 1e-6);
    // Within the window there is no difference.
    for name in ["phi3", "mixtral-window", "ministral3-window"] {
        assert_eq!(check(name, same).1["max_position_embeddings"], 8, "{name}");
    }
    for name in ["phi3-long", "phi4-mini"] {
        let (before, after) = check(name, same);
        let scaling =
            if before["rope_scaling"].is_null() { &before["rope_parameters"] } else { &before["rope_scaling"] };
        for key in ["short_factor", "long_factor"] {
            assert_eq!(after["rope_scaling"][key], scaling[key], "{name}");
        }
        assert_eq!(after["original_max_position_embeddings"], 24, "{name}");
    }
}

#[test]
fn younger_families_that_llama_cpp_would_compute_otherwise_are_refused() {
    #[track_caller]
    fn check(name: &str, part: &str) {
        check_refused(model(&format!("family-variants/{name}"), |_| {}).path(), part);
    }
    check("gemma", "`hidden_act` is \"gelu\", expected gelu_pytorch_tanh");
    check("gemma-untied", "`model.layers.0.self_attn.q_proj.bias`");
    check("gemma2", "`query_pre_attn_scalar` is 24, expected 16");
    check("gemma2-no-caps", "`layer_types` is [\"full_attention\",\"sliding_attention\"]");
    check("gemma3", "`attn_logit_softcapping` is 3.0");
    check("gemma3-published", "`query_pre_attn_scalar` is missing, expected 16");
    check("granite-bias", "`model.layers.0.self_attn.q_proj.bias`");
    check("olmo2-gqa", "`model.layers.0.self_attn.q_proj.bias`");
    check("olmo3", "expected 5000: llama.cpp has one for all blocks here");
    check("olmoe-clip", "`norm_topk_prob` is true");
    check("qwen2-moe-mixed", "`use_sliding_window` is true");
    check("qwen3-moe-mixed", "`use_sliding_window` is true");
    check("seed-oss-bias", "`model.layers.0.self_attn.o_proj.bias`");
    check("smollm3", "`no_rope_layers` is [0,1]");
    check("smollm3-interval", "`use_sliding_window` is true");
    check("granitemoe-bias", "`model.layers.0.self_attn.q_proj.bias`");
    check("gpt-oss", "`swiglu_alpha` is 1.5, expected 1.702");
}

/// What llama.cpp computes in GPT-OSS.
fn usual_gates(config: &mut Json) {
    config["swiglu_alpha"] = json!(1.702);
    config["swiglu_limit"] = json!(7.0);
}

#[test]
fn experts_with_biases_and_sinks_come_back() {
    let dir = model("family-variants/gpt-oss", usual_gates);
    let (_, after) = back(dir.path(), "gpt-oss");
    assert_eq!((&after["sliding_window"], &after["rope_scaling"]["truncate"]), (&json!(8), &json!(false)));
    let (_file, written) = write(dir.path(), &WriteOptions::default()).unwrap();
    let (ours, dense) = (Gguf::open(&written.path).unwrap(), Checkpoint::open(dir.path()).unwrap());
    // Hidden states of 32, 4 experts of 32. Columns of the source are gates and ups in turns.
    let values = |name: &str| dense.values(&format!("model.layers.1.{name}")).unwrap();
    let (weights, biases) = (values("mlp.experts.gate_up_proj"), values("mlp.experts.gate_up_proj_bias"));
    for (first, name) in ["ffn_gate_exps", "ffn_up_exps"].into_iter().enumerate() {
        let tensor = |part: &str| ours.tensor(&format!("blk.1.{name}.{part}")).unwrap().dequantize();
        let (found, bias) = (tensor("weight"), tensor("bias"));
        for (at, value) in found.into_iter().enumerate() {
            let (expert, row, col) = (at / 1024, at / 32 % 32, at % 32);
            let expected = weights[(expert * 32 + col) * 64 + 2 * row + first];
            assert_eq!(value, half::f16::from_f32(expected).to_f32(), "{name} {at}");
            assert_eq!(bias[expert * 32 + row], biases[expert * 64 + 2 * row + first], "{name} {at}");
        }
    }
    assert_eq!(ours.tensor("blk.0.attn_sinks.weight").unwrap().dequantize(), {
        dense.values("model.layers.0.self_attn.sinks").unwrap()
    });
}

#[test]
fn experts_in_mxfp4_stay_as_published() {
    let dir = model("family-variants/gpt-oss-mxfp4", |_| {});
    let (file, written) = write(dir.path(), &WriteOptions::default()).unwrap();
    let (ours, source) = (Gguf::open(&written.path).unwrap(), Checkpoint::open(dir.path()).unwrap());
    let kind = |name: &str| ours.tensor(&format!("blk.0.{name}.weight")).unwrap().kind().name();
    assert_eq!(
        ["ffn_gate_exps", "ffn_up_exps", "ffn_down_exps", "attn_q"].map(kind),
        ["MXFP4", "MXFP4", "MXFP4", "F16"]
    );
    let back_dir = file.path().join("back");
    convert_to_hf(&written.path, &back_dir, &mut |_| {}).unwrap();
    let back = Checkpoint::open(&back_dir).unwrap();
    // Hidden states of 32, 4 experts of 64.
    for (name, rows, cols) in [("gate_up_proj", 128, 32), ("down_proj", 32, 64)] {
        let name = format!("model.layers.1.mlp.experts.{name}");
        let bytes = |end: &str| source.tensor(&format!("{name}_{end}")).unwrap().bytes;
        let (blocks, scales) = (bytes("blocks"), bytes("scales"));
        let stored = back.tensor(&name).unwrap();
        assert_eq!(stored.shape, [4, cols, rows]);
        for (at, value) in stored.to_f32_vec().unwrap().into_iter().enumerate() {
            let (expert, col, row) = (at / (cols * rows), at / rows % cols, at % rows);
            let weight = (expert * rows + row) * cols + col;
            let code = blocks[weight / 2] >> (4 * (weight % 2)) & 15;
            let magnitude = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0][usize::from(code & 7)];
            let expected = magnitude * 2f32.powi(i32::from(scales[weight / 32]) - 127);
            assert_eq!(value, if code > 7 { -expected } else { expected }, "{name} {at}");
        }
    }
}

#[test]
fn experts_that_were_packed_one_by_one_are_put_together() {
    let spec: QuantSpec = "w4a16g32sym".parse().unwrap();
    let dir = model("family-variants/gpt-oss", |config| {
        usual_gates(config);
        let quantization = Quantization::from(spec);
        config["quantization_config"] = oq_formats::packed::quantization_config(&quantization, &["lm_head"]);
    });
    let dense = Checkpoint::open(&fixture("family-variants/gpt-oss")).unwrap();
    let mut tensors = Vec::new();
    let mut up = Vec::new();
    for view in dense.tensors() {
        let values = view.to_f32_vec().unwrap();
        let own = |name: &str, shape: &[usize], values: &[f32]| {
            OutTensor::from_f32(name, shape, values, safetensors::Dtype::BF16).unwrap()
        };
        let Some((layer, which)) = view.name.split_once("mlp.experts.") else {
            tensors.push(own(view.name, view.shape, &values));
            continue;
        };
        for (expert, values) in values.chunks(values.len() / 4).enumerate() {
            let stem = format!("{layer}mlp.experts.{expert}.{}", which.trim_end_matches("_bias"));
            if which.ends_with("_bias") {
                tensors.push(own(&format!("{stem}.bias"), &view.shape[1..], values));
                continue;
            }
            let (cols, rows) = (view.shape[1], view.shape[2]);
            let turned: Vec<f32> = (0..rows * cols).map(|at| values[at % cols * rows + at / cols]).collect();
            let packed = QuantizedTensor::quantize(&turned, rows, cols, spec.weight).unwrap();
            if stem == "model.layers.1.mlp.experts.2.gate_up_proj" {
                up = packed.dequantize().chunks(cols).skip(1).step_by(2).flatten().copied().collect();
            }
            tensors.extend(packed_tensors(&stem, &packed));
        }
    }
    write_shard(&dir.path().join("model.safetensors"), &tensors).unwrap();
    let (_file, written) = write(dir.path(), &WriteOptions::default()).unwrap();
    let ours = Gguf::open(&written.path).unwrap();
    let tensor = ours.tensor("blk.1.ffn_up_exps.weight").unwrap();
    assert_eq!((tensor.kind().name(), tensor.shape()), ("Q4_0", &[4, 32, 32][..]));
    assert_eq!(tensor.dequantize()[2 * 1024..3 * 1024], up);
}

#[test]
fn rotations_come_back() {
    let scaling = |name: &str| {
        let (before, after) = check_round_trip(&format!("llama-variants/{name}"));
        (before, after["rope_scaling"].clone())
    };
    assert_eq!(scaling("rope-default-minimal").1, Json::Null);
    assert_eq!(scaling("rope-linear").1["rope_type"], "linear");
    let (before, after) = scaling("rope-yarn-partial");
    assert_eq!(after["original_max_position_embeddings"], before["max_position_embeddings"]);
    let own = 0.1 * after["factor"].as_f64().unwrap().ln() + 1.0;
    assert!((after["attention_factor"].as_f64().unwrap() - own).abs() < 1e-6);
    let louder = model("llama-variants/rope-yarn", |config| config["rope_parameters"]["attention_factor"] = json!(0.8));
    let after = back(louder.path(), "rope-yarn").1["rope_scaling"].clone();
    assert!((after["attention_factor"].as_f64().unwrap() - 0.8).abs() < 1e-6, "as written, not YaRN's own");
}

#[test]
fn llama3_factors_are_a_tensor() {
    let model = model("llama-variants/rope-llama3", |_| {});
    let section = read_json(&model.path().join("config.json"))["rope_parameters"].clone();
    let (_file, written) = write(model.path(), &WriteOptions::default()).unwrap();
    let factors = Gguf::open(&written.path).unwrap().tensor("rope_freqs.weight").unwrap().dequantize();
    let number = |key: &str| section[key].as_f64().unwrap();
    let head_dim = 2 * factors.len();
    for (i, factor) in factors.into_iter().enumerate() {
        // By the formula of transformers: frequencies, not divisors.
        let frequency = number("rope_theta").powf(-2.0 * i as f64 / head_dim as f64);
        let wavelength = std::f64::consts::TAU / frequency;
        let context = number("original_max_position_embeddings");
        let (low, high) = (number("low_freq_factor"), number("high_freq_factor"));
        let smooth = (context / wavelength - low) / (high - low);
        let scaled = if wavelength < context / high {
            frequency
        } else if wavelength > context / low {
            frequency / number("factor")
        } else {
            (1.0 - smooth) * frequency / number("factor") + smooth * frequency
        };
        assert!((frequency / scaled / f64::from(factor) - 1.0).abs() < 1e-5, "{i}: {factor}");
    }
}

#[test]
fn tokenizers_come_back_with_every_key() {
    for name in ["smollm", "llama3", "sentencepiece"] {
        let original =
            Gguf::open(&repository().join(format!("crates/formats/tests/fixtures/gguf/{name}.gguf"))).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let path = repository().join(format!("crates/formats/tests/fixtures/gguf/{name}.gguf"));
        convert_to_hf(&path, dir.path(), &mut |_| {}).unwrap();
        let (_file, written) = write(dir.path(), &WriteOptions::default()).unwrap();
        let ours = Gguf::open(&written.path).unwrap();
        let tokenizer = |file: &Gguf| -> BTreeMap<String, Value> {
            let pairs = file.metadata().iter().filter(|(key, _)| key.starts_with("tokenizer."));
            pairs.map(|(key, value)| (key.to_owned(), value.clone())).collect()
        };
        let (mut before, mut after) = (tokenizer(&original), tokenizer(&ours));
        // Of scores only the order matters: that of tokens that are made of others.
        let scores = [before.remove("tokenizer.ggml.scores"), after.remove("tokenizer.ggml.scores")];
        if let [Some(Value::Array(Array::Float(before))), Some(Value::Array(Array::Float(after)))] = scores {
            let made: Vec<usize> = (0..after.len()).filter(|&id| after[id] > -((after.len() * 16) as f64)).collect();
            let order = |scores: &[f64]| {
                let mut ids: Vec<usize> = made.iter().copied().filter(|&id| after[id] != after[0]).collect();
                ids.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]));
                ids
            };
            assert_eq!(order(&before), order(&after));
            assert!(order(&after).len() > 50);
        }
        for (key, value) in &before {
            assert_eq!(after.get(key), Some(value), "{name}: {key}");
        }
    }
}

#[test]
fn token_ids_stay_the_same() {
    for name in ["tiny-llama", "tiny-falcon"] {
        let dir = model(name, |_| {});
        let (file, written) = write(dir.path(), &WriteOptions::default()).unwrap();
        let back = file.path().join("back");
        convert_to_hf(&written.path, &back, &mut |_| {}).unwrap();
        let [before, after] = [dir.path(), &back].map(|dir| Tokenizer::from_file(dir.join("tokenizer.json")).unwrap());
        let text = fs::read_to_string(fixture("eval.txt")).unwrap();
        let ids = |tokenizer: &Tokenizer| tokenizer.encode(text.as_str(), true).unwrap().get_ids().to_vec();
        assert!(ids(&before).len() > 5000);
        assert_eq!(ids(&before), ids(&after), "{name}");
    }
}

// ---- quantized models

/// tiny-llama with its linears rounded to nearest.
fn packed(spec: &str) -> TempDir {
    packed_from("tiny-llama", spec)
}

/// All linears of a fixture with this spec.
fn packed_from(name: &str, spec: &str) -> TempDir {
    let spec: QuantSpec = spec.parse().unwrap();
    let dir = model(name, |config| {
        config["quantization_config"] =
            oq_formats::packed::quantization_config(&Quantization::from(spec), &["lm_head"]);
    });
    let dense = Checkpoint::open(&fixture(name)).unwrap();
    let mut tensors = Vec::new();
    for view in dense.tensors() {
        let values = view.to_f32_vec().unwrap();
        match view.name.strip_suffix("_proj.weight") {
            Some(_) => {
                let tensor = QuantizedTensor::quantize(&values, view.shape[0], view.shape[1], spec.weight).unwrap();
                tensors.extend(packed_tensors(view.name.strip_suffix(".weight").unwrap(), &tensor));
            }
            None => {
                tensors.push(OutTensor::from_f32(view.name, view.shape, &values, view.dtype).unwrap());
            }
        }
    }
    write_shard(&dir.path().join("model.safetensors"), &tensors).unwrap();
    dir
}

#[track_caller]
fn check_packed(spec: &str, kind: &str, file_type: &str) {
    let dir = packed(spec);
    let (_file, written) = write(dir.path(), &WriteOptions::default()).unwrap();
    assert_eq!(written.file_type, file_type, "{spec}");
    let (ours, model) = (Gguf::open(&written.path).unwrap(), PackedCheckpoint::open(dir.path()).unwrap());
    for (there, here) in [("attn_q", "self_attn.q_proj"), ("attn_v", "self_attn.v_proj"), ("ffn_down", "mlp.down_proj")]
    {
        let tensor = ours.tensor(&format!("blk.3.{there}.weight")).unwrap();
        assert_eq!(tensor.kind().name(), kind, "{spec}: {there}");
        let linear = model.linear(&format!("model.layers.3.{here}")).unwrap();
        let ([rows, cols], expected) = (linear.shape(), linear.dequantize());
        // As llama.cpp's converter does it: heads of 32 rows in two halves, whose rows alternate.
        let row = |row: usize| if there == "attn_q" { row / 32 * 32 + row % 2 * 16 + row % 32 / 2 } else { row };
        let ordered: Vec<f32> = (0..rows).flat_map(|at| expected[row(at) * cols..][..cols].to_vec()).collect();
        assert_eq!(tensor.dequantize(), ordered, "{spec}: {there}");
    }
    assert_eq!(ours.tensor("output.weight").unwrap().kind().name(), "F16");
    assert_eq!(ours.tensor("output_norm.weight").unwrap().kind().name(), "F32");
}

#[test]
fn quantized_linears_keep_every_value() {
    check_packed("w2a16g64", "Q4_0", "Q4_0");
    check_packed("w3a16g128", "Q4_0", "Q4_0");
    check_packed("w4a16g64", "Q5_0", "Q5_0");
    check_packed("w4a16g128sym", "Q4_0", "Q4_0");
    check_packed("w4a16g32full", "Q4_0", "Q4_0");
    check_packed("w8a16sym", "Q8_0", "Q8_0");
    check_packed("q4_1_pure", "Q4_1", "Q4_1");
    check_packed("mxfp4", "MXFP4", "MXFP4");
}

#[test]
fn embedding_and_head_may_have_the_types_of_the_linears_mixture() {
    let by_linears = WriteOptions::default().with_mixture_of_linears(true);
    let kinds = |dir: &TempDir, options: &WriteOptions| {
        let (_file, written) = write(dir.path(), options).unwrap();
        let ours = Gguf::open(&written.path).unwrap();
        let kind = |name: &str| ours.tensor(name).unwrap().kind().name();
        ["token_embd.weight", "blk.0.attn_q.weight", "output.weight"].map(kind)
    };
    // Three layers of Q2_K alone are what `q2_k_s` has.
    let blocks = packed_from("tiny-llama-256", "q2_k_pure");
    assert_eq!(kinds(&blocks, &by_linears), ["Q2_K", "Q2_K", "Q6_K"]);
    assert_eq!(kinds(&blocks, &WriteOptions::default()), ["F16", "Q2_K", "F16"]);
    // These were not made for llama.cpp.
    assert_eq!(kinds(&packed("w3a16g32"), &by_linears), ["F16", "Q4_0", "F16"]);
}

#[test]
fn options_choose_other_types() {
    let dir = packed("w4a16g64");
    let near = WriteOptions::default().with_near(true);
    assert_eq!(write(dir.path(), &near).unwrap().1.file_type, "Q4_1");
    // Rows of 128 and 384 are not whole blocks of 256: the types are those of `Mixture::block`.
    let mixture = WriteOptions::default().with_mixture("q4_k_m".parse().unwrap());
    let (_file, written) = write(&fixture("tiny-llama"), &mixture).unwrap();
    assert_eq!(written.file_type, "Q4_K_M");
    let ours = Gguf::open(&written.path).unwrap();
    let kind = |name: &str| ours.tensor(name).unwrap().kind().name();
    assert_eq!(kind("token_embd.weight"), "Q5_0");
    assert_eq!(kind("output.weight"), "Q8_0");
    assert_eq!(
        ["blk.0.attn_v.weight", "blk.0.attn_q.weight", "blk.2.attn_v.weight"].map(kind),
        ["Q5_0", "Q5_0", "Q8_0"]
    );
    // The head of a packed model too.
    let (_file, written) = write(dir.path(), &mixture).unwrap();
    let ours = Gguf::open(&written.path).unwrap();
    assert_eq!(ours.tensor("output.weight").unwrap().kind().name(), "Q8_0");
    assert_eq!(ours.tensor("blk.0.attn_q.weight").unwrap().kind().name(), "Q5_0");

    // A directory: the file is named as others name theirs.
    let out = tempfile::tempdir().unwrap();
    let named = WriteOptions::default().with_name("My Model");
    let written = write_gguf(&fixture("tiny-llama"), out.path(), &named, &mut |_| {}).unwrap();
    assert_eq!(written.path, out.path().join("My-Model-F16.gguf"));
    let ours = Gguf::open(&written.path).unwrap();
    assert_eq!(ours.metadata().text("general.name").unwrap(), Some("My Model"));
    assert_eq!(ours.metadata().unsigned("general.file_type").unwrap(), Some(1));
}

// ---- refusals

#[track_caller]
fn check_refused(dir: &Path, part: &str) {
    let error = write(dir, &WriteOptions::default()).expect_err("must be refused");
    assert!(error.contains(part), "{error}");
}

#[test]
fn models_that_llama_cpp_would_compute_otherwise_are_refused() {
    check_refused(&fixture("tiny-opt"), "`opt` models are not written as GGUF: llama.cpp has no OPT");
    let variant = |name: &str| model(name, |_| {});
    check_refused(variant("opt-falcon-variants/falcon-rw-like").path(), "`alibi` is true, expected false");
    check_refused(variant("opt-falcon-variants/falcon-7b-bias").path(), "`bias` is true, expected false");
    check_refused(variant("llama-variants/gelu").path(), "`hidden_act` is \"gelu");
    check_refused(
        variant("llama-variants/rope-dynamic").path(),
        "`rope_type` is \"dynamic\", expected default, linear",
    );
    check_refused(variant("llama-variants/rope-yarn-mscale").path(), "`truncate` is false, expected true");
    check_refused(variant("llama-variants/rope-yarn-betas").path(), "`beta_fast` is 8.0, expected 32");
    let windows = model("llama-like-variants/qwen2", |config| config["use_sliding_window"] = true.into());
    check_refused(windows.path(), "`use_sliding_window` is true");
    let layers = model("tiny-llama", |config| config["num_hidden_layers"] = json!(1 << 24));
    check_refused(layers.path(), "`num_hidden_layers` is 16777216, expected at most");
    let fewer = model("tiny-llama", |config| config["num_hidden_layers"] = json!(3));
    check_refused(fewer.path(), "`model.layers.3.input_layernorm.weight` has no place");
    let wider = model("tiny-llama", |config| config["intermediate_size"] = json!(385));
    check_refused(wider.path(), "is [384, 128], the metadata says [385, 128]");
}

#[test]
fn settings_without_a_block_are_told_which_have_one() {
    check_refused(
        packed("w8a16g32").path(),
        "is w8g32 with rows of 128, which no block of GGUF holds: quantize with w8a16g32sym",
    );
    check_refused(packed("w4a16g16").path(), "quantize with w4a16g32");
    check_refused(packed("w4a8g32").path(), "its activations have 8 bits, which GGUF does not hold: quantize with a16");
    check_refused(packed("nvfp4").path(), "quantize with q4_0, or mxfp4");
    let rotated = packed("w4a16g32");
    let path = rotated.path().join("config.json");
    let text = fs::read_to_string(&path).unwrap().replace("\"pack-quantized\"", "\"pack-quantized-rotated\"");
    fs::write(&path, text).unwrap();
    check_refused(rotated.path(), "quantize with `--rotate merged`");
}

#[test]
fn tokenizers_that_llama_cpp_lacks_are_refused() {
    #[track_caller]
    fn check(edit: impl FnOnce(&mut Json), part: &str) {
        let dir = model("llama-mha", |_| {});
        let mut tokenizer = small_tokenizer();
        edit(&mut tokenizer);
        fs::write(dir.path().join("tokenizer.json"), tokenizer.to_string()).unwrap();
        check_refused(dir.path(), part);
    }
    check(|json| json["model"]["type"] = "Unigram".into(), "\"Unigram\" model");
    check(|json| json["model"]["vocab"]["c"] = json!(1 << 20), "token \"c\" has no row of the embedding's");
    check(|json| json["pre_tokenizer"] = json!({ "type": "Whitespace" }), "llama.cpp has the ways of gpt-2, smollm");
    check(|json| json["normalizer"] = json!({ "type": "Lowercase" }), "in a way of its own");
    check(|json| json["model"]["merges"] = json!(["ab"]), "a merge that is not two tokens");
    check(|json| json["post_processor"] = json!({ "type": "BertProcessing" }), "BertProcessing, which llama.cpp lacks");
    let dir = model("llama-mha", |_| {});
    fs::remove_file(dir.path().join("tokenizer.json")).unwrap();
    check_refused(dir.path(), "a GGUF file contains its tokenizer");
}

// ---- models in several files

/// A file with one tensor of 32 ones, as part `no` of `count`.
fn part(no: u16, count: u16, tensor: Option<&str>) -> Vec<u8> {
    let mut bytes = b"GGUF".to_vec();
    bytes.extend(3u32.to_le_bytes());
    bytes.extend(u64::from(tensor.is_some()).to_le_bytes());
    bytes.extend(2u64.to_le_bytes());
    let text = |text: &str, bytes: &mut Vec<u8>| {
        bytes.extend((text.len() as u64).to_le_bytes());
        bytes.extend(text.as_bytes());
    };
    for (key, value) in [("split.no", no), ("split.count", count)] {
        text(key, &mut bytes);
        bytes.extend(2u32.to_le_bytes());
        bytes.extend(value.to_le_bytes());
    }
    if let Some(name) = tensor {
        text(name, &mut bytes);
        bytes.extend([1u32, 32, 0, 0, 0, 0].map(u32::to_le_bytes).concat());
        bytes.resize(bytes.len().next_multiple_of(32), 0);
        bytes.extend([1.0f32; 32].map(f32::to_le_bytes).concat());
    }
    bytes
}

#[test]
fn parts_of_a_model_are_read_together() {
    let dir = tempfile::tempdir().unwrap();
    let path = |no: usize| dir.path().join(format!("m-{no:05}-of-00003.gguf"));
    for (no, tensor) in [(0, None), (1, Some("a")), (2, Some("b"))] {
        fs::write(path(usize::from(no) + 1), part(no, 3, tensor)).unwrap();
    }
    let whole = Gguf::open(&path(1)).unwrap();
    assert_eq!(whole.tensors().map(|tensor| tensor.name().to_owned()).collect::<Vec<_>>(), ["a", "b"]);
    assert_eq!(whole.tensor("b").unwrap().dequantize(), [1.0; 32]);

    let refusal = |no| Gguf::open(&path(no)).unwrap_err().to_string();
    assert!(refusal(2).contains("give the first, whose name ends in `-00001-of-00003.gguf`"), "{}", refusal(2));
    let renamed = dir.path().join("m.gguf");
    fs::copy(path(1), &renamed).unwrap();
    assert!(Gguf::open(&renamed).unwrap_err().to_string().contains("give the first"));
    fs::write(path(3), part(1, 3, Some("b"))).unwrap();
    assert!(refusal(1).contains("m-00003-of-00003.gguf: not the part"), "{}", refusal(1));
    fs::write(path(3), part(2, 3, Some("a"))).unwrap();
    assert!(refusal(1).contains("tensor `a` occurs twice"), "{}", refusal(1));
    fs::remove_file(path(3)).unwrap();
    assert!(refusal(1).contains("m-00003-of-00003.gguf: "), "{}", refusal(1));
}
