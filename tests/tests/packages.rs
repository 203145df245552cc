//! Packages that others take: what they say of themselves, and that their examples run.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;
use std::process::Command;

use oq_tests::{examples, fixture, packages, repository, run};
use serde_json::Value;

/// Packages of this workspace that nobody else takes.
const UNPUBLISHED: &[&str] = &["oq-benches", "oq-emulated", "oq-protected", "oq-tests", "xtask"];
/// A program, which is its own example.
const PROGRAM: &str = "oq-cli";

#[test]
fn what_is_published_says_what_it_is() {
    let packages = packages();
    for package in &packages {
        let name = package["name"].as_str().unwrap();
        let is_published = package["publish"].is_null();
        assert_eq!(is_published, !UNPUBLISHED.contains(&name), "{name}: publish");
        if !is_published {
            continue;
        }
        for key in ["description", "repository", "license", "readme", "rust_version"] {
            assert!(package[key].as_str().is_some_and(|text| !text.is_empty()), "{name}: {key}");
        }
        for key in ["keywords", "categories"] {
            // The registry takes five at most.
            let n = package[key].as_array().unwrap().len();
            assert!((1..=5).contains(&n), "{name}: {n} {key}");
        }
        let folder = Path::new(package["manifest_path"].as_str().unwrap()).parent().unwrap();
        let readme = std::fs::read_to_string(folder.join("README.md")).unwrap();
        assert!(readme.starts_with(&format!("# {name}\n")) && readme.contains("What it does not do"), "{name}");
        let is_example = |target: &Value| target["kind"] == serde_json::json!(["example"]);
        assert!(name == PROGRAM || package["targets"].as_array().unwrap().iter().any(is_example), "{name}: examples");
        for dependency in package["dependencies"].as_array().unwrap() {
            let is_ours = dependency["path"].is_string();
            assert!(!is_ours || dependency["req"] != "*", "{name}: {} has no version", dependency["name"]);
        }
    }
}

#[test]
fn examples_run() {
    let out = tempfile::tempdir().unwrap();
    let (llama, text, gguf) = (fixture("tiny-llama"), fixture("eval.txt"), out.path().join("model.gguf"));
    let out = out.path().join("packed");
    let [llama, text, out, gguf] = [&llama, &text, &out, &gguf].map(|path| path.to_str().unwrap());
    // What each prints, among other things.
    let expected: &[(&str, &[&str], &[&str])] = &[
        ("arguments", &[], &["-Wl,-rpath,$ORIGIN/lib"]),
        ("clip_matrix", &[], &["clipping and rounding learned:"]),
        ("continue_text", &[llama, "The old man"], &["The old man", "40 tokens at", "ended by max_tokens"]),
        ("count", &["30", "20", "30"], &["wins     30  37.5%  (95%: 27.7 to 48.5%)"]),
        ("elements", &[], &["share memory: false, a view of one: true"]),
        ("flatten", &[], &["as it is: largest 100.00", "rotated: largest"]),
        ("hand_over", &[], &["w3a16g64", "awq: no, its codes have 4 bits, not 3"]),
        ("kernels", &[], &["kernels"]),
        ("multiply", &[], &["w2a16g64", "8192 KiB as f32"]),
        ("perplexity", &[llama, text, "256"], &["windows of 256 tokens"]),
        ("piece_by_piece", &[], &["64 positions"]),
        ("quantize", &[llama, out], &["block 0: losses", "block 3: losses"]),
        ("read_checkpoint", &[], &["2 tensors in 1 files", "model.norm.weight"]),
        ("read_checkpoint", &[llama], &["model.layers.3.mlp.down_proj.weight"]),
        ("resolve", &["w2a16g64", "llama2-7b", "best"], &["scheme = \"w2a16g64\"", "[tune]"]),
        ("same_everywhere", &[], &["throws of a die"]),
        ("schemes", &[], &["w3a16g64"]),
        ("serve_and_ask", &[llama, "The old man"], &["The old man", "20 tokens"]),
        ("settled", &[], &["GOMP_SPINCOUNT=", "this processor multiplies bf16:"]),
        ("show", &["crates/report/tests/runs/tiny-llama"], &["<!doctype html>", "tiny-llama at w3a16g64"]),
        ("smooth", &[], &["8-bit activations, transformed"]),
        ("sum", &[], &["s for a sum of 64 MiB over 2 processes"]),
        ("tokenise", &[], &["13 tokens: [1, 2, 3, 4, 1, 5, 6, 1, 5, 3, 4, 1, 2]"]),
        ("tokenise", &[llama, "The river"], &["and back: \"The river\""]),
        ("which", &[], &["scalar       available: true", "chosen: "]),
        ("write_gguf", &[llama, gguf, "q4_0"], &["model.gguf: ", "bits per weight"]),
        ("transform_block", &[llama, "2"], &["norm: [", "block 2: off by"]),
    ];
    let examples = examples();
    for name in examples.keys() {
        assert!(expected.iter().any(|(known, ..)| known == name), "{name} is run by nobody");
    }
    for (name, args, parts) in expected {
        let output = run(Command::new(&examples[*name]).args(*args).current_dir(repository()), 0);
        let printed = String::from_utf8(output.stdout).unwrap();
        for part in *parts {
            assert!(printed.contains(part), "{name}: no {part:?} in\n{printed}");
        }
    }
}
