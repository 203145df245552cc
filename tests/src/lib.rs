//! What the end-to-end tests share: where fixtures lie, how the program is run, and runs through the libraries.

mod family;
mod models;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output};
use std::sync::OnceLock;
use std::thread::sleep;
use std::time::{Duration, Instant};

use oq_data::{AddSpecial, Tokenizer};
use serde_json::Value;
use tempfile::TempDir;

pub use family::{check_family, write_random};
pub use models::{
    F64_BLOCK, block_losses, calibration, check_recorded_losses, checkpoints, f64_block, in_f32, measure, model_files,
};

/// Far above the seconds that a run of the tests takes on an idle machine: whoever waits longer waits for ever.
pub const LIMIT: Duration = Duration::from_secs(120);

/// The repository's root.
pub fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("this package lies in the repository")
}

/// A file or folder of `tests/fixtures`.
pub fn fixture(name: &str) -> PathBuf {
    repository().join("tests/fixtures").join(name)
}

/// A copy of a fixture's folder that may be changed.
pub fn copied(name: &str) -> TempDir {
    let copy = tempfile::tempdir().expect("temporary folders can be made");
    for entry in std::fs::read_dir(fixture(name)).expect("the fixture is there") {
        let path = entry.expect("the fixture is listed").path();
        let bytes = std::fs::read(&path).expect("fixtures are plain files");
        // Not copied as a file: that would copy a read-only mode too.
        std::fs::write(copy.path().join(path.file_name().expect("entries have names")), bytes)
            .expect("it can be written");
    }
    copy
}

/// Token ids of `tests/fixtures/TEXT`, without its final newline, by tiny-llama's tokenizer.
pub fn tokens(text: &str) -> Vec<u32> {
    let text = std::fs::read_to_string(fixture(text)).expect("the text is in the repository");
    let tokenizer = Tokenizer::open(&fixture("tiny-llama")).expect("tiny-llama has a tokenizer");
    tokenizer.encode(text.trim_end_matches('\n'), AddSpecial::Yes).expect("its own text can be tokenized")
}

/// The largest difference over the largest magnitude expected.
#[track_caller]
pub fn relative_error(got: &[f32], expected: &[f32]) -> f64 {
    assert_eq!(got.len(), expected.len());
    let largest = |values: &mut dyn Iterator<Item = f32>| {
        // `f32::max` passes over NaN.
        values.map(|x| if x.is_nan() { f32::INFINITY } else { x.abs() }).fold(0.0, f32::max)
    };
    let difference = largest(&mut got.iter().zip(expected).map(|(a, b)| a - b));
    f64::from(difference) / f64::from(largest(&mut expected.iter().copied()))
}

/// The `omniquant` program, built if it is not, with nothing of the caller's environment that changes what it does.
pub fn omniquant() -> Command {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    let mut command = Command::new(PROGRAM.get_or_init(build));
    for (name, _) in std::env::vars_os() {
        let is_read = ["OMNIQUANT_", "HF_", "RUST_LOG", "NO_COLOR"];
        if is_read.iter().any(|read| name.to_string_lossy().starts_with(read)) {
            command.env_remove(name);
        }
    }
    // A folder that is not there: nothing was fetched or measured.
    command.env("XDG_CACHE_HOME", repository().join("target/no-cache")).current_dir(repository());
    command
}

/// Builds the program in the profile that the tests were built in, and finds it by what cargo says of it.
fn build() -> PathBuf {
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["build", "--package", "oq-cli", "--message-format", "json"]).current_dir(repository());
    if !cfg!(debug_assertions) {
        cargo.arg("--release");
    }
    // What our own cargo told us of this package is taken away: ring is rebuilt whenever these variables change.
    for (name, _) in std::env::vars_os() {
        let own = ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_CRATE_", "OUT_DIR"];
        if own.iter().any(|own| name.to_string_lossy().starts_with(own)) {
            cargo.env_remove(name);
        }
    }
    let output = cargo.output().expect("cargo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let messages = String::from_utf8(output.stdout).expect("cargo writes JSON");
    let built = messages.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let executable = built.filter_map(|message| message["executable"].as_str().map(PathBuf::from)).next_back();
    executable.expect("oq-cli has one program")
}

/// Runs a command to its end; it must exit with `code`. Returns what it printed.
#[track_caller]
pub fn run(command: &mut Command, code: i32) -> Output {
    let output = command.output().expect("the program starts");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{command:?}\n{stderr}");
    assert!(!stderr.contains("panicked"), "{command:?}\n{stderr}");
    output
}

/// Waits until `reached` says so, or for the end of the process.
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

/// Starts a command and waits until it is where it is to be disturbed.
#[track_caller]
pub fn start(command: &mut Command, reached: impl FnMut() -> bool) -> Child {
    let mut child = command.spawn().expect("the program starts");
    let ended = wait(&mut child, reached);
    assert!(ended.is_none(), "{command:?} ended before: {ended:?}");
    child
}

/// Kills a command as soon as it is there.
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
