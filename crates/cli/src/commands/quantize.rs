//! `omniquant quantize`: learns, writes the packed model, and records the run beside it.

use std::fmt::Write as _;
use std::ops::ControlFlow;
use std::path::Path;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use anyhow::Result;
use oq_calib::{Machine, Notice, Options, Outcome, Plan, Setting, TUNING, check, check_ranks, outer_specs, quantize};
use oq_data::{Split, segments_and_new};
use oq_export::Tensor;
use oq_formats::{PackedCheckpoint, Summary, atomic_write};
use oq_models::family::decoder_of;
use oq_models::{Compute, Decoder, LinearSpec, Model, specs_of_layer};
use oq_quant_core::{RotateKind, WeightSpec};
use oq_ranks::Ranks;
use oq_recipe::{Event, Measurement, Method, Planned, RECIPE, RUN, Recipe, RunRecord};
use serde_json::{Value, json};
use tch::Device;

use crate::args::{LearnKernelsArg, QuantizeArgs};
use crate::card::{self, Card, Origin};
use crate::commands::eval::{Subject, tokens};
use crate::commands::plan::{about, notes, refuse, text_bytes};
use crate::commands::progress::{Events, Show};
use crate::commands::running::Interrupt;
use crate::commands::{export, report};
use crate::exit::CliError;
use crate::last_part::last_part;
use crate::output::{Output, bytes, seconds};
use crate::ranks::{Team, shared};
use crate::resolve::Named;
use crate::{machine, profile};

pub fn run(args: &QuantizeArgs, out: &Output) -> Result<()> {
    shared(args.ranks, out, |team, out| run_as(team, args, out))
}

/// The command on one of the ranks.
fn run_as(team: &Team, args: &QuantizeArgs, out: &Output) -> Result<()> {
    let ranks = &team.ranks;
    if !args.report && (args.eval.data.is_some() || args.eval.windows.is_some()) {
        let message = "--data and --windows are for --report: add --report (calibration text is --calib)";
        return Err(CliError::Usage(message.to_owned()).into());
    }
    let device = machine::device(team.device(args.device))?;
    if args.kernels == LearnKernelsArg::Cuda {
        machine::use_cuda_kernels(device)?;
    }
    let named = Named::new(&args.model)?;
    // Mistakes in the recipe are reported before anything is downloaded.
    named.recipe(&args.recipe, None)?;
    let open = || -> Result<Model> { Ok(Model::open(&named.directory(out)?)?) };
    let here = if named.is_on_hub()? { None } else { Some(open()?) };
    let config = here.as_ref().map_or_else(|| named.config(out), |model| Ok(model.config().clone()))?;
    let recipe = named.recipe(&args.recipe, Some(&config))?;
    let decoder = decoder_of(&config)?;
    notes(&args.recipe, &recipe, &*decoder, out);
    let dir = args.out.clone().unwrap_or_else(|| output_name(&named, &recipe).into());
    let compute = machine::compute(args.compute, device);
    // The profile only affects the estimate of time.
    let profile = profile::stored(device).unwrap_or_else(|error| {
        out.note(&format!("note: {error:#}"));
        None
    });
    let profile = profile.map(|profile| if device == Device::Cpu { team.speed_of(profile) } else { profile });
    let cache_memory = args.cache_memory.map(|size| size.0);
    let fitting = || -> Result<Plan> {
        let mut machine = Machine { device: machine::accelerator(device), ..machine::machine(&dir) };
        if args.resume {
            machine.disk_bytes = machine.disk_bytes.and_then(|free| room(&dir, free));
        }
        let text_bytes = text_bytes(&recipe);
        let (machine, profile, ranks) = (team.part_of(machine), profile.as_ref(), ranks.size());
        let setting = Setting { compute, machine, profile, text_bytes, cache_memory, ranks };
        let plan = Plan::new(&*decoder, &recipe, &setting)?;
        if !args.force {
            refuse(&plan)?;
        }
        Ok(plan)
    };
    let model = match here {
        Some(model) => model,
        // Nothing is downloaded for a run that does not fit.
        None => fitting().and_then(|_| open())?,
    };
    check(&model, &recipe)?;
    check_ranks(&recipe, ranks.size())?;
    let exports = export::places(&dir, &args.export, None)?;
    let subject_of_exports = what_is_exported(&config, &*decoder, &recipe)?;
    exports.iter().try_for_each(|(format, _)| oq_export::check(format, &subject_of_exports))?;
    let plan = fitting()?;
    if let Err(error) = refuse(&plan) {
        out.note(&format!("note: {error}"));
    }
    out.note(&planned(&plan));

    // The report's text is loaded first, so that it cannot be found missing after hours of learning.
    let subject = args.report.then(|| Subject::new(named.entry, &model, &args.eval, None, out)?.shared(ranks));
    let subject = subject.transpose()?;
    let segments = segments(&model, &recipe, args, out)?;
    let planned = Planned {
        original_bytes: model.checkpoint().total_bytes(),
        output_bytes: plan.output_bytes,
        peak_bytes: plan.memory.host.total(),
        block_secs: plan.time.as_ref().map(|time| time.block_secs),
        total_secs: plan.time.as_ref().map(|time| time.total_secs),
    };
    let (named, recipe, model, dir) = (&named, &recipe, &model, &*dir);
    let job = Job { named, recipe, model, dir, device, compute, cache_memory, planned, ranks };
    if !ranks.is_first() {
        job.follow(&segments, args)?;
        return subject.map_or(Ok(()), |subject| job.report(&subject, out).map(drop));
    }
    let record = job.run(&segments, args, out)?;
    let summary = oq_formats::inspect(dir)?;
    job.write_card(args, &summary)?;
    let rows = subject.map_or_else(|| Ok(Vec::new()), |subject| job.report(&subject, out));
    let rows = rows.and_then(|rows| {
        let measured: Vec<Measurement> = rows.iter().map(|row| row.measured.clone()).collect();
        card::record(dir, &measured)?;
        Ok(rows)
    });
    let (rows, failed) = match rows {
        Ok(rows) => (rows, None),
        Err(error) => (Vec::new(), Some(error.context("the model was quantized, but the report failed"))),
    };
    let page = report::of_finished(dir)?;
    let exports = export::export_all(dir, &exports, &oq_export::Options::default(), out)?;
    let value = json!({"out": dir, "bytes": summary.total_bytes, "bits_per_weight": summary.bits_per_weight(),
        "run": record, "report": rows, "page": page, "exports": exports});
    out.result(&value, || {
        summary_text(dir, &summary, &record, &rows) + &format!("report: {}\n", page.display()) + &export::text(&exports)
    })?;
    failed.map_or(Ok(()), Err)
}

/// The result of the run, as far as it is known before.
fn what_is_exported(config: &Value, decoder: &dyn Decoder, recipe: &Recipe) -> Result<oq_export::Subject> {
    let choices = recipe.bits.as_ref().map_or(&[][..], |budget| &budget.choices);
    let mut linears = Vec::new();
    for layer in 0..decoder.dims().n_layers {
        let specs = specs_of_layer(decoder, recipe.quantization(), layer)?;
        for (linear, LinearSpec { weight, is_pinned, .. }) in decoder.layer(layer).linears.iter().zip(specs) {
            let name = format!("{}{}", decoder.block_prefix(layer), linear.name.0);
            let weights: Vec<Option<WeightSpec>> = match weight {
                Some(weight) if !is_pinned && !choices.is_empty() => {
                    choices.iter().map(|&bits| Some(WeightSpec { bits, ..weight })).collect()
                }
                weight => vec![weight],
            };
            let shape = [linear.out_features, linear.in_features];
            linears.extend(weights.into_iter().map(|weight| Tensor { name: name.clone(), shape, weight }));
        }
    }
    let outer = outer_specs(decoder, recipe)?;
    let params = decoder.outer_params();
    let outer =
        [(decoder.head(), outer.head), (params[0].name, outer.embedding)].into_iter().filter_map(|(name, weight)| {
            let shape = params.iter().find(|param| param.name == name).map_or(&params[0].shape, |param| &param.shape);
            let name = name.trim_end_matches(".weight").to_owned();
            Some(Tensor { name, shape: [shape[0], shape[1]], weight: Some(weight?) })
        });
    let architecture = config["model_type"].as_str().unwrap_or_default();
    let subject = oq_export::Subject::of_tensors(recipe.scheme.act, architecture, linears.into_iter().chain(outer));
    Ok(subject.rotated_online(recipe.rotate.kind == RotateKind::Online))
}

/// A name for the packed model.
fn output_name(named: &Named, recipe: &Recipe) -> String {
    let bits = recipe.bits.as_ref().map_or_else(String::new, |bits| format!("-{}bits", bits.average));
    let outer = [("head", recipe.outer.head_bits), ("embed", recipe.outer.embed_bits)];
    let outer: String = outer.iter().filter_map(|(what, bits)| Some(format!("-{what}{}", (*bits)?))).collect();
    // Too long for a name.
    let own = if recipe.overrides.is_empty() { "" } else { "-overrides" };
    format!("{}-{}{bits}{outer}{own}", named.stem(), recipe.scheme)
}

/// The calibration segments: those of the blocks, then those of each pass of tuning.
fn segments(model: &Model, recipe: &Recipe, args: &QuantizeArgs, out: &Output) -> Result<Vec<Vec<u32>>> {
    if !recipe.reads_text() {
        return Ok(Vec::new());
    }
    let (c, text, total) = (&recipe.calibration, recipe.text(), recipe.segments());
    if text.segments != c.samples {
        // What was asked for is refused where the model cannot read it.
        let asked = tch::Tensor::zeros([1, c.seqlen as i64], (tch::Kind::Int64, Device::Cpu));
        drop(model.decoder().embed(&model.outer(Device::Cpu), &asked)?);
        out.note(&format!(
            "note: {} segments of {} tokens replace {} of {}, for more steps on as much text (--steps 0 keeps them)",
            text.segments, text.tokens, c.samples, c.seqlen
        ));
    }
    let ids = tokens(model.dir(), &c.data, Split::Train, &args.eval, out)?;
    let asked = total * text.tokens;
    if (text.tokens..asked).contains(&ids.len()) {
        out.note(&format!(
            "note: the calibration text is too short: it has {} tokens, but {total} segments of {} need {asked}, so segments share tokens: give \
             a longer text (--calib) or fewer --samples",
            ids.len(),
            text.tokens
        ));
    }
    Ok(segments_and_new(&ids, text.segments, total - text.segments, text.tokens, c.seed)?)
}

/// The result as text.
fn summary_text(dir: &Path, summary: &Summary, record: &RunRecord, report: &[Row]) -> String {
    let mut text = format!(
        "{}: {}, {:.3} bits per weight; took {}, peak memory {}\n",
        dir.display(),
        bytes(summary.total_bytes),
        summary.bits_per_weight().unwrap_or_default(),
        seconds(record.wall_secs),
        bytes(record.peak_bytes)
    );
    for (i, row) in report.iter().enumerate() {
        if i == 0 {
            writeln!(text, "\nperplexity on {}", row.subject).expect("writing to a string cannot fail");
        }
        writeln!(text, "  {:<20}{:>10.4}", row.name, row.perplexity).expect("writing to a string cannot fail");
    }
    text
}

/// A run's plan in one line.
fn planned(plan: &Plan) -> String {
    let device =
        plan.memory.device.map_or_else(String::new, |parts| format!(" and {} on the device", bytes(parts.total())));
    let time = plan.time.as_ref().map_or_else(
        || "time unknown (`omniquant plan .. --measure` times this machine)".to_owned(),
        |time| format!("about {}", about(time.total_secs)),
    );
    format!("planned: {} of memory{device}, {time}", bytes(plan.memory.host.total()))
}

/// Disk space for resuming a run in `dir`: the free bytes and those that it has already written. None, which means no limit, if the run
/// is finished.
fn room(dir: &Path, free: u64) -> Option<u64> {
    (!dir.join("config.json").exists()).then(|| free.saturating_add(written(dir)))
}

/// Bytes of the blocks that a run in `dir` has written.
pub fn written(dir: &Path) -> u64 {
    shard_bytes(dir) + std::fs::metadata(dir.join(TUNING)).map_or(0, |file| file.len())
}

/// Bytes of the shards in `dir`; 0 if it does not exist.
fn shard_bytes(dir: &Path) -> u64 {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let shards = entries.filter(|entry| entry.path().extension().is_some_and(|kind| kind == "safetensors"));
    shards.filter_map(|shard| shard.metadata().ok()).map(|about| about.len()).sum()
}

struct Job<'a> {
    named: &'a Named,
    recipe: &'a Recipe,
    model: &'a Model,
    dir: &'a Path,
    device: Device,
    compute: Compute,
    cache_memory: Option<u64>,
    planned: Planned,
    ranks: &'a Ranks,
}

/// A row of the report.
#[derive(serde::Serialize)]
struct Row {
    name: String,
    perplexity: f64,
    subject: String,
    /// The same as it is recorded.
    #[serde(skip)]
    measured: Measurement,
}

impl Job<'_> {
    /// Quantizes, with progress on stderr and records of the run in the output directory.
    fn run(&self, segments: &[Vec<u32>], args: &QuantizeArgs, out: &Output) -> Result<RunRecord> {
        let interrupt =
            Interrupt::install(Some("stopping; finished blocks are kept (interrupt again to stop at once)"))?;
        if args.until_input_ends {
            interrupt.ask_when_input_ends();
        }
        let started = Instant::now();
        let started_unix = unix_now();
        let n_blocks = self.model.decoder().dims().n_layers;
        let bar = out.bar(&format!("{} {}", self.named.stem(), self.recipe.scheme));
        let mut show = Show::new(bar, n_blocks, self.recipe);
        let mut events = Events::new(self.dir);
        let begun = Event::RunStarted {
            model: self.named.name.clone(),
            recipe: Box::new(self.recipe.clone()),
            blocks: n_blocks,
            started_unix,
            planned: Some(self.planned),
        };
        let mut begun = Some(begun);
        let mut failed = None;
        let options = self.options(args);
        let mut on = |notice| {
            // At the first notice, the directory is known to be this run's.
            let first = begun.take();
            let memory = show.on(&notice);
            let event = match &notice {
                Notice::Event(event) => Some(event),
                Notice::Progress { .. } => None,
            };
            let written = first.iter().chain(event).chain(&memory).try_for_each(|event| events.write(event));
            if let Err(error) = written {
                failed = Some(error);
                return ControlFlow::Break(());
            }
            if interrupt.was_asked() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        let result = interrupt.during(|| quantize(self.model, self.recipe, segments, &options, &mut on));
        if let Some(error) = failed {
            return Err(error);
        }
        let outcome = result?;
        let after = show.finish();
        // If all blocks were finished before, there was no notice.
        if !outcome.was_complete
            && let Some(first) = begun
        {
            events.write(&first)?;
        }
        if !outcome.was_complete {
            events.write(&after)?;
        }
        self.record(outcome, started, started_unix, &mut events)
    }

    /// Quantizes with other ranks, of which the first one shows and records what happens.
    fn follow(&self, segments: &[Vec<u32>], args: &QuantizeArgs) -> Result<()> {
        let interrupt = Interrupt::install(None)?;
        let mut on = |_| if interrupt.was_asked() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) };
        interrupt.during(|| quantize(self.model, self.recipe, segments, &self.options(args), &mut on))?;
        Ok(())
    }

    fn options(&self, args: &QuantizeArgs) -> Options {
        let Self { device, compute, cache_memory, .. } = *self;
        let mut options = Options::new(self.dir);
        (options.device, options.compute) = (device, compute);
        (options.cache_memory, options.resume) = (cache_memory, args.resume);
        options.ranks = self.ranks.clone();
        options
    }

    fn record(&self, outcome: Outcome, started: Instant, started_unix: u64, events: &mut Events) -> Result<RunRecord> {
        let record = RunRecord {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            model: self.named.name.clone(),
            recipe: self.recipe.clone(),
            device: machine::device_name(self.device),
            compute: self.compute.name().to_owned(),
            threads: tch::get_num_threads() as usize,
            libtorch: oq_runtime::LIBTORCH.to_owned(),
            tch: "0.26".to_owned(),
            blocks: outcome.blocks,
            tuning: outcome.tuning,
            wall_secs: started.elapsed().as_secs_f64(),
            peak_bytes: machine::peak_bytes().unwrap_or_default(),
            started_unix,
            finished_unix: unix_now(),
        };
        if outcome.was_complete
            && let Some(stored) = stored_record(&self.dir.join(RUN))
        {
            return Ok(stored);
        }
        events.write(&Event::RunFinished {
            wall_secs: record.wall_secs,
            peak_bytes: record.peak_bytes,
            finished_unix: record.finished_unix,
        })?;
        atomic_write(&self.dir.join(RECIPE), self.recipe.to_toml()?.as_bytes())?;
        atomic_write(&self.dir.join(RUN), record.to_json().as_bytes())?;
        Ok(record)
    }

    /// Writes the model's card, unless the directory has one.
    fn write_card(&self, args: &QuantizeArgs, summary: &Summary) -> Result<()> {
        let Self { named, recipe, model, .. } = self;
        let source = if Path::new(&named.name).is_dir() { named.stem() } else { args.model.name.clone() };
        let options = args.recipe.words(last_part);
        let words = ["omniquant", "quantize", &source].into_iter().chain(options.iter().map(String::as_str));
        let revision = args.model.revision.iter().flat_map(|revision| ["--revision", revision]);
        let field = args.eval.text_field.iter().flat_map(|field| ["--text-field", field]);
        let command: Vec<&str> = words.chain(revision).chain(field).collect();
        let card = Card {
            name: &output_name(named, recipe),
            model: &source,
            origin: &Origin::new(named, model.dir(), model.config()),
            recipe,
            subject: &oq_export::Subject::of(&PackedCheckpoint::open(self.dir)?)?,
            bits_per_code: summary.bits_per_code().unwrap_or_default(),
            bits_per_weight: summary.bits_per_weight().unwrap_or_default(),
            bytes: [model.checkpoint().total_bytes(), summary.total_bytes],
            command: &command,
        };
        card.write(self.dir)
    }

    /// Perplexity in full precision, rounded to nearest, and of the packed model.
    fn report(&self, subject: &Subject, out: &Output) -> Result<Vec<Row>> {
        let measure = |name: String, model: &Model| -> Result<Row> {
            let result = subject.measure(model, self.device, &name, out)?;
            let is_this = model.dir() == self.dir;
            let measured = subject.measured(if is_this { card::THIS } else { &name }, &result);
            Ok(Row { name, perplexity: result.value(), subject: subject.describe(&result), measured })
        };
        let full = measure(Measurement::FULL.to_owned(), self.model)?;
        let rounded = Model::open(self.model.dir())?.with_round_to_nearest(self.recipe.quantization())?;
        let mut rounded = measure("round to nearest".to_owned(), &rounded)?;
        let is_rotated = self.recipe.rotate.kind != RotateKind::None;
        let name = match self.recipe.method {
            Method::Rtn if self.recipe.bits.is_some() => "mixed bits",
            Method::Rtn if is_rotated => "rotated and rounded",
            Method::Rtn if !self.recipe.outer.is_none() => "outer matrices too",
            Method::Rtn => {
                card::THIS.clone_into(&mut rounded.measured.model);
                return Ok(vec![full, rounded]);
            }
            Method::Smoothquant => "SmoothQuant",
            Method::Omniquant => "OmniQuant",
        };
        Ok(vec![full, rounded, measure(name.to_owned(), &Model::open(self.dir)?)?])
    }
}

/// The record of a run that finished earlier; none if that was killed before writing it.
fn stored_record(path: &Path) -> Option<RunRecord> {
    serde_json::from_slice(&std::fs::read(path).ok()?).ok()
}

fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use oq_calib::JOURNAL;

    use super::*;

    #[test]
    fn bytes_already_written_need_no_space_again() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path();
        assert_eq!(room(&out.join("none"), 7), Some(7));
        fs::create_dir_all(out.join(TUNING).parent().unwrap()).unwrap();
        fs::write(out.join("model-00001-of-00002.safetensors"), [0; 100]).unwrap();
        fs::write(out.join(TUNING), [0; 30]).unwrap();
        fs::write(out.join(JOURNAL), [0; 5]).unwrap();
        assert_eq!(room(out, 7), Some(137));
        fs::write(out.join("config.json"), "{}").unwrap();
        assert_eq!(room(out, 7), None);
    }
}
