//! What the programs are given: models rounded to nearest by every scheme, our logits of each, and its exports in every format.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, Result, bail};

use crate::{locate, program};

/// Exit code of the program for what cannot be: a scheme that a format does not hold, for one.
const USAGE: i32 = 2;

/// A model, and the schemes that it is quantized by.
pub struct Model {
    pub name: &'static str,
    pub schemes: Vec<String>,
}

/// The models: one by every scheme, and others by some.
pub fn models(has_smollm2: bool) -> Vec<Model> {
    let some = ["w4a16g64", "w4a16g32sym", "w3a16g64", "w2a16g32", "w8a16sym", "w4a16"].map(str::to_owned).to_vec();
    let legacy = ["q4_0", "q4_1", "q5_0", "q5_1", "q8_0"].map(str::to_owned);
    let mut models = vec![
        Model { name: "tiny-llama-256", schemes: every_scheme() },
        Model { name: "tiny-llama", schemes: [&some[..], &legacy].concat() },
        Model { name: "tiny-falcon", schemes: some.clone() },
        Model { name: "tiny-opt", schemes: some.clone() },
    ];
    if has_smollm2 {
        models.push(Model { name: "smollm2-135m", schemes: some });
    }
    models
}

/// Widths, groups and symmetry, and the types of GGUF.
fn every_scheme() -> Vec<String> {
    let mut schemes = Vec::new();
    for bits in [2, 3, 4, 8] {
        for group in ["g32", "g64", "g128", ""] {
            schemes.extend(["", "sym"].map(|symmetry| format!("w{bits}a16{group}{symmetry}")));
        }
    }
    let others = ["w2a16g64full", "w4a16g64full", "w8a8sym", "w8a8-int8"];
    let types = ["q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "mxfp4", "nvfp4", "q6_k"];
    let mixtures = ["q2_k_s", "q2_k", "q3_k_s", "q3_k_m", "q4_k_s", "q4_k_m", "q5_k_s", "q5_k_m"];
    schemes.extend(others.into_iter().chain(types).chain(mixtures).map(str::to_owned));
    schemes
}

/// A model quantized by one scheme.
pub struct Packed {
    pub folder: PathBuf,
    /// Our logits.
    pub logits: PathBuf,
}

/// What became of a step: its files, or what the program said.
pub enum Made<T> {
    Ready(T),
    /// It cannot be, as the message says.
    Refused(String),
    Failed(String),
}

/// Rounds `model` to nearest, and computes logits in f32 with the packed model. Both are written into a folder of its own in `dir`.
pub fn packed(model: &str, scheme: &str, ids: &Path, dir: &Path) -> Result<Made<Packed>> {
    let folder = dir.join("packed").join(format!("{model}-{scheme}"));
    let logits = folder.with_extension("logits.safetensors");
    remove(&folder)?;
    let made = run(&["quantize", model, "--scheme", scheme, "--method", "rtn", "--quiet", "--out", text(&folder)])?;
    let made = match made {
        Made::Ready(()) => run(&["logits", text(&folder), "--ids", text(ids), "--out", text(&logits)])?,
        other => other,
    };
    Ok(made.map(|()| Packed { folder, logits }))
}

/// Exports a packed model in a format, into a folder of `dir`. Gives what a program is to open.
pub fn export(packed: &Packed, format: &str, dir: &Path) -> Result<Made<PathBuf>> {
    let name = packed.folder.file_name().context("packed models have names")?.to_string_lossy();
    let out = dir.join("exports").join(format!("{name}-{format}"));
    remove(&out)?;
    let made = run(&["export", text(&packed.folder), "--to", format, "--out", text(&out)])?;
    Ok(made.map(|()| gguf_in(&out).unwrap_or(out)))
}

/// Whether a scheme gives tensors different types in llama.cpp's files, the embedding and the head among them.
pub fn is_mixture(scheme: &str) -> bool {
    scheme.contains("_k")
}

/// Our logits of what a GGUF file holds, which is written beside it as a directory. The packed model has another embedding and head.
pub fn logits_of_gguf(file: &Path, ids: &Path) -> Result<Made<PathBuf>> {
    let (folder, logits) = (file.with_extension("converted"), file.with_extension("logits.safetensors"));
    remove(&folder)?;
    let made = match run(&["convert", text(file), "--out", text(&folder)])? {
        Made::Ready(()) => run(&["logits", text(&folder), "--ids", text(ids), "--out", text(&logits)])?,
        other => other,
    };
    Ok(made.map(|()| logits))
}

/// Token ids: those of a text, from the golden file of a fixture, or 64 of any, written into `dir`.
pub fn ids(model: &str, dir: &Path) -> Result<PathBuf> {
    const N: usize = 64;
    let golden = locate::repository().join("tests/fixtures").join(model).join("golden.safetensors");
    if golden.is_file() {
        return Ok(golden);
    }
    let path = dir.join("ids.safetensors");
    let header = format!(r#"{{"input_ids":{{"dtype":"I64","shape":[1,{N}],"data_offsets":[0,{}]}}}}"#, 8 * N);
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.extend((0..N as u64).flat_map(|i| ((i * i * 31 + i / 7) % 1021 + 3).to_le_bytes()));
    fs::write(&path, bytes).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(path)
}

impl<T> Made<T> {
    /// The same of other files.
    pub fn map<U>(self, f: impl FnOnce(T) -> U) -> Made<U> {
        match self {
            Self::Ready(value) => Made::Ready(f(value)),
            Self::Refused(said) => Made::Refused(said),
            Self::Failed(said) => Made::Failed(said),
        }
    }
}

/// Runs the program, and keeps its last line where it fails.
fn run(args: &[&str]) -> Result<Made<()>> {
    Ok(output(args)?.map(drop))
}

/// What the program prints, which must not fail.
pub fn printed(args: &[&str]) -> Result<String> {
    match output(args)? {
        Made::Ready(printed) => Ok(printed),
        Made::Refused(said) | Made::Failed(said) => bail!("omniquant {}: {said}", args.join(" ")),
    }
}

fn output(args: &[&str]) -> Result<Made<String>> {
    let args: Vec<String> = args.iter().map(|&arg| arg.to_owned()).collect();
    let mut program = program::command(&args);
    let output = program.stdin(Stdio::null()).output().context("cannot start cargo")?;
    if output.status.success() {
        return Ok(Made::Ready(String::from_utf8(output.stdout).context("its output is UTF-8")?));
    }
    let stderr = String::from_utf8_lossy(&output.stderr);
    let said = stderr.lines().find(|line| line.starts_with("error")).or(stderr.lines().last()).unwrap_or_default();
    let said = said.trim_start_matches("error: ").to_owned();
    Ok(if output.status.code() == Some(USAGE) { Made::Refused(said) } else { Made::Failed(said) })
}

/// Removes a folder of an earlier run.
fn remove(folder: &Path) -> Result<()> {
    if !folder.exists() {
        return Ok(());
    }
    fs::remove_dir_all(folder).with_context(|| format!("cannot remove {}", folder.display()))
}

/// The GGUF file in a folder, if there is one: programs open the file.
fn gguf_in(folder: &Path) -> Option<PathBuf> {
    let paths = fs::read_dir(folder).ok()?.filter_map(|entry| Some(entry.ok()?.path()));
    paths.into_iter().find(|path| path.extension().is_some_and(|extension| extension == "gguf"))
}

fn text(path: &Path) -> &str {
    path.to_str().expect("folders that we name are UTF-8")
}
