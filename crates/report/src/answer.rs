//! The answer that a page begins with: one sentence after the other, and the numbers that matter most.

use oq_recipe::{Measurement, Method, Metric};

use crate::parts::{Cell, Fact, Table};
use crate::run::Run;
use crate::text::{bytes, count, percent, seconds, short};

/// The names of other models in measurements.
pub(crate) const FULL: &str = Measurement::FULL;
pub(crate) const NEAREST: &str = "round to nearest";

/// What came of the run, or how far it is.
pub(crate) fn sentences(run: &Run) -> String {
    let (model, scheme) = (run.model_name(), run.recipe.scheme);
    if !run.is_finished {
        return progress(run);
    }
    let mut said = match (run.size, run.planned) {
        (Some(size), Some(planned)) => {
            let share = size.bytes as f64 / planned.original_bytes.max(1) as f64;
            let [after, before] = [size.bytes, planned.original_bytes].map(bytes);
            format!("At {scheme}, {model} takes {after} instead of {before} ({}).", percent(share))
        }
        (Some(size), None) => format!("At {scheme}, {model} takes {}.", bytes(size.bytes)),
        _ => format!("{model} was quantized to {scheme}."),
    };
    if let Some(row) = run.first(Metric::Perplexity) {
        let full = run
            .beside(row, FULL)
            .map(|full| format!("goes from {} in full precision to {}", exact(full), exact(row.value)));
        let nearest = run
            .beside(row, NEAREST)
            .map(|nearest| format!(", where rounding to nearest would give {}", exact(nearest)));
        let change = full.unwrap_or_else(|| format!("is {}", exact(row.value)));
        said += &format!(" Its perplexity on {} {change}{}.", row.on, nearest.unwrap_or_default());
    }
    if let Some(row) = run.first(Metric::Divergence) {
        said += &format!(" Its predictions are {} nats per token away from the original's.", short(row.value));
    }
    if let Some(made) = &run.surroundings {
        let since = if made.is_resumed { "Since it was resumed, quantizing" } else { "Quantizing" };
        let (took, threads) = (seconds(made.wall_secs), count(made.threads, "thread"));
        said += &format!(
            " {since} took {took} and {} of memory, on {} with {threads}.",
            bytes(made.peak_bytes),
            made.device
        );
    }
    said
}

fn progress(run: &Run) -> String {
    let (model, scheme, n) = (run.model_name(), run.recipe.scheme, run.n_blocks);
    let left = run.secs_left.map_or(String::new(), |secs| format!(" About {} are left.", seconds(secs)));
    let (done, epochs) = (run.blocks.len(), run.recipe.learn.epochs);
    let place = match &run.current {
        Some((block, losses)) if run.recipe.method.learns() && losses.len() < epochs => {
            format!("block {} of {n}, epoch {} of {epochs}", block + 1, losses.len() + 1)
        }
        Some((block, _)) => format!("block {} of {n}", block + 1),
        None if done == n && run.recipe.tune_epochs() > 0 => {
            format!(
                "tuning, epoch {} of {}",
                (run.tuning.len() + 1).min(run.recipe.tune_epochs()),
                run.recipe.tune_epochs()
            )
        }
        None => format!("{done} of {} finished", count(n, "block")),
    };
    format!("{model} is being quantized to {scheme}: {place}.{left}")
}

/// Up to two decimals, as perplexities are usually given.
fn exact(value: f64) -> String {
    if value < 1000.0 { format!("{value:.2}") } else { format!("{value:.0}") }
}

/// The numbers that matter most.
pub(crate) fn facts(run: &Run) -> Vec<Fact> {
    let mut facts = Vec::new();
    let mut say = |name: &str, value: String, note: String| facts.push(Fact { name: name.to_owned(), value, note });
    if let Some(size) = run.size {
        let before = run.planned.map(|planned| format!("instead of {}", bytes(planned.original_bytes)));
        let bits = size.bits_per_weight.map(|bits| format!("{bits:.2} bits per quantized weight"));
        say("size", bytes(size.bytes), before.into_iter().chain(bits).collect::<Vec<_>>().join("; "));
    }
    for row in run.of_result() {
        let beside = |model: &str, name: &str| {
            run.beside(row, model).map(|value| format!("{name} {}", shown(row.metric, value)))
        };
        let others: Vec<String> = [beside(FULL, FULL), beside(NEAREST, "to nearest")].into_iter().flatten().collect();
        let note = if others.is_empty() { row.on.clone() } else { format!("{}: {}", row.on, others.join(", ")) };
        let value = shown(row.metric, row.value);
        let error = row.error.map_or(String::new(), |error| format!(" ± {}", shown(row.metric, error)));
        say(name(row.metric), value + &error, note);
    }
    if let Some(made) = &run.surroundings {
        let planned = run.planned.and_then(|planned| planned.total_secs);
        let note = |planned: Option<String>| planned.map_or(String::new(), |planned| format!("planned {planned}"));
        say("time", seconds(made.wall_secs), note(planned.map(seconds)));
        say("memory to quantize", bytes(made.peak_bytes), note(run.planned.map(|planned| bytes(planned.peak_bytes))));
    }
    facts
}

/// Everything that was measured.
pub(crate) fn measured(run: &Run) -> Option<Table> {
    if run.measured.is_empty() {
        return None;
    }
    let has_errors = run.measured.iter().any(|row| row.error.is_some());
    let row = |row: &Measurement| {
        let metric =
            format!("{} ({} is better)", name(row.metric), if is_better_low(row.metric) { "lower" } else { "higher" });
        let error = row.error.map_or_else(String::new, |error| format!("± {}", shown(row.metric, error)));
        let mut cells = [&row.model, &metric, &row.on].map(|text| Cell::text(text.as_str())).to_vec();
        cells.push(Cell::number(shown(row.metric, row.value)));
        cells.extend(has_errors.then(|| Cell::number(error)));
        cells
    };
    let head = ["model", "measurement", "on", "value"].into_iter().chain(has_errors.then_some("standard error"));
    Some(Table {
        caption: "What was measured".to_owned(),
        head: head.map(str::to_owned).collect(),
        rows: run.measured.iter().map(row).collect(),
        is_folded: false,
    })
}

pub(crate) fn name(metric: Metric) -> &'static str {
    match metric {
        Metric::Perplexity => "perplexity",
        Metric::Divergence => "divergence",
        Metric::Agreement => "same first choice",
        Metric::Accuracy => "accuracy",
        Metric::Prefill => "prefill",
        Metric::Decode => "decode",
        Metric::Memory => "memory to run",
    }
}

pub(crate) fn is_better_low(metric: Metric) -> bool {
    match metric {
        Metric::Perplexity | Metric::Divergence | Metric::Memory => true,
        Metric::Agreement | Metric::Accuracy | Metric::Prefill | Metric::Decode => false,
    }
}

pub(crate) fn shown(metric: Metric, value: f64) -> String {
    match metric {
        Metric::Perplexity => exact(value),
        Metric::Divergence => format!("{} nats", short(value)),
        Metric::Agreement | Metric::Accuracy => format!("{:.2} %", 100.0 * value),
        Metric::Prefill | Metric::Decode => format!("{} tokens/s", short(value)),
        Metric::Memory => bytes(value as u64),
    }
}

/// How the codes were found, in few words.
pub(crate) fn method(run: &Run) -> String {
    match run.recipe.method {
        Method::Rtn => "rounded to nearest".to_owned(),
        Method::Smoothquant => "SmoothQuant".to_owned(),
        Method::Omniquant => {
            let tuned = match run.recipe.tune_epochs() {
                0 => String::new(),
                n => format!(", then tuned in {}", count(n, "epoch")),
            };
            format!("OmniQuant, {}{tuned}", count(run.recipe.learn.epochs, "epoch"))
        }
    }
}
