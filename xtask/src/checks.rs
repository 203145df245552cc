//! `cargo xtask test | bench | ci`: runs the checks in order, and prints how long each took.

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::{beyond, libtorch, locate, nvrtc, packages, process};

/// Runs the tests of the workspace, or of the packages named in `args`.
pub fn test(args: &[String]) -> Result<()> {
    libtorch::ensure_ready()?;
    let start = Instant::now();
    let mut cargo = locate::cargo();
    // The other test binaries run even if one fails.
    cargo.args(["test", "--release", "--no-fail-fast"]);
    if !names_packages(args) {
        cargo.args(["--workspace", "--exclude", "oq-benches"]);
    }
    cargo.args(args).current_dir(locate::repository());
    if let Some(library) = nvrtc::library()? {
        cargo.env("OMNIQUANT_NVRTC", library);
    }
    let (counts, status) = run_counting(&mut cargo, &mut std::io::stdout().lock())?;
    let Counts { passed, failed, ignored } = counts;
    eprintln!("total: {passed} passed, {failed} failed, {ignored} ignored in {}", process::took(start.elapsed()));
    process::ended(process::shown(&cargo), status)
}

/// Runs the benches.
pub fn bench(args: &[String]) -> Result<()> {
    libtorch::ensure_ready()?;
    process::run(
        locate::cargo().args(["bench", "--package", "oq-benches"]).args(args).current_dir(locate::repository()),
    )
}

type Step = fn() -> Result<()>;

const FUZZ: &str = "fuzz/Cargo.toml";

/// Crates with features, and each choice of these that is compiled beside the default one.
const FEATURES: [(&str, &[&str]); 2] =
    [("oq-formats", &["", "pickle", "sentencepiece", "gguf"]), ("oq-data", &["", "hub", "parquet"])];

/// Compiles crates without what may be left out, and with one of it.
fn features() -> Result<()> {
    for (package, choices) in FEATURES {
        for choice in choices {
            let chosen = ["--no-default-features", "--features", choice];
            let what = ["clippy", "--release", "--package", package, "--lib", "--examples"];
            cargo(&[&what[..], &chosen, &["--", "-D", "warnings"]].concat(), &[])?;
        }
    }
    Ok(())
}

/// Runs every check. Those that need libtorch use the release profile, so that its wrappers are compiled once.
pub fn ci() -> Result<()> {
    let steps: [(&str, Step); 10] = [
        ("libtorch", libtorch::ensure_ready),
        ("fmt", || cargo(&["fmt", "--all", "--check"], &[])),
        ("clippy", || cargo(&["clippy", "--release", "--workspace", "--all-targets", "--", "-D", "warnings"], &[])),
        ("features", features),
        ("package", packages::package),
        ("deny", beyond::deny),
        ("test", || test(&[])),
        // A separate workspace.
        ("fuzz", || {
            cargo(&["fmt", "--manifest-path", FUZZ, "--check"], &[])?;
            cargo(&["build", "--locked", "--manifest-path", FUZZ, "--target-dir", "target"], &[])?;
            // Every seed through its target.
            cargo(&["test", "--locked", "--manifest-path", FUZZ, "--target-dir", "target", "--lib"], &[])
        }),
        ("neon", beyond::neon),
        ("docs", || cargo(&["doc", "--release", "--no-deps", "--workspace"], &[("RUSTDOCFLAGS", "-D warnings")])),
    ];
    let mut times = Vec::new();
    let mut outcome = Ok(());
    for (name, step) in steps {
        eprintln!("== {name}");
        let start = Instant::now();
        outcome = step();
        times.push((name, start.elapsed(), outcome.is_ok()));
        if outcome.is_err() {
            break;
        }
    }
    for (name, time, passed) in &times {
        eprintln!("{name:<10} {:>12}  {}", process::took(*time), if *passed { "ok" } else { "FAILED" });
    }
    let total: Duration = times.iter().map(|(_, time, _)| *time).sum();
    eprintln!("{:<10} {:>12}", "total", process::took(total));
    outcome
}

fn cargo(args: &[&str], env: &[(&str, &str)]) -> Result<()> {
    process::run(locate::cargo().args(args).envs(env.iter().copied()).current_dir(locate::repository()))
}

/// Whether cargo's own arguments (before `--`) select packages.
fn names_packages(args: &[String]) -> bool {
    let own = args.iter().take_while(|word| *word != "--");
    own.into_iter().any(|word| word.starts_with("-p") || word.starts_with("--package") || word == "--workspace")
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Counts {
    passed: u64,
    failed: u64,
    ignored: u64,
}

impl Counts {
    /// Adds a test binary's last line: `test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; ...`.
    fn add(&mut self, line: &str) {
        let Some((_, counts)) = line.strip_prefix("test result: ").and_then(|rest| rest.split_once(". ")) else {
            return;
        };
        for count in counts.split("; ") {
            let Some((number, kind)) = count.split_once(' ') else { continue };
            let Ok(number) = number.parse::<u64>() else { continue };
            match kind {
                "passed" => self.passed += number,
                "failed" => self.failed += number,
                "ignored" => self.ignored += number,
                _ => {}
            }
        }
    }
}

/// Runs `cargo test`, copies its stdout to `ours` line by line, and adds up the counts of its test binaries.
fn run_counting(cargo: &mut Command, ours: &mut impl Write) -> Result<(Counts, ExitStatus)> {
    let shown = process::shown(cargo);
    eprintln!("+ {shown}");
    let mut child = cargo.stdout(Stdio::piped()).spawn().with_context(|| format!("cannot start `{shown}`"))?;
    let mut lines = BufReader::new(child.stdout.take().expect("stdout is piped"));
    let mut counts = Counts::default();
    let mut line = Vec::new();
    while lines.read_until(b'\n', &mut line).with_context(|| format!("cannot read from `{shown}`"))? > 0 {
        ours.write_all(&line).and_then(|()| ours.flush()).context("cannot write to stdout")?;
        counts.add(String::from_utf8_lossy(&line).trim_end());
        line.clear();
    }
    let status = child.wait().with_context(|| format!("cannot wait for `{shown}`"))?;
    Ok((counts, status))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_add_up_over_binaries() {
        let mut counts = Counts::default();
        for line in [
            "running 4 tests",
            "test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s",
            "test tests::result: ok",
            "test result: FAILED. 5 passed; 2 failed; 0 ignored; 0 measured; 7 filtered out; finished in 1.20s",
        ] {
            counts.add(line);
        }
        assert_eq!(counts, Counts { passed: 8, failed: 2, ignored: 1 });
    }

    #[test]
    fn packages_can_be_selected() {
        let check = |line: &str, named: bool| {
            let args: Vec<String> = line.split_whitespace().map(String::from).collect();
            assert_eq!(names_packages(&args), named, "{line}");
        };
        check("", false);
        check("resume", false);
        check("-p oq-lwc", true);
        check("-poq-lwc", true);
        check("--package=oq-lwc resume", true);
        check("resume -- -p", false);
    }

    #[cfg(unix)]
    #[test]
    fn output_is_counted_and_the_status_kept() {
        let script = "echo one; echo 'test result: ok. 2 passed; 0 failed; 0 ignored'; exit 101";
        let mut output = Vec::new();
        let (counts, status) = run_counting(Command::new("sh").args(["-c", script]), &mut output).unwrap();
        assert_eq!(counts, Counts { passed: 2, failed: 0, ignored: 0 });
        assert_eq!(status.code(), Some(101));
        assert_eq!(output, b"one\ntest result: ok. 2 passed; 0 failed; 0 ignored\n");
    }
}
