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

/// Perplexity of a model on windows of a text.
pub fn perplexity(model: &str, data: &str, result: &Perplexity) -> Measurement {
    let on = on(data, &windows(result.window_nll.len(), result.seqlen));
    let (model, value, error) = (model.to_owned(), result.value(), result.error());
    Measurement { model, metric: Metric::Perplexity, with: None, on, value, error }
}

/// Divergence of the model that the card is about from the one named `full`, and how often both find the same token the likeliest.
pub fn divergence(full: &str, data: &str, compared: &Divergence) -> [Measurement; 2] {
    let on = on(data, &windows(compared.quantized.window_nll.len(), compared.quantized.seqlen));
    let of = |metric, value, error| {
        let (model, with) = (THIS.to_owned(), Some(last_part(full)));
        Measurement { model, metric, with, on: on.clone(), value, error }
    };
    [
        of(Metric::Divergence, compared.mean(), compared.mean_error()),
        of(Metric::Agreement, compared.agreement(), compared.agreement_error()),
    ]
}

/// A figure of the model that the card is about on `extent` of a zero-shot task.
pub fn task(metric: Metric, task: &str, extent: &str, value: f64, error: Option<f64>) -> Measurement {
    Measurement { model: THIS.to_owned(), metric, with: None, on: on(task, extent), value, error }
}

/// What was measured on: an extent of some data.
pub fn on(data: &str, extent: &str) -> String {
    format!("{}, {extent}", last_part(data))
}

/// `8 windows of 2048 tokens`.
pub fn windows(n: usize, seqlen: usize) -> String {
    let windows = if n == 1 { "1 window".to_owned() } else { format!("{n} windows") };
    format!("{windows} of {seqlen} tokens")
}

/// Records measurements of the model in `dir`: in the folder of its run, if it has one, and in its card, if that has a place for them. They
/// replace earlier ones of the same model and thing. The card gets what is in the record, so that both say the same.
pub fn record(dir: &Path, new: &[Measurement]) -> anyhow::Result<()> {
    let is_run = dir.join(RUN_FOLDER).is_dir();
    if is_run && !new.is_empty() {
        let path = dir.join(MEASURED);
        let before = match fs::read_to_string(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
            text => text?,
        };
        atomic_write(&path, Measurement::add(&before, new).as_bytes())?;
    }
    let rows = if is_run { recorded(dir) } else { new.to_vec() };
    if rows.is_empty() || check(dir).is_err() { Ok(()) } else { add(dir, &rows) }
}

/// What was measured of the model in `dir`, by the record of its run.
pub fn recorded(dir: &Path) -> Vec<Measurement> {
    let text = fs::read_to_string(dir.join(MEASURED)).unwrap_or_default();
    text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

/// The section of a new card: a table, or `otherwise` if nothing was measured.
pub fn section(measured: &[Measurement], otherwise: &str) -> String {
    let content = if measured.is_empty() { otherwise.to_owned() } else { table_of(measured) };
    format!("{BEGIN}\n{content}{END}\n")
}

fn table_of(measured: &[Measurement]) -> String {
    table(["model", "measurement", "value"], measured.iter().map(cells))
}

/// Model, measurement and value, in Markdown.
fn cells(row: &Measurement) -> [String; 3] {
    let with = code(row.with.as_deref().unwrap_or("full precision"));
    // Decimals of the value and of its standard error.
    let (what, better, scale, digits, of_error, unit) = match row.metric {
        Metric::Perplexity => ("perplexity".to_owned(), "lower", 1.0, 4, 2, ""),
        Metric::Divergence => (format!("divergence (KL) from {with}"), "lower", 1.0, 5, 5, ""),
        Metric::Agreement => (format!("same likeliest token as {with}"), "higher", 100.0, 2, 2, " %"),
        Metric::Accuracy => ("zero-shot accuracy".to_owned(), "higher", 100.0, 2, 2, " %"),
        Metric::Prefill => ("prefill, tokens per second,".to_owned(), "higher", 1.0, 1, 1, ""),
        Metric::Decode => ("decode, tokens per second,".to_owned(), "higher", 1.0, 1, 1, ""),
        Metric::Memory => ("memory, bytes,".to_owned(), "lower", 1.0, 0, 0, ""),
    };
    let (data, extent) = row.on.split_once(", ").unwrap_or((&row.on, ""));
    let extent = if extent.is_empty() { String::new() } else { format!(", {}", plain(extent)) };
    let error = row.error.map_or(String::new(), |error| format!(" ± {:.of_error$}", scale * error));
    [
        plain(&row.model),
        format!("{what} on {}{extent} ({better} is better)", code(data)),
        format!("{:.digits$}{error}{unit}", scale * row.value),
    ]
}

/// Fails if `dir` has no card with such a section.
pub fn check(dir: &Path) -> Result<(), CliError> {
    read(dir).map(drop)
}

/// Adds measurements to the card in `dir`. They replace earlier ones of the same model and thing.
fn add(dir: &Path, measured: &[Measurement]) -> anyhow::Result<()> {
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

    fn with(&self, measured: &[Measurement]) -> String {
        let start = |row: &Measurement| {
            let [model, what, _] = cells(row);
            format!("| {model} | {what} | ")
        };
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

    fn measured(model: &str, task: &str, value: f64) -> Measurement {
        Measurement { model: model.to_owned(), ..super::task(Metric::Accuracy, task, "1 item", value, None) }
    }

    #[test]
    fn measurements_are_added_and_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(CARD);
        let empty = format!("# A\n\n{}\nmine | not theirs\n", section(&[], "Nothing yet.\n"));
        fs::write(&path, &empty).unwrap();
        check(dir.path()).unwrap();
        let rows = |rows: &[(&str, &str, u32)]| {
            let row = |(model, task, value): &(&str, &str, u32)| {
                format!("| {model} | zero-shot accuracy on `{task}`, 1 item (higher is better) | {value}.00 % |\n")
            };
            let rows: String = rows.iter().map(row).collect();
            format!(
                "# A\n\n{BEGIN}\n| model | measurement | value |\n|---|---|---|\n{rows}{END}\n\nmine | not theirs\n"
            )
        };
        let read = || fs::read_to_string(&path).unwrap();
        add(dir.path(), &[measured("full", "wiki", 0.01), measured("this", "wiki", 0.02)]).unwrap();
        assert_eq!(read(), rows(&[("full", "wiki", 1), ("this", "wiki", 2)]));
        add(dir.path(), &[measured("this", "piqa", 0.03)]).unwrap();
        add(dir.path(), &[measured("this", "wiki", 0.04)]).unwrap();
        assert_eq!(read(), rows(&[("full", "wiki", 1), ("this", "piqa", 3), ("this", "wiki", 4)]));

        // In the folder of a run, the card says what the record says, and nothing is lost that it does not know.
        fs::create_dir_all(dir.path().join(RUN_FOLDER)).unwrap();
        record(dir.path(), &[measured("this", "piqa", 0.05)]).unwrap();
        assert_eq!(recorded(dir.path()), [measured("this", "piqa", 0.05)]);
        let expected = rows(&[("full", "wiki", 1), ("this", "wiki", 4), ("this", "piqa", 5)]);
        assert_eq!(read(), expected);
        fs::write(&path, read().replace("5.00", "7.00")).unwrap();
        record(dir.path(), &[]).unwrap();
        assert_eq!(read(), expected);

        for other in ["", "# Mine\n", BEGIN, &format!("{END}\n{BEGIN}\n")] {
            fs::write(&path, other).unwrap();
            assert!(check(dir.path()).is_err() && add(dir.path(), &[]).is_err(), "{other}");
            assert_eq!(fs::read_to_string(&path).unwrap(), other);
        }
    }
}
