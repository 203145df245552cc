//! Mixed widths with a given average: each linear has its own width, packed models with mixed widths can be read, and a killed run ends in
//! the same bytes after a resume.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use oq_calib::JOURNAL;
use oq_formats::{Checkpoint, PackedCheckpoint};
use oq_quant_core::QuantizedTensor;
use oq_tests::{fixture, kill, model_files, omniquant, run, run_json};
use serde_json::Value;

/// The chosen widths.
const BITS: &str = "omniquant/bits.json";

/// Four blocks, each a few tenths of a second.
fn quantize(out: &Path, options: &[&str]) -> Command {
    let mut command = omniquant();
    command.arg("quantize").arg(fixture("tiny-llama")).args(["--scheme", "w3a16g64", "--calib"]);
    command.args(["tests/fixtures/calib.txt", "--samples", "8", "--seqlen", "128", "--epochs", "1"]).args(options);
    command.args(["--threads", "1", "--quiet", "--resume", "--out"]).arg(out);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    command
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

fn perplexity(dir: &Path, options: &[&str]) -> f64 {
    let mut eval = omniquant();
    eval.arg("eval").arg(dir).args(["--json", "--data", "tests/fixtures/eval.txt", "--seqlen", "256"]).args(options);
    run_json(&mut eval)["perplexity"].as_f64().unwrap()
}

#[test]
fn each_linear_has_the_width_that_was_chosen() {
    let out = tempfile::tempdir().unwrap();
    run(&mut quantize(out.path(), &["--bits", "3.25", "--method", "rtn"]), 0);
    let (packed, original) =
        (PackedCheckpoint::open(out.path()).unwrap(), Checkpoint::open(&fixture("tiny-llama")).unwrap());
    let choice = json(&out.path().join(BITS));
    let (mut widths, mut bits, mut weights) = (BTreeSet::new(), 0, 0);
    let units = choice["units"].as_array().unwrap();
    // Units: queries, keys and values; output; gate and up; down.
    assert_eq!(units.len(), 4 * 4);
    for unit in units {
        for linear in unit["linears"].as_array().unwrap() {
            let name = format!("model.layers.{}.{}", unit["block"], linear.as_str().unwrap());
            let spec = packed.weight(&name).unwrap();
            assert_eq!(u64::from(spec.bits.get()), unit["bits"].as_u64().unwrap(), "{name}");
            let weight = original.values(&format!("{name}.weight")).unwrap();
            let [rows, cols] = packed.linear_shape(&name).unwrap();
            let expected = QuantizedTensor::quantize(&weight, rows, cols, spec).unwrap();
            assert_eq!(packed.linear(&name).unwrap(), expected, "{name}");
            widths.insert(spec.bits);
            bits += rows * cols * spec.bits.get() as usize;
            weights += rows * cols;
        }
        let costs: Vec<f64> =
            unit["divergence"].as_array().unwrap().iter().map(|cost| cost.as_f64().unwrap()).collect();
        assert!(costs.len() == 6 && costs.is_sorted_by(|a, b| a > b), "{costs:?}");
    }
    let average = bits as f64 / weights as f64;
    assert!(widths.len() > 1 && average > 3.2 && average <= 3.25, "{widths:?}, {average}");
    assert_eq!(choice["average"], average);

    // Packed products work too, with a matrix for each width.
    let (dense, kernels) = (perplexity(out.path(), &[]), perplexity(out.path(), &["--kernels", "packed"]));
    assert!((dense / kernels - 1.0).abs() < 1e-3, "{dense} decoded, {kernels} packed");
    let inspected = run_json(omniquant().args(["inspect", "--json"]).arg(out.path()));
    assert_eq!(inspected["summary"]["quantized"], packed.quantization().to_string());
    let printed = run(omniquant().arg("inspect").arg(out.path()), 0);
    let printed = String::from_utf8(printed.stdout).unwrap();
    assert!(printed.contains(&format!("widths        {average:.3} bits on average: ")), "{printed}");
}

#[test]
fn runs_that_are_disturbed_end_in_the_same_bytes() {
    let whole = tempfile::tempdir().unwrap();
    let options = ["--bits", "2.75", "--tune-epochs", "1"];
    run(&mut quantize(whole.path(), &options), 0);
    let expected = model_files(whole.path());
    let units = json(&whole.path().join(BITS))["units"].clone();
    #[track_caller]
    fn check(out: &Path, expected: &BTreeMap<String, Vec<u8>>, units: &Value) {
        assert!(model_files(out) == *expected, "other bytes than an undisturbed run's");
        assert_eq!(json(&out.join(BITS))["units"], *units);
    }
    for reached in [JOURNAL, BITS, "model-00002-of-00005.safetensors", "model-00005-of-00005.safetensors"] {
        let out = tempfile::tempdir().unwrap();
        kill(&mut quantize(out.path(), &options), || out.path().join(reached).exists());
        let chosen = fs::read(out.path().join(BITS)).ok();
        run(&mut quantize(out.path(), &options), 0);
        check(out.path(), &expected, &units);
        // Sensitivities are not measured again.
        assert!(chosen.is_none_or(|chosen| chosen == fs::read(out.path().join(BITS)).unwrap()), "{reached}");
    }
    // If the choice of widths is lost, blocks that depend on it are learned again.
    fs::remove_file(whole.path().join(BITS)).unwrap();
    fs::remove_file(whole.path().join("config.json")).unwrap();
    run(&mut quantize(whole.path(), &options), 0);
    check(whole.path(), &expected, &units);
    // A different average is a different run.
    let output = run(&mut quantize(whole.path(), &["--bits", "3", "--tune-epochs", "1"]), 2);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stderr.contains("bits.average was 2.75 and is now 3.0"), "{stderr}");
}

#[test]
fn budgets_that_cannot_be_are_refused() {
    let out = tempfile::tempdir().unwrap();
    for (options, part) in [
        (vec!["--bits", "1.5"], "bits.average = 1.5: must be 2 to 8, the ends of bits.choices"),
        (vec!["--bits", "4.5", "--bit-choices", "3,4"], "bits.average = 4.5: must be 3 to 4, the ends of bits.choices"),
        (vec!["--bit-choices", "3,4"], "bits.choices = [3, 4]: must be given with bits.average (--bits)"),
    ] {
        let output = run(&mut quantize(&out.path().join("out"), &options), 2);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(stderr.contains(part), "{stderr}");
    }
    assert!(!out.path().join("out").exists());
}

#[test]
fn plans_count_the_average() {
    let plan =
        |options: &[&str]| run_json(omniquant().args(["plan", "tiny-llama", "--json", "--scheme"]).args(options));
    let bytes = |options: &[&str]| plan(options)["plan"]["output_bytes"].as_u64().unwrap();
    let [w3, w4] = ["w3a16g64", "w4a16g64"].map(|scheme| bytes(&[scheme]));
    assert_eq!((bytes(&["w4a16g64", "--bits", "3"]), bytes(&["w2a16g64", "--bits", "4"])), (w3, w4));
    let between = bytes(&["w3a16g64", "--bits", "3.25"]) as f64;
    assert!((between - (0.75 * w3 as f64 + 0.25 * w4 as f64)).abs() < 8.0, "{between} of {w3} and {w4}");
    let printed = run(omniquant().args(["plan", "tiny-llama", "--scheme", "w3a16g64", "--bits", "3.25"]), 0);
    let printed = String::from_utf8(printed.stdout).unwrap();
    assert!(printed.contains("bits            3.25 on average, from 2, 3, 4, 5, 6, 8"), "{printed}");
}
