//! What a sweep shows and keeps of its settings: the plan, `sweep.json`, and the table at the end. All figures come from the records of the
//! runs.

use std::collections::BTreeMap;
use std::fmt::Write;

use oq_recipe::{Measurement, Metric};
use oq_report::{Point, Run, Trade};
use serde_json::{Value, json};

use super::settings::{Setting, peak_bytes};
use crate::commands::plan::about;
use crate::output::{bytes, seconds};

/// The settings of a sweep, and what became of them.
pub struct Sweep<'a> {
    pub model: &'a str,
    pub settings: &'a [Setting],
    /// Those that are larger than the budget.
    pub left_out: &'a [Setting],
    pub budget: Option<u64>,
    pub jobs: usize,
    /// Why settings failed, by index.
    pub failed: &'a BTreeMap<usize, String>,
}

/// A finished sweep, or one that is going on, by the records of its runs.
pub struct Results {
    /// Indices of the settings that are quantized.
    which: Vec<usize>,
    pub runs: Vec<Run>,
    trade: Option<Trade>,
}

impl Results {
    pub fn new(settings: &[Setting]) -> Self {
        let which: Vec<usize> = (0..settings.len()).filter(|&i| settings[i].is_quantized()).collect();
        let runs: Vec<Run> = which.iter().filter_map(|&i| settings[i].run()).collect();
        let trade = Trade::of(&runs);
        Self { which, runs, trade }
    }

    fn run(&self, which: usize) -> Option<&Run> {
        self.which.iter().position(|&i| i == which).and_then(|at| self.runs.get(at))
    }

    fn point(&self, which: usize) -> Option<&Point> {
        let at = self.which.iter().position(|&i| i == which)?;
        self.trade.as_ref()?.points.iter().find(|point| point.run == at)
    }

    /// The index of the best setting within the budget, and what that is by, in words.
    fn best(&self, budget: Option<u64>) -> Option<(usize, String)> {
        let (trade, budget) = (self.trade.as_ref()?, budget?);
        let best = trade.best_within(budget)?;
        let why = format!(
            "by {}: {}, {}; budget {}",
            trade.measure(),
            trade.shown(best.value),
            bytes(best.bytes),
            bytes(budget)
        );
        Some((self.which[best.run], why))
    }
}

/// What each setting will take, before any runs.
pub fn plan_value(sweep: &Sweep<'_>) -> Value {
    let row = |setting: &Setting, is_left_out: bool| {
        let plan = &setting.plan;
        json!({"setting": setting.name, "output_bytes": plan.output_bytes, "peak_bytes": plan.memory.host.total(),
            "peak_device_bytes": plan.memory.device.map(|parts| parts.total()), "disk_bytes": plan.disk_bytes,
            "secs": plan.time.as_ref().map(|time| time.total_secs), "state": state(setting, is_left_out)})
    };
    let rows = sweep.settings.iter().map(|setting| row(setting, false));
    let rows: Vec<Value> = rows.chain(sweep.left_out.iter().map(|setting| row(setting, true))).collect();
    let left = left(sweep);
    json!({"model": sweep.model, "budget_bytes": sweep.budget, "jobs": sweep.jobs, "settings": rows,
        "peak_bytes": peak_bytes(&left, sweep.jobs), "secs": secs(&left)})
}

/// The same as text.
pub fn plan_text(sweep: &Sweep<'_>) -> String {
    let mut rows = vec![["setting", "size", "memory", "time", ""].map(str::to_owned).to_vec()];
    let row = |setting: &Setting, is_left_out: bool| {
        let plan = &setting.plan;
        let time = plan.time.as_ref().map_or_else(|| "unknown".to_owned(), |time| about(time.total_secs));
        let state = match state(setting, is_left_out) {
            "new" => "",
            state => state,
        };
        vec![setting.name.clone(), bytes(plan.output_bytes), bytes(plan.memory.host.total()), time, state.to_owned()]
    };
    rows.extend(sweep.settings.iter().map(|setting| row(setting, false)));
    rows.extend(sweep.left_out.iter().map(|setting| row(setting, true)));
    let left = left(sweep);
    let time =
        secs(&left).map_or_else(|| "unknown (`omniquant plan .. --measure` times this machine)".to_owned(), about);
    let memory = bytes(peak_bytes(&left, sweep.jobs));
    let at_a_time = if sweep.jobs > 1 { format!(", {} runs at a time", sweep.jobs) } else { String::new() };
    let n = left.len();
    aligned(&rows) + &format!("{n} to run: {memory} of memory, time {time}, without evaluations{at_a_time}\n")
}

/// The settings that have yet to run.
fn left<'a>(sweep: &Sweep<'a>) -> Vec<&'a Setting> {
    sweep.settings.iter().filter(|setting| !setting.is_quantized()).collect()
}

/// Seconds that these runs take. Runs at a time share the machine, and are not faster together.
fn secs(settings: &[&Setting]) -> Option<f64> {
    settings.iter().map(|setting| Some(setting.plan.time.as_ref()?.total_secs)).sum()
}

fn state(setting: &Setting, is_left_out: bool) -> &'static str {
    match () {
        () if is_left_out => "left out",
        () if setting.is_quantized() => "quantized",
        () if setting.run().is_some() => "begun",
        () => "new",
    }
}

/// `sweep.json`.
pub fn value(sweep: &Sweep<'_>, results: &Results) -> Value {
    let row = |(i, setting): (usize, &Setting), is_left_out: bool| {
        let run = if is_left_out { None } else { results.run(i) };
        let size = run.and_then(|run| run.size);
        let made = run.and_then(|run| run.surroundings.as_ref());
        let failed = if is_left_out { None } else { sweep.failed.get(&i) };
        let state = if failed.is_some() { "failed" } else { state(setting, is_left_out) };
        let front = if is_left_out { None } else { results.point(i).map(|point| point.is_in_front) };
        json!({"setting": setting.name, "scheme": setting.recipe.scheme, "preset": setting.args.preset.map(|preset| preset.name()),
            "dir": setting.dir, "state": state, "error": failed, "planned_bytes": setting.plan.output_bytes,
            "planned_secs": setting.plan.time.as_ref().map(|time| time.total_secs),
            "bytes": size.map(|size| size.bytes), "bits_per_weight": size.and_then(|size| size.bits_per_weight),
            "measured": run.map(|run| &run.measured), "is_on_front": front,
            "wall_secs": made.map(|made| made.wall_secs), "peak_bytes": made.map(|made| made.peak_bytes)})
    };
    let rows = sweep.settings.iter().enumerate().map(|setting| row(setting, false));
    let rows: Vec<Value> = rows.chain(sweep.left_out.iter().enumerate().map(|setting| row(setting, true))).collect();
    let best = results.best(sweep.budget).map(|(i, _)| &sweep.settings[i].name);
    json!({"version": env!("CARGO_PKG_VERSION"), "model": sweep.model, "budget_bytes": sweep.budget,
        "by": results.trade.as_ref().map(Trade::measure), "best": best, "settings": rows})
}

/// The results as a table.
pub fn text(sweep: &Sweep<'_>, results: &Results) -> String {
    let mut rows =
        vec![["setting", "size", "bits", "divergence", "perplexity", "time", "memory"].map(str::to_owned).to_vec()];
    let trade = results.trade.as_ref();
    for (i, setting) in sweep.settings.iter().enumerate() {
        let mark = if results.point(i).is_some_and(|point| point.is_in_front) { " *" } else { "" };
        let mut row = vec![format!("{}{mark}", setting.name)];
        let run = results.run(i);
        match (run.and_then(|run| run.size), run.and_then(|run| run.surroundings.as_ref())) {
            (Some(size), Some(made)) => {
                let figure = |metric, digits: usize| {
                    let found = run.and_then(|run| measured(run, trade, Measurement::THIS, metric));
                    found.map_or_else(String::new, |row| format!("{:.digits$}", row.value))
                };
                row.push(bytes(size.bytes));
                row.push(size.bits_per_weight.map_or_else(String::new, |bits| format!("{bits:.2}")));
                row.push(figure(Metric::Divergence, 5));
                row.push(figure(Metric::Perplexity, 4));
                let more = if made.is_resumed { "> " } else { "" };
                row.push(format!("{more}{}", seconds(made.wall_secs)));
                row.push(bytes(made.peak_bytes));
            }
            _ => row.push(state(setting, false).to_owned()),
        }
        rows.push(row);
    }
    let mut text = aligned(&rows);
    let mut say = |line: String| writeln!(text, "{line}").expect("writing to a string cannot fail");
    if let Some(trade) = trade.filter(|trade| trade.points.len() > 1) {
        say(format!("* on the Pareto front of size and {}", trade.measure()));
    }
    let of_full = |run| measured(run, trade, Measurement::FULL, Metric::Perplexity);
    if let Some(full) = results.runs.iter().find_map(of_full) {
        say(format!("in full precision: perplexity {:.4} on {}", full.value, full.on));
    }
    for setting in sweep.left_out {
        let size = bytes(setting.plan.output_bytes);
        say(format!("left out: {}, which would have {size}", setting.name));
    }
    if let Some((best, why)) = results.best(sweep.budget) {
        say(format!("best: {} ({why})", sweep.settings[best].name));
    }
    text
}

/// What was measured of a model on the text that settings are compared on.
fn measured<'a>(run: &'a Run, trade: Option<&Trade>, model: &str, metric: Metric) -> Option<&'a Measurement> {
    let on = &trade?.by.on;
    run.measured.iter().find(|row| row.model == model && row.metric == metric && row.on == *on)
}

/// Rows with aligned columns.
fn aligned(rows: &[Vec<String>]) -> String {
    let n = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max();
    let widths: Vec<usize> = (0..n).map(|column| width(column).unwrap_or(0)).collect();
    let line = |row: &Vec<String>| {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned() + "\n"
    };
    rows.iter().map(line).collect()
}
