//! Zero-shot tasks.

use std::ops::ControlFlow;
use std::time::{Instant, UNIX_EPOCH};

use anyhow::{Context, Result};
use oq_data::{Item, Task, Tokenizer};
use oq_eval::{Accuracy, Answer, Asked, EvalError, Prediction, zero_shot};
use oq_formats::atomic_write;
use oq_ranks::{Ranks, RanksError};
use oq_recipe::{Measurement, Metric};
use serde_json::{Value, json};

use super::answers::Answers;
use super::harness::{TaskResult, file_of};
use super::opened::Opened;
use super::outcome::Outcome;
use crate::args::EvalArgs;
use crate::card;
use crate::commands::report;
use crate::exit::CliError;
use crate::output::{Output, seconds};

/// Asks a model the tasks of the command line.
pub fn ask(args: &EvalArgs, opened: &Opened, ranks: &Ranks, out: &Output) -> Result<Outcome> {
    let Opened { named, model, form, device, .. } = opened;
    if let Some(path) = args.answers.as_ref().filter(|path| !args.resume && path.exists() && is_first(args, opened)) {
        let message = format!("{} is there: go on from it with --resume, or name another file", path.display());
        return Err(CliError::Usage(message).into());
    }
    let started = Instant::now();
    let tokenizer = Tokenizer::open(model.dir())?;
    let settings = settings(args, opened);
    let (mut results, mut asked) = (Vec::new(), 0);
    // Make sure that all of them exist before the first is evaluated.
    let load = |&task: &Task| Ok((task, task.load(args.data.data_dir.as_deref())?));
    for (task, mut items) in args.tasks.iter().map(load).collect::<Result<Vec<_>>>()? {
        let of = items.len();
        items.truncate(args.items.map_or(usize::MAX, |n| n as usize));
        let part = ranks.range(items.len());
        let own = &items[part.clone()];
        let (mut answers, known) = Answers::open(args.answers.as_deref(), [&named.name, task.name()], &settings, own)?;
        asked += items.len() - known.iter().flatten().count();
        let bar = out.bar(task.name());
        let mut failed = None;
        let said = zero_shot(model, &tokenizer, own, &known, *device, &mut |asked| {
            match asked {
                Asked::Progress(progress) => bar.set(progress.done, progress.total),
                Asked::Answered { first, answers: new } => failed = answers.write(first, new).err(),
                _ => {}
            }
            if failed.is_some() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        drop(bar);
        let said = match (said, failed) {
            (Err(EvalError::Stopped), Some(error)) => return Err(error),
            (said, _) => all_answers(ranks, &items, said.map_err(|error| error.after(part.start))?)?,
        };
        results.push(TaskResult { task, items: items.len(), of, metrics: metrics(task, &items, &said) });
    }
    let secs = started.elapsed().as_secs_f64();
    let record = opened.record(args, json!({"tasks": results.iter().map(record_of).collect::<Vec<_>>()}), secs);
    if args.card && ranks.is_first() {
        let measured: Vec<Measurement> = results.iter().flat_map(measured).collect();
        report::measured(model.dir(), &measured)?;
    }
    if let Some(path) = args.harness.as_ref().filter(|_| ranks.is_first()) {
        let config = json!({"pretrained": named.name, "rtn": args.rtn, "kernels": form.kernels.name(), "dtype": form.compute.name()});
        let file = file_of(&named.name, config, args.items, &results, secs);
        atomic_write(path, serde_json::to_string_pretty(&file)?.as_bytes()).context("--harness")?;
    }
    let figures: Vec<(String, String)> = results.iter().flat_map(figures).collect();
    let width = figures.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    let lines = figures.iter().map(|(name, value)| format!("{name:<width$}  {value}"));
    let items: usize = results.iter().map(|result| result.items).sum();
    let took = format!("{items} items, {asked} of them asked now, {}", seconds(secs));
    let text = lines.chain([took]).collect::<Vec<_>>().join("\n");
    Ok(Outcome { model: named.name.clone(), record, text, figures })
}

/// The answers of all ranks to all items.
fn all_answers(ranks: &Ranks, items: &[Item], own: Vec<Answer>) -> Result<Vec<Answer>, RanksError> {
    if ranks.size() == 1 {
        return Ok(own);
    }
    let numbers = ranks.gathered(&own.iter().flat_map(Answer::numbers).collect::<Vec<f64>>())?;
    let mut rest = &numbers[..];
    let answer = |item: &Item| {
        let (numbers, others) = rest.split_at(2 * item.choices.len());
        rest = others;
        Answer::of_numbers(numbers)
    };
    Ok(items.iter().map(answer).collect())
}

/// Whether it is the first model of the command line: the others go on in its file of answers.
fn is_first(args: &EvalArgs, opened: &Opened) -> bool {
    args.models.first().is_some_and(|name| *name == opened.as_given)
}

/// What decides a model's answers, besides the items.
fn settings(args: &EvalArgs, opened: &Opened) -> [String; 2] {
    let Opened { model, form, .. } = opened;
    // Written last when a model is quantized.
    let config = model.dir().join("config.json").metadata().and_then(|about| about.modified());
    let written = config.ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok()).map_or(0, |since| since.as_nanos());
    let dir = model.dir().canonicalize().unwrap_or_else(|_| model.dir().to_owned());
    let rtn = args.rtn.map_or_else(String::new, |spec| spec.to_string());
    let how = [form.kernels.name(), form.compute.name(), form.head.name(), form.prefill.name(), &rtn].join(" ");
    [format!("{} {written} {}", dir.display(), model.checkpoint().total_bytes()), how]
}

/// The harness's metrics of a task.
fn metrics(task: Task, items: &[Item], answers: &[Answer]) -> Vec<(&'static str, f64, Option<f64>)> {
    if !task.has_choices() {
        let found = Prediction::new(answers);
        return vec![
            ("perplexity", found.perplexity, found.perplexity_error),
            ("acc", found.accuracy, Some(found.accuracy_error)),
        ];
    }
    let found = Accuracy::new(items, answers);
    let accuracies = [("acc", found.plain), ("acc_norm", found.normalized)];
    let reported = accuracies.into_iter().take(if task.is_normalized() { 2 } else { 1 });
    reported.map(|(metric, value)| (metric, value, Some(found.error_of(value)))).collect()
}

fn metric<'a>(result: &'a TaskResult, name: &str) -> Option<&'a (&'static str, f64, Option<f64>)> {
    result.metrics.iter().find(|(metric, ..)| *metric == name)
}

/// For scripts.
fn record_of(result: &TaskResult) -> Value {
    let mut record = json!({"task": result.task.name(), "items": result.items, "of": result.of});
    for (ours, theirs) in [("accuracy", "acc"), ("accuracy_per_character", "acc_norm"), ("perplexity", "perplexity")] {
        let found = metric(result, theirs);
        if theirs == "perplexity" && found.is_none() {
            continue;
        }
        record[ours] = found.map(|(_, value, _)| *value).into();
        record[format!("{ours}_error")] = found.and_then(|(_, _, error)| *error).into();
    }
    record
}

/// For people.
fn figures(result: &TaskResult) -> Vec<(String, String)> {
    let figure = |(metric, value, error): &(&'static str, f64, Option<f64>)| {
        let (scale, name) = match *metric {
            "acc" => (100.0, result.task.name().to_owned()),
            "acc_norm" => (100.0, format!("{}, per character", result.task.name())),
            other => (1.0, format!("{}, {other}", result.task.name())),
        };
        let error = error.map_or(String::new(), |error| format!(" +- {:.2}", scale * error));
        (format!("{name} ({} items)", result.items), format!("{:.2}{error}", scale * value))
    };
    result.metrics.iter().map(figure).collect()
}

/// For the model's card.
fn measured(result: &TaskResult) -> Vec<Measurement> {
    let row = |&(metric, value, error): &(&'static str, f64, Option<f64>)| {
        let (metric, of) = match metric {
            "acc" => (Metric::Accuracy, ""),
            "acc_norm" => (Metric::Accuracy, ", per character"),
            _ => (Metric::Perplexity, ", of the last word"),
        };
        card::task(metric, result.task.name(), &format!("{} items{of}", result.items), value, error)
    };
    result.metrics.iter().map(row).collect()
}
