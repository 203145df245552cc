//! Tuning all blocks together improves the model, and a run that is killed or interrupted in it ends in the same bytes.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::fs;
use std::ops::ControlFlow;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use oq_calib::{CalibError, JOURNAL, Notice, Nth, Outcome, TUNING};
use oq_models::Model;
use oq_recipe::{EVENTS, Overrides, RUN, Recipe};
use oq_tests::{fixture, in_f32, kill, model_files, omniquant, run, start, tokens};
use serde_json::Value;

type Files = BTreeMap<String, Vec<u8>>;

/// Four blocks and three epochs of tuning, each a few tenths of a second.
fn quantize(out: &Path) -> Command {
    quantize_with(out, ["16", "128"], ["3", "3e-3"])
}

fn quantize_with(out: &Path, [samples, seqlen]: [&str; 2], [tune_epochs, tune_lr]: [&str; 2]) -> Command {
    let mut command = omniquant();
    command.arg("quantize").arg(fixture("tiny-llama")).args(["--scheme", "w2a16g64", "--calib"]);
    command.args(["tests/fixtures/calib.txt", "--samples", samples, "--seqlen", seqlen, "--epochs", "1"]);
    command
        .args(["--tune-epochs", tune_epochs, "--tune-lr", tune_lr, "--threads", "1", "--quiet", "--resume", "--out"])
        .arg(out);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    command
}

fn whole() -> &'static Files {
    static WHOLE: OnceLock<Files> = OnceLock::new();
    WHOLE.get_or_init(|| {
        let dir = tempfile::tempdir().unwrap();
        run(&mut quantize(dir.path()), 0);
        assert!(!dir.path().join(TUNING).exists());
        model_files(dir.path())
    })
}

#[track_caller]
fn check_whole(out: &Path) {
    assert!(model_files(out) == *whole(), "other bytes than an undisturbed run's");
    assert!(!out.join(TUNING).exists());
}

fn events(out: &Path) -> Vec<Value> {
    let text = fs::read_to_string(out.join(EVENTS)).unwrap_or_default();
    text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

fn tuned_epochs(out: &Path) -> usize {
    events(out).iter().filter(|event| event["event"] == "tuned").count()
}

/// Kills a run, and resumes it to its end.
#[track_caller]
fn check_killed(reached: impl Fn(&Path) -> bool) {
    let dir = tempfile::tempdir().unwrap();
    kill(&mut quantize(dir.path()), || reached(dir.path()));
    run(&mut quantize(dir.path()), 0);
    check_whole(dir.path());
}

/// Whether the journal has the line of this tuned block, counted from 0.
fn is_tuned(out: &Path, block: usize) -> bool {
    let journal = fs::read_to_string(out.join(JOURNAL)).unwrap_or_default();
    journal.contains(&format!("\"tuned\":{block},"))
}

#[test]
fn killed_runs_end_in_the_same_bytes() {
    check_killed(|out| out.join("model-00001-of-00005.safetensors").exists());
    check_killed(|out| out.join("model-00004-of-00005.safetensors").exists());
    check_killed(|out| tuned_epochs(out) == 1);
    check_killed(|out| tuned_epochs(out) == 3);
    check_killed(|out| is_tuned(out, 0));
    check_killed(|out| is_tuned(out, 3));
    check_killed(|out| out.join("model-00005-of-00005.safetensors").exists());
}

#[test]
fn ctrl_c_stops_and_says_how_to_go_on() {
    let dir = tempfile::tempdir().unwrap();
    let child = start(&mut quantize(dir.path()), || tuned_epochs(dir.path()) == 1);
    run(Command::new("kill").args(["-s", "INT", &child.id().to_string()]), 0);
    let output = child.wait_with_output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(130), "{stderr}");
    assert!(stderr.contains("of 3 of tuning: all blocks and") && stderr.contains("continue with --resume"), "{stderr}");
    assert!(!dir.path().join("config.json").exists());
    run(&mut quantize(dir.path()), 0);
    check_whole(dir.path());
}

#[test]
fn damage_is_mended() {
    #[track_caller]
    fn check(damage: impl FnOnce(&Path), learned_again: bool) {
        let dir = tempfile::tempdir().unwrap();
        run(&mut quantize(dir.path()), 0);
        damage(dir.path());
        let blocks_before = events(dir.path()).iter().filter(|event| event["event"] == "block_finished").count();
        run(&mut quantize(dir.path()), 0);
        check_whole(dir.path());
        let blocks = events(dir.path()).iter().filter(|event| event["event"] == "block_finished").count();
        assert_eq!(blocks > blocks_before, learned_again, "blocks learned again");
    }
    check(|out| fs::remove_file(out.join("config.json")).unwrap(), false);
    check(|out| fs::remove_file(out.join("model-00005-of-00005.safetensors")).unwrap(), false);
    // The blocks that tuning starts from are gone.
    check(|out| fs::write(out.join("model-00002-of-00005.safetensors"), b"").unwrap(), true);
}

#[test]
fn tuning_starts_again_where_its_blocks_do() {
    let dir = tempfile::tempdir().unwrap();
    kill(&mut quantize(dir.path()), || tuned_epochs(dir.path()) == 1);
    fs::write(dir.path().join("model-00004-of-00005.safetensors"), b"").unwrap();
    run(&mut quantize(dir.path()), 0);
    check_whole(dir.path());
    let is_first = |event: &&Value| event["event"] == "tuned" && event["epoch"] == 0;
    assert_eq!(events(dir.path()).iter().filter(is_first).count(), 2, "the first epoch is gone through again");
}

#[test]
fn a_run_that_stops_while_tuned_blocks_replace_learned_ones_goes_on() {
    let (whole, segments) = (tempfile::tempdir().unwrap(), noise([1, 2, 3]));
    let go_on = &mut |_: Notice| ControlFlow::Continue(());
    learned_in(whole.path(), &segments, 2, 5e-4, go_on).unwrap();
    // What happens to a directory with two tuned blocks and two learned ones, whose second block was `learned` before.
    let check = |what: &str, happens: &dyn Fn(&Path, &[u8]), all_again: bool| {
        let out = tempfile::tempdir().unwrap();
        let second = out.path().join("model-00002-of-00005.safetensors");
        let mut learned = Vec::new();
        let stopped = learned_in(out.path(), &segments, 2, 5e-4, &mut |_| {
            if is_tuned(out.path(), 1) {
                return ControlFlow::Break(());
            }
            learned = fs::read(&second).unwrap_or_default();
            ControlFlow::Continue(())
        });
        assert!(matches!(stopped, Err(CalibError::TuningStopped { .. })), "{stopped:?}");
        assert!(is_tuned(out.path(), 1) && !is_tuned(out.path(), 2), "{what}");
        assert!(fs::read(&second).unwrap() != learned, "{what}");
        happens(out.path(), &learned);
        let resumed = learned_in(out.path(), &segments, 2, 5e-4, &mut |_| ControlFlow::Continue(())).unwrap();
        assert_eq!(resumed.resumed_blocks, if all_again { 0 } else { 4 }, "{what}");
        assert!(model_files(out.path()) == model_files(whole.path()), "{what}: other bytes");
        assert!(!out.path().join(TUNING).exists(), "{what}");
    };
    let [second, third] = [2, 3].map(|shard| format!("model-0000{shard}-of-00005.safetensors"));
    check("nothing", &|_, _| {}, false);
    // Killed between the journal's line and the placement of the shard.
    check("not placed", &|out, learned| fs::write(out.join(&second), learned).unwrap(), false);
    check("a tuned block is damaged", &|out, _| fs::write(out.join(&second), b"").unwrap(), true);
    check("a learned block is damaged", &|out, _| fs::write(out.join(&third), b"").unwrap(), true);
    check("the state of tuning is gone", &|out, _| fs::remove_file(out.join(TUNING)).unwrap(), true);
}

#[test]
fn predictions_come_nearer() {
    // With the same text in every pass. The first divergence is a mean over steps in which it already decreases.
    let text: Vec<Vec<u32>> = tokens("calib.txt").chunks_exact(256).take(8).map(<[u32]>::to_vec).collect();
    let divergences = learned_from(&[&text[..]; 4].concat(), text.len(), 3e-3).tuning;
    assert!(divergences.len() == 3 && divergences[2] < 0.95 * divergences[0], "{divergences:?}");

    let tuned = |out: &Path, epochs| run(&mut quantize_with(out, ["32", "256"], [epochs, "5e-3"]), 0);
    let dir = tempfile::tempdir().unwrap();
    tuned(dir.path(), "3");
    let record: Value = serde_json::from_slice(&fs::read(dir.path().join(RUN)).unwrap()).unwrap();
    assert_eq!(record["tuning"].as_array().map(Vec::len), Some(3));

    let perplexity = |dir: &Path| {
        // At the model's context length, because predictions beyond it are far worse.
        let on = ["--json", "--data", "tests/fixtures/eval.txt", "--seqlen", "256"];
        let eval = run(omniquant().arg("eval").arg(dir).args(on), 0);
        let eval: Value = serde_json::from_slice(&eval.stdout).unwrap();
        eval["perplexity"].as_f64().unwrap()
    };
    let untuned = tempfile::tempdir().unwrap();
    tuned(untuned.path(), "0");
    let (with, without) = (perplexity(dir.path()), perplexity(untuned.path()));
    assert!(with < 0.98 * without, "{with} with, {without} without");
}

/// Outcome of a run on these segments. The first `samples` are for learning blocks, the rest for tuning.
fn learned_from(segments: &[Vec<u32>], samples: usize, tune_lr: f64) -> Outcome {
    let out = tempfile::tempdir().unwrap();
    learned_in(out.path(), segments, samples, tune_lr, &mut |_| ControlFlow::Continue(())).unwrap()
}

/// The same in `out`, which may contain an earlier run.
fn learned_in(
    out: &Path,
    segments: &[Vec<u32>],
    samples: usize,
    tune_lr: f64,
    on: &mut dyn FnMut(Notice) -> ControlFlow<()>,
) -> Result<Outcome, CalibError> {
    let tune_epochs = segments.len() / samples - 1;
    let few = Overrides::default().samples(samples).seqlen(segments[0].len()).epochs(1);
    let overrides = few.tune_epochs(tune_epochs).tune_lr(tune_lr);
    let recipe = Recipe::resolve("w2a16g64".parse().unwrap(), None, None, &overrides).unwrap();
    let model = Model::open(&fixture("tiny-llama")).unwrap();
    oq_calib::quantize(&model, &recipe, segments, &in_f32(out, true), on)
}

/// Segments of random tokens: two for the blocks and two for each of two tuning passes, with a seed for each pair.
fn noise(seeds: [u32; 3]) -> Vec<Vec<u32>> {
    seeds.iter().flat_map(|seed| [segment(2 * seed), segment(2 * seed + 1)]).collect()
}

fn segment(seed: u32) -> Vec<u32> {
    (0..16u32).map(|t| (seed * 997 + t * t * 31 + t * seed) % 1024).collect()
}

fn learned_from_noise(seeds: [u32; 3]) -> Outcome {
    learned_from(&noise(seeds), 2, 5e-4)
}

#[test]
fn a_run_stops_while_the_targets_of_an_epoch_are_made() {
    let (out, segments) = (tempfile::tempdir().unwrap(), noise([1, 2, 3]));
    // Learning all blocks counts as 8 steps of progress. The first tuning epoch begins with its targets, which count as four.
    let mut asked = Vec::new();
    let stopped = learned_in(out.path(), &segments, 2, 5e-4, &mut |notice| match notice {
        Notice::Progress { done, total } => {
            asked.push((done, total));
            if done > 9 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        }
        Notice::Event(_) => ControlFlow::Continue(()),
    });
    assert!(matches!(stopped, Err(CalibError::TuningStopped { epoch: Nth { index: 0, of: 2 }, .. })), "{stopped:?}");
    assert_eq!(asked.last(), Some(&(10, 48)), "{asked:?}");
    let resumed = learned_in(out.path(), &segments, 2, 5e-4, &mut |_| ControlFlow::Continue(())).unwrap();
    assert_eq!(resumed.tuning, learned_from_noise([1, 2, 3]).tuning);
}

#[test]
fn a_run_that_stops_within_an_epoch_keeps_its_steps() {
    let [out, whole] = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let segments = noise([1, 2, 3]);
    // As above, and each of the two steps of an epoch counts as 8.
    let stopped = learned_in(out.path(), &segments, 2, 5e-4, &mut |notice| match notice {
        Notice::Progress { done: 20.., .. } => ControlFlow::Break(()),
        _ => ControlFlow::Continue(()),
    });
    assert!(matches!(stopped, Err(CalibError::TuningStopped { epoch: Nth { index: 0, of: 2 }, .. })), "{stopped:?}");
    let mut told = Vec::new();
    let resumed = learned_in(out.path(), &segments, 2, 5e-4, &mut |notice| {
        if let Notice::Progress { done, .. } = notice {
            told.push(done);
        }
        ControlFlow::Continue(())
    });
    // A run can also be stopped before each batch.
    told.dedup();
    assert_eq!(told, [8, 9, 10, 11, 12, 28, 29, 30, 31, 32, 40, 48]);
    let unstopped = learned_in(whole.path(), &segments, 2, 5e-4, &mut |_| ControlFlow::Continue(())).unwrap();
    assert_eq!(resumed.unwrap().tuning, unstopped.tuning);
    for file in std::fs::read_dir(whole.path()).unwrap().map(|entry| entry.unwrap().file_name()) {
        if file.to_string_lossy().ends_with(".safetensors") {
            let [resumed, unstopped] = [&out, &whole].map(|dir| std::fs::read(dir.path().join(&file)).unwrap());
            assert!(resumed == unstopped, "{file:?} differs");
        }
    }
}

#[test]
fn a_run_that_stops_before_a_short_batch_goes_on() {
    // Two batches of two segments and one of one, for the blocks and for two passes, with all hidden states on disk.
    let overrides = Overrides::default().samples(5).batch(2).seqlen(16).epochs(1).tune_epochs(2);
    let recipe = Recipe::resolve("w2a16g64".parse().unwrap(), None, None, &overrides).unwrap();
    let model = Model::open(&fixture("tiny-llama")).unwrap();
    let segments: Vec<Vec<u32>> = (0..15).map(segment).collect();
    let run = |out: &Path, stop_at: usize| {
        let mut options = in_f32(out, true);
        options.cache_memory = Some(0);
        oq_calib::quantize(&model, &recipe, &segments, &options, &mut |notice| match notice {
            Notice::Progress { done, .. } if done >= stop_at => ControlFlow::Break(()),
            _ => ControlFlow::Continue(()),
        })
    };
    let [out, whole] = [(); 2].map(|()| tempfile::tempdir().unwrap());
    run(whole.path(), usize::MAX).unwrap();
    // Progress is 12 for four blocks with three steps each, 8 for the targets of an epoch, and 16 for two tuning steps.
    assert!(matches!(run(out.path(), 12 + 8 + 16), Err(CalibError::TuningStopped { epoch: Nth { index: 0, .. }, .. })));
    run(out.path(), usize::MAX).unwrap();
    assert!(model_files(out.path()) == model_files(whole.path()));
}

#[test]
fn a_run_that_stops_when_tuning_is_over_writes_its_blocks_later() {
    let (out, segments) = (tempfile::tempdir().unwrap(), noise([1, 2, 3]));
    let stopped = learned_in(out.path(), &segments, 2, 5e-4, &mut |notice| match notice {
        Notice::Progress { done, total } if done == total => ControlFlow::Break(()),
        _ => ControlFlow::Continue(()),
    });
    assert!(matches!(stopped, Err(CalibError::TuningStopped { epoch: Nth { index: 1, of: 2 }, .. })), "{stopped:?}");
    let resumed = learned_in(out.path(), &segments, 2, 5e-4, &mut |_| ControlFlow::Continue(())).unwrap();
    assert_eq!(resumed.tuning, learned_from_noise([1, 2, 3]).tuning);
}

#[test]
fn each_pass_has_segments_of_its_own() {
    let of_blocks = |outcome: &Outcome| outcome.blocks[0].losses.clone();
    let before = learned_from_noise([1, 2, 3]);
    let other_last = learned_from_noise([1, 2, 4]);
    assert_eq!((of_blocks(&other_last), other_last.tuning[0]), (of_blocks(&before), before.tuning[0]));
    assert_ne!(other_last.tuning[1], before.tuning[1]);
    let other_first = learned_from_noise([1, 4, 3]);
    assert_eq!(of_blocks(&other_first), of_blocks(&before));
    assert_ne!(other_first.tuning[0], before.tuning[0]);
    assert_ne!(of_blocks(&learned_from_noise([4, 2, 3])), of_blocks(&before));
}

#[test]
fn a_rate_that_cannot_be_is_reported() {
    let dir = tempfile::tempdir().unwrap();
    let output = run(&mut quantize_with(dir.path(), ["16", "128"], ["3", "1e9"]), 5);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(
        stderr.contains("tuning: the divergence or its gradient is not finite") && stderr.contains("--tune-epochs 0"),
        "{stderr}"
    );
}
