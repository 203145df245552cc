//! Common kinds of models, texts and command lines. They are read as transformers reads them, or refused with a helpful error.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test fails by panicking")]

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use oq_data::{AddSpecial, Tokenizer};
use oq_formats::{Checkpoint, Dtype, OutTensor, write_shard};
use oq_tests::{copied, fixture, omniquant, run, run_json};
use serde_json::{Value, json};
use tempfile::TempDir;

fn with_files(files: &[(&str, Value)]) -> TempDir {
    let dir = copied("tiny-llama");
    files.iter().for_each(|(name, json)| fs::write(dir.path().join(name), json.to_string()).unwrap());
    dir
}

fn generate(dir: &Path, args: &[&str]) -> Command {
    let mut command = omniquant();
    command.arg("generate").arg(dir).args(["--prompt", "The river", "--max-tokens", "12"]).args(args);
    command
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn a_model_s_own_settings_choose_tokens_where_no_option_does() {
    let generation =
        json!({"do_sample": true, "temperature": 0.7, "top_p": 0.9, "repetition_penalty": 1.1, "min_p": 0.05});
    let dir = with_files(&[("generation_config.json", generation)]);
    let sampling = |args: &[&str]| run_json(generate(dir.path(), &["--json"]).args(args))["sampling"].clone();
    assert_eq!(
        sampling(&[]),
        json!({"temperature": 0.7, "top_p": 0.9, "top_k": 50, "repetition_penalty": 1.1, "seed": 0})
    );
    // An option overrides its own setting only.
    assert_eq!(
        sampling(&["--temperature", "1.5", "--top-k", "0", "--seed", "3"]),
        json!({"temperature": 1.5, "top_p": 0.9, "top_k": null, "repetition_penalty": 1.1, "seed": 3})
    );
    let greedy = json!({"temperature": 0.0, "top_p": null, "top_k": null, "repetition_penalty": 1.0, "seed": 0});
    assert_eq!(sampling(&["--temperature", "0", "--repetition-penalty", "1"]), greedy);
    // Options alone give the same samples.
    let by_options = ["--temperature", "0.7", "--top-p", "0.9", "--top-k", "50", "--repetition-penalty", "1.1"];
    let plain = with_files(&[("generation_config.json", json!({}))]);
    let text =
        |dir: &Path, args: &[&str]| run_json(generate(dir, &["--json", "--seed", "5"]).args(args))["text"].clone();
    assert_eq!(text(dir.path(), &[]), text(plain.path(), &by_options));
    // Settings in use are reported, and so are ignored ones.
    let said = stderr(&run(&mut generate(dir.path(), &[]), 0));
    assert!(said.contains("temperature 0.7, top-p 0.9, top-k 50, repetition penalty 1.1"), "{said}");
    assert!(said.contains("also sets min_p"), "{said}");
    // Without sampling, only settings that affect the likeliest token count.
    let still =
        with_files(&[("generation_config.json", json!({"do_sample": false, "temperature": 0.7, "top_p": 0.9}))]);
    assert_eq!(run_json(&mut generate(still.path(), &["--json"]))["sampling"], greedy);
    assert!(stderr(&run(&mut generate(still.path(), &["--top-p", "0.5"]), 2)).contains("--temperature above 0"));
}

#[test]
fn a_text_ends_where_any_of_its_files_says() {
    // The third token of the continuation becomes an end-of-sequence token.
    let plain = run_json(&mut generate(&fixture("tiny-llama"), &["--json"]));
    let end = plain["ids"][2].clone();
    for files in [
        vec![("generation_config.json", json!({"eos_token_id": [1, end]}))],
        vec![("generation_config.json", json!({"eos_token_id": end}))],
    ] {
        let said = run_json(&mut generate(with_files(&files).path(), &["--json"]));
        assert_eq!((&said["end"], said["ids"].as_array().unwrap().len()), (&"end".into(), 2), "{files:?}");
    }
    let dir = copied("tiny-llama");
    fs::remove_file(dir.path().join("generation_config.json")).unwrap();
    let mut config: Value = serde_json::from_slice(&fs::read(dir.path().join("config.json")).unwrap()).unwrap();
    config["eos_token_id"] = json!([end]);
    fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
    assert_eq!(run_json(&mut generate(dir.path(), &["--json"]))["ids"].as_array().unwrap().len(), 2);
}

fn chat(dir: &Path, lines: &[u8], args: &[&str]) -> Output {
    let mut command = omniquant();
    command.arg("chat").arg(dir).args(["--max-tokens", "4", "--json"]).args(args);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(lines).unwrap();
    child.wait_with_output().unwrap()
}

#[test]
fn a_talk_goes_on_after_a_message_that_cannot_be_read() {
    let dir = copied("tiny-llama");
    let template = "{% for m in messages %}{% if 'no!' in m.content %}{{ raise_exception('it said no') }}{% endif %}{{ m.content }}\n{% endfor %}";
    fs::write(dir.path().join("chat_template.jinja"), template).unwrap();
    let answers = |output: &Output| {
        let lines = String::from_utf8(output.stdout.clone()).unwrap();
        lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect::<Vec<Value>>()
    };
    let long = "river ".repeat(2000);
    let lines = [b"The river\ncaf\xe9\n", long.as_bytes(), b"\nno!\nAnd then?\n"].concat();
    let output = chat(dir.path(), &lines, &[]);
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(0), "{said}");
    for part in ["not UTF-8 at byte 3", "context is 512", "it said no"] {
        assert!(said.contains(part), "no {part:?} in {said}");
    }
    // An unreadable message is not part of the conversation.
    let plain = chat(dir.path(), b"The river\nAnd then?\n", &[]);
    let texts = |output: &Output| answers(output).iter().map(|answer| answer["ids"].clone()).collect::<Vec<_>>();
    assert_eq!(texts(&output), texts(&plain));
    assert_eq!(texts(&plain).len(), 2);
    // A template that fails on the system prompt ends the program.
    let output = chat(dir.path(), b"hello\nthere\n", &["--system", "no!"]);
    assert_eq!((output.status.code(), answers(&output).len()), (Some(3), 0));
    assert!(stderr(&output).contains("it said no"));
}

/// tiny-llama with its tensors rewritten by `write`.
fn rewritten(write: impl Fn(&str, &[usize], Dtype, &[u8]) -> OutTensor<'static>) -> TempDir {
    let dir = copied("tiny-llama");
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    let tensors: Vec<_> =
        checkpoint.tensors().map(|view| write(view.name, view.shape, view.dtype, view.bytes)).collect();
    write_shard(&dir.path().join("model.safetensors"), &tensors).unwrap();
    dir
}

#[test]
fn wrapped_and_converted_models_are_told_before_anything_is_learned() {
    let refused = |dir: &TempDir, parts: &[&str]| {
        let said = stderr(&run(&mut generate(dir.path(), &[]), 3));
        assert!(parts.iter().all(|part| said.contains(part)), "{parts:?}: {said}");
    };
    for (prefix, mend) in [
        ("module.", "model.module"),
        ("_orig_mod.", "torch.compile"),
        ("base_model.model.", "merge_and_unload"),
        ("language_model.", "language model of a larger one"),
        ("something.", "rename"),
        ("model.", "rename"),
    ] {
        let dir = rewritten(|name, shape, dtype, bytes| {
            OutTensor::new(format!("{prefix}{name}"), dtype, shape, bytes.to_vec()).unwrap()
        });
        refused(&dir, &[&format!("begin with `{prefix}`"), "`model.embed_tokens.weight` is not there", mend]);
    }
    let dir = rewritten(|name, shape, dtype, bytes| {
        let name = name.replace("model.", "model.language_model.");
        OutTensor::new(name, dtype, shape, bytes.to_vec()).unwrap()
    });
    refused(&dir, &["begin with `model.language_model.`", "language model of a larger one"]);
    let dir = rewritten(|name, shape, dtype, bytes| match name.contains("mlp") {
        true => OutTensor::new(name, Dtype::F8_E4M3, shape, vec![0x38; bytes.len() / 2]).unwrap(),
        false => OutTensor::new(name, dtype, shape, bytes.to_vec()).unwrap(),
    });
    refused(&dir, &["F8_E4M3", "mlp", "before it was converted"]);
    // Paths of files of a model instead of its directory.
    let model = copied("tiny-llama");
    for file in ["model.safetensors", "config.json"] {
        let said = stderr(&run(&mut generate(&model.path().join(file), &[]), 2));
        assert!(
            said.contains("a file, not a model directory: give ") && said.contains(&*model.path().to_string_lossy()),
            "{said}"
        );
    }
    fs::write(model.path().join("x.GGUF"), "GGUF").unwrap();
    assert!(stderr(&run(&mut generate(&model.path().join("x.GGUF"), &[]), 2)).contains("omniquant convert"));
    for absent in ["models/my-llama", "./my-llama", "/nowhere/at/all"] {
        let said = stderr(&run(generate(Path::new(absent), &[]).env("HF_HUB_OFFLINE", "1"), 3));
        assert!(said.contains(&format!("{absent}: no such folder")) || said.contains("neither a directory"), "{said}");
    }
}

#[test]
fn a_revision_is_an_option_or_stands_behind_the_name() {
    const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
    let cache = tempfile::tempdir().unwrap();
    let repo = cache.path().join("models--Some-Org--tiny.model");
    let snapshot = repo.join("snapshots").join(COMMIT);
    fs::create_dir_all(&snapshot).unwrap();
    for entry in fs::read_dir(fixture("tiny-llama")).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, snapshot.join(path.file_name().unwrap())).unwrap();
    }
    fs::create_dir_all(repo.join("refs/refs/pr")).unwrap();
    fs::write(repo.join("refs/v1.0"), COMMIT).unwrap();
    fs::write(repo.join("refs/refs/pr/3"), COMMIT).unwrap();
    let at = |name: &str, args: &[&str], code: i32| {
        let mut command = generate(Path::new(name), args);
        stderr(&run(command.env("HF_HUB_OFFLINE", "1").env("HUGGINGFACE_HUB_CACHE", cache.path()), code))
    };
    at("Some-Org/tiny.model", &[], 0);
    at("Some-Org/tiny.model@v1.0", &[], 0);
    at("Some-Org/tiny.model@refs/pr/3", &[], 0);
    at("Some-Org/tiny.model", &["--revision", "v1.0"], 0);
    at("Some-Org/tiny.model", &["--revision", COMMIT], 0);
    let said = at("Some-Org/tiny.model@v2", &[], 3);
    assert!(said.contains("at v2") && said.contains(COMMIT), "{said}");
    assert!(at("Some-Org/tiny.model@v1.0", &["--revision", "v2"], 2).contains("two revisions"));
    assert!(at("tiny-llama", &["--revision", "v2"], 2).contains("not a model on the hub"));
    assert!(at("tests/fixtures/tiny-llama@v2", &[], 2).contains("not a model on the hub"));
    assert!(at("tests/fixtures/absent@v2", &[], 3).contains("no such folder"));
}

#[test]
fn rows_of_text_are_measured_and_learned_from_as_their_text() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, bytes: &[u8]| {
        let path = dir.path().join(name);
        fs::write(&path, bytes).unwrap();
        path
    };
    let text = fs::read_to_string(fixture("eval.txt")).unwrap();
    let rows: Vec<&str> = text.trim_end().split("\n\n").filter(|row| !row.trim().is_empty()).collect();
    let plain = write("plain.txt", rows.join("\n\n").as_bytes());
    let lines: String = rows.iter().map(|row| json!({"story": row, "id": 7}).to_string() + "\n").collect();
    let jsonl = write("rows.jsonl", lines.as_bytes());
    let eval = |data: &Path, args: &[&str]| {
        let mut command = omniquant();
        command
            .args(["eval", "tiny-llama", "--seqlen", "128", "--windows", "2", "--json", "--data"])
            .arg(data)
            .args(args);
        command
    };
    let of_rows = run(&mut eval(&jsonl, &["--text-field", "story"]), 0);
    assert!(stderr(&of_rows).contains("rows of JSON, field `story`"), "{of_rows:?}");
    let value: Value = serde_json::from_slice(&of_rows.stdout).unwrap();
    assert_eq!(value["perplexity"], run_json(&mut eval(&plain, &[]))["perplexity"]);
    assert!(stderr(&run(&mut eval(&jsonl, &[]), 3)).contains("has no field `text`, only story, id"));
    let said = stderr(&run(omniquant().args(["eval", "tiny-llama", "--seqlen", "1"]), 2));
    assert!(said.contains("no next token to predict"), "{said}");

    // Calibration: an error if the text is too short, and a warning if segments overlap.
    let quantize = |calib: &Path, samples: &str, seqlen: &str| {
        let mut command = omniquant();
        command.args(["quantize", "tiny-llama", "--scheme", "w4a16g64", "--epochs", "1", "--batch", "2", "--calib"]);
        command.arg(calib).args(["--samples", samples, "--seqlen", seqlen, "--out"]);
        command.arg(dir.path().join(format!("out-{samples}-{seqlen}")));
        command
    };
    let short = write("short.txt", &rows.concat().as_bytes()[..600]);
    let tokenizer = Tokenizer::open(&fixture("tiny-llama")).unwrap();
    let tokens = tokenizer.encode(&rows.concat()[..600], AddSpecial::Yes).unwrap().len();
    let said = stderr(&run(&mut quantize(&short, "16", "32"), 0));
    assert!(said.contains(&format!("it has {tokens} tokens, but 32 segments of 32 need 1024")), "{said}");
    let said = stderr(&run(&mut quantize(&short, "2", "500"), 2));
    assert!(said.contains(&format!("has {tokens} tokens")) && said.contains("500"), "{said}");
    let said = stderr(&run(&mut quantize(&plain, "2", "32"), 0));
    assert!(!said.contains("too short"), "{said}");
}
