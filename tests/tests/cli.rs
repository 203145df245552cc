//! The program's output for people and scripts: help, text, JSON, and the records of a run.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::io::Write;
use std::path::Path;
use std::process::Stdio;

use oq_formats::{Checkpoint, OutTensor, write_shard};
use oq_recipe::{EVENTS, Event, Method, RECIPE, RUN, Recipe, RunRecord};
use oq_tests::{fixture, omniquant, repository, run};
use serde_json::Value;

/// Expected perplexities come from the golden file and from a table with two decimals, computed with scales in f32.
const PERPLEXITY_TOLERANCE: f64 = 1e-2;

fn printed(args: &[&str]) -> String {
    String::from_utf8(run(omniquant().args(args), 0).stdout).unwrap()
}

/// Runs a command with `--json -q`: one object on stdout, nothing on stderr.
#[track_caller]
fn json(args: &[&str]) -> Value {
    let output = run(omniquant().args(args).args(["--json", "-q"]), 0);
    assert_eq!(String::from_utf8_lossy(&output.stderr), "", "{args:?}");
    let value: Value = serde_json::from_slice(&output.stdout).expect("stdout is one JSON value");
    assert!(value.is_object(), "{args:?}: {value}");
    value
}

#[track_caller]
fn check_keys(value: &Value, expected: &str) {
    let keys: Vec<&str> = value.as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(keys.join(" "), expected);
}

#[track_caller]
fn check_perplexity(value: &Value, expected: f64) {
    let got = value.as_f64().unwrap();
    assert!((got / expected - 1.0).abs() < PERPLEXITY_TOLERANCE, "perplexity {got}, expected {expected}");
}

fn text(path: &Path) -> &str {
    path.to_str().expect("temporary folders have plain names")
}

/// tiny-llama, rounded to nearest, in a new directory.
fn rounded(scheme: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("packed");
    run(
        omniquant().args(["quantize", "tiny-llama", "--scheme", scheme, "--method", "rtn", "-q", "--out", text(&out)]),
        0,
    );
    dir
}

#[test]
fn helps() {
    let commands = [
        "",
        "quantize",
        "sweep",
        "eval",
        "generate",
        "chat",
        "serve",
        "judge",
        "bench",
        "plan",
        "report",
        "inspect",
        "logits",
        "merge",
        "convert",
        "export",
        "formats",
        "doctor",
        "completions",
    ];
    for command in commands {
        let words = command.split_whitespace().chain(["--help"]);
        // Without a terminal, this variable sets the line width.
        let output = run(omniquant().args(words).env("COLUMNS", "80"), 0);
        let help = String::from_utf8(output.stdout).unwrap();
        let lines: Vec<&str> = help.lines().map(str::trim_end).collect();
        assert!(lines.iter().all(|line| line.len() <= 80), "{help}");
        let name = if command.is_empty() { "omniquant" } else { command };
        insta::assert_snapshot!(format!("help-{name}"), lines.join("\n"));
    }
    let version = printed(&["--version"]);
    assert_eq!(version, concat!("omniquant ", env!("CARGO_PKG_VERSION"), "\n"));
}

#[test]
fn plan_of_a_model_that_is_here() {
    let plan = json(&["plan", "tiny-llama", "--scheme", "w2a16g64"]);
    check_keys(&plan, "model recipe plan peak_bytes peak_device_bytes machine profile fits");
    assert_eq!((&plan["model"], &plan["recipe"]["scheme"]), (&"tiny-llama".into(), &"w2a16g64".into()));
    let plan = &plan["plan"];
    check_keys(
        plan,
        "n_layers linears sites learned_per_block steps_per_block tuning_steps calibration_tokens ranks message_bytes compute memory output_bytes disk_bytes time problems \
         suggestions",
    );
    // Two clipping strengths per group: q and o 2 * 128 groups, k and v 2 * 64, gate and up 2 * 384, down 6 * 128.
    assert_eq!(plan["learned_per_block"], 2 * (2 * 256 + 2 * 128 + 2 * 768 + 768));
    // 32 segments, a quarter of 40 epochs.
    assert_eq!(plan["steps_per_block"], 32 * 10);
    assert_eq!(plan["calibration_tokens"], 32 * 256);
}

#[test]
fn packed_models_are_exported_or_refused_before_the_run() {
    let dir = rounded("w4a16g64");
    let (packed, out) = (dir.path().join("packed"), dir.path().join("exports"));
    let said = json(&["export", text(&packed), "--to", "gptq,gguf,dense-f32", "--out", text(&out)]);
    check_keys(&said, "dir exports");
    for export in said["exports"].as_array().unwrap() {
        check_keys(export, "format dir tensors shards bytes");
        let format = export["format"].as_str().unwrap();
        let files = std::fs::read_dir(out.join(format)).unwrap();
        let names: Vec<String> = files.map(|file| file.unwrap().file_name().into_string().unwrap()).collect();
        let is_weights = |name: &String| name == "model.safetensors" || name.ends_with(".gguf");
        assert_eq!(names.iter().filter(|name| is_weights(name)).count(), 1, "{format}: {names:?}");
    }
    // The exact weights in a file are the model that the packed one is.
    let perplexity =
        |model: &Path| json(&["eval", text(model), "--data", text(&fixture("eval.txt"))])["perplexity"].clone();
    assert_eq!(perplexity(&out.join("dense-f32")), perplexity(&packed));
    let again = run(omniquant().args(["export", text(&packed), "--to", "gptq", "--out", text(&out.join("gptq"))]), 2);
    assert!(String::from_utf8_lossy(&again.stderr).contains("holds no unfinished export"));

    let never = dir.path().join("never");
    let args =
        ["quantize", "tiny-llama", "--scheme", "w3a16g64", "--method", "rtn", "--export", "awq", "--out", text(&never)];
    let refused = String::from_utf8(run(omniquant().args(args), 2).stderr).unwrap();
    assert!(refused.contains("its codes have 4 bits, not 3; w4a16g64 would do"), "{refused}");
    assert!(!never.exists());
}

#[test]
fn formats_say_what_they_hold_and_who_opens_them() {
    check_keys(&json(&["formats"]), "formats");
    let said = json(&["formats", "w3a16g64"]);
    check_keys(&said, "subject schemes formats");
    let formats = said["formats"].as_array().unwrap();
    let of = |name: &str| formats.iter().find(|row| row["format"] == name).unwrap();
    check_keys(of("gptq"), "format refusal programs limits");
    check_keys(&of("gptq")["programs"][0], "name path evidence");
    assert_eq!(of("awq")["refusal"]["instead"], "w4a16g64");
    let shown = printed(&["formats", "w3a16g64"]);
    assert!(shown.contains("awq: no, its codes have 4 bits, not 3; w4a16g64 would do\n"), "{shown}");
    let refused = run(omniquant().args(["formats", "no-such-thing"]), 2);
    assert!(String::from_utf8_lossy(&refused.stderr).contains("neither the directory of a packed model nor a scheme"));
}

/// Checks the sites in a plan: kind, scales, shifts.
#[track_caller]
fn check_sites(model: &str, scheme: &str, expected: &[(&str, u64, u64)]) {
    let output = omniquant().args(["plan", model, "--scheme", scheme, "--json", "-q"]).output().unwrap();
    // 4: does not fit, which is this machine's affair.
    assert!(matches!(output.status.code(), Some(0 | 4)), "{}", String::from_utf8_lossy(&output.stderr));
    let plan: Value = serde_json::from_slice(&output.stdout).expect("stdout is one JSON object");
    let plan = &plan["plan"];
    let sites = plan["sites"].as_array().unwrap();
    let number = |site: &Value, key: &str| site[key].as_u64().unwrap();
    let got: Vec<(&str, u64, u64)> = sites
        .iter()
        .map(|site| (site["kind"].as_str().unwrap(), number(site, "n_scales"), number(site, "n_shifts")))
        .collect();
    assert_eq!(got, expected, "{model} {scheme}");
    let strengths: u64 = plan["linears"].as_array().unwrap().iter().map(|l| 2 * number(l, "n_groups")).sum();
    let of_sites: u64 = expected.iter().map(|(_, scales, shifts)| scales + shifts).sum();
    assert_eq!(plan["learned_per_block"], strengths + of_sites, "{model} {scheme}");
}

#[test]
fn plans_say_what_is_learned_where() {
    check_sites("opt-125m", "w4a4", &[("norm", 768, 768), ("norm", 768, 768), ("vo", 768, 768), ("qk", 768, 0)]);
    check_sites("opt-1.3b", "w3a16g128", &[("norm", 2048, 0), ("norm", 2048, 0), ("vo", 2048, 0)]);
    // One norm; one key/value head of 64 channels, which the rotary embedding rotates in pairs.
    check_sites("falcon-7b", "w4a4", &[("norm", 4544, 0), ("vo", 64, 0), ("qk", 32, 0)]);
    // Eight key/value heads of 128.
    check_sites("llama2-70b", "w4a4", &[("norm", 8192, 0), ("norm", 8192, 0), ("vo", 1024, 0), ("qk", 512, 0)]);
    check_sites("llama2-70b", "w4a16g128", &[]);
    let text = String::from_utf8(omniquant().args(["plan", "falcon-7b", "--scheme", "w4a4"]).output().unwrap().stdout);
    let shown = text.unwrap();
    let sites: Vec<&str> = shown.lines().filter(|line| line.starts_with("  site")).collect();
    insta::assert_snapshot!("plan-sites", sites.join("\n"));
}

#[test]
fn plan_of_a_model_that_is_nowhere() {
    let empty = tempfile::tempdir().unwrap();
    let mut command = omniquant();
    command.args(["plan", "llama2-70b", "--scheme", "w4a16g128", "--json", "-q"]);
    // The caches are empty, and no hub can be reached.
    command.env("HF_HUB_OFFLINE", "1").env("HOME", empty.path()).env("HF_HOME", empty.path());
    command.env("XDG_CACHE_HOME", empty.path());
    let output = command.output().unwrap();
    let plan: Value = serde_json::from_slice(&output.stdout).expect("stdout is one JSON object");
    // 4: does not fit, which is this machine's affair.
    let fits = plan["fits"].as_bool().unwrap();
    assert_eq!(output.status.code(), Some(if fits { 0 } else { 4 }), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(plan["plan"]["n_layers"], 80);
    // 68.5e9 weights at 4.16 bits and half a billion at 16 bits.
    let bytes = plan["plan"]["output_bytes"].as_f64().unwrap();
    assert!((35e9..38e9).contains(&bytes), "{bytes}");
    assert!(std::fs::read_dir(empty.path()).unwrap().next().is_none(), "something was fetched");
}

#[test]
fn inspection_of_a_model_before_and_after() {
    insta::assert_snapshot!("inspect-full", printed(&["inspect", "tiny-llama"]));
    let full = json(&["inspect", "tiny-llama"]);
    check_keys(&full, "dir model_type dims summary");
    assert_eq!(full["summary"]["quantized"], Value::Null);

    let dir = rounded("w3a16g64");
    let packed = dir.path().join("packed");
    let shown = printed(&["inspect", text(&packed)]).replace(text(&packed), "[packed]");
    insta::assert_snapshot!("inspect-packed", shown);
    let packed = json(&["inspect", text(&packed)]);
    assert_eq!(packed["summary"]["quantized"], "w3a16g64");
    assert_eq!(packed["summary"]["params"], full["summary"]["params"]);
    assert_eq!(packed["dims"], full["dims"]);
}

#[test]
fn evaluation() {
    let full = json(&["eval", "tiny-llama"]);
    check_keys(
        &full,
        "model rtn quantized data seqlen windows tokens perplexity perplexity_error running_perplexity kernels compute head prefill device \
         wall_secs peak_bytes",
    );
    check_perplexity(&full["perplexity"], 18.26);
    assert_eq!((&full["seqlen"], &full["windows"]), (&256.into(), &39.into()));
    assert_eq!(full["running_perplexity"][38], full["perplexity"]);
    let said = printed(&["eval", "tiny-llama"]);
    assert!(said.starts_with("perplexity 18.25") && said.contains("39 windows of 256"), "{said}");

    // The same model rounded to nearest as it is loaded, and on disk.
    let loaded = json(&["eval", "tiny-llama", "--rtn", "w3a16g64", "--windows", "8"]);
    let dir = rounded("w3a16g64");
    let packed = dir.path().join("packed");
    let data = text(&fixture("eval.txt")).to_owned();
    let stored = json(&["eval", text(&packed), "--data", &data, "--seqlen", "256", "--windows", "8"]);
    assert_eq!((&loaded["rtn"], &loaded["quantized"]), (&"w3a16g64".into(), &Value::Null));
    assert_eq!((&stored["rtn"], &stored["quantized"]), (&Value::Null, &"w3a16g64".into()));
    assert_eq!(loaded["running_perplexity"], stored["running_perplexity"]);

    // With packed kernels.
    let auto = ["--kernels", "auto", "--compute", "auto", "--head", "w8"];
    let packed = ["eval", text(&packed), "--data", &data, "--seqlen", "256", "--windows", "8"];
    let packed = json(&[&packed[..], &auto].concat());
    assert_eq!((&packed["kernels"], &packed["head"]), (&"packed".into(), &"w8".into()));
    check_perplexity(&packed["perplexity"], stored["perplexity"].as_f64().unwrap());
    let refused = run(omniquant().args(["eval", "tiny-llama", "--kernels", "packed"]), 3);
    assert!(String::from_utf8_lossy(&refused.stderr).contains("not a packed model"), "{refused:?}");
}

#[test]
fn texts_are_continued() {
    const KEYS: &str = "text ids end stop prompt_tokens prefill_secs decode_secs kernels compute head prefill device weight_bytes cache_bytes \
                        peak_bytes seed sampling";
    let dir = rounded("w4a16g64");
    let packed = dir.path().join("packed");
    let asked = ["generate", text(&packed), "--prompt", "The river", "--max-tokens", "20"];
    let said = json(&asked);
    check_keys(&said, KEYS);
    assert_eq!((&said["kernels"], &said["end"]), (&"packed".into(), &"max_tokens".into()));
    assert_eq!(said["ids"].as_array().unwrap().len(), 20);
    let streamed = printed(&asked);
    assert_eq!(streamed, format!("{}\n", said["text"].as_str().unwrap()));

    // With a prompt from a file, and with sampling that depends on the seed only.
    let file = dir.path().join("prompt.txt");
    std::fs::write(&file, "The river").unwrap();
    let drawn = |seed: &str| {
        let drawn = ["--max-tokens", "20", "--temperature", "1.5", "--top-p", "0.9", "--seed", seed];
        json(&[&["generate", "tiny-llama", "-f", text(&file)], &drawn[..]].concat())["ids"].clone()
    };
    assert_eq!(drawn("1"), drawn("1"));
    assert_ne!(drawn("1"), drawn("2"));

    // Sampling settings and stop strings take effect.
    let with = |args: &[&str]| {
        json(&[&["generate", "tiny-llama", "--prompt", "The river", "--max-tokens", "12"], args].concat())
    };
    let greedy = with(&[]);
    let distinct =
        |said: &Value| said["ids"].as_array().unwrap().iter().map(Value::as_u64).collect::<BTreeSet<_>>().len();
    for narrow in [["--top-k", "1"], ["--top-p", "1e-9"]] {
        assert_eq!(with(&[&["--temperature", "1"], &narrow[..]].concat())["ids"], greedy["ids"], "{narrow:?}");
    }
    assert!(distinct(&greedy) < 12, "{greedy}");
    assert_eq!(distinct(&with(&["--repetition-penalty", "1e6"])), 12);
    let whole = greedy["text"].as_str().unwrap();
    let stop = &whole[whole.len() / 2..][..4];
    let stopped = with(&["--stop", stop]);
    assert_eq!((&stopped["end"], &stopped["stop"]), (&"stop".into(), &stop.into()));
    assert_eq!(stopped["text"], whole[..whole.find(stop).unwrap()]);

    let refused = |args: &[&str], code: i32, reason: &str| {
        let output = run(omniquant().args(["generate", "tiny-llama", "-q"]).args(args), code);
        assert!(String::from_utf8_lossy(&output.stderr).contains(reason), "{output:?}");
    };
    refused(&["--prompt", "x", "--temperature=-1"], 2, "temperature");
    refused(&["--prompt", "x", "--top-p", "0.9"], 2, "--temperature above 0");
    refused(&["--prompt", "x", "--temperature", "1", "--top-p", "2"], 2, "top-p is 2");
    refused(&["--prompt", "x", "--stop", ""], 2, "--stop");
    refused(&["--prompt", ""], 2, "no tokens");
    refused(&["--prompt", &"river ".repeat(4000)], 2, "positions of the model");
    refused(&["-f", "/nowhere/prompt.txt"], 3, "/nowhere/prompt.txt");
    refused(&[], 2, "--prompt");
}

#[test]
fn conversations_need_a_template() {
    let refused = run(omniquant().args(["chat", "tiny-llama", "-q"]).stdin(Stdio::null()), 3);
    assert!(String::from_utf8_lossy(&refused.stderr).contains("no chat template"), "{refused:?}");

    let dir = oq_tests::copied("tiny-llama");
    let template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}";
    std::fs::write(dir.path().join("chat_template.jinja"), template).unwrap();
    let mut chat = omniquant();
    chat.args(["chat", text(dir.path()), "--max-tokens", "8", "--system", "Be brief.", "--json", "-q"]);
    let mut child = chat.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(b"Where does the river go?\n\nAnd then?\n").unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    let lines = String::from_utf8(output.stdout).unwrap();
    let answers: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(answers.len(), 2, "an empty line is no message: {lines}");
    assert!(answers.iter().all(|answer| answer["ids"].as_array().unwrap().len() <= 8));

    // The model reads the conversation so far, rendered with the template.
    let generated =
        |prompt: &str| json(&["generate", text(dir.path()), "--max-tokens", "8", "--prompt", prompt])["text"].clone();
    let first = "system: Be brief.\nuser: Where does the river go?\nassistant:";
    assert_eq!(answers[0]["text"], generated(first));
    let answer = answers[0]["text"].as_str().unwrap();
    let second = format!("{first} {answer}\nuser: And then?\nassistant:");
    assert_eq!(answers[1]["text"], generated(&second), "after {second:?}");
}

#[test]
fn a_conversation_that_is_too_long_loses_its_beginning() {
    let dir = oq_tests::copied("tiny-llama");
    let template = "{% for m in messages %}{{ m.content }}\n{% endfor %}";
    std::fs::write(dir.path().join("chat_template.jinja"), template).unwrap();
    let answers = |questions: &str| {
        let mut chat = omniquant();
        chat.args(["chat", text(dir.path()), "--max-tokens", "4", "--json"]);
        let child = chat.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
        let mut child = child.unwrap();
        child.stdin.take().unwrap().write_all(questions.as_bytes()).unwrap();
        child.wait_with_output().unwrap()
    };
    // The first message takes 302 of 512 positions.
    let long = "river ".repeat(300);
    let output = answers(&format!("{long}\n{long}\nAnd then?\n"));
    assert!(output.status.success());
    let read: Vec<u64> = String::from_utf8(output.stdout)
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap()["prompt_tokens"].as_u64().unwrap())
        .collect();
    // The first question is dropped to make room for the second.
    assert!(read.len() == 3 && read[0] == read[1], "{read:?}");
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(said.matches("oldest answers (1) are left out").count(), 1, "{said}");
    // A single question that is too long is an error.
    assert_eq!(answers(&format!("{}\n", long.repeat(4))).status.code(), Some(2));
}

#[test]
fn predictions_are_compared_with_those_of_the_full_model() {
    let windows = ["--windows", "4", "--data", text(&fixture("eval.txt")), "--seqlen", "256"].map(str::to_owned);
    let eval = |model: &str, more: &[&str]| {
        json(
            &["eval", model]
                .into_iter()
                .chain(windows.iter().map(String::as_str))
                .chain(more.iter().copied())
                .collect::<Vec<_>>(),
        )
    };
    let dir = tempfile::tempdir().unwrap();
    let packed = dir.path().join("packed");
    let quantize = ["quantize", "tiny-llama", "--scheme", "w3a16g64", "--method", "rtn", "--out", text(&packed)];
    json(&quantize);
    // The record of the run names the model, and so does the option; rounded as it is loaded, it is compared with its own weights.
    let of_record = eval(text(&packed), &["--kl"]);
    let named = eval(text(&packed), &["--against", "tiny-llama"]);
    let rounded = eval("tiny-llama", &["--rtn", "w3a16g64", "--kl"]);
    let against = &of_record["against"];
    assert_eq!(against, &named["against"]);
    assert_eq!((&against["model"], &against["positions"]), (&"tiny-llama".into(), &(4 * 255).into()));
    assert_eq!(against["divergence"], rounded["against"]["divergence"]);
    check_perplexity(&against["perplexity"], eval("tiny-llama", &[])["perplexity"].as_f64().unwrap());
    check_perplexity(&of_record["perplexity"], eval(text(&packed), &[])["perplexity"].as_f64().unwrap());
    let value = |name: &str| against["divergence"][name].as_f64().unwrap();
    assert!(value("mean") > 0.05 && value("mean_error") > 0.0, "{against}");
    let rising = ["median", "p90", "p99", "p99_9", "max"].map(value);
    assert!(rising.is_sorted(), "{rising:?}");
    let said = printed(&["eval", text(&packed), "--kl", "--windows", "1", "--data", text(&fixture("eval.txt"))]);
    assert!(said.contains("against tiny-llama") && said.contains("same likeliest token"), "{said}");

    std::fs::remove_file(packed.join(RUN)).unwrap();
    let refused = run(omniquant().args(["eval", text(&packed), "--kl"]), 3);
    assert!(String::from_utf8_lossy(&refused.stderr).contains("name it with --against"), "{refused:?}");
}

/// The arguments of an evaluation.
fn eval<'a>(models: &[&'a str], options: &[&'a str], more: &[&'a str]) -> Vec<&'a str> {
    [&["eval"], models, options, more].concat()
}

#[test]
fn tasks_are_asked() {
    let dir = tempfile::tempdir().unwrap();
    let tasks = dir.path().join("tasks");
    std::fs::create_dir(&tasks).unwrap();
    let arc = r#"{"question": "Where does the river go?", "choices": ["to the sea", "zq xj vw kq"], "gold": 0}"#;
    std::fs::write(
        tasks.join("arc_easy.test.jsonl"),
        format!("{arc}\n{}\n", arc.replace("\"gold\": 0", "\"gold\": 1")),
    )
    .unwrap();
    let boolq =
        r#"{"query": "Passage: The river is old. \nQuestion: is the river old?", "choices": ["no", "yes"], "gold": 1}"#;
    std::fs::write(tasks.join("boolq.validation.jsonl"), format!("{boolq}\n")).unwrap();
    let said = json(&["eval", "tiny-llama", "--tasks", "arc_easy,boolq", "--data-dir", text(dir.path())]);
    check_keys(&said, "model rtn quantized tasks kernels compute head prefill device wall_secs peak_bytes");
    let [arc, boolq] = &said["tasks"].as_array().unwrap()[..] else { panic!("{said}") };
    // One of two answers is right, whichever is likelier.
    assert_eq!((&arc["task"], &arc["items"], &arc["accuracy"]), (&"arc_easy".into(), &2.into(), &0.5.into()));
    assert_eq!(arc["accuracy_per_character"], 0.5);
    assert_eq!((&boolq["task"], &boolq["items"]), (&"boolq".into(), &1.into()));
    assert!(boolq["accuracy_per_character"].is_null() && arc["accuracy_error"].as_f64().unwrap() > 0.0, "{said}");
    let first = ["eval", "tiny-llama", "--tasks", "arc_easy", "--items", "1", "--data-dir", text(dir.path())];
    assert_eq!(json(&first)["tasks"][0]["accuracy"], 1.0, "the sea is likelier than letters");

    // A text whose last word is to be predicted.
    let lambada = r#"{"text": "The old man went down to the river and looked at the river"}"#;
    std::fs::write(tasks.join("lambada.test.jsonl"), format!("{lambada}\n{lambada}\n")).unwrap();
    let options = ["--tasks", "lambada,arc_easy", "--data-dir", text(dir.path())];
    let [answers, results] = ["answers.jsonl", "results.json"].map(|name| dir.path().join(name));
    let files = ["--answers", text(&answers), "--harness", text(&results)];
    let said = json(&eval(&["tiny-llama"], &options, &files));
    let lambada = &said["tasks"][0];
    assert_eq!((&lambada["task"], &lambada["items"]), (&"lambada".into(), &2.into()));
    assert!(lambada["perplexity"].as_f64().unwrap() > 1.0 && lambada["accuracy"].is_number(), "{said}");
    let of_harness: Value = serde_json::from_slice(&std::fs::read(&results).unwrap()).unwrap();
    assert_eq!(of_harness["results"]["lambada_openai"]["perplexity,none"], lambada["perplexity"]);
    assert_eq!(of_harness["results"]["arc_easy"]["acc,none"], 0.5);
    // What was answered is not asked again, and a file of answers is not overwritten.
    let whole = std::fs::read_to_string(&answers).unwrap();
    assert_eq!(whole.lines().count(), 4);
    run(omniquant().args(eval(&["tiny-llama"], &options, &files)), 2);
    std::fs::write(&answers, &whole[..whole.len() - 9]).unwrap();
    let again = [&files[..], &["--resume"]].concat();
    assert_eq!(json(&eval(&["tiny-llama"], &options, &again))["tasks"], said["tasks"]);
    assert!(printed(&eval(&["tiny-llama"], &options, &again)).contains("4 items, 0 of them asked now"));
    // Several models at once.
    let both = json(&eval(&["tiny-llama", "tiny-mixtral"], &options, &[]));
    assert_eq!(both["models"][0]["tasks"], said["tasks"]);
    assert_eq!((&both["models"][1]["model"], both["models"].as_array().unwrap().len()), (&"tiny-mixtral".into(), 2));
    let table = printed(&eval(&["tiny-llama", "tiny-mixtral"], &options, &[]));
    assert!(table.lines().next().unwrap().contains("tiny-llama") && table.contains("\nlambada (2 items)"), "{table}");
    run(omniquant().args(eval(&["tiny-llama", "tiny-mixtral"], &options, &["--harness", text(&results)])), 2);
}

#[test]
fn speed_is_measured() {
    let said = json(&["bench", "tiny-llama", "--prompt-tokens", "16", "--tokens", "4", "--runs", "2"]);
    check_keys(
        &said,
        "model kernels compute head prefill device threads prompt_tokens tokens prefill_tokens_per_s decode_tokens_per_s runs weight_bytes \
         cache_bytes loaded_bytes running_bytes peak_bytes memory_bytes_per_s bandwidth_share",
    );
    assert_eq!(said["runs"].as_array().unwrap().len(), 2);
    let positive = ["prefill_tokens_per_s", "decode_tokens_per_s", "memory_bytes_per_s", "bandwidth_share"];
    assert!(positive.iter().all(|key| said[key].as_f64().unwrap() > 0.0), "{said}");
    assert!(
        printed(&["bench", "tiny-llama", "--prompt-tokens", "4", "--tokens", "2", "--runs", "1"]).contains("decode")
    );
}

#[test]
fn a_run_leaves_records() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("packed");
    let quantize = ["quantize", "tiny-llama", "--scheme", "w2a16g64", "--samples", "2", "--epochs", "1"];
    let size = ["--seqlen", "64", "--report", "--out", text(&out)];
    let said = json(&[&quantize[..], &size].concat());
    check_keys(&said, "out bytes bits_per_weight run report page exports");
    assert_eq!(said["out"], text(&out));
    // 2 bits per weight, and 16 + 2 bits per group of 64.
    assert_eq!(said["bits_per_weight"], 2.0 + 18.0 / 64.0);

    let report = said["report"].as_array().unwrap();
    let names: Vec<&str> = report.iter().map(|row| row["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["full precision", "round to nearest", "OmniQuant"]);
    check_perplexity(&report[0]["perplexity"], 18.26);
    check_perplexity(&report[1]["perplexity"], 35.24);
    assert!(report[2]["perplexity"].as_f64().is_some_and(|x| x < 60.0), "{report:?}");
    // The last perplexity is that of the written model.
    let stored = json(&["eval", text(&out), "--data", text(&fixture("eval.txt")), "--seqlen", "256"]);
    assert_eq!(report[2]["perplexity"], stored["perplexity"]);

    let record: RunRecord = serde_json::from_slice(&std::fs::read(out.join(RUN)).unwrap()).unwrap();
    assert_eq!(record, serde_json::from_value(said["run"].clone()).unwrap());
    assert_eq!((record.model.as_str(), record.blocks.len()), ("tiny-llama", 4));
    assert!(record.blocks.iter().all(|block| block.losses.len() == 1 && block.final_loss.is_some()));
    let toml = std::fs::read_to_string(out.join(RECIPE)).unwrap();
    let recipe = Recipe::parse(&toml, Path::new("recipe.toml")).unwrap();
    assert_eq!(recipe, record.recipe);
    assert_eq!((recipe.method, recipe.calibration.samples), (Method::Omniquant, 2));

    let lines = std::fs::read_to_string(out.join(EVENTS)).unwrap();
    let events: Vec<Event> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let [
        Event::RunStarted { blocks: 4, planned: Some(planned), .. },
        blocks @ ..,
        Event::Tuned { epoch: 0, .. },
        Event::Memory { block: None, .. },
        Event::RunFinished { .. },
    ] = &events[..]
    else {
        panic!("{lines}");
    };
    assert!(planned.original_bytes > planned.output_bytes && planned.peak_bytes > 0, "{planned:?}");
    for (index, of_block) in blocks.chunks(4).enumerate() {
        let [Event::BlockStarted { block }, Event::Epoch { epoch: 0, .. }, Event::BlockFinished(finished), memory] =
            of_block
        else {
            panic!("{of_block:?}");
        };
        assert_eq!((*block, finished), (index, &record.blocks[index]));
        assert!(matches!(memory, Event::Memory { block: Some(of), resident_bytes: 1.. } if *of == index), "{memory:?}");
    }
}

#[test]
fn the_other_commands_print_json() {
    let doctor = json(&["doctor"]);
    assert_eq!((&doctor["omniquant"], &doctor["libtorch"]), (&env!("CARGO_PKG_VERSION").into(), &"2.13.0".into()));
    assert!(doctor["threads"].as_u64().unwrap() >= 1 && doctor["memory_bytes"].as_u64().unwrap() > 0, "{doctor}");

    let script = printed(&["completions", "bash"]);
    assert!(script.contains("_omniquant()") && script.contains("--scheme"), "{script}");
    let completions = json(&["completions", "bash"]);
    assert_eq!(completions["script"], script);

    let dir = tempfile::tempdir().unwrap();
    let gguf = repository().join("crates/formats/tests/fixtures/gguf/llama3.gguf");
    let converted = dir.path().join("converted");
    let said = json(&["convert", text(&gguf), "--out", text(&converted)]);
    check_keys(&said, "dir tensors values weight_bytes");
    assert_eq!(json(&["inspect", text(&converted)])["summary"]["tensors"], said["tensors"]);

    let (parameters, merged) = (fixture("release/llama-gqa-tied-w3a16.pth"), dir.path().join("merged"));
    let model = fixture("llama-gqa-tied");
    let said =
        json(&["merge", text(&model), "--parameters", text(&parameters), "--scheme", "w3a16", "--out", text(&merged)]);
    check_keys(&said, "dir scheme blocks");

    let golden = Checkpoint::open_file(&fixture("llama-mha/golden.safetensors")).unwrap();
    let (ids, logits) = (dir.path().join("ids.safetensors"), dir.path().join("logits.safetensors"));
    write_shard(&ids, &[OutTensor::copy_of(golden.tensor("input_ids").unwrap())]).unwrap();
    let said = json(&["logits", text(&fixture("llama-mha")), "--ids", text(&ids), "--out", text(&logits)]);
    check_keys(&said, "out shape");
    assert!(logits.is_file());
}

#[test]
fn progress_and_results_do_not_mix() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("packed");
    let mut command = omniquant();
    command.args(["quantize", "tiny-llama", "--scheme", "w4a16g64", "--method", "rtn", "--json", "--out", text(&out)]);
    let output = run(&mut command, 0);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(stderr.lines().filter(|line| line.starts_with("block ")).count(), 4, "{stderr}");
    assert!(serde_json::from_slice::<Value>(&output.stdout).unwrap().is_object());
}
