//! Running, interrupting and killing the program.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Output};
use std::sync::OnceLock;
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::fixtures::repository;

/// Time limit of waiting, far above the seconds that a run takes on an idle machine.
pub const LIMIT: Duration = Duration::from_secs(120);

/// A command for the `omniquant` program, which is built if necessary. Environment variables that would change its behaviour are removed.
pub fn omniquant() -> Command {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    let mut command = Command::new(PROGRAM.get_or_init(build));
    for (name, _) in std::env::vars_os() {
        let is_read = ["OMNIQUANT_", "HF_", "RUST_LOG", "NO_COLOR"];
        if is_read.iter().any(|read| name.to_string_lossy().starts_with(read)) {
            command.env_remove(name);
        }
    }
    // A directory that does not exist, so that nothing is in the cache.
    command.env("XDG_CACHE_HOME", repository().join("target/no-cache")).current_dir(repository());
    command
}

/// Builds the program in the tests' profile and finds its path in cargo's messages.
fn build() -> PathBuf {
    built(&["--package", "oq-cli"]).remove("omniquant").expect("oq-cli has one program")
}

/// The programs of all `examples` folders, by their names.
pub fn examples() -> BTreeMap<String, PathBuf> {
    // The packages that `cargo xtask test` builds, so that it has built these as well.
    built(&["--workspace", "--exclude", "oq-benches", "--examples"])
}

/// Builds in the profile that the tests were built in, and gives the programs by their names.
fn built(what: &[&str]) -> BTreeMap<String, PathBuf> {
    let mut cargo = cargo();
    cargo.arg("build").args(what).args(["--message-format", "json"]);
    if !cfg!(debug_assertions) {
        cargo.arg("--release");
    }
    let output = cargo.output().expect("cargo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let messages = String::from_utf8(output.stdout).expect("cargo writes JSON");
    let messages = messages.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let of = |message: Value| {
        Some((message["target"]["name"].as_str()?.to_owned(), PathBuf::from(message["executable"].as_str()?)))
    };
    messages.filter_map(of).collect()
}

/// A cargo as the user would call it, in the repository's root.
pub fn cargo() -> Command {
    let mut cargo = Command::new(env!("CARGO"));
    cargo.current_dir(repository());
    // Without the variables that cargo has set for this package: ring is rebuilt whenever they change.
    for (name, _) in std::env::vars_os() {
        let own = ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_CRATE_", "OUT_DIR"];
        if own.iter().any(|own| name.to_string_lossy().starts_with(own)) {
            cargo.env_remove(name);
        }
    }
    cargo
}

/// Runs a command to its end and checks its exit code. Returns its output.
#[track_caller]
pub fn run(command: &mut Command, code: i32) -> Output {
    let output = command.output().expect("the program starts");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{command:?}\n{stderr}");
    assert!(!stderr.contains("panicked"), "{command:?}\n{stderr}");
    output
}

/// Waits until `reached` returns true or the process exits. Returns the exit status in the second case.
#[track_caller]
pub fn wait(child: &mut Child, mut reached: impl FnMut() -> bool) -> Option<ExitStatus> {
    let started = Instant::now();
    while !reached() {
        if let Some(status) = child.try_wait().expect("a child can be asked") {
            return Some(status);
        }
        assert!(started.elapsed() < LIMIT, "the process neither ends nor gets there");
        sleep(Duration::from_millis(1));
    }
    None
}

/// Starts a command and waits until `reached` returns true; the process must not exit before.
#[track_caller]
pub fn start(command: &mut Command, reached: impl FnMut() -> bool) -> Child {
    let mut child = command.spawn().expect("the program starts");
    let ended = wait(&mut child, reached);
    assert!(ended.is_none(), "{command:?} ended before: {ended:?}");
    child
}

/// Starts a command and kills it once `reached` returns true.
#[track_caller]
pub fn kill(command: &mut Command, reached: impl FnMut() -> bool) {
    let mut child = start(command, reached);
    child.kill().expect("it runs");
    child.wait().expect("it was started here");
}

/// Runs a command that prints one JSON object.
#[track_caller]
pub fn run_json(command: &mut Command) -> Value {
    let output = run(command, 0);
    serde_json::from_slice(&output.stdout).expect("stdout is one JSON object")
}
