//! The output directory as it is published: its files, its `config.json` and its card.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::Path;
use std::process::Command;

use oq_recipe::{Measurement, Metric, RUN_FOLDER};
use oq_tests::{copied, files, fixture, omniquant, run};
use serde_json::{Value, json};

const EVAL: [&str; 4] = ["--data", "tests/fixtures/eval.txt", "--windows", "2"];

/// Rounding to nearest, within a second.
fn quantize(model: &Path, scheme: &str, out: &Path) -> Command {
    let mut command = omniquant();
    command.arg("quantize").arg(model).args(["--scheme", scheme, "--method", "rtn", "--out"]).arg(out);
    command
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

fn stderr(command: &mut Command, code: i32) -> String {
    String::from_utf8(run(command, code).stderr).unwrap()
}

#[test]
fn the_files_of_a_finished_run() {
    let (model, out) = (copied("tiny-llama"), tempfile::tempdir().unwrap());
    let add = |name: &str, text: &str| fs::write(model.path().join(name), text).unwrap();
    add("special_tokens_map.json", "{}");
    add("LICENSE", "terms");
    add("README.md", "---\nlicense: apache-2.0\n---\nOf the original.");
    add("notes.txt", "of nobody's business");
    let path = model.path().join("tokenizer_config.json");
    let mut config = json(&path);
    let named = |name: &str, template: &str| json!({"name": name, "template": template});
    config["chat_template"] = json!([named("default", "{{ messages }}"), named("tool_use", "{{ tools }}")]);
    fs::write(&path, config.to_string()).unwrap();
    run(&mut quantize(model.path(), "w4a16g64", out.path()), 0);

    let written = files(out.path());
    assert_eq!(
        written.keys().map(String::as_str).collect::<Vec<_>>(),
        [
            "LICENSE",
            "README.md",
            "additional_chat_templates/tool_use.jinja",
            "chat_template.jinja",
            "config.json",
            "generation_config.json",
            "model-00001-of-00005.safetensors",
            "model-00002-of-00005.safetensors",
            "model-00003-of-00005.safetensors",
            "model-00004-of-00005.safetensors",
            "model-00005-of-00005.safetensors",
            "model.safetensors.index.json",
            "omniquant/events.jsonl",
            "omniquant/journal.jsonl",
            "omniquant/recipe.toml",
            "omniquant/report.html",
            "omniquant/run.json",
            "special_tokens_map.json",
            "tokenizer.json",
            "tokenizer_config.json",
        ]
    );
    assert_eq!(written["chat_template.jinja"], b"{{ messages }}");
    assert_eq!(written["additional_chat_templates/tool_use.jinja"], b"{{ tools }}");
    let config = json(&out.path().join("config.json"));
    assert_eq!([&config["dtype"], &config["torch_dtype"]], ["float16"; 2]);
    assert_eq!([&config["rope_theta"], &config["rope_parameters"]["rope_theta"]], [10000.0; 2]);
    assert!(String::from_utf8(written["README.md"].clone()).unwrap().contains("\nlicense: \"apache-2.0\"\n"));

    // The model does without the folder of the run.
    let perplexity = |dir: &Path| run(omniquant().arg("eval").arg(dir).args(EVAL), 0).stdout;
    let before = perplexity(out.path());
    fs::remove_dir_all(out.path().join(RUN_FOLDER)).unwrap();
    let line = |bytes: &[u8]| String::from_utf8_lossy(bytes).split("  (").next().unwrap().to_owned();
    assert_eq!(line(&perplexity(out.path())), line(&before));
}

#[test]
fn the_card_has_what_was_measured() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let card = || fs::read_to_string(out.join("README.md")).unwrap();
    let rows = || card().lines().filter(|line| line.contains("| perplexity on")).map(str::to_owned).collect::<Vec<_>>();
    let mut quantize = quantize(&fixture("tiny-llama"), "w3a16g64", &out);
    run(quantize.args(["--seed", "5"]), 0);
    let unmeasured = card();
    for part in [
        "# tiny-llama-w3a16g64\n",
        "Not measured yet.",
        "omniquant eval tiny-llama-w3a16g64 --card\n",
        "\nomniquant quantize tiny-llama --scheme w3a16g64 --method rtn --seed 5\n",
    ] {
        assert!(unmeasured.contains(part), "no {part:?} in {unmeasured}");
    }
    assert!(rows().is_empty() && !unmeasured.contains(dir.path().to_str().unwrap()), "{unmeasured}");

    // A report goes into the card, also one that is asked for later.
    run(quantize.args(["--resume", "--report"]).args(EVAL), 0);
    let on = "perplexity on `eval.txt`, 2 windows of 512 tokens (lower is better)";
    let report = rows();
    assert!(report[0].starts_with(&format!("| full precision | {on} | ")), "{report:?}");
    assert!(report[1].starts_with(&format!("| this model | {on} | ")), "{report:?}");
    assert_eq!(report.len(), 2);
    assert!(!card().contains("Not measured yet."));
    // The same again from `eval`: it replaces the line.
    let eval = |more: &[&str]| {
        let mut eval = omniquant();
        eval.arg("eval").arg(&out).args(["--json", "--card"]).args(more);
        eval
    };
    let said: Value = serde_json::from_slice(&run(&mut eval(&EVAL), 0).stdout).unwrap();
    assert_eq!(rows(), report);
    let [value, error] = ["perplexity", "perplexity_error"].map(|key| said[key].as_f64().unwrap());
    let value = format!("{value:.4} ± {error:.2}");
    assert!(report[1].ends_with(&format!("| {value} |")), "{report:?}, {value}");
    // Others stay.
    run(&mut eval(&["--data", "tests/fixtures/eval.txt", "--windows", "1"]), 0);
    assert_eq!(rows().len(), 3);
    assert_eq!(rows()[..2], report[..]);
    // A comparison has lines of its own.
    run(&mut eval(&[&EVAL[..], &["--against", "tiny-llama"]].concat()), 0);
    assert_eq!(rows().len(), 3);
    let on = "on `eval.txt`, 2 windows of 512 tokens";
    for what in
        ["| this model | divergence (KL) from `tiny-llama` ", "| this model | same likeliest token as `tiny-llama` "]
    {
        assert!(card().contains(&format!("{what}{on}")), "{}", card());
    }
    // What was measured is recorded, too.
    let recorded = fs::read_to_string(out.join(oq_recipe::MEASURED)).unwrap();
    let recorded: Vec<Measurement> = recorded.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let of = |metric| recorded.iter().find(|row| row.metric == metric && row.model == Measurement::THIS).unwrap();
    assert_eq!(of(Metric::Perplexity).on, "eval.txt, 1 window of 512 tokens");
    assert!(of(Metric::Divergence).value > 0.0 && of(Metric::Divergence).error > Some(0.0), "{recorded:?}");
    assert!((0.5..1.0).contains(&of(Metric::Agreement).value), "{recorded:?}");
    // So is the page: each figure of the record stands there and in the card.
    let page = fs::read_to_string(out.join(oq_recipe::REPORT)).unwrap();
    for row in recorded.iter().filter(|row| row.metric == Metric::Perplexity) {
        let [exact, shown] = [format!("| {:.4} ", row.value), format!("{:.2}", row.value)];
        assert!(card().contains(&exact) && page.contains(&shown), "{row:?}");
    }
    assert_eq!(card().matches("is better) |").count(), recorded.len());
    let [before, after] = ["<!-- measurements by omniquant: begin -->", "<!-- measurements by omniquant: end -->"];
    let outside = |card: &str| {
        let (start, rest) = card.split_once(before).unwrap();
        (start.to_owned(), rest.split_once(after).unwrap().1.to_owned())
    };
    assert_eq!(outside(&card()), outside(&unmeasured));
}

#[test]
fn a_card_of_the_user_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let (out, tiny) = (dir.path().join("out"), fixture("tiny-llama"));
    run(&mut quantize(&tiny, "w4a16g64", &out), 0);
    let path = out.join("README.md");
    fs::write(&path, "# Mine\n").unwrap();
    run(quantize(&tiny, "w4a16g64", &out).args(["--resume", "--report"]).args(EVAL), 0);
    assert_eq!(fs::read_to_string(&path).unwrap(), "# Mine\n");
    let mut eval = omniquant();
    let said = stderr(eval.arg("eval").arg(&out).arg("--card").args(EVAL), 2);
    assert!(said.contains("no card with a place for measurements"), "{said}");
    let said = stderr(omniquant().args(["eval", "tiny-llama", "--card"]).args(EVAL), 2);
    assert!(said.contains("tiny-llama: --card writes to a directory"), "{said}");
    // One that was deleted is written again, with what was measured.
    fs::remove_file(&path).unwrap();
    run(quantize(&tiny, "w4a16g64", &out).arg("--resume"), 0);
    let again = fs::read_to_string(&path).unwrap();
    assert!(
        again.contains("| this model | perplexity on `eval.txt`") && !again.contains("Not measured yet."),
        "{again}"
    );
}

#[test]
fn what_other_programs_refuse_is_said_before_the_run() {
    let out = tempfile::tempdir().unwrap();
    let at = |name: &str| out.path().join(name);
    let tiny = fixture("tiny-llama");
    let said = stderr(&mut quantize(&tiny, "w8a8", &at("a")), 0);
    assert!(
        said.contains("note: only this program opens the result as it is: compressed-tensors cannot hold w8a8"),
        "{said}"
    );
    assert_eq!(json(&at("a/config.json"))["quantization_config"]["format"], "pack-quantized-activations");

    let mixed = ["--bits", "3.25", "--calib", "tests/fixtures/calib.txt", "--samples", "2", "--seqlen", "64"];
    let said = stderr(quantize(&tiny, "w3a16g64", &at("b")).args(mixed), 0);
    let note = "loaders take several settings only if all are integers and symmetric";
    assert!(said.contains(&format!("{note}; --scheme w3a16g64sym would do")), "{said}");
    let card = fs::read_to_string(at("b/README.md")).unwrap();
    assert!(card.contains(&format!("Other programs refuse this model: {note}.")), "{card}");
    let said = stderr(quantize(&tiny, "w3a16g64sym", &at("c")).args(mixed), 0);
    assert!(!said.contains(note), "{said}");
}
