//! A sweep over settings: resumed after a kill, refused as a whole, within a budget, and with a setting that fails.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use oq_recipe::{BLOCKS, EVENTS, RECIPE, REPORT, RUN};
use oq_tests::{files, model_files, omniquant, run, run_json, start};
use serde_json::Value;
use tempfile::TempDir;

/// Files of a run with timings.
const RECORDS: [&str; 5] = [EVENTS, "omniquant/journal.jsonl", RECIPE, REPORT, RUN];
const NAMES: [&str; 6] =
    ["w4a16g64-fast", "w4a16g64-default", "w3a16g64-fast", "w3a16g64-default", "w2a16g64-fast", "w2a16g64-default"];
/// What both commands are given.
const LEARN: [&str; 4] = ["--samples", "2", "--seqlen", "64"];
const EVAL: [&str; 4] = ["--data", "tests/fixtures/eval.txt", "--windows", "4"];

fn sweep(schemes: &str, presets: &str, threads: &str, out: &Path) -> Command {
    let mut command = omniquant();
    command.args(["sweep", "tiny-llama", "--schemes", schemes, "--presets", presets, "--threads", threads, "--json"]);
    command.args(LEARN).args(EVAL).arg("--out").arg(out).stdin(Stdio::null()).stdout(Stdio::piped());
    command.stderr(Stdio::piped());
    command
}

fn six(out: &Path) -> Command {
    sweep("w4a16g64,w3a16g64,w2a16g64", "fast,default", "1", out)
}

/// An undisturbed sweep of six settings, and what it printed.
fn whole() -> &'static (TempDir, PathBuf, Value) {
    static WHOLE: OnceLock<(TempDir, PathBuf, Value)> = OnceLock::new();
    WHOLE.get_or_init(|| {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("sweep");
        let said = run_json(six(&out).arg("-q"));
        (dir, out, said)
    })
}

fn stderr(command: &mut Command, code: i32) -> String {
    String::from_utf8(run(command, code).stderr).unwrap()
}

/// The page without the time and the memory of each run, which are the last two cells of its row.
fn page(out: &Path) -> String {
    let text = fs::read_to_string(out.join("report.html")).unwrap();
    let mut kept = Vec::new();
    for row in text.split("<tr>") {
        let is_run = NAMES.iter().any(|name| row.contains(&format!(". {name}"))) && row.contains("</th>\n<td>w");
        let cells: Vec<&str> = row.split("<td").collect();
        let n = if is_run { cells.len() - 2 } else { cells.len() };
        kept.push(cells[..n].join("<td"));
    }
    assert!(kept.iter().map(String::len).sum::<usize>() < text.len(), "no run is in the page");
    kept.join("<tr>")
}

/// `sweep.json` without times, memory, and the place where it lies.
fn settings(out: &Path) -> Value {
    let mut value: Value = serde_json::from_slice(&fs::read(out.join("sweep.json")).unwrap()).unwrap();
    for setting in value["settings"].as_array_mut().unwrap() {
        ["wall_secs", "peak_bytes", "dir"].iter().for_each(|key| drop(setting.as_object_mut().unwrap().remove(*key)));
    }
    value
}

/// All files of a setting that have no timings.
fn lasting(out: &Path, name: &str) -> BTreeMap<String, Vec<u8>> {
    let mut files = files(&out.join(name));
    files.retain(|name, _| !RECORDS.contains(&name.as_str()));
    files
}

#[track_caller]
fn check_like_whole(out: &Path) {
    let (_, expected, _) = whole();
    for name in NAMES {
        let (got, expected) = (lasting(out, name), lasting(expected, name));
        assert!(got.keys().eq(expected.keys()), "{name}: {:?}", got.keys());
        got.iter().for_each(|(file, bytes)| assert!(*bytes == expected[file], "{name}/{file} differs"));
    }
    assert_eq!(settings(out), settings(expected));
    assert_eq!(page(out), page(expected));
}

#[test]
fn each_setting_is_a_run_of_its_own() {
    let (_, out, said) = whole();
    let settings = said["sweep"]["settings"].as_array().unwrap();
    let names: Vec<&str> = settings.iter().map(|setting| setting["setting"].as_str().unwrap()).collect();
    assert_eq!(names, NAMES);
    assert!(settings.iter().all(|setting| setting["state"] == "quantized" && setting["error"].is_null()), "{said}");
    assert_eq!(said["sweep"], serde_json::from_slice::<Value>(&fs::read(out.join("sweep.json")).unwrap()).unwrap());
    assert_eq!(said["page"], out.join("report.html").to_str().unwrap());

    // As `quantize` makes it.
    let dir = tempfile::tempdir().unwrap();
    let own = dir.path().join("own");
    let mut quantize = omniquant();
    quantize.args(["quantize", "tiny-llama", "--scheme", "w3a16g64", "--preset", "fast", "--threads", "1", "-q"]);
    run(quantize.args(LEARN).arg("--out").arg(&own), 0);
    assert!(model_files(&own) == model_files(&out.join(NAMES[2])));
    // As `eval` measures it, with what the predictions are compared with computed once for all.
    let mut eval = omniquant();
    let eval = run_json(
        eval.args(["eval", "--kl", "--kernels", "dense", "--compute", "f32", "--json", "-q"])
            .args(EVAL)
            .arg(out.join(NAMES[2])),
    );
    let measured = settings[2]["measured"].as_array().unwrap();
    let value = |metric: &str, model: &str| {
        let is_this = |row: &&Value| row["metric"] == metric && row["model"] == model;
        measured.iter().find(is_this).unwrap()["value"].as_f64().unwrap()
    };
    for (metric, model, expected) in [
        ("divergence", "this model", &eval["against"]["divergence"]["mean"]),
        ("agreement", "this model", &eval["against"]["agreement"]),
        ("perplexity", "full precision", &eval["against"]["perplexity"]),
        ("perplexity", "this model", &eval["perplexity"]),
    ] {
        let (got, expected) = (value(metric, model), expected.as_f64().unwrap());
        // With other kernels for the head.
        assert!((got / expected - 1.0).abs() < 1e-6, "{metric} of {model}: {got}, {expected}");
    }
    // Its card and page have the same figures.
    let divergence = value("divergence", "this model");
    let card = fs::read_to_string(out.join(NAMES[2]).join("README.md")).unwrap();
    assert!(card.contains(&format!("| {divergence:.5} ±")), "{card}");
    let page = fs::read_to_string(out.join(NAMES[2]).join(REPORT)).unwrap();
    assert!(page.contains("divergence") && page.contains(&format!("{:.2}", value("perplexity", "this model"))));
}

#[test]
fn a_killed_sweep_ends_like_an_undisturbed_one() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("sweep");
    // In the second setting, with a block written.
    let second = out.join(NAMES[1]);
    let has_begun = || fs::read_to_string(second.join(BLOCKS)).is_ok_and(|text| text.lines().count() == 1);
    let mut child = start(six(&out).arg("-q"), has_begun);
    child.kill().unwrap();
    child.wait().unwrap();
    let finished: Vec<_> = NAMES[..1].iter().map(|name| files(&out.join(name))).collect();
    assert!(!second.join("config.json").exists() && !out.join(NAMES[2]).exists());
    let state = |at: usize| settings(&out)["settings"][at]["state"].clone();
    assert_eq!([0, 5].map(state), ["quantized", "new"]);

    run(six(&out).arg("-q"), 0);
    check_like_whole(&out);
    for (name, before) in NAMES[..1].iter().zip(finished) {
        assert!(files(&out.join(name)) == before, "{name} was made again");
    }
    let events = fs::read_to_string(second.join(EVENTS)).unwrap();
    assert_eq!(events.matches("\"run_started\"").count(), 2, "it was resumed");
    assert_eq!(events.matches("\"block_finished\"").count(), 4, "no block was made twice");
    // Nothing is left to do.
    let before = files(&out);
    run(six(&out).arg("-q"), 0);
    assert!(files(&out) == before);
}

#[test]
fn two_at_a_time_are_stopped_and_go_on() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("sweep");
    // One thread each.
    let names = [NAMES[3], NAMES[5]];
    let command = || {
        let mut command = sweep("w3a16g64,w2a16g64", "default", "2", &out);
        command.args(["--jobs", "2"]);
        command
    };
    let has_begun = |name: &&str| fs::read_to_string(out.join(name).join(BLOCKS)).is_ok_and(|text| !text.is_empty());
    let child = start(&mut command(), || names.iter().all(has_begun));
    run(Command::new("kill").args(["-s", "INT", &child.id().to_string()]), 0);
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(130), "{said}");
    assert!(said.contains("2 to run:") && said.contains("2 runs at a time"), "{said}");
    assert!(said.contains(&format!("{}: block 1 of 4 finished", names[0])), "{said}");
    // It waited for its runs: their locks are free.
    for name in names {
        fs::File::open(out.join(name).join("omniquant/journal.jsonl")).unwrap().try_lock().unwrap();
    }
    run(command().arg("-q"), 0);
    for name in names {
        assert!(model_files(&out.join(name)) == model_files(&whole().1.join(name)), "{name}");
    }
}

#[test]
fn bad_settings_are_refused_together_before_anything_runs() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("sweep");
    let said = stderr(&mut sweep("w4a16g64,w5x,w4a16g100,q4_k_m", "fast,quick,default", "1", &out), 2);
    for part in [
        "nothing was started",
        "\n  --schemes w5x: ",
        "\n  --presets quick: must be one of paper, fast, default, best",
        "\n  w4a16g100-fast, w4a16g100-default: model.layers.0.self_attn.q_proj: group 100 does not divide",
        "\n  q4_k_m-fast, q4_k_m-default: ",
    ] {
        assert!(said.contains(part), "no {part:?} in {said}");
    }
    assert!(!said.contains("w4a16g64-fast") && !out.exists(), "{said}");
    let mut without_text = omniquant();
    without_text
        .args(["sweep", "tiny-llama", "--schemes", "w4a16g64", "--data", "/nowhere/text.txt", "--out"])
        .arg(&out);
    assert!(stderr(&mut without_text, 3).contains("/nowhere/text.txt"));
    assert!(!out.exists());

    // Runs with other options, or of another model, are not taken for these.
    let (_, whole, _) = whole();
    let said = stderr(six(whole).args(["--seed", "7"]), 2);
    assert!(said.contains("has a run with other options: choose another --out"), "{said}");
    let mut other = omniquant();
    let said = stderr(
        other.args(["sweep", "tiny-qwen3", "--schemes", "w4a16g64", "--presets", "fast", "--out"]).arg(whole),
        2,
    );
    assert!(said.contains("has a run of another model, tiny-llama"), "{said}");
    // What does not fit is refused by the plan.
    let planned = |more: &[&str]| {
        let mut command = omniquant();
        command.args(["sweep", "tiny-llama", "--schemes", "w4a16g64,w3a16g64"]).args(more).arg("--out").arg(&out);
        command
    };
    let said = stderr(&mut planned(&["--samples", "1000000000"]), 4);
    for part in ["\n  w4a16g64-default: ", "\n  w3a16g64-default: ", "--samples"] {
        assert!(said.contains(part), "no {part:?} in {said}");
    }
    // Each run reads the text anew, which a pipe gives only once.
    let said = stderr(&mut planned(&["--calib", "-"]), 2);
    assert!(said.contains("w4a16g64-default, w3a16g64-default: --calib -: "), "{said}");
    assert!(!out.exists());
}

#[test]
fn what_exceeds_the_budget_is_left_out_and_the_best_of_the_rest_is_named() {
    let copy = tempfile::tempdir().unwrap();
    let out = copy.path();
    for (name, bytes) in files(&whole().1) {
        fs::create_dir_all(out.join(&name).parent().unwrap()).unwrap();
        fs::write(out.join(name), bytes).unwrap();
    }
    let budgeted = |budget: &str, more: &[&str]| {
        let mut command = six(out);
        command.args(["-q", "--budget", budget]).args(more);
        command
    };
    let said = run_json(&mut budgeted("850KiB", &[]))["sweep"].clone();
    let states: Vec<&str> =
        said["settings"].as_array().unwrap().iter().map(|setting| setting["state"].as_str().unwrap()).collect();
    assert_eq!(states[..4], ["quantized"; 4]);
    assert_eq!(states[4..], ["left out"; 2]);
    assert_eq!(said["by"], "divergence on eval.txt, 4 windows of 512 tokens");
    // The best is the one with the smallest divergence, whatever its perplexity.
    let divergence = |setting: &Value| {
        let rows = setting["measured"].as_array().unwrap();
        rows.iter().find(|row| row["metric"] == "divergence").unwrap()["value"].as_f64().unwrap()
    };
    let fitting = said["settings"].as_array().unwrap().iter().filter(|setting| setting["state"] == "quantized");
    let best = fitting.min_by(|a, b| divergence(a).total_cmp(&divergence(b))).unwrap();
    assert_eq!(said["best"], best["setting"]);
    assert!(best["setting"].as_str().unwrap().starts_with("w3a16g64-"), "{best}");

    let mut text = omniquant();
    text.args(["sweep", "tiny-llama", "--schemes", "w4a16g64,w3a16g64,w2a16g64", "--presets", "fast,default", "-q"]);
    text.args(LEARN).args(EVAL).args(["--budget", "850KiB", "--out"]).arg(out);
    let shown = String::from_utf8(run(&mut text, 0).stdout).unwrap();
    let best = best["setting"].as_str().unwrap();
    assert!(
        shown.contains(&format!("\nbest: {best} (by divergence on eval.txt, 4 windows of 512 tokens: ")),
        "{shown}"
    );
    assert!(shown.contains("left out: w4a16g64-fast, which would have 928.25 KiB"), "{shown}");
    assert!(shown.contains("in full precision: perplexity "), "{shown}");

    // The plan alone says what would be left out, and starts nothing.
    let dir = tempfile::tempdir().unwrap();
    let never = dir.path().join("never");
    let dry = |budget: &str| {
        let mut command = six(&never);
        command.args(["--dry-run", "--budget", budget]);
        command
    };
    let plan = run_json(&mut dry("850KiB"));
    let states: Vec<&Value> = plan["settings"].as_array().unwrap().iter().map(|setting| &setting["state"]).collect();
    assert_eq!(states, ["new", "new", "new", "new", "left out", "left out"]);
    let bytes = |at: usize| plan["settings"][at]["output_bytes"].as_u64().unwrap();
    assert!(bytes(0) < 850 << 10 && bytes(4) > 850 << 10 && plan["peak_bytes"].as_u64().unwrap() > 1 << 20, "{plan}");
    let said = stderr(&mut dry("100KiB"), 4);
    assert!(said.contains("the smallest, w2a16g64-fast, has 733.25 KiB"), "{said}");
    assert!(!never.exists());
    // Without a budget it is the sweep of all six again.
    run(six(out).arg("-q"), 0);
    check_like_whole(out);
}

#[test]
fn a_setting_that_fails_does_not_end_the_others() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("sweep");
    let foreign = out.join("w3a16g64-fast/thesis.tex");
    fs::create_dir_all(foreign.parent().unwrap()).unwrap();
    fs::write(&foreign, "all of it").unwrap();
    let command = || sweep("w4a16g64,w3a16g64,w2a16g64", "fast", "1", &out);
    let output = run(&mut command(), 1);
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(
        said.contains("error: 1 of 3 settings failed; the same command tries them again:\n  w3a16g64-fast: "),
        "{said}"
    );
    let value: Value = serde_json::from_slice(&output.stdout).unwrap();
    let states: Vec<&Value> =
        value["sweep"]["settings"].as_array().unwrap().iter().map(|setting| &setting["state"]).collect();
    assert_eq!(states, ["quantized", "failed", "quantized"]);
    let why = value["sweep"]["settings"][1]["error"].as_str().unwrap();
    assert!(why.contains("does not hold a run of this program"), "{why}");
    let page = fs::read_to_string(out.join("report.html")).unwrap();
    assert!(page.contains("2 runs compared.") && page.contains("2. w2a16g64-fast"));
    assert_eq!(fs::read_to_string(&foreign).unwrap(), "all of it");

    fs::remove_file(foreign).unwrap();
    run(command().arg("-q"), 0);
    assert!(fs::read_to_string(out.join("report.html")).unwrap().contains("3 runs compared."));
}
