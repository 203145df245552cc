//! Zero-shot accuracy.

use std::time::Instant;

use anyhow::Result;
use oq_data::{Task, Tokenizer};
use oq_eval::zero_shot;
use serde_json::json;

use super::opened::Opened;
use crate::args::EvalArgs;
use crate::card;
use crate::output::Output;

/// Asks a model the tasks of the command line.
pub fn ask(args: &EvalArgs, opened: &Opened, out: &Output) -> Result<()> {
    let Opened { model, device, .. } = opened;
    let started = Instant::now();
    let tokenizer = Tokenizer::open(model.dir())?;
    let (mut values, mut lines, mut measured) = (Vec::new(), Vec::new(), Vec::new());
    // Make sure that all of them exist before the first is evaluated.
    let load = |&task: &Task| Ok((task, task.load(args.data.data_dir.as_deref())?));
    for (task, mut items) in args.tasks.iter().map(load).collect::<Result<Vec<_>>>()? {
        items.truncate(args.items.map_or(usize::MAX, |n| n as usize));
        let bar = out.bar(task.name());
        let result =
            zero_shot(model, &tokenizer, &items, *device, &mut |progress| bar.set(progress.done, progress.total))?;
        drop(bar);
        let shown = |accuracy: f64| format!("{:6.2} +- {:.2}", 100.0 * accuracy, 100.0 * result.error_of(accuracy));
        let normalized = task.is_normalized().then_some(result.normalized);
        let per_character = normalized.map_or(String::new(), |value| format!("   per character {}", shown(value)));
        measured.push(card::accuracy(task.name(), result.items, result.plain));
        lines.push(format!("{:<14}{:>6} items {}{per_character}", task.name(), result.items, shown(result.plain)));
        values.push(json!({"task": task.name(), "items": result.items, "accuracy": result.plain,
            "accuracy_error": result.error_of(result.plain), "accuracy_per_character": normalized,
            "accuracy_per_character_error": normalized.map(|value| result.error_of(value))}));
    }
    if args.card {
        card::add(model.dir(), &measured)?;
    }
    let value = opened.record(args, json!({"tasks": values}), started.elapsed().as_secs_f64());
    out.result(&value, || lines.join("\n"))
}
