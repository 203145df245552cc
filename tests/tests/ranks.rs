//! Runs that several processes share: they learn what one process learns, end when one of them does, and go on with any number.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::net::TcpListener;
use std::ops::ControlFlow;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread::scope;

use oq_calib::{JOURNAL, Outcome, quantize};
use oq_models::Model;
use oq_quant_core::SiteKind;
use oq_ranks::{Place, Ranks};
use oq_recipe::{Overrides, Preset, Recipe};
use oq_tests::{calibration, fixture, in_f32, measure, model_files, omniquant, run, start, tokens, wait};
use serde_json::Value;

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Quantizes a fixture into `out`, on ranks that are threads of this process, and returns what each of them says.
fn on_ranks(size: usize, model: &str, recipe: &Recipe, segments: &[Vec<u32>], out: &Path) -> Vec<Outcome> {
    tch::set_num_threads(1);
    let port = free_port();
    let quantize_on = |rank| {
        let mut options = in_f32(out, false);
        if size > 1 {
            let host = "127.0.0.1".to_owned();
            let place = Place { rank, size, local: rank, here: size, host, port, interface: None };
            options.ranks = Ranks::join(&place).unwrap();
        }
        let model = Model::open(&fixture(model)).unwrap();
        quantize(&model, recipe, segments, &options, &mut |_| ControlFlow::Continue(())).unwrap()
    };
    scope(|threads| {
        let running: Vec<_> = (0..size).map(|rank| threads.spawn(move || quantize_on(rank))).collect();
        running.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

fn close(got: f64, expected: f64, tolerance: f64, what: &str) {
    assert!((got / expected - 1.0).abs() <= tolerance, "{what}: {got} for {expected}");
}

/// Compares a run of two ranks with that of one, and with another one of two.
fn check(model: &str, scheme: &str, overrides: &Overrides, segments: impl Fn(&Recipe) -> Vec<Vec<u32>>) {
    /// The first step of the first block sums the same numbers in another order.
    const SAME: f64 = 1e-5;
    /// Gradients that differ in their last bits round a few weights otherwise, and each block passes that on to the next. Codes are valid
    /// either way. In an epoch's mean loss that is a thousandth or two; a step on half a batch would differ by some hundredths.
    const LATER: f64 = 0.01;
    let recipe = Recipe::resolve(scheme.parse().unwrap(), None, None, overrides).unwrap();
    let segments = segments(&recipe);
    let dirs = [(); 3].map(|()| tempfile::tempdir().unwrap());
    let [one, two, again] = [(1, &dirs[0]), (2, &dirs[1]), (2, &dirs[2])]
        .map(|(size, dir)| on_ranks(size, model, &recipe, &segments, dir.path()));
    let what = |part: &str| format!("{model} {scheme}: {part}");
    let losses = |outcome: &Outcome| outcome.blocks.iter().flat_map(|block| block.losses.clone()).collect::<Vec<_>>();
    // The second rank returns what the first has recorded, in digits.
    let pairs = losses(&two[0]).into_iter().zip(losses(&two[1]));
    pairs.for_each(|(first, second)| close(second, first, 1e-12, &what("the same record")));
    assert_eq!(one[0].blocks.len(), two[0].blocks.len());
    for (at, (one, two)) in one[0].blocks.iter().zip(&two[0].blocks).enumerate() {
        assert_eq!(one.starved, two.starved);
        assert_eq!(one.losses.len(), recipe.learn.epochs);
        for (epoch, (one, two)) in one.losses.iter().zip(&two.losses).enumerate() {
            let tolerance = if (at, epoch) == (0, 0) { SAME } else { LATER };
            close(*two, *one, tolerance, &what(&format!("loss of block {at}, epoch {epoch}")));
        }
        close(two.final_loss.unwrap(), one.final_loss.unwrap(), LATER, &what(&format!("error of block {at}")));
    }
    assert_eq!(one[0].tuning.len(), recipe.tune_epochs());
    one[0].tuning.iter().zip(&two[0].tuning).for_each(|(one, two)| close(*two, *one, LATER, &what("tuning")));
    let files = dirs.each_ref().map(|dir| model_files(dir.path()));
    assert!(files[1] == files[2], "{}", what("two runs of two ranks have the same bytes"));
    assert_eq!(losses(&two[0]), losses(&again[0]));
}

fn text(recipe: &Recipe) -> Vec<Vec<u32>> {
    calibration(recipe)
}

/// Five segments of 64 tokens: batches of three and two, which two ranks share unevenly.
fn small() -> Overrides {
    Overrides::default().samples(5).seqlen(64).batch(3).epochs(2)
}

#[test]
fn two_ranks_learn_and_tune_what_one_does() {
    check("tiny-llama", "w3a16g64", &small(), text);
}

#[test]
fn two_ranks_move_the_codes_that_one_does() {
    check("tiny-llama", "w3a16g64", &small().tune_codes(1.3), text);
}

#[test]
fn two_ranks_transform_and_quantize_activations_as_one_does() {
    let sites = vec![SiteKind::Norm, SiteKind::Vo, SiteKind::Qk];
    let paper = small().preset(Preset::Paper).use_let(true).let_sites(sites);
    check("tiny-llama", "w4a4", &paper, text);
}

#[test]
fn experts_get_the_tokens_of_all_ranks() {
    let ids = |recipe: &Recipe| {
        let ids = tokens("calib.txt");
        // Ids of the small vocabulary of these models.
        let segment = |at: usize| ids[at * 40..][..40].iter().map(|id| id % 64).collect();
        (0..recipe.segments()).map(segment).collect::<Vec<Vec<u32>>>()
    };
    let sized = Overrides::default().samples(5).seqlen(40).batch(3).epochs(2).tune_epochs(0);
    // All experts are starved, some are, or none are and some have tokens on one rank alone.
    for enough in [10_000, 60, 0] {
        check("family-variants/mixtral", "w4a16g16", &sized.clone().expert_tokens(enough), ids);
    }
}

/// A run of the program as one of two ranks that meet at `port`.
fn as_rank(rank: usize, port: u16, out: &Path) -> Command {
    let mut command = quantize_command(out);
    as_rank_of(&mut command, rank, port);
    command
}

fn as_rank_of(command: &mut Command, rank: usize, port: u16) -> &mut Command {
    command.env("RANK", rank.to_string()).env("WORLD_SIZE", "2");
    command.env("MASTER_ADDR", "127.0.0.1").env("MASTER_PORT", port.to_string());
    command.stdout(Stdio::null()).stderr(Stdio::piped())
}

fn quantize_command(out: &Path) -> Command {
    let mut command = omniquant();
    command.args(["quantize"]).arg(fixture("tiny-llama")).args(["--scheme", "w3a16g64", "--calib"]);
    command.arg(fixture("calib.txt")).args(["--samples", "4", "--seqlen", "64", "--batch", "2", "--epochs", "8"]);
    command.args(["--tune-epochs", "0", "--threads", "1", "--force", "--out"]).arg(out);
    command
}

fn finished_blocks(out: &Path) -> usize {
    fs::read_to_string(out.join(JOURNAL)).map_or(0, |journal| journal.lines().count().saturating_sub(1))
}

#[test]
fn a_killed_rank_ends_the_others_and_one_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let (out, port) = (dir.path().join("out"), free_port());
    let mut first = as_rank(0, port, &out).spawn().unwrap();
    let mut second = start(&mut as_rank(1, port, &out), || finished_blocks(&out) >= 1);
    second.kill().unwrap();
    second.wait().unwrap();
    wait(&mut first, || false);
    let output = first.wait_with_output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("error: rank 1 ended or cannot be reached"), "{stderr}");
    assert!(stderr.contains("continue with --resume, on any number of ranks"), "{stderr}");
    let finished = finished_blocks(&out);
    assert!((1..4).contains(&finished) && !out.join("config.json").exists(), "{finished} blocks");
    let output = run(quantize_command(&out).arg("--resume"), 0);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stderr.contains("ranks was 2 and is now 1"), "{stderr}");
    assert_eq!(finished_blocks(&out), 4);
    // Far below rounding to nearest, which has 20.95 on this text.
    let perplexity = measure(&Model::open(&out).unwrap());
    assert!(perplexity < 20.3, "{perplexity}");
}

#[test]
fn a_stop_asked_of_one_rank_stops_all() {
    let dir = tempfile::tempdir().unwrap();
    let (out, port) = (dir.path().join("out"), free_port());
    let mut first = as_rank(0, port, &out).spawn().unwrap();
    let mut second = start(&mut as_rank(1, port, &out), || finished_blocks(&out) >= 1);
    run(Command::new("kill").args(["-s", "INT", &second.id().to_string()]), 0);
    for process in [&mut first, &mut second] {
        let status = wait(process, || false).unwrap();
        assert_eq!(status.code(), Some(130));
    }
    assert!(!out.join("config.json").exists());
    run(quantize_command(&out).arg("--resume"), 0);
}

#[track_caller]
fn refused(command: &mut Command, code: i32, parts: &[&str]) {
    let output = run(command, code);
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(parts.iter().all(|part| stderr.contains(part)), "no {parts:?} in {stderr}");
}

#[test]
fn ranks_can_be_started_here_and_need_enough_segments() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let too_many = "5 ranks cannot share a batch of 2";
    refused(quantize_command(&out).args(["--ranks", "5"]), 2, &[too_many, "--batch of 5 or more", "4 segments"]);
    refused(quantize_command(&out).args(["--ranks", "2", "--method", "rtn"]), 2, &["2 ranks have nothing to share"]);
    let mut elsewhere = quantize_command(&out);
    refused(elsewhere.env("RANK", "0").env("WORLD_SIZE", "2"), 2, &["MASTER_PORT: is not set"]);
    refused(as_rank(0, 1, &out).args(["--ranks", "3"]), 2, &["--ranks 3", "rank 0 of 2"]);
    assert!(!out.exists());
    let report = ["--report", "--windows", "3", "--data"];
    let output = run(quantize_command(&out).args(["--ranks", "2", "--json"]).args(report).arg(fixture("eval.txt")), 0);
    let said = String::from_utf8(output.stdout).unwrap();
    assert_eq!(said.lines().count(), 1, "the first rank alone speaks: {said}");
    let said: Value = serde_json::from_str(&said).unwrap();
    let perplexity = |row: usize| said["report"][row]["perplexity"].as_f64().unwrap();
    assert!(perplexity(0) < perplexity(2) && perplexity(2) < perplexity(1), "{said}");
    let what = said["report"][2]["subject"].as_str().unwrap();
    assert!(what.contains("3 windows"), "{what}");
    assert!(fs::read_to_string(out.join(JOURNAL)).unwrap().contains("\"ranks\":2"));
}

/// An evaluation of a fixture, with one thread for each of so many ranks.
fn eval_command(ranks: usize, more: &[&str]) -> Command {
    let mut command = omniquant();
    command.args(["eval"]).arg(fixture("tiny-llama")).args(["--json", "--threads", &ranks.to_string()]).args(more);
    command
}

/// What an evaluation says on stdout, but for time and memory.
fn said(stdout: &[u8]) -> Value {
    let mut said: Value = serde_json::from_slice(stdout).unwrap();
    for measured in ["wall_secs", "peak_bytes"] {
        assert!(said.as_object_mut().unwrap().remove(measured).is_some(), "{measured}");
    }
    said
}

#[test]
fn ranks_share_an_evaluation() {
    let data = tempfile::tempdir().unwrap();
    fs::create_dir(data.path().join("tasks")).unwrap();
    let item = |gold: &str, at: usize| {
        format!("{{\"question\": \"Number {at}\", \"choices\": [\"north\", \"a river\"], \"gold\": {gold}}}\n")
    };
    let items: String = (0..7).map(|at| item(if at % 3 == 0 { "0" } else { "1" }, at)).collect();
    fs::write(data.path().join("tasks/arc_easy.test.jsonl"), items).unwrap();
    let (text, tasks) = (fixture("eval.txt"), data.path());
    let text = ["--rtn", "w3a16g64", "--kl", "--seqlen", "128", "--windows", "5", "--data", text.to_str().unwrap()];
    let tasks = ["--tasks", "arc_easy", "--data-dir", tasks.to_str().unwrap()];
    // Of three ranks, one has none of two items.
    let few = [&tasks[..], &["--items", "2"]].concat();
    for what in [&text[..], &tasks, &few] {
        let one = said(&run(&mut eval_command(1, what), 0).stdout);
        // A window is computed alone, so that all digits are the same. Items are computed together; of them, this shows what was right.
        assert_eq!(said(&run(eval_command(3, what).args(["--ranks", "3"]), 0).stdout), one);
        let port = free_port();
        let mut second = eval_command(1, what);
        let second = as_rank_of(&mut second, 1, port).stdout(Stdio::piped()).spawn().unwrap();
        let mut first = eval_command(1, what);
        assert_eq!(said(&run(as_rank_of(&mut first, 0, port).stdout(Stdio::piped()), 0).stdout), one);
        let second = second.wait_with_output().unwrap();
        assert!(second.status.success() && second.stdout.is_empty(), "the first rank alone speaks");
    }
}

#[test]
fn an_evaluation_that_cannot_be_shared_is_refused() {
    let (dir, text) = (tempfile::tempdir().unwrap(), fixture("eval.txt"));
    let text = ["--seqlen", "128", "--windows", "5", "--data", text.to_str().unwrap()];
    refused(eval_command(6, &text).args(["--ranks", "6"]), 2, &["--ranks 6", "5 windows of 128"]);
    let short = dir.path().join("short.txt");
    fs::write(&short, "A few words.").unwrap();
    for ranks in ["1", "2"] {
        let short = ["--seqlen", "128", "--data", short.to_str().unwrap(), "--ranks", ranks];
        refused(&mut eval_command(2, &short), 2, &["less than one window of 128"]);
    }
    // The others name a rank that fails, and refuse to write one file together.
    let answers = dir.path().join("answers.jsonl");
    let answers = ["--tasks", "piqa", "--answers", answers.to_str().unwrap()];
    for (what, second, code, part) in [
        (&text[..], &["--data", "nowhere.txt"][..], 1, ["rank 1 failed", "nowhere.txt"]),
        (&answers, &answers, 2, ["--answers", "rank 0 of 2"]),
    ] {
        let port = free_port();
        let mut failing = as_rank_of(&mut eval_command(1, second), 1, port).spawn().unwrap();
        refused(as_rank_of(&mut eval_command(1, what), 0, port), code, &part);
        assert!(!wait(&mut failing, || false).unwrap().success());
    }
}

#[test]
fn a_killed_rank_ends_an_evaluation() {
    let (dir, port, text) = (tempfile::tempdir().unwrap(), free_port(), fixture("eval.txt"));
    let mut first = eval_command(1, &["--seqlen", "128", "--windows", "5", "--data", text.to_str().unwrap()]);
    let mut first = as_rank_of(&mut first, 0, port).spawn().unwrap();
    // It has met the first one when it reads this text, which does not end.
    let endless = dir.path().join("endless.txt");
    run(Command::new("mkfifo").arg(&endless), 0);
    let mut second = eval_command(1, &["--seqlen", "128", "--data", endless.to_str().unwrap()]);
    let mut second = as_rank_of(&mut second, 1, port).spawn().unwrap();
    let open = fs::OpenOptions::new().write(true).open(&endless).unwrap();
    second.kill().unwrap();
    second.wait().unwrap();
    drop(open);
    wait(&mut first, || false);
    let output = first.wait_with_output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("error: rank 1 ended or cannot be reached"), "{stderr}");
}

#[test]
fn ranks_share_the_choice_of_widths() {
    let dir = tempfile::tempdir().unwrap();
    let chosen = |name: &str, more: &[&str]| -> Value {
        let out = dir.path().join(name);
        run(quantize_command(&out).args(["--bits", "3.25"]).args(more), 0);
        serde_json::from_str(&fs::read_to_string(out.join("omniquant/bits.json")).unwrap()).unwrap()
    };
    let [one, two] = [chosen("one", &[]), chosen("two", &["--ranks", "2"])];
    let costs = |choice: &Value| -> Vec<f64> {
        let units = choice["units"].as_array().unwrap().iter();
        units.flat_map(|unit| unit["divergence"].as_array().unwrap()).map(|cost| cost.as_f64().unwrap()).collect()
    };
    let (of_one, of_two) = (costs(&one), costs(&two));
    assert!(of_one.len() > 20 && of_one.len() == of_two.len());
    // Sums of the same terms in another order, and of what they come from.
    of_one.iter().zip(&of_two).for_each(|(one, two)| close(*two, *one, 1e-4, "the cost of a width"));
}
