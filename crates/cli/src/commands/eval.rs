//! `omniquant eval`: perplexity, zero-shot accuracy.

use std::path::Path;

use anyhow::Result;
use oq_data::{AddSpecial, Hub, Rows, Split, Task, Tokenizer, load_text};
use oq_eval::{EvalError, Perplexity, Progress, perplexity, zero_shot};
use oq_models::{Form, HeadKind, Model};
use oq_recipe::ModelEntry;
use serde_json::json;
use tch::Device;

use crate::args::{EvalArgs, EvalDataArgs, HeadArg};
use crate::card::{self, Measured};
use crate::commands::running;
use crate::exit::CliError;
use crate::machine;
use crate::output::{Output, seconds};
use crate::resolve::{Named, data_path};

const DEFAULT_DATA: &str = "wikitext2";
const DEFAULT_SEQLEN: usize = 2048;

pub fn run(args: &EvalArgs, out: &Output) -> Result<()> {
    let device = machine::device(args.device)?;
    let named = Named::new(&args.model)?;
    let dir = named.directory(out)?;
    if args.card {
        if !Path::new(&named.name).is_dir() {
            let message = format!("{}: --card writes to a directory: give the model's", named.name);
            return Err(CliError::Usage(message).into());
        }
        card::check(&dir)?;
    }
    let mut model = Model::open(&dir)?;
    if let Some(spec) = args.rtn {
        model = model.with_round_to_nearest(spec)?;
    }
    let head = match args.head {
        // The fastest for whole windows, with the same results.
        HeadArg::Stored => HeadKind::Wide,
        HeadArg::W8 => HeadKind::W8,
    };
    let kernels = running::kernels(args.kernels, &model, device);
    let form = Form::new(kernels, machine::compute(args.compute, device), head);
    let model = model.with_form(form)?;
    if !args.tasks.is_empty() {
        return ask(args, &named, &model, (form, device), out);
    }
    let subject = Subject::new(named.entry, &model, &args.data, args.seqlen, out)?;
    let started = std::time::Instant::now();
    let result = subject.measure(&model, device, "measuring", out)?;
    if args.card {
        let measured = [subject.measured(card::THIS, &result)];
        card::add(&dir, &measured)?;
        card::record(&dir, &measured)?;
    }
    let tokens = subject.ids.len();
    let windows = result.window_nll.len();
    let value = json!({"model": named.name, "rtn": args.rtn, "quantized": model.quantization(), "data": subject.data,
        "seqlen": result.seqlen, "windows": windows, "tokens": tokens, "perplexity": result.value(),
        "running_perplexity": (1..=windows).map(|n| result.after(n)).collect::<Vec<_>>(),
        "kernels": form.kernels.name(), "compute": form.compute.name(), "head": form.head.name(), "device": machine::device_name(device), "wall_secs": started.elapsed().as_secs_f64(), "peak_bytes": machine::peak_bytes()});
    out.result(&value, || {
        let what = subject.describe(&result);
        let took = seconds(started.elapsed().as_secs_f64());
        format!("perplexity {:.4}  ({what}; {tokens} tokens in total; {took})", result.value())
    })
}

/// Zero-shot accuracy.
fn ask(args: &EvalArgs, named: &Named, model: &Model, (form, device): (Form, Device), out: &Output) -> Result<()> {
    let started = std::time::Instant::now();
    let tokenizer = Tokenizer::open(model.dir())?;
    let (mut values, mut lines, mut measured) = (Vec::new(), Vec::new(), Vec::new());
    // Make sure that all of them exist before the first is evaluated.
    let load = |&task: &Task| Ok((task, task.load(args.data.data_dir.as_deref())?));
    for (task, mut items) in args.tasks.iter().map(load).collect::<Result<Vec<_>>>()? {
        items.truncate(args.items.map_or(usize::MAX, |n| n as usize));
        let bar = out.bar(task.name());
        let result =
            zero_shot(model, &tokenizer, &items, device, &mut |progress| bar.set(progress.done, progress.total))?;
        drop(bar);
        let shown = |accuracy: f64| format!("{:6.2} +- {:.2}", 100.0 * accuracy, 100.0 * result.error_of(accuracy));
        let normalized = task.is_normalized().then_some(result.normalized);
        let per_character = normalized.map_or(String::new(), |value| format!("   per character {}", shown(value)));
        measured.push(card::accuracy(task.name(), result.items, result.plain, result.error_of(result.plain)));
        lines.push(format!("{:<14}{:>6} items {}{per_character}", task.name(), result.items, shown(result.plain)));
        values.push(json!({"task": task.name(), "items": result.items, "accuracy": result.plain,
            "accuracy_error": result.error_of(result.plain), "accuracy_per_character": normalized,
            "accuracy_per_character_error": normalized.map(|value| result.error_of(value))}));
    }
    if args.card {
        card::add(model.dir(), &measured)?;
        card::record(model.dir(), &measured)?;
    }
    let value = json!({"model": named.name, "rtn": args.rtn, "quantized": model.quantization(), "tasks": values,
        "kernels": form.kernels.name(), "compute": form.compute.name(), "head": form.head.name(), "device": machine::device_name(device),
        "wall_secs": started.elapsed().as_secs_f64(), "peak_bytes": machine::peak_bytes()});
    out.result(&value, || lines.join("\n"))
}

/// What to evaluate on.
pub struct Subject {
    /// A dataset's name or a file.
    pub data: String,
    /// Its tokens: at least one window.
    ids: Vec<u32>,
    seqlen: usize,
    windows: Option<usize>,
}

impl Subject {
    /// The text of the command line, else of the model's own settings, else WikiText-2, tokenized by `model`. Windows have 2048 tokens,
    /// or as many as the model has positions, unless set.
    pub fn new(
        entry: Option<&ModelEntry>,
        model: &Model,
        args: &EvalDataArgs,
        seqlen: Option<usize>,
        out: &Output,
    ) -> Result<Self> {
        let defaults = entry.map(|entry| entry.eval.clone()).unwrap_or_default();
        // The window length set for another text does not apply to the user's own.
        let own_data = args.data.is_none();
        let data = args.data.clone().or(defaults.data).unwrap_or_else(|| DEFAULT_DATA.to_owned());
        let longest = DEFAULT_SEQLEN.min(model.decoder().dims().max_positions);
        let window = seqlen.or(defaults.seqlen.filter(|_| own_data)).unwrap_or(longest);
        if window < 2 {
            return Err(EvalError::NothingToPredict { seqlen: window }.into());
        }
        let ids = tokens(model.dir(), &data, Split::Test, args, out)?;
        if seqlen.is_none() && ids.len() < window {
            let message = format!(
                "{data} has {} tokens, less than a window of {window}: give a longer text with --data",
                ids.len()
            );
            return Err(CliError::Usage(message).into());
        }
        Ok(Self { data, ids, seqlen: window, windows: args.windows.map(|n| n as usize) })
    }

    /// The perplexity of `model`, whose tokenizer must be that of [`Self::new`].
    pub fn measure(&self, model: &Model, device: Device, what: &str, out: &Output) -> Result<Perplexity> {
        let bar = out.bar(what);
        let mut on = |progress: Progress| bar.set(progress.done, progress.total);
        Ok(perplexity(model, &self.ids, self.seqlen, self.windows, device, &mut on)?)
    }

    /// The result as a line of a model's card.
    pub fn measured(&self, model: &str, result: &Perplexity) -> Measured {
        card::perplexity(model, &self.data, result.window_nll.len(), result.seqlen, result.value())
    }

    /// `wikitext2, 8 windows of 2048`.
    pub fn describe(&self, result: &Perplexity) -> String {
        format!("{}, {} windows of {}", self.data, result.window_nll.len(), result.seqlen)
    }
}

/// Ids of a text, by the model's tokenizer.
pub fn tokens(model: &Path, data: &str, split: Split, args: &EvalDataArgs, out: &Output) -> Result<Vec<u32>> {
    let tokenizer = Tokenizer::open(model)?;
    let rows = Rows::default().with_model(model);
    let rows = args.text_field.as_deref().map_or(rows, |field| rows.with_field(field));
    let text = load_text(&data_path(data), split, args.data_dir.as_deref(), &Hub::from_env(), rows)?;
    if let Some(about) = &text.about {
        out.note(&format!("note: {data}: {about}"));
    }
    Ok(tokenizer.encode(&text.text, AddSpecial::Yes)?)
}
