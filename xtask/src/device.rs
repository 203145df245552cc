//! `cargo xtask device`: runs all that a GPU does for this program, once, and says in a table how far it is from what is planned.

use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use clap::Args;
use serde_json::{Value, json};

use crate::pins::TORCH;
use crate::{libtorch, locate, process, program};

/// The runs that are timed: a block of the model, weights of 4 bits in groups of 128.
const SCHEME: &str = "w4a16g128";
/// Segments of a run, of which each is a step.
const SAMPLES: usize = 4;

/// Of a prepared folder: the tests of a device, and what they and the runs read.
const TESTS: &str = "bin/cuda";
const READ: [&str; 4] = ["tiny-llama", "tiny-opt", "tiny-falcon", "calib.txt"];
/// What a prepared folder is run by.
const RUN: &str = include_str!("../python/run.sh");

/// Arguments of `cargo xtask device`.
#[derive(Args)]
pub struct DeviceArgs {
    /// The device: cuda:N, or cpu to try the command out.
    #[arg(long, default_value = "cuda:0")]
    device: String,
    /// Name in configs/ of the model whose shape is measured.
    #[arg(long, default_value = "llama2-7b")]
    model: String,
    /// Tokens of a segment.
    #[arg(long, default_value_t = 2048)]
    seqlen: usize,
    /// Where the table goes, and the models made for it meanwhile.
    #[arg(long, default_value = "out/device")]
    out: PathBuf,
    /// Instead make a folder with all that is needed, to run on another machine: by its run.sh, which needs Python and no Rust.
    #[arg(long, value_name = "DIR", conflicts_with_all = ["device", "model", "seqlen", "out"])]
    prepare: Option<PathBuf>,
}

/// A line of the table.
struct Row {
    what: String,
    found: String,
}

/// Runs the checks one after the other. One that fails becomes a line of the table.
pub fn run(args: &DeviceArgs) -> Result<()> {
    if let Some(folder) = &args.prepare {
        return prepare(&locate::repository().join(folder));
    }
    if args.device.starts_with("cuda") && locate::prepared().is_none() {
        libtorch::setup(&libtorch::SetupArgs { cuda: true, force: false })?;
    }
    program::build()?;
    let out = locate::repository().join(&args.out);
    fs::create_dir_all(&out).with_context(|| format!("cannot make {}", out.display()))?;
    let checks: [(&str, Check); 7] = [
        ("machine", machine),
        ("cards", cards),
        ("tests", tests),
        ("profile", profile),
        ("a block", blocks),
        ("tuning", tuning),
        ("prefill and decode", speed),
    ];
    let (mut rows, mut failed) = (Vec::new(), 0);
    let mut checked = Checked { args, out: &out, said: json!({}) };
    for (name, check) in checks {
        eprintln!("== {name}");
        let start = Instant::now();
        match check(&mut checked) {
            Ok(found) => rows.extend(found),
            Err(error) => {
                failed += 1;
                rows.push(Row { what: name.to_owned(), found: format!("failed: {error:#}") });
            }
        }
        eprintln!("== {name}: {}", process::took(start.elapsed()));
    }
    let table = table(args, &rows);
    let path = out.join("device.md");
    fs::write(&path, &table)?;
    fs::write(out.join("device.json"), format!("{:#}\n", checked.said))?;
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(table.as_bytes()).context("cannot write to stdout")?;
    eprintln!("table: {}, all numbers: {}", path.display(), out.join("device.json").display());
    ensure!(failed == 0, "{failed} of {} parts failed", checks.len());
    Ok(())
}

/// Makes a folder that runs all of this on another machine, with the torch that its `run.sh` finds or installs there.
fn prepare(folder: &Path) -> Result<()> {
    program::build()?;
    let mut cargo = locate::cargo();
    cargo.args([
        "test",
        "--release",
        "--package",
        "oq-tests",
        "--test",
        "cuda",
        "--no-run",
        "--message-format",
        "json",
    ]);
    eprintln!("+ {}", process::shown(&cargo));
    let built = cargo.current_dir(locate::repository()).stderr(Stdio::inherit()).output()?;
    process::ended(process::shown(&cargo), built.status)?;
    let messages = String::from_utf8_lossy(&built.stdout).into_owned();
    let mut messages = messages.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let is_tests = |message: &Value| message["target"]["name"] == "cuda" && message["executable"].is_string();
    let tests = messages.rfind(is_tests).context("cargo names no program of the tests")?;
    let xtask = std::env::current_exe()?;
    let programs = [
        (xtask.with_file_name("omniquant"), "bin/omniquant"),
        (PathBuf::from(tests["executable"].as_str().unwrap_or_default()), TESTS),
        (xtask, "bin/xtask"),
    ];
    let fixtures = folder.join("tests/fixtures");
    for made in [&folder.join("bin"), &fixtures] {
        fs::create_dir_all(made).with_context(|| format!("cannot make {}", made.display()))?;
    }
    for (from, to) in &programs {
        fs::copy(from, folder.join(to)).with_context(|| format!("cannot copy {}", from.display()))?;
    }
    for name in READ {
        copy(&locate::repository().join("tests/fixtures").join(name), &fixtures.join(name))?;
    }
    let run = folder.join("run.sh");
    fs::write(&run, RUN.replace("@TORCH@", TORCH).replace("@PREPARED@", locate::PREPARED))?;
    #[cfg(unix)]
    fs::set_permissions(&run, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    eprintln!("device: copy {} to the other machine, and start its run.sh there", folder.display());
    Ok(())
}

/// Copies a file, or a folder with all that is in it.
fn copy(from: &Path, to: &Path) -> Result<()> {
    let context = || format!("cannot copy {}", from.display());
    if !from.is_dir() {
        fs::copy(from, to).with_context(context)?;
        return Ok(());
    }
    fs::create_dir_all(to).with_context(context)?;
    for entry in fs::read_dir(from).with_context(context)? {
        let entry = entry?;
        copy(&entry.path(), &to.join(entry.file_name()))?;
    }
    Ok(())
}

type Check = fn(&mut Checked<'_>) -> Result<Vec<Row>>;

/// What the checks share.
struct Checked<'a> {
    args: &'a DeviceArgs,
    out: &'a Path,
    /// All that the program said, by part.
    said: Value,
}

impl Checked<'_> {
    /// What the program prints as JSON, which is kept under this name.
    fn ask(&mut self, name: &str, args: &[&str]) -> Result<Value> {
        let args: Vec<String> = args.iter().map(|&arg| arg.to_owned()).chain(["--json".to_owned()]).collect();
        let mut command = program::command(&args);
        eprintln!("+ omniquant {}", args.join(" "));
        let output = command.stderr(Stdio::inherit()).output().context("cannot start the program")?;
        process::ended(format!("omniquant {}", args.join(" ")), output.status)?;
        let said: Value = serde_json::from_slice(&output.stdout).context("the program prints JSON")?;
        self.said[name] = said.clone();
        Ok(said)
    }

    /// A model with one block, made once.
    fn model(&self) -> Result<String> {
        let folder = self.out.join(format!("{}-1l", self.args.model));
        if !folder.join("config.json").exists() {
            let words = ["synth", &self.args.model, "--layers", "1", "--out", text(&folder)?];
            program::run(&words.map(str::to_owned), true)?;
        }
        Ok(text(&folder)?.to_owned())
    }

    /// A run over the one block, and what it says.
    fn quantized(&mut self, name: &str, epochs: usize, tune_epochs: usize, more: &[&str]) -> Result<Value> {
        let (model, out) = (self.model()?, self.out.join(name));
        let (samples, seqlen) = (SAMPLES.to_string(), self.args.seqlen.to_string());
        let (epochs, tune_epochs) = (epochs.to_string(), tune_epochs.to_string());
        let calib = locate::repository().join("tests/fixtures/calib.txt");
        let device = self.args.device.clone();
        let words = ["quantize", &model, "--scheme", SCHEME, "--calib", text(&calib)?, "--samples", &samples];
        let lengths = ["--seqlen", &seqlen, "--epochs", &epochs, "--tune-epochs", &tune_epochs, "--device", &device];
        let last = ["--out", text(&out)?, "--force", "--quiet"];
        self.ask(name, &[&words[..], &lengths, &last, more].concat())
    }
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().context("paths are UTF-8")
}

fn row(what: &str, found: String) -> Row {
    Row { what: what.to_owned(), found }
}

fn number(said: &Value, pointer: &str) -> Result<f64> {
    said.pointer(pointer).and_then(Value::as_f64).with_context(|| format!("the program says no {pointer}"))
}

fn machine(checked: &mut Checked<'_>) -> Result<Vec<Row>> {
    let said = checked.ask("doctor", &["doctor"])?;
    let of = |key: &str| said[key].to_string().trim_matches('"').to_owned();
    Ok(vec![row("omniquant, libtorch", format!("{}, {}", of("omniquant"), of("libtorch"))), {
        let devices =
            format!("{} CUDA devices, {} threads, kernel {}", of("cuda_devices"), of("threads"), of("kernel"));
        row("devices", devices)
    }])
}

fn cards(checked: &mut Checked<'_>) -> Result<Vec<Row>> {
    let query = ["--query-gpu=name,driver_version,compute_cap,memory.total,memory.free", "--format=csv,noheader"];
    let Ok(output) = Command::new("nvidia-smi").args(query).output() else {
        ensure!(!checked.args.device.starts_with("cuda"), "nvidia-smi cannot be started");
        return Ok(Vec::new());
    };
    let listed = String::from_utf8_lossy(&output.stdout).into_owned();
    checked.said["nvidia-smi"] = json!(listed);
    Ok(listed.lines().map(|line| row("card, driver, capability, memory, free", line.to_owned())).collect())
}

/// The tests of `tests/tests/cuda.rs`, which compare a device with the CPU.
fn tests(checked: &mut Checked<'_>) -> Result<Vec<Row>> {
    let mut command = match locate::prepared() {
        Some(folder) => Command::new(folder.join(TESTS)),
        None => {
            let mut cargo = locate::cargo();
            cargo.args(["test", "--release", "--package", "oq-tests", "--test", "cuda", "--no-fail-fast"]);
            cargo
        }
    };
    let output = command.current_dir(locate::repository()).output()?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    checked.said["tests"] = json!(said);
    let result = said.lines().find_map(|line| line.strip_prefix("test result: ")).unwrap_or("they do not compile");
    ensure!(output.status.success(), "{result}");
    let result = result.split(';').next().unwrap_or(result);
    Ok(vec![row("tests against the CPU (tests/tests/cuda.rs)", result.to_owned())])
}

/// The machine's profile, which plans count with.
fn profile(checked: &mut Checked<'_>) -> Result<Vec<Row>> {
    let (samples, seqlen, device) = (SAMPLES.to_string(), checked.args.seqlen.to_string(), checked.args.device.clone());
    let model = checked.model()?;
    let words = ["plan", &model, "--scheme", SCHEME, "--samples", &samples, "--seqlen", &seqlen, "--epochs", "1"];
    let out = text(checked.out)?.to_owned();
    let said = checked.ask(
        "plan",
        &[&words[..], &["--tune-epochs", "1", "--measure", "--device", &device, "--out", &out]].concat(),
    )?;
    let of = |key: &str| number(&said, &format!("/profile/{key}"));
    Ok(vec![
        row("products, f32 and bf16", format!("{:.0} and {:.0} GFLOP/s", of("f32_gflops")?, of("bf16_gflops")?)),
        row("memory, disk", format!("{:.0} and {:.1} GB/s", of("memory_gb_per_s")?, of("disk_gb_per_s")?)),
    ])
}

/// Time of a step, and memory, beside the plan.
fn blocks(checked: &mut Checked<'_>) -> Result<Vec<Row>> {
    let (one, three) = (checked.quantized("one-epoch", 1, 0, &[])?, checked.quantized("three-epochs", 3, 0, &[])?);
    let block = |said: &Value| number(said, "/run/blocks/0/wall_secs");
    let step_of = |one: &Value, three: &Value| Ok((block(three)? - block(one)?) / (2 * SAMPLES) as f64);
    let step: f64 = step_of(&one, &three)?;
    let plan = checked.said["plan"].clone();
    let planned = number(&plan, "/plan/time/step_secs")?;
    let peak = number(&three, "/run/peak_bytes")? / f64::from(1 << 30);
    let part = |name: &str| number(&plan, &format!("/plan/time/step/{name}_secs"));
    let parts = ["products", "attention", "activations", "weights", "overhead"]
        .map(|name| Ok(format!("{name} {:.4}", part(name)?)));
    let parts = parts.into_iter().collect::<Result<Vec<String>>>()?.join(", ");
    let mut rows = vec![
        row(
            &format!("a learning step, {} tokens", checked.args.seqlen),
            format!("{step:.4} s, planned {planned:.4} s"),
        ),
        row("of the plan, in seconds", parts),
        row("a block with one epoch", format!("{:.1} s", block(&one)?)),
        row("peak memory of the host", format!("{peak:.2} GiB")),
    ];
    if checked.args.device.starts_with("cuda") {
        let ours = ["--kernels", "cuda"];
        let one = checked.quantized("one-epoch-kernels", 1, 0, &ours)?;
        let three = checked.quantized("three-epochs-kernels", 3, 0, &ours)?;
        let step: Result<f64> = step_of(&one, &three);
        rows.push(row("the same step with --kernels cuda", format!("{:.4} s", step?)));
    }
    Ok(rows)
}

fn tuning(checked: &mut Checked<'_>) -> Result<Vec<Row>> {
    let tuned = checked.quantized("tuned", 1, 1, &[])?;
    let wall = number(&tuned, "/run/wall_secs")?;
    let before = number(&checked.said, "/one-epoch/run/wall_secs").context("the block was not learned before")?;
    let step = (wall - before) / SAMPLES as f64;
    let planned = number(&checked.said, "/plan/plan/time/tuning_secs")? / SAMPLES as f64;
    Ok(vec![row(
        "a tuning step over one block, with its share of the rest",
        format!("{step:.3} s, planned {planned:.3} s"),
    )])
}

fn speed(checked: &mut Checked<'_>) -> Result<Vec<Row>> {
    let (model, device) = (text(&checked.out.join("one-epoch"))?.to_owned(), checked.args.device.clone());
    // Within the positions of any model.
    let prompt = checked.args.seqlen.min(512).to_string();
    let words = ["bench", &model, "--prompt-tokens", &prompt, "--tokens", "32", "--device", &device, "--quiet"];
    let kernels: &[&str] = if device.starts_with("cuda") { &["auto", "cuda"] } else { &["auto"] };
    let mut rows = Vec::new();
    for kernels in kernels {
        let said = checked.ask(&format!("bench-{kernels}"), &[&words[..], &["--kernels", kernels]].concat())?;
        let (prefill, decode) = (number(&said, "/prefill_tokens_per_s")?, number(&said, "/decode_tokens_per_s")?);
        rows.push(row(
            &format!("one block and the head, --kernels {kernels}"),
            format!("prefill {prefill:.0} and decode {decode:.1} tokens/s"),
        ));
    }
    Ok(rows)
}

/// The table in Markdown.
fn table(args: &DeviceArgs, rows: &[Row]) -> String {
    let DeviceArgs { device, model, seqlen, .. } = args;
    let mut table = format!(
        "`cargo xtask device --device {device} --model {model} --seqlen {seqlen}`, {SCHEME}\n\n| | |\n|---|---|\n"
    );
    for Row { what, found } in rows {
        let cell = |text: &str| text.replace('|', "\\|").replace('\n', " ");
        let _ = writeln!(table, "| {} | {} |", cell(what), cell(found));
    }
    table
}

#[cfg(test)]
mod tests_of_the_table {
    use super::*;

    #[test]
    fn a_failure_is_a_line() {
        let args = DeviceArgs { device: "cpu".into(), model: "m".into(), seqlen: 8, out: "out".into(), prepare: None };
        let rows = [row("tests", "ok".into()), row("tuning", "failed: a | b\nc".into())];
        let table = table(&args, &rows);
        assert!(table.ends_with("| tests | ok |\n| tuning | failed: a \\| b c |\n"), "{table}");
    }

    #[test]
    fn what_is_not_said_is_an_error() {
        assert!(number(&json!({ "a": { "b": 2 } }), "/a/b").is_ok_and(|b| b == 2.0));
        assert_eq!(number(&json!({}), "/a/b").unwrap_err().to_string(), "the program says no /a/b");
    }
}
