//! A run that was killed or interrupted, or whose files were damaged, ends in the same bytes as an undisturbed run.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::ops::Range;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;
use std::thread::scope;
use std::time::{Duration, Instant};

use oq_calib::JOURNAL;
use oq_random::SplitMix64;
use oq_recipe::{EVENTS, RECIPE, REPORT, RUN, RUN_FOLDER};
use oq_tests::{LIMIT, copied, files, fixture, kill, omniquant, run, start, wait};
use serde_json::Value;
use tempfile::TempDir;

/// Number of killed runs. The first kill of each is spread evenly over the duration of a run.
const ROUNDS: u64 = 20;
/// Files with timings, which are not part of the model.
const RECORDS: [&str; 5] = [EVENTS, JOURNAL, RECIPE, REPORT, RUN];

/// The model's only shard.
const WEIGHTS: &str = "model.safetensors";

type Files = BTreeMap<String, Vec<u8>>;

/// Four blocks, each about half a second of learning.
fn quantize(out: &Path) -> Command {
    quantize_model(&fixture("tiny-llama"), out)
}

/// The same with another model directory.
fn quantize_model(model: &Path, out: &Path) -> Command {
    quantize_on("1", model, out)
}

/// The same with another number of threads.
fn quantize_on(threads: &str, model: &Path, out: &Path) -> Command {
    let mut command = omniquant();
    command.arg("quantize").arg(model).args(["--scheme", "w3a16g64", "--calib"]);
    command.args(["tests/fixtures/calib.txt", "--samples", "4", "--seqlen", "64", "--epochs", "25"]);
    // `tuning.rs` has runs that are stopped in it.
    command.args(["--tune-epochs", "0"]);
    command.args(["--threads", threads, "--quiet", "--out"]).arg(out);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    command
}

fn resume(out: &Path) -> Command {
    let mut command = quantize(out);
    command.arg("--resume");
    command
}

/// Result of an undisturbed run.
struct Whole {
    files: Files,
    time: Duration,
}

fn whole() -> &'static Whole {
    static WHOLE: OnceLock<Whole> = OnceLock::new();
    WHOLE.get_or_init(|| {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("out");
        let mut command = quantize(&out);
        let started = Instant::now();
        run(&mut command, 0);
        let whole = Whole { time: started.elapsed(), files: files(&out) };
        assert!(RECORDS.iter().all(|name| whole.files.contains_key(*name)), "{:?}", whole.files.keys());
        whole
    })
}

/// Makes `dir` the output directory of a finished, undisturbed run.
fn finished(dir: &Path) {
    for (name, bytes) in &whole().files {
        let path = dir.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }
}

/// Checks for the same files with the same bytes, nothing else, and complete records.
#[track_caller]
fn check_whole(what: &str, out: &Path) {
    check_whole_of(what, &fixture("tiny-llama"), out);
}

/// [`check_whole`] for a run of a model in another directory, whose name is in the card.
#[track_caller]
fn check_whole_of(what: &str, model: &Path, out: &Path) {
    let (mut got, expected) = (files(out), &whole().files);
    assert!(got.keys().eq(expected.keys()), "{what}: {:?}", got.keys());
    let card = String::from_utf8(got["README.md"].clone()).unwrap();
    let name = model.file_name().unwrap().to_str().unwrap();
    assert!(card.contains(name), "{what}: {card}");
    got.insert("README.md".to_owned(), card.replace(name, "tiny-llama").into_bytes());
    for (name, bytes) in got {
        if !RECORDS.contains(&name.as_str()) {
            assert!(bytes == expected[&name], "{what}: {name} differs");
        } else if name.ends_with(".jsonl") {
            let lines = String::from_utf8(bytes).unwrap();
            lines.lines().for_each(|line| drop(serde_json::from_str::<Value>(line).expect("a line of JSON")));
        }
    }
}

fn finished_blocks(out: &Path) -> usize {
    fs::read_to_string(out.join(JOURNAL)).map_or(0, |journal| journal.lines().count().saturating_sub(1))
}

fn has_temporary_file(out: &Path) -> bool {
    let folders =
        [out.to_owned(), out.join(RUN_FOLDER)].map(|folder| fs::read_dir(folder).into_iter().flatten().flatten());
    let mut entries = folders.into_iter().flatten();
    entries.any(|entry| entry.file_name().to_string_lossy().starts_with('.'))
}

/// Kills runs into one directory until one ends by itself. Returns the number of finished blocks at each kill.
fn killed_round(round: u64) -> Vec<usize> {
    let random = &mut SplitMix64::new(round);
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    // From before the program is loaded until after it has written its last file.
    let mut delay = whole().time.mul_f64(1.1 * (round as f64 + random.unit()) / ROUNDS as f64);
    let mut kills = Vec::new();
    loop {
        let mut child = resume(&out).spawn().unwrap();
        let started = Instant::now();
        // Every fourth kill waits until a file is being written.
        let in_a_file = round % 4 == 3 && kills.is_empty();
        let due = || started.elapsed() >= delay && (!in_a_file || has_temporary_file(&out));
        let ended = wait(&mut child, due);
        child.kill().unwrap();
        let output = child.wait_with_output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() || output.status.code().is_none(), "round {round}: {stderr}");
        if ended.is_some() || output.status.success() {
            check_whole(&format!("round {round}, killed after {kills:?} blocks"), &out);
            return kills;
        }
        kills.push(finished_blocks(&out));
        // A third of the runs are killed a second time.
        delay = if random.unit() < 1.0 / 3.0 { whole().time.mul_f64(random.unit()) } else { LIMIT };
    }
}

#[test]
fn killed_runs_end_in_the_same_bytes() {
    whole();
    let rounds = |half: u64| move || (0..ROUNDS).filter(|i| i % 2 == half).map(killed_round).collect::<Vec<_>>();
    let kills = scope(|threads| {
        let halves = [0, 1].map(|half| threads.spawn(rounds(half)));
        halves.map(|half| half.join().expect("a round failed")).concat().concat()
    });
    let stages: BTreeSet<usize> = kills.iter().copied().collect();
    // No block finished, some finished, and most finished.
    assert!(stages.len() >= 3, "kills met only runs with {stages:?} finished blocks");
}

#[track_caller]
fn check_stopped_by(signal: &str) {
    whole();
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let mut child = start(&mut resume(&out), || finished_blocks(&out) == 1);
    run(Command::new("kill").args(["-s", signal, &child.id().to_string()]), 0);
    wait(&mut child, || false);
    let output = child.wait_with_output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(130), "{stderr}");
    assert!(stderr.contains("blocks are finished in") && stderr.contains(&*out.to_string_lossy()), "{stderr}");
    assert!(stderr.contains("continue with --resume") && !stderr.contains("panicked"), "{stderr}");
    assert!(!out.join("config.json").exists() && !has_temporary_file(&out));
    run(&mut resume(&out), 0);
    check_whole(signal, &out);
}

#[test]
fn ctrl_c_stops_and_says_how_to_go_on() {
    check_stopped_by("INT");
}

#[test]
fn sigterm_stops_and_says_how_to_go_on() {
    check_stopped_by("TERM");
}

/// Changes the weights of a copy of the model while block 1 is learned, and waits until the run ends.
fn changed_under_a_run(change: impl FnOnce(&Path)) -> (TempDir, TempDir, Output) {
    let (model, dir) = (copied("tiny-llama"), tempfile::tempdir().unwrap());
    let events = || fs::read_to_string(dir.path().join(EVENTS)).unwrap_or_default();
    let learns = || events().lines().any(|line| line.contains("\"epoch\"") && line.contains("\"block\":1,"));
    let mut child = start(&mut quantize_model(model.path(), dir.path()), learns);
    change(&model.path().join(WEIGHTS));
    wait(&mut child, || false);
    let output = child.wait_with_output().unwrap();
    (model, dir, output)
}

/// Checks the error of a run that failed in a block, and that it resumes to the end once the weights are restored.
#[track_caller]
fn check_goes_on(model: &Path, out: &Path, output: &Output, code: i32, parts: &[&str]) {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{stderr}");
    for part in parts {
        assert!(stderr.contains(part), "no {part:?} in {stderr}");
    }
    assert!(stderr.contains("continue with --resume") && !stderr.contains("panicked"), "{stderr}");
    assert!(!out.join("config.json").exists() && finished_blocks(out) > 0);
    fs::copy(fixture("tiny-llama").join(WEIGHTS), model.join(WEIGHTS)).unwrap();
    run(quantize_model(model, out).arg("--resume"), 0);
    check_whole_of(&stderr, model, out);
}

#[test]
fn weights_that_are_cut_under_a_run() {
    whole();
    let (model, dir, output) = changed_under_a_run(|weights| {
        fs::File::options().write(true).open(weights).unwrap().set_len(1000).unwrap();
    });
    let parts = ["block 2 of 4: ", "model.safetensors: truncated: ", "1000 found", "fetch the file again"];
    check_goes_on(model.path(), dir.path(), &output, 3, &parts);
}

#[test]
fn weights_that_vanish_under_a_run() {
    whole();
    let (model, dir, output) = changed_under_a_run(|weights| fs::remove_file(weights).unwrap());
    // Mapped files stay readable after they are deleted.
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    check_whole_of("removed weights", model.path(), dir.path());
}

/// Changes the first value of a tensor.
fn set_first(model: &Path, tensor: &str, value: half::f16) {
    set(model, tensor, |place| place.start, value);
}

/// Changes the last value of a tensor.
fn set_last(model: &Path, tensor: &str, value: half::f16) {
    set(model, tensor, |place| place.end - 2, value);
}

fn set(model: &Path, tensor: &str, at: impl Fn(Range<usize>) -> usize, value: half::f16) {
    let mut bytes = fs::read(model.join(WEIGHTS)).unwrap();
    let header_bytes = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: Value = serde_json::from_slice(&bytes[8..8 + header_bytes]).unwrap();
    let [start, end] = [0, 1].map(|i| header[tensor]["data_offsets"][i].as_u64().unwrap() as usize);
    let at = 8 + header_bytes + at(start..end);
    bytes[at..at + 2].copy_from_slice(&value.to_le_bytes());
    fs::write(model.join(WEIGHTS), bytes).unwrap();
}

#[test]
fn a_block_that_holds_nan() {
    whole();
    let (model, dir) = (copied("tiny-llama"), tempfile::tempdir().unwrap());
    let up = "model.layers.2.mlp.up_proj.weight";
    set_first(model.path(), up, half::f16::NAN);
    let output = quantize_model(model.path(), dir.path()).output().unwrap();
    assert_eq!(finished_blocks(dir.path()), 2);
    check_goes_on(model.path(), dir.path(), &output, 5, &["block 3 of 4: ", up, "value 0 is NaN"]);
}

#[test]
fn a_finished_run_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path();
    finished(out);
    let written = |name: &String| fs::metadata(out.join(name)).unwrap().modified().unwrap();
    let before: Vec<_> = whole().files.keys().map(written).collect();
    let started = Instant::now();
    run(&mut resume(out), 0);
    assert!(started.elapsed() < whole().time, "took {:?}, all blocks take {:?}", started.elapsed(), whole().time);
    assert!(files(out) == whole().files);
    assert!(before == whole().files.keys().map(written).collect::<Vec<_>>(), "files were written again");
}

/// Damages a finished run and checks that `--resume` repairs it.
#[track_caller]
fn check_mended(what: &str, damage: impl FnOnce(&Path)) -> String {
    let dir = tempfile::tempdir().unwrap();
    finished(dir.path());
    damage(dir.path());
    let output = run(&mut resume(dir.path()), 0);
    check_whole(what, dir.path());
    String::from_utf8(output.stderr).unwrap()
}

/// Changes the last byte of a file, so that the header of a shard stays valid.
fn change(path: &Path) {
    let mut bytes = fs::read(path).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(path, bytes).unwrap();
}

#[test]
fn damaged_files_are_made_again() {
    check_mended("a changed shard", |out| change(&out.join("model-00003-of-00005.safetensors")));
    check_mended("a vanished shard", |out| fs::remove_file(out.join("model-00004-of-00005.safetensors")).unwrap());
    check_mended("a short shard", |out| fs::write(out.join("model-00004-of-00005.safetensors"), b"").unwrap());
    check_mended("a changed head", |out| change(&out.join("model-00005-of-00005.safetensors")));
    check_mended("a vanished head", |out| fs::remove_file(out.join("model-00005-of-00005.safetensors")).unwrap());
    check_mended("a vanished index", |out| fs::remove_file(out.join("model.safetensors.index.json")).unwrap());
    check_mended("a vanished config", |out| fs::remove_file(out.join("config.json")).unwrap());
    check_mended("a vanished record", |out| fs::remove_file(out.join(RUN)).unwrap());
}

#[test]
fn a_model_that_is_made_again_is_not_finished() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path();
    finished(out);
    change(&out.join("model-00001-of-00005.safetensors"));
    kill(&mut resume(out), || finished_blocks(out) == 1);
    assert!(!out.join("config.json").exists());
    run(&mut resume(out), 0);
    check_whole("a killed mending", out);
}

#[test]
fn what_a_kill_leaves_is_cleared_away() {
    check_mended("temporary files", |out| {
        for folder in [out, &out.join(RUN_FOLDER)] {
            fs::write(folder.join(".omniquant-partial-abc"), b"half").unwrap();
        }
    });
    check_mended("half a line", |out| {
        fs::remove_file(out.join("config.json")).unwrap();
        for name in [JOURNAL, EVENTS] {
            let mut text = fs::read(out.join(name)).unwrap();
            text.truncate(text.len() - 10);
            fs::write(out.join(name), text).unwrap();
        }
    });
    let stderr = check_mended("a shard without its line", |out| {
        let journal = fs::read_to_string(out.join(JOURNAL)).unwrap();
        let lines: Vec<&str> = journal.split_inclusive('\n').take(4).collect();
        fs::write(out.join(JOURNAL), lines.concat()).unwrap();
    });
    assert!(stderr.is_empty(), "{stderr}");
}

/// Checks that a run is refused and leaves `out` as it is.
#[track_caller]
fn check_refused(command: &mut Command, out: &Path, parts: &[&str]) {
    let before = files(out);
    let output = run(command, 2);
    let stderr = String::from_utf8(output.stderr).unwrap();
    for part in parts {
        assert!(stderr.contains(part), "no {part:?} in {stderr}");
    }
    assert!(files(out) == before, "files were changed");
}

#[test]
fn another_run_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path();
    finished(out);
    check_refused(&mut quantize(out), out, &["holds a run with 4 finished blocks", "--resume", "--out"]);
    check_refused(
        resume(out).args(["--seed", "3"]),
        out,
        &["a different recipe, calibration tokens", "calibration.seed was 2 and is now 3", "--out"],
    );
    check_refused(
        resume(out).args(["--lwc-lr", "0.5"]),
        out,
        &["a different recipe", "learn.lwc_lr was 0.01 and is now 0.5"],
    );
    check_refused(resume(out).args(["--method", "rtn"]), out, &[r#"method was "omniquant" and is now "rtn""#]);

    let model = copied("tiny-llama");
    let config = fs::read_to_string(model.path().join("config.json")).unwrap();
    fs::write(model.path().join("config.json"), config.replace("1e-06", "1e-05")).unwrap();
    let mut command = quantize_model(model.path(), out);
    command.arg("--resume");
    check_refused(&mut command, out, &["holds a run with a different model:"]);
}

#[test]
fn blocks_of_another_checkpoint_are_refused() {
    let model = copied("tiny-llama");
    set_first(model.path(), "model.layers.2.mlp.up_proj.weight", half::f16::ONE);
    let other = |out: &Path| {
        let mut command = quantize_model(model.path(), out);
        command.arg("--resume");
        command
    };
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path();
    finished(out);
    let parts = ["block 3 of 4 was made from a different checkpoint", "choose another --out"];
    check_refused(&mut other(out), out, &parts);
    fs::remove_file(out.join("config.json")).unwrap();
    check_refused(&mut other(out), out, &parts);

    // A file of which only the end was damaged, and which is repaired now.
    let mended = copied("tiny-llama");
    set_last(mended.path(), "model.layers.2.mlp.up_proj.weight", half::f16::ONE);
    check_refused(quantize_model(mended.path(), out).arg("--resume"), out, &parts);

    // Blocks depend on the tensors outside the blocks too.
    for set in [set_first, set_last] {
        let outer = copied("tiny-llama");
        set(outer.path(), "model.embed_tokens.weight", half::f16::ONE);
        let mut command = quantize_model(outer.path(), out);
        check_refused(command.arg("--resume"), out, &["holds a run with a different model:"]);
    }

    // Journals of earlier versions do not have the digest.
    let mut lines = fs::read_to_string(out.join(JOURNAL)).unwrap();
    while let Some(start) = lines.find(",\"source\":\"") {
        lines.replace_range(start..start + ",\"source\":\"\"".len() + 64, "");
    }
    fs::write(out.join(JOURNAL), lines).unwrap();
    run(&mut resume(out), 0);
    check_whole("a journal without sources", out);
}

#[test]
fn a_run_goes_on_with_other_threads_and_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path();
    finished(out);
    change(&out.join("model-00004-of-00005.safetensors"));
    // With `-q` there is no warning.
    let output = run(quantize_on("2", &fixture("tiny-llama"), out).arg("--resume").env("RUST_LOG", "warn"), 0);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(stderr.contains("threads was 1 and is now 2"), "{stderr}");
    let journal = fs::read_to_string(out.join(JOURNAL)).unwrap();
    let lines: Vec<Value> = journal.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let threads: Vec<_> = lines.iter().map(|line| line["surroundings"]["threads"].as_u64()).collect();
    assert_eq!(threads, [Some(1), None, None, None, Some(2)]);
    // Blocks finished before are unchanged, and the result is a complete model.
    let (got, expected) = (files(out), &whole().files);
    assert!(got.keys().eq(expected.keys()), "{:?}", got.keys());
    let first = "model-00001-of-00005.safetensors";
    assert!(got[first] == expected[first] && got["config.json"] == expected["config.json"]);
}

#[test]
fn a_run_of_an_earlier_version_is_named_as_such() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path();
    finished(out);
    // As earlier versions laid it out.
    for entry in fs::read_dir(out.join(RUN_FOLDER)).unwrap().map(|entry| entry.unwrap()) {
        fs::rename(entry.path(), out.join(entry.file_name())).unwrap();
    }
    fs::remove_dir(out.join(RUN_FOLDER)).unwrap();
    for mut command in [quantize(out), resume(out)] {
        check_refused(
            &mut command,
            out,
            &["holds a run of an earlier version of this program", "choose another --out"],
        );
    }
    // Its model is read all the same, once it is finished.
    run(omniquant().arg("inspect").arg(out), 0);
    fs::remove_file(out.join("config.json")).unwrap();
    let output = run(omniquant().arg("inspect").arg(out), 3);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(stderr.contains("an unfinished run of an earlier version of this program"), "{stderr}");
}

#[test]
fn a_foreign_directory_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("thesis.tex"), "all of it").unwrap();
    for mut command in [quantize(dir.path()), resume(dir.path())] {
        check_refused(
            &mut command,
            dir.path(),
            &["not empty and does not hold a run of this program", "choose another --out"],
        );
    }
}
