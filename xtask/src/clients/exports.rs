//! What the programs are given: models rounded to nearest by every scheme, our logits of each, and its exports in every format.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, Result, bail};
use serde_json::Value;

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
    let others = ["w4a16g64full", "w8a8-int8"].map(str::to_owned);
    let legacy = ["q4_0", "q4_1", "q5_0", "q5_1", "q8_0"].map(str::to_owned);
    let mut models = vec![
        Model { name: "tiny-llama-256", schemes: every_scheme() },
        Model { name: "tiny-llama", schemes: [&some[..], &legacy].concat() },
        Model { name: "tiny-qwen3", schemes: [&some[..], &others].concat() },
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

/// Exports a packed model in each format, into folders of `dir`. Gives what a program is to open, in their order.
pub fn export(packed: &Packed, formats: &[&str], dir: &Path) -> Result<Vec<Made<PathBuf>>> {
    let name = packed.folder.file_name().context("packed models have names")?;
    let out = dir.join("exports").join(name);
    remove(&out)?;
    let said: Value = serde_json::from_str(&printed(&["formats", text(&packed.folder), "--json"])?)?;
    let refusal = |format: &&str| {
        let its_own = said["formats"].as_array()?.iter().find(|entry| entry["format"] == **format)?;
        refused(&its_own["refusal"])
    };
    let held: Vec<&str> = formats.iter().filter(|format| refusal(format).is_none()).copied().collect();
    // One format alone would be written into the folder itself.
    let all_at_once = match held.len() {
        0 | 1 => false,
        _ => matches!(run_export(packed, &held.join(","), &out)?, Made::Ready(())),
    };
    let made = |format: &&str| {
        let place = out.join(format);
        Ok(match refusal(format) {
            Some(said) => Made::Refused(said),
            None if all_at_once => Made::Ready(place),
            None => {
                remove(&place)?;
                run_export(packed, format, &place)?.map(|()| place)
            }
        }
        .map(|place| gguf_in(&place).unwrap_or(place)))
    };
    formats.iter().map(made).collect()
}

fn run_export(packed: &Packed, formats: &str, out: &Path) -> Result<Made<()>> {
    run(&["export", text(&packed.folder), "--to", formats, "--out", text(out)])
}

/// What a format does not hold, and what it would.
fn refused(refusal: &Value) -> Option<String> {
    let word = |key: &str| refusal[key].as_str();
    let said = format!("{} cannot hold {}: {}", word("format")?, word("schemes")?, word("why")?);
    Some(word("instead").map_or_else(|| said.clone(), |instead| format!("{said}; {instead} would do")))
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

/// The first tokens of `tests/fixtures/eval.txt` to SmolLM2.
const OF_SMOLLM2: [u64; 32] = [
    6403, 1980, 253, 655, 28, 253, 9723, 8180, 4161, 281, 253, 6740, 30, 1963, 1194, 28, 1041, 761, 253, 4516, 351,
    253, 3953, 16305, 3365, 330, 5484, 30, 1249, 874, 4516, 436,
];

/// Token ids of a text: those of the golden file of a fixture, or SmolLM2's, written into `dir`.
pub fn ids(model: &str, dir: &Path) -> Result<PathBuf> {
    let golden = locate::repository().join("tests/fixtures").join(model).join("golden.safetensors");
    if golden.is_file() {
        return Ok(golden);
    }
    let path = dir.join("ids.safetensors");
    let n = OF_SMOLLM2.len();
    let header = format!(r#"{{"input_ids":{{"dtype":"I64","shape":[1,{n}],"data_offsets":[0,{}]}}}}"#, 8 * n);
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.extend(OF_SMOLLM2.into_iter().flat_map(u64::to_le_bytes));
    fs::write(&path, bytes).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(path)
}

impl<T> Made<T> {
    /// Its files, where there are any.
    pub fn ready(&self) -> Option<&T> {
        match self {
            Self::Ready(value) => Some(value),
            Self::Refused(_) | Self::Failed(_) => None,
        }
    }

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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn refusals_are_read() {
        let refusal =
            |instead: Value| json!({"format": "awq", "schemes": "w2a16", "why": "4 bits only", "instead": instead});
        assert_eq!(refused(&Value::Null), None);
        assert_eq!(refused(&refusal(Value::Null)).as_deref(), Some("awq cannot hold w2a16: 4 bits only"));
        let said = refused(&refusal(json!("w4a16")));
        assert_eq!(said.as_deref(), Some("awq cannot hold w2a16: 4 bits only; w4a16 would do"));
    }
}
