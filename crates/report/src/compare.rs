//! Several runs on one page.

use std::collections::BTreeMap;

use oq_recipe::{Measurement, Metric};
use serde_json::Value;

use crate::answer::{FULL, is_better_low, method, name, shown};
use crate::page::Page;
use crate::parts::{Cell, Section, Table};
use crate::plot::{Axis, AxisKind, Look, Plot, Series, Tone};
use crate::run::Run;
use crate::text::{bytes, count, seconds};

/// Runs side by side as one HTML page that needs nothing else: size against quality, and tables.
pub fn comparison(runs: &[Run]) -> String {
    // One run alone is in front of nothing.
    let of_all = Trade::of(runs).filter(|trade| trade.points.len() > 1);
    let mut trade = Section::new("trade", "Size against quality");
    let mut lead = format!("{} compared.", count(runs.len(), "run"));
    if let Some(of_all) = &of_all {
        let about = about(of_all);
        lead = format!("{lead} {about}");
        trade.text.push(
            "A run is on the Pareto front if no other one is both smaller and better. The numbers are those of the tables.".to_owned(),
        );
        trade.figures.push(plot(runs, of_all, about).figure("trade"));
    }
    let mut results = Section::new("results", "Results");
    results.tables.push(results_table(runs, of_all.as_ref().map_or(&[], |trade| &trade.points)));
    let mut settings = Section::new("settings", "Settings that differ");
    settings.tables.extend(differences(runs));
    let mut model_names: Vec<&str> = runs.iter().map(Run::model_name).collect();
    model_names.dedup();
    let page = Page {
        title: model_names.join(", "),
        kicker: "comparison".to_owned(),
        lead,
        facts: Vec::new(),
        sections: [trade, results, settings].into_iter().filter(|section| !section.is_empty()).collect(),
        refresh: None,
        done: None,
    };
    page.html()
}

/// Runs by size and quality.
#[derive(Clone, Debug, PartialEq)]
pub struct Trade {
    /// The measurement that quality is compared by, as one of the runs has it.
    pub by: Measurement,
    /// The runs that have it and a size, from the smallest to the largest.
    pub points: Vec<Point>,
}

/// A run with its size and quality.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Point {
    /// Its index.
    pub run: usize,
    /// Bytes of the packed model.
    pub bytes: u64,
    /// Its value of [`Trade::by`].
    pub value: f64,
    /// Whether no other one is both smaller and better.
    pub is_in_front: bool,
}

impl Trade {
    /// Compares runs by the measurement that most of them have: of equals the divergence, else the perplexity, else the accuracy. None if
    /// nothing was measured.
    pub fn of(runs: &[Run]) -> Option<Self> {
        let by = quality(runs)?;
        Some(Self { points: points(runs, &by), by })
    }

    /// The best run of at most `bytes`; of equals the smallest.
    pub fn best_within(&self, bytes: u64) -> Option<&Point> {
        let fitting = self.points.iter().filter(|point| point.bytes <= bytes);
        fitting.min_by(|a, b| (sign(&self.by) * a.value).total_cmp(&(sign(&self.by) * b.value)))
    }

    /// What quality is compared by: `divergence on wikitext2, 8 windows of 2048 tokens`.
    pub fn measure(&self) -> String {
        format!("{} on {}", name(self.by.metric), self.by.on)
    }

    /// A value of [`Self::by`] as text.
    pub fn shown(&self, value: f64) -> String {
        shown(self.by.metric, value)
    }
}

/// What makes the smallest value the best.
fn sign(row: &Measurement) -> f64 {
    if is_better_low(row.metric) { 1.0 } else { -1.0 }
}

/// The measurement by which most runs can be compared: of these, the divergence, else the perplexity.
fn quality(runs: &[Run]) -> Option<Measurement> {
    let mut found: Vec<(usize, Measurement)> = Vec::new();
    for row in runs.iter().flat_map(Run::of_result) {
        let is_quality = matches!(row.metric, Metric::Divergence | Metric::Perplexity | Metric::Accuracy);
        match found.iter_mut().find(|(_, known)| known.is_again(row)) {
            _ if !is_quality => {}
            Some((n, _)) => *n += 1,
            None => found.push((1, row.clone())),
        }
    }
    let rank = |metric: Metric| match metric {
        Metric::Divergence => 2,
        Metric::Perplexity => 1,
        _ => 0,
    };
    // Of equals, the one that was measured first.
    let best = found.iter().map(|(n, row)| (*n, rank(row.metric))).max()?;
    found.into_iter().find(|(n, row)| (*n, rank(row.metric)) == best).map(|(_, row)| row)
}

fn points(runs: &[Run], row: &Measurement) -> Vec<Point> {
    let sign = sign(row);
    let known = runs.iter().enumerate().filter_map(|(run, of)| {
        let value = of.of_result().find(|other| other.is_again(row))?.value;
        Some(Point { run, bytes: of.size?.bytes, value, is_in_front: false })
    });
    let mut points: Vec<Point> = known.collect();
    let front: Vec<bool> = points
        .iter()
        .map(|point| {
            !points.iter().any(|other| {
                let no_worse = other.bytes <= point.bytes && sign * other.value <= sign * point.value;
                no_worse && (other.bytes < point.bytes || sign * other.value < sign * point.value)
            })
        })
        .collect();
    points.iter_mut().zip(front).for_each(|(point, is_in_front)| point.is_in_front = is_in_front);
    points.sort_by_key(|point| point.bytes);
    points
}

fn about(trade: &Trade) -> String {
    let in_front: Vec<String> = trade
        .points
        .iter()
        .filter(|point| point.is_in_front)
        .map(|point| format!("{} ({}, {})", point.run + 1, bytes(point.bytes), trade.shown(point.value)))
        .collect();
    format!(
        "By size and {}, {} of {} on the Pareto front: {}.",
        trade.measure(),
        in_front.len(),
        count(trade.points.len(), "run"),
        in_front.join(", ")
    )
}

fn plot(runs: &[Run], trade: &Trade, about: String) -> Plot {
    let Trade { by: row, points } = trade;
    let scale = if matches!(row.metric, Metric::Accuracy) { 100.0 } else { 1.0 };
    let series = |is_in_front: bool| {
        let of: Vec<&Point> = points.iter().filter(|point| point.is_in_front == is_in_front).collect();
        let at = of.iter().map(|point| (mib(point), scale * point.value)).collect();
        let (label, look, tone) = match is_in_front {
            true => ("on the Pareto front", Look::Dots, Tone::Made),
            false => ("beaten by another", Look::Squares, Tone::Other),
        };
        Series {
            labels: of.iter().map(|point| (point.run + 1).to_string()).collect(),
            ..Series::new(label, look, tone, at)
        }
    };
    let mut all = vec![series(true), series(false)];
    all.retain(|series| !series.points.is_empty());
    let full = runs.iter().find_map(|run| run.beside(row, FULL));
    if let Some((full, (first, last))) = full.zip(points.first().zip(points.last())) {
        let level = vec![(mib(first), scale * full), (mib(last), scale * full)];
        all.push(Series::new(FULL, Look::Dashes, Tone::Plan, level));
    }
    Plot {
        title: trade.measure(),
        about,
        x: Axis::new("size, MiB", AxisKind::Range),
        y: Axis::new("", AxisKind::Range),
        series: all,
        band: None,
        is_small: false,
    }
}

fn mib(point: &Point) -> f64 {
    point.bytes as f64 / 1_048_576.0
}

fn results_table(runs: &[Run], points: &[Point]) -> Table {
    let mut measured: Vec<&Measurement> = Vec::new();
    for row in runs.iter().flat_map(Run::of_result) {
        if !measured.iter().any(|known| known.is_again(row)) {
            measured.push(row);
        }
    }
    let number = |text: Option<String>| Cell::number(text.unwrap_or_default());
    let of_run = |(i, run): (usize, &Run)| {
        let front = points.iter().any(|point| point.run == i && point.is_in_front);
        let mark = if front { " ◆" } else { "" };
        let mut row = vec![
            Cell::text(format!("{}. {}{mark}", i + 1, run.name())),
            Cell::text(run.recipe.scheme.to_string()),
            Cell::text(method(run)),
            number(run.size.map(|size| bytes(size.bytes))),
            number(run.size.and_then(|size| size.bits_per_weight).map(|bits| format!("{bits:.2}"))),
        ];
        for &of in &measured {
            row.push(number(run.of_result().find(|row| row.is_again(of)).map(|row| shown(row.metric, row.value))));
        }
        row.push(number(run.surroundings.as_ref().map(|made| seconds(made.wall_secs))));
        row.push(number(run.surroundings.as_ref().map(|made| bytes(made.peak_bytes))));
        row
    };
    let head = ["run", "scheme", "method", "size", "bits per weight"].map(str::to_owned).into_iter();
    let columns = measured.iter().map(|row| format!("{}, {}", name(row.metric), row.on));
    let caption =
        if points.iter().any(|point| point.is_in_front) { "Results; ◆ marks the Pareto front" } else { "Results" };
    Table {
        caption: caption.to_owned(),
        head: head.chain(columns).chain(["time", "memory to quantize"].map(str::to_owned)).collect(),
        rows: runs.iter().enumerate().map(of_run).collect(),
        is_folded: false,
    }
}

/// The settings in which runs differ; none if they differ in nothing.
fn differences(runs: &[Run]) -> Option<Table> {
    let all: Vec<BTreeMap<String, String>> = runs.iter().map(settings).collect();
    let mut keys: Vec<&String> = all.iter().flat_map(BTreeMap::keys).collect();
    keys.sort();
    keys.dedup();
    keys.retain(|key| all.iter().any(|settings| settings.get(*key) != all[0].get(*key)));
    let row = |key: &String| {
        let values = all.iter().map(|settings| Cell::text(settings.get(key).cloned().unwrap_or_default()));
        [Cell::text(key.clone())].into_iter().chain(values).collect()
    };
    let names = runs.iter().enumerate().map(|(i, run)| format!("{}. {}", i + 1, run.name()));
    (!keys.is_empty()).then(|| Table {
        caption: "Settings that differ between the runs".to_owned(),
        head: ["setting".to_owned()].into_iter().chain(names).collect(),
        rows: keys.iter().map(|key| row(key)).collect(),
        is_folded: false,
    })
}

/// A recipe by its keys, such as `learn.epochs`, with the model.
fn settings(run: &Run) -> BTreeMap<String, String> {
    fn flatten(prefix: &str, value: &Value, into: &mut BTreeMap<String, String>) {
        match value {
            Value::Object(fields) => fields.iter().for_each(|(key, value)| {
                let dot = if prefix.is_empty() { "" } else { "." };
                flatten(&format!("{prefix}{dot}{key}"), value, into);
            }),
            Value::String(text) => drop(into.insert(prefix.to_owned(), text.clone())),
            value => drop(into.insert(prefix.to_owned(), value.to_string())),
        }
    }
    let mut settings = BTreeMap::from([("model".to_owned(), run.model_name().to_owned())]);
    flatten("", &serde_json::to_value(&run.recipe).unwrap_or_default(), &mut settings);
    settings
}
