//! Linears with a width of their own or in full precision, and a quantized head and embedding: through learning, files, resume, exports.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use oq_formats::{Checkpoint, PackedCheckpoint};
use oq_quant_core::QuantizedTensor;
use oq_tests::{fixture, kill, model_files, omniquant, run, run_json};
use serde_json::Value;

const MIXED: [&str; 4] = ["--override", "model.layers.1.mlp.down_proj=w8", "--override", "layers:first,last=float"];
const OUTER: [&str; 4] = ["--head-bits", "6", "--embed-bits", "8"];

/// Four blocks, each a few tenths of a second.
fn quantize(out: &Path, scheme: &str, options: &[&str]) -> Command {
    let mut command = omniquant();
    command.arg("quantize").arg(fixture("tiny-llama")).args(["--scheme", scheme, "--calib"]);
    command.args(["tests/fixtures/calib.txt", "--samples", "8", "--seqlen", "128", "--epochs", "1"]).args(options);
    command.args(["--threads", "1", "--quiet", "--resume", "--out"]).arg(out);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    command
}

fn perplexity(dir: &Path, options: &[&str]) -> f64 {
    let mut eval = omniquant();
    eval.arg("eval").arg(dir).args(["--json", "--data", "tests/fixtures/eval.txt", "--seqlen", "256"]).args(options);
    run_json(&mut eval)["perplexity"].as_f64().unwrap()
}

fn planned(scheme: &str, options: &[&str]) -> f64 {
    let mut plan = omniquant();
    plan.args(["plan", "--json", "--scheme", scheme]).args(options).arg(fixture("tiny-llama"));
    run_json(&mut plan)["plan"]["output_bytes"].as_f64().unwrap()
}

fn summary(dir: &Path) -> Value {
    run_json(omniquant().args(["inspect", "--json"]).arg(dir))["summary"].clone()
}

/// The plan's size and the model's differ by the shapes of linears, 16 bytes each, and by norms in f32.
#[track_caller]
fn check_size(planned: f64, dir: &Path) {
    let written = summary(dir)["total_bytes"].as_f64().unwrap();
    assert!((written / planned - 1.0).abs() < 5e-3, "{written} written, {planned} planned");
}

#[test]
fn linears_are_quantized_as_overrides_say() {
    let dir = tempfile::tempdir().unwrap();
    let [plain, mixed] = ["plain", "mixed"].map(|name| dir.path().join(name));
    run(&mut quantize(&plain, "w2a16g64", &[]), 0);
    run(&mut quantize(&mixed, "w2a16g64", &MIXED), 0);
    let (packed, original) =
        (PackedCheckpoint::open(&mixed).unwrap(), Checkpoint::open(&fixture("tiny-llama")).unwrap());
    for name in original.names().filter_map(|name| name.strip_suffix("_proj.weight")).map(|name| format!("{name}_proj"))
    {
        let is_outer = ["model.layers.0.", "model.layers.3."].iter().any(|block| name.starts_with(block));
        let expected = match &*name {
            _ if is_outer => None,
            "model.layers.1.mlp.down_proj" => Some("w8g64".to_owned()),
            _ => Some("w2g64".to_owned()),
        };
        assert_eq!(packed.quantization().weight(&name).map(|weight| weight.to_string()), expected, "{name}");
        assert_eq!(packed.is_packed(&name), !is_outer, "{name}");
        if is_outer {
            let weight = format!("{name}.weight");
            assert!(original.is_same(&weight, (packed.checkpoint(), &weight)).unwrap(), "{name} is as it was");
        }
    }
    let [without, with] = [&plain, &mixed].map(|dir| perplexity(dir, &[]));
    assert!(with < 0.97 * without, "{with} with overrides, {without} without");
    let kernels = perplexity(&mixed, &["--kernels", "packed"]);
    assert!((with / kernels - 1.0).abs() < 1e-3, "{with} decoded, {kernels} packed");
    check_size(planned("w2a16g64", &[]), &plain);
    check_size(planned("w2a16g64", &MIXED), &mixed);
    let mut plan = omniquant();
    plan.args(["plan", "--scheme", "w2a16g64"]).args(MIXED).args(OUTER).arg(fixture("tiny-llama"));
    let plan = String::from_utf8(run(&mut plan, 0).stdout).unwrap();
    for part in ["override        layers:first,last=float", "head            6 bits, rounded to nearest"] {
        assert!(plan.contains(part), "{plan}");
    }
    assert_eq!(summary(&mixed)["quantized"], "w2a16g64, w8a16g64");
    let printed = String::from_utf8(run(omniquant().arg("inspect").arg(&mixed), 0).stdout).unwrap();
    assert!(printed.contains("left out      14 linears of blocks, in full precision"), "{printed}");
    let card = fs::read_to_string(mixed.join("README.md")).unwrap();
    assert!(card.contains("| overrides | `model.layers.1.mlp.down_proj=w8`, `layers:first,last=float` |"), "{card}");
    assert!(card.contains("some linears (see overrides), embeddings, output head, norms, biases"), "{card}");
    let recipe = fs::read_to_string(mixed.join("omniquant/recipe.toml")).unwrap();
    assert!(recipe.contains("[[override]]\nlayers = \"first,last\"\nweight = \"float\""), "{recipe}");
}

#[test]
fn linears_in_full_precision_are_transformed_with_the_others() {
    let out = tempfile::tempdir().unwrap();
    // All but one, which hardly matters at 8 bits: what remains is the transformation, which changes nothing if it is whole.
    let options =
        ["--override", "*=float", "--override", "*.2.mlp.up_proj=w8", "--let", "--let-sites", "norm,vo,qk,updown"];
    run(&mut quantize(out.path(), "w8a16g64", &options), 0);
    let (packed, original) =
        (PackedCheckpoint::open(out.path()).unwrap(), Checkpoint::open(&fixture("tiny-llama")).unwrap());
    let name = "model.layers.2.self_attn.q_proj.weight";
    assert!(!original.is_same(name, (packed.checkpoint(), name)).unwrap(), "a site rescales it");
    let [before, after] = [&*fixture("tiny-llama"), out.path()].map(|dir| perplexity(dir, &[]));
    assert!((after / before - 1.0).abs() < 2e-3, "{after}, {before} before");
}

#[test]
fn runs_that_are_killed_end_in_the_same_bytes() {
    let whole = tempfile::tempdir().unwrap();
    let options = [
        &MIXED[..],
        &OUTER[..],
        &["--let", "--let-sites", "norm", "--bits", "3", "--tune-epochs", "1", "--compute", "f32"],
    ]
    .concat();
    run(&mut quantize(whole.path(), "w3a16g64", &options), 0);
    let expected = model_files(whole.path());
    for reached in ["model-00002-of-00005.safetensors", "omniquant/tuning.safetensors"] {
        let out = tempfile::tempdir().unwrap();
        kill(&mut quantize(out.path(), "w3a16g64", &options), || out.path().join(reached).exists());
        run(&mut quantize(out.path(), "w3a16g64", &options), 0);
        assert!(model_files(out.path()) == expected, "other bytes than an undisturbed run's, after {reached}");
    }
    // The widths that are chosen make up for the one that is not.
    let choice: Value = serde_json::from_slice(&fs::read(whole.path().join("omniquant/bits.json")).unwrap()).unwrap();
    let units = choice["units"].as_array().unwrap();
    assert!(units.iter().all(|unit| [1, 2].contains(&unit["block"].as_u64().unwrap())), "{units:?}");
    let packed = PackedCheckpoint::open(whole.path()).unwrap();
    let (mut bits, mut weights) = (0, 0);
    for name in packed.linear_names().filter(|name| name.contains(".layers.")) {
        let [rows, cols] = packed.linear_shape(name).unwrap();
        bits += rows * cols * packed.weight(name).unwrap().bits.get() as usize;
        weights += rows * cols;
    }
    let average = bits as f64 / weights as f64;
    assert!(average <= 3.0 && average > 2.8 && choice["average"] == average, "{average}, {}", choice["average"]);
    assert_eq!(packed.weight("model.layers.1.mlp.down_proj").unwrap().bits.get(), 8);
    // Other overrides are another run.
    let output = run(&mut quantize(whole.path(), "w3a16g64", &options[2..]), 2);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stderr.contains("different run") || stderr.contains("recipe"), "{stderr}");
}

#[test]
fn head_and_embedding_are_rounded_and_read_back() {
    let dir = tempfile::tempdir().unwrap();
    let [plain, outer] = ["plain", "outer"].map(|name| dir.path().join(name));
    run(&mut quantize(&plain, "w4a16g64", &["--method", "rtn"]), 0);
    run(&mut quantize(&outer, "w4a16g64", &[&OUTER[..], &["--method", "rtn"]].concat()), 0);
    let (packed, original) =
        (PackedCheckpoint::open(&outer).unwrap(), Checkpoint::open(&fixture("tiny-llama")).unwrap());
    for (name, bits) in [("lm_head", 6), ("model.embed_tokens", 8)] {
        let spec = packed.weight(name).unwrap();
        assert_eq!(spec.to_string(), format!("w{bits}g64"), "{name}");
        let [rows, cols] = packed.linear_shape(name).unwrap();
        let weight = original.values(&format!("{name}.weight")).unwrap();
        assert_eq!(
            packed.linear(name).unwrap(),
            QuantizedTensor::quantize(&weight, rows, cols, spec).unwrap(),
            "{name}"
        );
    }
    let [without, with] = [&plain, &outer].map(|dir| perplexity(dir, &[]));
    assert!((with / without - 1.0).abs() < 2e-2, "{with}, {without} with both in full precision");
    let kernels = perplexity(&outer, &["--kernels", "packed"]);
    assert!((with / kernels - 1.0).abs() < 1e-3, "{with} decoded, {kernels} packed");
    check_size(planned("w4a16g64", &OUTER), &outer);
    // One by one, tokens are embedded and multiplied by codes.
    let mut generate = omniquant();
    generate.arg("generate").arg(&outer).args(["--prompt", "The river", "--max-tokens", "8", "--json"]);
    let by_codes = run_json(&mut generate)["text"].clone();
    let decoded = run_json(generate.args(["--kernels", "dense", "--compute", "f32"]))["text"].clone();
    assert!(by_codes.as_str().is_some_and(|text| !text.is_empty()) && by_codes == decoded, "{by_codes}, {decoded}");
    let card = fs::read_to_string(outer.join("README.md")).unwrap();
    assert!(card.contains("`lm_head` by `w6g64`, rounded to nearest, `model.embed_tokens` by `w8g64`"), "{card}");
    assert!(card.contains("| not quantized | norms, biases |"), "{card}");
}

#[test]
fn a_tied_head_is_the_embedding() {
    let dir = tempfile::tempdir().unwrap();
    let rounded = |options: &[&str], out: &Path| {
        let mut command = omniquant();
        command.arg("quantize").arg(fixture("llama-gqa-tied")).args(["--scheme", "w4a16g32", "--method", "rtn", "-q"]);
        command.args(options).arg("--out").arg(out);
        command
    };
    let output = run(&mut rounded(&["--head-bits", "8"], &dir.path().join("head")), 2);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stderr.contains("the head is the embedding, one table: --embed-bits quantizes both"), "{stderr}");
    let out = dir.path().join("both");
    run(&mut rounded(&["--embed-bits", "8"], &out), 0);
    let packed = PackedCheckpoint::open(&out).unwrap();
    assert!(
        packed.is_packed("model.embed_tokens") && !packed.checkpoint().names().any(|name| name.starts_with("lm_head"))
    );
    run(omniquant().args(["inspect"]).arg(&out), 0);
}

#[test]
fn mistakes_are_refused_before_anything_is_written() {
    let out = tempfile::tempdir().unwrap();
    for (options, part) in [
        (vec!["--override", "*.mlp.down_prj=w8"], "matches no linear; names near it: *.mlp.down_proj"),
        (vec!["--override", "layers:4=w8"], "there is no layer 4, only first (0) to last (3)"),
        (vec!["--override", "*.q_proj=w8g96"], "model.layers.0.self_attn.q_proj: group 96 does not divide in_features"),
        (vec!["--override", "*=float"], "leave all linears in full precision"),
        (vec!["--override", "*.q_proj=int8"], "`int8` is not a width"),
        (vec!["--override", "*.q_proj"], "`*.q_proj` is not an override"),
        (vec!["--override", "*=w8", "--bits", "3"], "set the width of every linear"),
        (vec!["--override", "*.mlp.*=w8", "--bits", "3"], "--bits 3: the overrides leave -"),
        (vec!["--head-bits", "9"], "9 bits"),
        (vec!["--override", "*.q_proj=w3", "--export", "awq"], "all linears must be quantized alike"),
        (vec!["--embed-bits", "8", "--export", "gptq"], "model.embed_tokens in full precision only"),
    ] {
        let output = run(&mut quantize(&out.path().join("out"), "w4a16g64", &options), 2);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(stderr.contains(part), "{options:?}: {stderr}");
    }
    assert!(!out.path().join("out").exists());
}

#[test]
fn exports_keep_what_differs() {
    let dir = tempfile::tempdir().unwrap();
    let export = |model: &Path, formats: &str| {
        run(omniquant().arg("export").arg(model).args(["--to", formats, "-q"]), 0);
    };
    let check = |model: &Path, format: &str| {
        let exported = model.with_file_name(format!("{}-{format}", model.file_name().unwrap().to_str().unwrap()));
        let [ours, theirs] = [model, &exported].map(|dir| perplexity(dir, &[]));
        assert!((theirs / ours - 1.0).abs() < 1e-4, "{format}: {theirs}, {ours} before");
    };
    let mixed = dir.path().join("mixed");
    let overrides = [&MIXED[..], &["--method", "rtn", "--override", "*.2.self_attn.*=w4g32"]].concat();
    run(&mut quantize(&mixed, "w2a16g64sym", &overrides), 0);
    let formats = ["compressed-tensors", "gptq", "auto-round", "mlx", "dense-f32"];
    export(&mixed, &formats.join(","));
    formats.iter().for_each(|format| check(&mixed, format));
    let outer = dir.path().join("outer");
    run(&mut quantize(&outer, "w4a16g64sym", &[&OUTER[..], &["--method", "rtn"]].concat()), 0);
    let formats = ["mlx", "dense-f32"];
    export(&outer, &formats.join(","));
    formats.iter().for_each(|format| check(&outer, format));
    // Linears in full precision stay so in files of K types too.
    let blocks = dir.path().join("blocks");
    let overrides = ["--override", "layers:first=float", "--override", "*.2.mlp.down_proj=q8_0"];
    let mut command = omniquant();
    command
        .arg("quantize")
        .arg(fixture("tiny-llama-256"))
        .args(["--scheme", "q4_k_m", "--method", "rtn", "-q", "--out"]);
    run(command.arg(&blocks).args(overrides), 0);
    export(&blocks, "gguf");
    let file = fs::read_dir(dir.path().join("blocks-gguf")).unwrap().map(|entry| entry.unwrap().path());
    let file = file.into_iter().find(|path| path.extension().is_some_and(|kind| kind == "gguf")).unwrap();
    let back = dir.path().join("back");
    run(omniquant().arg("convert").arg(file).args(["-q", "--out"]).arg(&back), 0);
    let (back, blocks) = (Checkpoint::open(&back).unwrap(), PackedCheckpoint::open(&blocks).unwrap());
    for name in ["model.layers.0.mlp.up_proj", "model.layers.2.mlp.down_proj", "model.layers.1.mlp.up_proj"] {
        let (written, ours) =
            (back.values(&format!("{name}.weight")).unwrap(), blocks.matrix(name).unwrap().into_values());
        let error = written.iter().zip(&ours).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(error < 1e-3, "{name}: {error}");
    }
}
