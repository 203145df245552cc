//! Measurements in a card: a table between two marks, which can be extended later. Everything outside the marks is left alone.

use std::fs;
use std::path::Path;

use oq_eval::{Divergence, Perplexity};
use oq_formats::atomic_write;
use oq_recipe::{MEASURED, Measurement, Metric, RUN_FOLDER};

use super::markdown::{code, plain, table};
use crate::exit::CliError;
use crate::last_part::last_part;

/// The card's file.
pub const CARD: &str = "README.md";

const BEGIN: &str = "<!-- measurements by omniquant: begin -->";
const END: &str = "<!-- measurements by omniquant: end -->";

/// What a card calls the model that it is about.
pub const THIS: &str = Measurement::THIS;

/// A measurement, in Markdown and as it is recorded.
#[derive(Clone, Debug, PartialEq)]
pub struct Measured {
    /// Of which model.
    model: String,
    /// What was measured, on which text or task.
    what: String,
    /// The number.
    value: String,
    /// The same for the record of the run.
    record: Measurement,
}

impl Measured {
    /// The same of a model with another name.
    pub fn of(mut self, model: &str) -> Self {
        self.model = plain(model);
        self.record.model = model.to_owned();
        self
    }

    fn cells(&self) -> [String; 3] {
        [self.model.clone(), self.what.clone(), self.value.clone()]
    }
}

/// A number, and how many decimals of it and of its standard error a card shows.
struct Figure {
    metric: Metric,
    value: f64,
    error: Option<f64>,
    digits: [usize; 2],
}

impl Figure {
    /// As a measurement of the model that the card is about, on `extent` of `data`.
    fn measured(self, what: &str, data: &str, extent: &str) -> Measured {
        let Self { metric, value, error, digits: [digits, of_error] } = self;
        let (better, scale, unit) = match metric {
            Metric::Accuracy | Metric::Agreement => ("higher", 100.0, " %"),
            _ => ("lower", 1.0, ""),
        };
        let data = last_part(data);
        let shown_error = error.map_or(String::new(), |error| format!(" ± {:.of_error$}", scale * error));
        Measured {
            model: THIS.to_owned(),
            what: format!("{what} on {}, {extent} ({better} is better)", code(&data)),
            value: format!("{:.digits$}{shown_error}{unit}", scale * value),
            record: Measurement { model: THIS.to_owned(), metric, on: format!("{data}, {extent}"), value, error },
        }
    }
}

/// Perplexity of a model on windows of a text.
pub fn perplexity(model: &str, data: &str, result: &Perplexity) -> Measured {
    let (value, error) = (result.value(), result.error());
    let figure = Figure { metric: Metric::Perplexity, value, error, digits: [4, 2] };
    figure.measured("perplexity", data, &windows(result)).of(model)
}

/// Divergence of the model that the card is about from the one named `full`, and how often both find the same token the likeliest.
pub fn divergence(full: &str, data: &str, compared: &Divergence) -> [Measured; 2] {
    let (full, windows) = (code(&last_part(full)), windows(&compared.quantized));
    let (value, error) = (compared.mean(), compared.mean_error());
    let divergence = Figure { metric: Metric::Divergence, value, error, digits: [5, 5] };
    let (value, error) = (compared.agreement(), compared.agreement_error());
    let agreement = Figure { metric: Metric::Agreement, value, error, digits: [2, 2] };
    [
        divergence.measured(&format!("divergence (KL) from {full}"), data, &windows),
        agreement.measured(&format!("same likeliest token as {full}"), data, &windows),
    ]
}

/// `8 windows of 2048 tokens`.
fn windows(result: &Perplexity) -> String {
    let n = result.window_nll.len();
    let windows = if n == 1 { "1 window".to_owned() } else { format!("{n} windows") };
    format!("{windows} of {} tokens", result.seqlen)
}

/// A figure of the model that the card is about on `extent` of a zero-shot task.
pub fn task(metric: Metric, task: &str, extent: &str, value: f64, error: Option<f64>) -> Measured {
    let what = if metric == Metric::Accuracy { "zero-shot accuracy" } else { "perplexity" };
    Figure { metric, value, error, digits: [2, 2] }.measured(what, task, extent)
}

/// Records measurements in the folder of a run; does nothing if `dir` has none. They replace earlier ones of the same model and thing.
pub fn record(dir: &Path, measured: &[Measured]) -> anyhow::Result<()> {
    if measured.is_empty() || !dir.join(RUN_FOLDER).is_dir() {
        return Ok(());
    }
    let path = dir.join(MEASURED);
    let before = match fs::read_to_string(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
        text => text?,
    };
    let new: Vec<Measurement> = measured.iter().map(|row| row.record.clone()).collect();
    Ok(atomic_write(&path, Measurement::add(&before, &new).as_bytes())?)
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
        let record = task(Metric::Accuracy, "piqa", "1 item", 0.0, None).record;
        let [model, what, value] = [model, what, value].map(str::to_owned);
        Measured { model, what, value, record }
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
