//! `omniquant plan`: memory and time on this machine and others, advice if a run does not fit, and growth of both with the work.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;
use std::process::Command;

use oq_calib::{Accelerator, Machine, Plan, Setting};
use oq_models::Compute;
use oq_models::family::decoder_of;
use oq_recipe::{Method, Overrides, Profile, Recipe, find_machine};
use oq_tests::{omniquant, run, run_json};
use proptest::prelude::*;
use serde_json::{Value, json};
use tempfile::TempDir;

/// Exit codes.
const USAGE: i32 = 2;
const DOES_NOT_FIT: i32 = 4;

const GIB: f64 = (1u64 << 30) as f64;

fn plan(args: &[&str]) -> Command {
    let mut command = omniquant();
    command.arg("plan").args(args);
    command
}

fn stdout(command: &mut Command) -> String {
    String::from_utf8(run(command, 0).stdout).unwrap()
}

fn stderr(command: &mut Command, code: i32) -> String {
    String::from_utf8(run(command, code).stderr).unwrap()
}

#[test]
fn another_machine_by_its_name() {
    let mut command = plan(&["llama2-70b", "--scheme", "w4a16g128", "--device", "a100-40g"]);
    insta::assert_snapshot!("plan-a100-40g", stdout(&mut command));
    let plan = run_json(command.arg("--json"));
    assert_eq!((&plan["fits"], &plan["profile"]["estimate"]), (&true.into(), &true.into()));
    assert_eq!(plan["profile"]["name"], "a100-40g");
    assert_eq!(plan["machine"]["device"]["memory_bytes"], 40u64 << 30);
    assert_eq!(plan["plan"]["compute"], "bf16");
    // Peak memory is the sum of its parts, and so is the time.
    let (memory, time) = (&plan["plan"]["memory"], &plan["plan"]["time"]);
    let sum = |parts: &Value| parts.as_object().unwrap().values().map(|part| part.as_f64().unwrap()).sum::<f64>();
    assert_eq!(plan["peak_bytes"].as_f64().unwrap(), sum(&memory["host"]));
    assert_eq!(plan["peak_device_bytes"].as_f64().unwrap(), sum(&memory["device"]));
    // Targets and inputs of 128 x 2048 tokens with 8192 channels in f32.
    assert_eq!(memory["device"]["cache_bytes"].as_f64().unwrap(), 16.0 * GIB);
    let number = |key: &str| time[key].as_f64().unwrap();
    let is_near = |a: f64, b: f64| (a / b - 1.0).abs() < 1e-9;
    assert!(is_near(number("step_secs"), sum(&time["step"])), "{time}");
    assert!(is_near(number("block_secs"), 640.0 * number("step_secs") + number("other_secs")), "{time}");
    assert!(number("total_secs") >= 80.0 * number("block_secs"), "{time}");
}

/// The paper's program took 1.1 hours for LLaMA-7B on this machine, on as many tokens (section 4.1).
#[test]
fn hours_are_of_the_papers_size() {
    let plan = run_json(&mut plan(&["llama-7b", "--scheme", "w4a16g128", "--device", "a100-80g", "--json"]));
    let hours = plan["plan"]["time"]["total_secs"].as_f64().unwrap() / 3600.0;
    assert!((0.3..3.0).contains(&hours), "{hours} hours");
}

#[test]
fn a_machine_nobody_knows() {
    let error = stderr(&mut plan(&["tiny-llama", "--scheme", "w4a16", "--device", "a100"]), USAGE);
    assert!(
        error.contains("expected auto, cpu, cuda or cuda:N, or a machine in configs/machines: a100-40g, "),
        "{error}"
    );
    let measure = ["tiny-llama", "--scheme", "w4a16", "--device", "rtx-3090", "--measure"];
    let error = stderr(&mut plan(&measure), USAGE);
    assert!(error.contains("--measure times this machine, but --device rtx-3090 is another"), "{error}");
}

#[test]
fn a_run_that_does_not_fit_hears_what_would() {
    // 16 GiB of hidden states and 13 GiB of weights.
    let args = ["llama2-70b", "--scheme", "w4a16g128", "--device", "rtx-4090", "--json"];
    let output = run(&mut plan(&args), DOES_NOT_FIT);
    let error = String::from_utf8(output.stderr).unwrap();
    let refused: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(refused["fits"], false);
    let suggestions = refused["plan"]["suggestions"].as_array().unwrap();
    assert_eq!(suggestions.len(), 3, "{error}");
    for suggestion in suggestions {
        let options = suggestion["options"].as_str().unwrap();
        let bytes = suggestion["bytes"].as_f64().unwrap();
        assert!(error.contains(&format!("{options} would need {:.2} GiB, which fits", bytes / GIB)), "{error}");
        let (option, value) = options.split_once(' ').unwrap();
        let mended = run_json(plan(&args).args([option, value]));
        assert_eq!(mended["peak_device_bytes"].as_f64().unwrap(), bytes);
        if option == "--cache-memory" {
            assert_eq!(value, "16384MiB", "there is room for all states beside the device");
            continue;
        }
        // Twice the suggested value does not fit.
        let doubled = (2 * value.parse::<usize>().unwrap()).to_string();
        run(plan(&args).args([option, doubled.as_str()]), DOES_NOT_FIT);
    }
    // Blocks of 13.8 GiB in f32 and their products leave no memory for anything else.
    let args = ["falcon-180b", "--scheme", "w3a16g512", "--device", "rtx-3090", "--json"];
    let output = run(&mut plan(&args), DOES_NOT_FIT);
    let refused: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(refused["plan"]["suggestions"], json!([]));
}

#[test]
fn a_rotation_that_the_model_cannot_have_is_told() {
    let error = stderr(&mut plan(&["opt-350m", "--scheme", "w4a16", "--rotate", "merged"]), USAGE);
    assert!(error.contains("on the residual itself; say --rotate none"), "{error}");
}

#[test]
fn a_group_that_does_not_divide_hears_of_one_that_does() {
    let error = stderr(&mut plan(&["tiny-llama", "--scheme", "w4a16g96"]), USAGE);
    assert!(error.contains("group 96 does not divide in_features 128; take one that does, such as g64"), "{error}");
}

#[test]
fn more_text_than_can_be_counted_does_not_fit() {
    // Multiplied by 2048, this is 2^64.
    let samples = (1u64 << 53).to_string();
    for more in [vec![], vec!["--bits", "3.5"], vec!["--tune-epochs", "1"]] {
        for batch in ["1", &samples] {
            let mut command = plan(&["tiny-llama", "--scheme", "w4a16g64", "--seqlen", "2048", "--json"]);
            command.args(["--samples", &samples, "--batch", batch, "--device", "rtx-4090"]).args(&more);
            let output = run(&mut command, DOES_NOT_FIT);
            let refused: Value = serde_json::from_slice(&output.stdout).unwrap();
            assert!(refused["peak_device_bytes"].as_f64().unwrap() > 1e18, "{}", refused["plan"]["memory"]);
        }
    }
}

#[test]
fn states_within_a_budget_are_those_of_the_largest_pass() {
    let args = ["llama2-70b", "--scheme", "w4a16g128", "--device", "a100-80g", "--samples", "4", "--tune-epochs", "1"];
    let planned = run_json(plan(&args).args(["--cache-memory", "64GiB", "--steps", "0", "--json"]));
    // Four targets of 2048 tokens with 8192 channels and the inputs of 80 blocks, in f32. Learning a block takes eight such states.
    assert_eq!(planned["plan"]["memory"]["host"]["cache_bytes"].as_f64().unwrap(), 84.0 * GIB / 16.0);
}

#[test]
fn a_run_that_only_measures_widths_hears_what_would_fit() {
    let config = json!({"model_type": "llama", "hidden_size": 4096, "intermediate_size": 11008, "num_attention_heads": 32,
        "vocab_size": 32000, "num_hidden_layers": 32});
    let overrides = Overrides::default().method(Method::Rtn).bits(3.5);
    let recipe = Recipe::resolve("w4a16g128".parse().unwrap(), None, None, &overrides).unwrap();
    let machine = Machine { memory_bytes: Some(4 << 30), disk_bytes: None, device: None };
    let (compute, text_bytes) = (Compute::Bf16, 1 << 20);
    let setting = Setting { compute, machine, profile: None, text_bytes, cache_memory: None, ranks: 1 };
    let plan = Plan::new(&*decoder_of(&config).unwrap(), &recipe, &setting).unwrap();
    assert!(!plan.fits() && !plan.suggestions.is_empty(), "{:?}", plan.memory);
}

#[test]
fn ranks_share_the_text_that_widths_are_measured_on() {
    let planned = |ranks: &str| {
        let args = ["llama2-7b", "--scheme", "w4a16g128", "--method", "rtn", "--bits", "3.5", "--samples", "4"];
        let mut command = plan(&args);
        command.args(["--seqlen", "1024", "--batch", "4", "--device", "a100-80g", "--json", "--ranks", ranks]);
        run_json(&mut command)["plan"].take()
    };
    let [one, two] = [planned("1"), planned("2")];
    let number = |plan: &Value, at: &str| plan.pointer(at).unwrap().as_f64().unwrap();
    // Inputs of 32 blocks and the current states: 4096 tokens with 4096 channels in f32.
    let states = |plan| number(plan, "/memory/device/cache_bytes");
    assert_eq!((states(&one), states(&two)), (33.0 * GIB / 16.0, 33.0 * GIB / 32.0));
    let secs = |plan| number(plan, "/time/probing_secs");
    assert!(secs(&two) < secs(&one), "{two}");
}

/// A cache directory with a profile of this machine's CPU.
fn cache(profile: &str) -> TempDir {
    let cache = tempfile::tempdir().unwrap();
    let folder = cache.path().join("omniquant/machines");
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("cpu.toml"), profile).unwrap();
    cache
}

fn on_cpu(cache: &Path) -> Command {
    let mut command = plan(&["tiny-llama", "--scheme", "w4a16g64", "--device", "cpu"]);
    command.env("XDG_CACHE_HOME", cache);
    command
}

fn time_of(printed: &str) -> &str {
    printed.lines().find(|line| line.starts_with("time ")).unwrap()
}

#[test]
fn this_machine_when_it_was_measured() {
    let empty = tempfile::tempdir().unwrap();
    let printed = stdout(&mut on_cpu(empty.path()));
    assert_eq!(time_of(&printed), "time            unknown, `--measure` times this machine");

    let numbers =
        "estimate = false\nf32_gflops = 180.0\nbf16_gflops = 800.0\nmemory_gb_per_s = 20.0\ndisk_gb_per_s = 1.0\n";
    let measured = cache(&format!("description = \"this machine\"\n{numbers}"));
    let printed = stdout(&mut on_cpu(measured.path()));
    assert!(time_of(&printed).starts_with("time            about "), "{printed}");
    assert!(printed.contains("\nmachine         cpu: this machine\n"), "{printed}");

    let broken = cache("description = \"this machine\"\n");
    let error = stderr(&mut on_cpu(broken.path()), USAGE);
    assert!(error.contains("cpu.toml") && error.contains("measure again"), "{error}");
}

#[test]
fn measuring_is_kept() {
    let cache = tempfile::tempdir().unwrap();
    let out = tempfile::tempdir().unwrap();
    let planned = run_json(on_cpu(cache.path()).args(["--measure", "--json", "--out"]).arg(out.path().join("packed")));
    let again = run_json(on_cpu(cache.path()).arg("--json"));
    assert_eq!(planned["profile"], again["profile"]);
    let profile = &planned["profile"];
    for key in ["f32_gflops", "bf16_gflops", "memory_gb_per_s", "disk_gb_per_s"] {
        assert!(profile[key].as_f64().unwrap() > 0.0, "{profile}");
    }
    assert_eq!(profile["estimate"], false);
    assert!(planned["plan"]["time"]["total_secs"].as_f64().unwrap() > 0.0);
    assert!(std::fs::read_dir(out.path()).unwrap().next().is_none(), "the measured file is left");
}

/// A model of one of the families, and the machine to plan for.
#[derive(Clone, Debug)]
struct Case {
    family: &'static str,
    layers: usize,
    scheme: &'static str,
    samples: usize,
    seqlen: usize,
    compute: Compute,
    machine: &'static str,
    method: Method,
    cache_memory: Option<u64>,
}

fn cases() -> impl Strategy<Value = Case> {
    let families = prop::sample::select(vec!["llama", "mistral", "opt", "falcon", "falcon-rw"]);
    let schemes = prop::sample::select(vec!["w4a16g64", "w2a16", "w4a4"]);
    let methods = prop::sample::select(vec![Method::Omniquant, Method::Smoothquant, Method::Rtn]);
    let machines = prop::sample::select(vec!["a100-40g", "rtx-3090", "cpu"]);
    (families, 1usize..50, schemes, 1usize..200, 2usize..3000, any::<bool>(), machines, methods).prop_map(
        |(family, layers, scheme, samples, seqlen, bf16, machine, method)| {
            let compute = if bf16 { Compute::Bf16 } else { Compute::F32 };
            Case { family, layers, scheme, samples, seqlen, compute, machine, method, cache_memory: None }
        },
    )
}

impl Case {
    fn plan(&self) -> Plan {
        let model_type = self.family.trim_end_matches("-rw");
        let is_alibi = self.family == "falcon-rw";
        let config = json!({"model_type": model_type, "hidden_size": 256, "intermediate_size": 512, "ffn_dim": 512,
            "ffn_hidden_size": 512, "num_attention_heads": 4, "num_key_value_heads": 4, "vocab_size": 1000,
            "num_hidden_layers": self.layers, "max_position_embeddings": 4096, "sliding_window": 1024,
            "alibi": is_alibi, "parallel_attn": !is_alibi});
        let decoder = decoder_of(&config).unwrap();
        // Shorter segments that replace longer ones take less.
        let text = Overrides::default().samples(self.samples).seqlen(self.seqlen).steps(0);
        let overrides = text.method(self.method).epochs(3);
        let recipe = Recipe::resolve(self.scheme.parse().unwrap(), None, None, &overrides).unwrap();
        let named = find_machine(self.machine);
        let fallback = find_machine("rtx-3090").unwrap();
        let profile = Profile { device_memory_gib: None, estimate: false, ..fallback.clone() };
        let profile = named.unwrap_or(&profile);
        let device = profile.device_bytes().map(|bytes| Accelerator { memory_bytes: Some(bytes) });
        let machine = Machine { memory_bytes: profile.host_bytes(), disk_bytes: None, device };
        let setting = Setting {
            compute: self.compute,
            machine,
            profile: Some(profile),
            text_bytes: 1 << 20,
            cache_memory: self.cache_memory,
            ranks: 1,
        };
        Plan::new(&*decoder, &recipe, &setting).unwrap()
    }
}

#[test]
fn masks_are_counted() {
    #[track_caller]
    fn check(family: &'static str, seqlen: usize, heads: u64) {
        let (scheme, compute, machine, method) = ("w4a16", Compute::F32, "a100-40g", Method::Omniquant);
        let plan =
            Case { family, layers: 1, scheme, samples: 1, seqlen, compute, machine, method, cache_memory: None }.plan();
        // Target and input in f32, plus the mask.
        let states = 2 * 4 * 256 * seqlen as u64;
        assert_eq!(plan.memory.device.unwrap().cache_bytes - states, 4 * heads * (seqlen as u64).pow(2));
    }
    check("falcon", 2048, 0);
    check("falcon-rw", 2048, 4);
    // A window of 1024 positions.
    check("mistral", 1024, 0);
    check("mistral", 2048, 1);
}

fn check_grows(less: &Case, more: &Case) -> Result<(), TestCaseError> {
    let (less, more) = (less.plan(), more.plan());
    let bytes = |plan: &Plan| {
        [plan.memory.host.total(), plan.memory.device.map_or(0, |parts| parts.total()), plan.output_bytes]
    };
    for (a, b) in bytes(&less).into_iter().zip(bytes(&more)) {
        prop_assert!(a <= b, "{:?}, then {:?}", less.memory, more.memory);
    }
    let secs = |plan: &Plan| plan.time.as_ref().unwrap().total_secs;
    prop_assert!(secs(&less) > 0.0 && secs(&less) <= secs(&more), "{:?}, then {:?}", less.time, more.time);
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn more_work_takes_more(case in cases(), samples in 0usize..100, seqlen in 0usize..3000, layers in 0usize..20) {
        check_grows(&case, &Case { samples: case.samples + samples, ..case.clone() })?;
        check_grows(&case, &Case { seqlen: case.seqlen + seqlen, ..case.clone() })?;
        check_grows(&case, &Case { layers: case.layers + layers, ..case.clone() })?;
    }

    #[test]
    fn what_is_said_to_fit_does(case in cases()) {
        // With a thousand times as much text.
        let case = Case { samples: 1000 * case.samples, ..case };
        let plan = case.plan();
        prop_assert_eq!(plan.fits(), plan.problems.is_empty());
        for suggestion in &plan.suggestions {
            let number = |option: &str| {
                let words: Vec<&str> = suggestion.options.split(' ').collect();
                let value = words.iter().position(|word| *word == option).map(|at| words[at + 1]);
                value.map(|value| value.trim_end_matches("MiB").parse::<usize>().unwrap())
            };
            let samples = number("--samples").unwrap_or(case.samples);
            let seqlen = number("--seqlen").unwrap_or(case.seqlen);
            let compute = if suggestion.options.contains("bf16") { Compute::Bf16 } else { case.compute };
            let cache_memory = number("--cache-memory").map(|mib| (mib as u64) << 20);
            let mended = Case { samples, seqlen, compute, cache_memory, ..case.clone() }.plan();
            prop_assert!(mended.fits(), "{}: {:?}", suggestion, mended.problems);
            prop_assert_eq!(mended.memory.device.unwrap_or(mended.memory.host).total(), suggestion.bytes);
        }
    }
}
