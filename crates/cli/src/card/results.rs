//! Measurements in a card: a table between two marks, which can be extended later. Everything outside the marks is left alone.

use std::fs;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Context;
use oq_eval::{Divergence, Perplexity};
use oq_formats::atomic_write;
use oq_recipe::{EVALUATIONS, RUN_FOLDER};
use serde_json::Value;

use super::markdown::{code, plain, table};
use crate::exit::CliError;
use crate::last_part::last_part;

/// The card's file.
pub const CARD: &str = "README.md";

const BEGIN: &str = "<!-- measurements by omniquant: begin -->";
const END: &str = "<!-- measurements by omniquant: end -->";

/// What a card calls the model that it is about.
pub const THIS: &str = "this model";

/// A measurement, in Markdown.
#[derive(Clone, Debug, PartialEq)]
pub struct Measured {
    /// Of which model.
    pub model: String,
    /// What was measured, on which text or task.
    pub what: String,
    /// The number.
    pub value: String,
}

impl Measured {
    fn cells(&self) -> [String; 3] {
        [self.model.clone(), self.what.clone(), self.value.clone()]
    }
}

/// Perplexity of a model on windows of a text.
pub fn perplexity(model: &str, data: &str, result: &Perplexity) -> Measured {
    let value = match result.error() {
        Some(error) => format!("{:.4} ± {error:.2}", result.value()),
        None => format!("{:.4}", result.value()),
    };
    Measured { model: plain(model), ..this("perplexity", data, result, "lower", value) }
}

/// Divergence of the model that the card is about from the one named `full`.
pub fn divergence(full: &str, data: &str, compared: &Divergence) -> Measured {
    let value = match compared.mean_error() {
        Some(error) => format!("{:.5} ± {error:.5}", compared.mean()),
        None => format!("{:.5}", compared.mean()),
    };
    this(&format!("divergence (KL) from {}", code(&last_part(full))), data, &compared.quantized, "lower", value)
}

/// How often the model that the card is about and the one named `full` find the same token the likeliest.
pub fn agreement(full: &str, data: &str, compared: &Divergence) -> Measured {
    let value = match compared.agreement_error() {
        Some(error) => format!("{:.2} ± {:.2} %", 100.0 * compared.agreement(), 100.0 * error),
        None => format!("{:.2} %", 100.0 * compared.agreement()),
    };
    this(&format!("same likeliest token as {}", code(&last_part(full))), data, &compared.quantized, "higher", value)
}

/// A measurement on the windows of `result`.
fn this(what: &str, data: &str, result: &Perplexity, better: &str, value: String) -> Measured {
    let windows = windows(result.window_nll.len(), result.seqlen);
    let what = format!("{what} on {}, {windows} ({better} is better)", code(&last_part(data)));
    Measured { model: THIS.to_owned(), what, value }
}

/// `8 windows of 2048 tokens`.
fn windows(windows: usize, seqlen: usize) -> String {
    let windows = if windows == 1 { "1 window".to_owned() } else { format!("{windows} windows") };
    format!("{windows} of {seqlen} tokens")
}

/// A figure of the model that the card is about on a zero-shot task: what it is and which direction is better, the task and the unit.
pub fn task(
    [what, better]: [&str; 2],
    [task, unit]: [&str; 2],
    items: usize,
    value: f64,
    error: Option<f64>,
) -> Measured {
    let error = error.map_or(String::new(), |error| format!(" ± {error:.2}"));
    let what = format!("{what} on {}, {items} items ({better} is better)", code(task));
    Measured { model: THIS.to_owned(), what, value: format!("{value:.2}{error}{unit}") }
}

/// Adds a line to the evaluations in the folder of the run: what was measured, as `--json` prints it, and when.
pub fn record(dir: &Path, measured: &Value) -> anyhow::Result<()> {
    let mut line = measured.clone();
    line["version"] = env!("CARGO_PKG_VERSION").into();
    line["finished_unix"] = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()).into();
    let path = dir.join(EVALUATIONS);
    let context = || format!("cannot write {}", path.display());
    // Someone may have removed what no program needs.
    fs::create_dir_all(dir.join(RUN_FOLDER)).with_context(context)?;
    let written = if path.exists() { fs::read_to_string(&path).with_context(context)? } else { String::new() };
    Ok(atomic_write(&path, format!("{written}{line}\n").as_bytes())?)
}

/// The section of a new card: a table, or `otherwise` if nothing was measured.
pub fn section(measured: &[Measured], otherwise: &str) -> String {
    let content = if measured.is_empty() { otherwise.to_owned() } else { table_of(measured) };
    format!("{BEGIN}\n{content}{END}\n")
}

fn table_of(measured: &[Measured]) -> String {
    table(["model", "measurement", "value"], measured.iter().map(Measured::cells))
}

/// Fails if `dir` has no card with such a section.
pub fn check(dir: &Path) -> Result<(), CliError> {
    read(dir).map(drop)
}

/// Adds measurements to the card in `dir`. They replace earlier ones of the same model and thing.
pub fn add(dir: &Path, measured: &[Measured]) -> anyhow::Result<()> {
    let card = read(dir)?;
    let path = dir.join(CARD);
    Ok(atomic_write(&path, card.with(measured).as_bytes())?)
}

/// A card, divided at the marks.
struct Card {
    before: String,
    section: String,
    after: String,
}

fn read(dir: &Path) -> Result<Card, CliError> {
    let path = dir.join(CARD);
    let text = fs::read_to_string(&path);
    text.ok().and_then(|text| Card::of(&text)).ok_or_else(|| {
        let path = path.display();
        CliError::Usage(format!("{path}: no card with a place for measurements, as `omniquant quantize` writes it"))
    })
}

impl Card {
    fn of(text: &str) -> Option<Self> {
        let (before, rest) = text.split_once(&format!("{BEGIN}\n"))?;
        let (section, after) = rest.split_once(&format!("{END}\n"))?;
        Some(Self { before: before.to_owned(), section: section.to_owned(), after: after.to_owned() })
    }

    fn with(&self, measured: &[Measured]) -> String {
        let start = |row: &Measured| format!("| {} | {} | ", row.model, row.what);
        // The two lines of the head come first.
        let old = self.section.lines().filter(|line| line.starts_with('|')).skip(2);
        let old = old.filter(|line| !measured.iter().any(|row| line.starts_with(&start(row))));
        let old: String = old.map(|line| format!("{line}\n")).collect();
        let head = table_of(&[]);
        let new = &table_of(measured)[head.len()..];
        format!("{}{BEGIN}\n{head}{old}{new}{END}\n{}", self.before, self.after)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured(model: &str, what: &str, value: &str) -> Measured {
        let [model, what, value] = [model, what, value].map(str::to_owned);
        Measured { model, what, value }
    }

    #[test]
    fn measurements_are_added_and_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(CARD);
        let empty = format!("# A\n\n{}\nmine | not theirs\n", section(&[], "Nothing yet.\n"));
        fs::write(&path, &empty).unwrap();
        check(dir.path()).unwrap();
        let rows = |rows: &str| {
            format!(
                "# A\n\n{BEGIN}\n| model | measurement | value |\n|---|---|---|\n{rows}{END}\n\nmine | not theirs\n"
            )
        };
        add(dir.path(), &[measured("full", "wiki", "1"), measured("this", "wiki", "2")]).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), rows("| full | wiki | 1 |\n| this | wiki | 2 |\n"));
        add(dir.path(), &[measured("this", "piqa", "3")]).unwrap();
        add(dir.path(), &[measured("this", "wiki", "4")]).unwrap();
        let expected = rows("| full | wiki | 1 |\n| this | piqa | 3 |\n| this | wiki | 4 |\n");
        assert_eq!(fs::read_to_string(&path).unwrap(), expected);

        for other in ["", "# Mine\n", BEGIN, &format!("{END}\n{BEGIN}\n")] {
            fs::write(&path, other).unwrap();
            assert!(check(dir.path()).is_err() && add(dir.path(), &[]).is_err(), "{other}");
            assert_eq!(fs::read_to_string(&path).unwrap(), other);
        }
    }
}
