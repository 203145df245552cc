//! Perplexities of SmolLM2 in vLLM, beside ours of the same packed models in the same windows.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::exports::{self, Made, Packed};
use super::programs::{self, Program};

const MODEL: &str = "smollm2-135m";
const SCRIPT: &str = "perplexity_in_vllm.py";
/// What is compared: schemes, and formats that hold them.
const FILES: [(&str, &[&str]); 3] = [
    ("w4a16g64sym", &["dense", "compressed-tensors", "gptq"]),
    ("w4a16g64", &["awq"]),
    ("w8a8-int8", &["compressed-tensors"]),
];
const SEQLEN: usize = 512;
const WINDOWS: usize = 8;
/// How far two perplexities may be apart, over ours: vLLM computes in f16.
const BAR: f64 = 1e-3;

/// A model in vLLM.
pub struct Compared {
    scheme: &'static str,
    format: &'static str,
    ours: f64,
    theirs: Theirs,
}

/// vLLM's side.
enum Theirs {
    /// Its perplexity, and the class that multiplies.
    Perplexity(f64, String),
    Failed(String),
}

/// The text: WikiText-2's test split, where `OMNIQUANT_DATA` has it.
pub fn text(var: impl Fn(&str) -> Option<std::ffi::OsString>) -> Option<PathBuf> {
    let path = PathBuf::from(var("OMNIQUANT_DATA")?).join("wikitext2/wiki.test.raw");
    path.is_file().then_some(path)
}

/// Measures all of [`FILES`] on the file `text`.
pub fn compare(vllm: &Program, text: &Path, dir: &Path, environments: &Path) -> Result<Vec<Compared>> {
    let ids = exports::ids(MODEL, dir)?;
    let (mut ours, mut jobs) = (Vec::new(), Vec::new());
    for (scheme, formats) in FILES {
        eprintln!("{MODEL} {scheme} {}", formats.join(", "));
        let packed = ready(exports::packed(MODEL, scheme, &ids, dir)?)?;
        let measured = measured(&packed, text)?;
        // All at once: an export takes the place of an earlier one.
        for (format, exported) in formats.iter().zip(exports::export(&packed, formats, dir)?) {
            ours.push((scheme, *format, measured));
            jobs.push(json!({ "path": ready(exported)?, "text": text, "seqlen": SEQLEN, "windows": WINDOWS }));
        }
    }
    let answers = programs::run_script(vllm, SCRIPT, environments, &jobs, answer, Err)?;
    let rows = ours.into_iter().zip(answers);
    let row = |((scheme, format, (ours, tokens)), answer): (_, Result<Answer, String>)| {
        let theirs = match answer {
            Ok(Answer { tokens: theirs, .. }) if theirs != tokens => {
                Theirs::Failed(format!("its tokenizer makes {theirs} tokens of the text, and ours {tokens}"))
            }
            Ok(Answer { perplexity, kernel, .. }) => Theirs::Perplexity(perplexity, kernel),
            Err(said) => Theirs::Failed(said),
        };
        Compared { scheme, format, ours, theirs }
    };
    Ok(rows.map(row).collect())
}

/// Our perplexity, and the number of tokens of the text.
fn measured(packed: &Packed, text: &Path) -> Result<(f64, u64)> {
    let (seqlen, windows) = (SEQLEN.to_string(), WINDOWS.to_string());
    let [folder, text] = [&*packed.folder, text].map(|path| path.to_str().context("paths are UTF-8"));
    let args = ["eval", folder?, "--data", text?, "--seqlen", &seqlen, "--windows", &windows, "--quiet", "--json"];
    let said: Value = serde_json::from_str(&exports::printed(&args)?)?;
    let perplexity = said["perplexity"].as_f64().context("eval gives a perplexity")?;
    Ok((perplexity, said["tokens"].as_u64().context("eval gives a number of tokens")?))
}

/// What there must be: these formats hold these schemes.
fn ready<T>(made: Made<T>) -> Result<T> {
    match made {
        Made::Ready(value) => Ok(value),
        Made::Refused(said) | Made::Failed(said) => anyhow::bail!(said),
    }
}

/// A line of the script's output.
struct Answer {
    perplexity: f64,
    tokens: u64,
    kernel: String,
}

fn answer(line: &str) -> Option<Result<Answer, String>> {
    let line: Value = serde_json::from_str(line).ok()?;
    if let Some(said) = line["failed"].as_str() {
        return Some(Err(said.to_owned()));
    }
    let kernel = line["path"].as_str()?.to_owned();
    Some(Ok(Answer { perplexity: line["perplexity"].as_f64()?, tokens: line["tokens"].as_u64()?, kernel }))
}

impl Compared {
    /// Whether vLLM has our perplexity.
    pub fn is_equal(&self) -> bool {
        match self.theirs {
            Theirs::Perplexity(theirs, _) => (theirs / self.ours - 1.0).abs() <= BAR,
            Theirs::Failed(_) => false,
        }
    }
}

/// The section of the record.
pub fn markdown(rows: &[Compared], vllm: &Program) -> String {
    let mut text = format!(
        "\n## Perplexity of SmolLM2-135M in {}\n\n\
         The first {WINDOWS} windows of {SEQLEN} tokens of WikiText-2 test, rounded to nearest, `omniquant eval` in f32 beside vLLM's \
         `prompt_logprobs`.\nIn bold: apart by more than {:.1} %.\n\n\
         | scheme | format | omniquant | vLLM | apart | multiplied by |\n|---|---|---|---|---|---|\n",
        vllm.about,
        100.0 * BAR
    );
    for row in rows {
        let Compared { scheme, format, ours, theirs } = row;
        let shown = match theirs {
            Theirs::Failed(said) => format!("{said} | | "),
            Theirs::Perplexity(theirs, kernel) => {
                let apart = format!("{:+.3} %", 100.0 * (theirs / ours - 1.0));
                let apart = if row.is_equal() { apart } else { format!("**{apart}**") };
                format!("{theirs:.4} | {apart} | {kernel}")
            }
        };
        writeln!(text, "| {scheme} | {format} | {ours:.4} | {shown} |").expect("a String can be written");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::locate;

    #[test]
    fn perplexities_are_compared_relative_to_ours() {
        let row = |theirs| Compared { scheme: "w4a16", format: "awq", ours: 20.0, theirs };
        let rows = [
            row(Theirs::Perplexity(20.01, "Kernel".to_owned())),
            row(Theirs::Perplexity(20.1, "Kernel".to_owned())),
            row(Theirs::Failed("no kernel".to_owned())),
        ];
        assert_eq!(rows.each_ref().map(Compared::is_equal), [true, false, false]);
        let vllm = programs::PROGRAMS.iter().find(|program| program.name == "vllm").expect("it is there");
        let text = markdown(&rows, vllm);
        for line in ["20.0100 | +0.050 % | Kernel |", "20.1000 | **+0.500 %** | Kernel |", "20.0000 | no kernel | |  |"]
        {
            assert!(text.contains(&format!("{line}\n")), "{line}\n{text}");
        }
    }

    #[test]
    fn lines_are_read() {
        let line = r#"{"seconds": 1.5, "perplexity": 20.5, "tokens": 7, "path": "Kernel"}"#;
        let Some(Ok(Answer { perplexity, tokens, kernel })) = answer(line) else { panic!("{line}") };
        assert_eq!((perplexity, tokens, &*kernel), (20.5, 7, "Kernel"));
        assert!(matches!(answer(r#"{"seconds": 1.5, "failed": "no"}"#), Some(Err(said)) if said == "no"));
        assert!(answer("Loading weights").is_none());
    }

    #[test]
    fn the_text_is_where_the_data_are() {
        assert_eq!(text(|_| None), None);
        assert_eq!(text(|_| Some("/nowhere".into())), None);
        assert!(locate::repository().join("xtask/clients").join(SCRIPT).is_file());
    }
}
