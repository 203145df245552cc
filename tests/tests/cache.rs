//! Hidden states beyond `--cache-memory` are kept on disk, and the results are the same.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Stdio};

use oq_calib::JOURNAL;
use oq_recipe::{EVENTS, REPORT, RUN};
use oq_tests::{files, fixture, kill, omniquant, run};

/// Two batches of two segments, and one batch of one.
const SEGMENTS: [&str; 6] = ["--samples", "5", "--batch", "2", "--seqlen", "32"];

fn quantize(model: &str, args: &[&str], out: &Path) -> Command {
    let mut command = omniquant();
    command.arg("quantize").arg(fixture(model)).args(["--calib", "tests/fixtures/calib.txt", "--threads", "1"]);
    command.args(SEGMENTS).args(args).arg("--out").arg(out);
    command.stdin(Stdio::null());
    command
}

/// The files of the packed model, without the run's records.
fn model_of(out: &Path) -> BTreeMap<String, Vec<u8>> {
    files(out).into_iter().filter(|(name, _)| ![EVENTS, JOURNAL, REPORT, RUN].contains(&name.as_str())).collect()
}

#[track_caller]
fn check_same(model: &str, args: &[&str], sizes: &[&str]) {
    let made = |more: &[&str]| {
        let out = tempfile::tempdir().unwrap();
        run(quantize(model, args, out.path()).args(more), 0);
        model_of(out.path())
    };
    let expected = made(&[]);
    assert!(expected.contains_key("config.json"));
    for size in sizes {
        let got = made(&["--cache-memory", size]);
        assert!(got.keys().eq(expected.keys()), "{model} with {size}: {:?}", got.keys());
        for (name, bytes) in got {
            assert!(bytes == expected[&name], "{model} with {size}: {name} differs");
        }
    }
}

#[test]
fn a_budget_changes_no_byte() {
    // 80 KiB of states each: in full precision, quantized, and for the second loss. Then the targets of tuning, and 128 KiB before blocks.
    check_same(
        "tiny-llama",
        &["--scheme", "w3a16g64", "--epochs", "2", "--aug-loss", "true", "--tune-epochs", "1"],
        &["0", "120KiB", "1GiB"],
    );
    check_same("tiny-opt", &["--scheme", "w4a4", "--method", "smoothquant"], &["0"]);
    check_same("tiny-falcon", &["--scheme", "w4a16g64", "--method", "rtn"], &["0"]);
}

#[cfg(unix)]
#[test]
fn a_killed_run_leaves_no_cache_behind() {
    let dir = tempfile::tempdir().unwrap();
    let [whole, out] = ["whole", "out"].map(|name| dir.path().join(name));
    // Four blocks, each about half a second.
    let quantize = |out: &Path, size: &str| {
        let args = ["--scheme", "w3a16g64", "--epochs", "25", "--quiet", "--resume", "--cache-memory", size];
        quantize("tiny-llama", &args, out)
    };
    run(&mut quantize(&whole, "1GiB"), 0);
    kill(&mut quantize(&out, "0"), || out.join("model-00001-of-00005.safetensors").exists());
    // Only files that a run without a cache leaves too. The next run deletes a shard that was being written.
    for name in files(&out).into_keys() {
        assert!(name.contains(".json") || name.ends_with(".safetensors") || name.starts_with(".omniquant"), "{name}");
    }
    // The place of hidden states is not part of a run's identity: it resumes with another budget.
    run(&mut quantize(&out, "100KB"), 0);
    assert!(model_of(&out) == model_of(&whole));
}

#[test]
fn sizes_that_are_none() {
    let dir = tempfile::tempdir().unwrap();
    let output = run(&mut quantize("tiny-llama", &["--scheme", "w4a16g64", "--cache-memory", "8G"], dir.path()), 2);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(stderr.contains("--cache-memory") && stderr.contains("such as 8GiB"), "{stderr}");
}
