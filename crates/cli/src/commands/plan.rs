//! `omniquant plan`: what a run would do, what it would take, and whether it fits.

use std::fmt::Write;
use std::path::Path;

use anyhow::Result;
use oq_calib::{Accelerator, BYTES_PER_SEC, Machine, Parts, Plan, Setting};
use oq_models::family::decoder_of;
use oq_models::{Compute, Decoder};
use oq_quant_core::{QuantSpec, RotateKind, Symmetry, WeightSpec};
use oq_recipe::{BitBudget, Profile, Recipe, Rounding, Text};
use serde_json::json;

use crate::args::{ComputeArg, PlanArgs, PlanDeviceArg, RecipeArgs};
use crate::exit::CliError;
use crate::output::{Output, bytes};
use crate::resolve::{Named, data_path};
use crate::{card, machine, profile};

/// Bytes of WikiText-2's splits, the first rounded.
const DATASET_BYTES: &[(&str, u64)] = &[
    ("wikitext2", 10_900_000),
    ("wikitext2:train", 10_900_000),
    ("wikitext2:valid", 1_146_846),
    ("wikitext2:validation", 1_146_846),
    ("wikitext2:test", 1_290_590),
];

pub fn run(args: &PlanArgs, out: &Output) -> Result<()> {
    let named = Named::new(&args.model)?;
    // Mistakes in the recipe are reported before anything is downloaded.
    named.recipe(&args.recipe, None)?;
    let config = named.config(out)?;
    let recipe = named.recipe(&args.recipe, Some(&config))?;
    let decoder = decoder_of(&config)?;
    notes(&args.recipe, &recipe, &*decoder, out);
    let (machine, compute, profile) = subject(args, out)?;
    let text_bytes = text_bytes(&recipe);
    let cache_memory = args.cache_memory.map(|size| size.0);
    let (profile, ranks) = (profile.as_ref(), usize::from(args.ranks.unwrap_or(1)));
    let setting = Setting { compute, machine, profile, text_bytes, cache_memory, ranks };
    let plan = Plan::new(&*decoder, &recipe, &setting)?;
    let value = json!({"model": named.name, "recipe": recipe, "plan": plan, "peak_bytes": plan.memory.host.total(),
        "peak_device_bytes": plan.memory.device.map(|parts| parts.total()), "machine": machine, "profile": profile,
        "fits": plan.fits()});
    out.result(&value, || text(&named.name, &recipe, &plan, &setting))?;
    refuse(&plan)
}

/// The machine to plan for, the type of its products, and its speed if known.
fn subject(args: &PlanArgs, out: &Output) -> Result<(Machine, Compute, Option<Profile>)> {
    let dir = args.out.as_deref().unwrap_or(Path::new("."));
    match args.device {
        PlanDeviceArg::Here(wanted) => {
            let device = machine::device(wanted)?;
            let profile = if args.measure {
                out.note("measuring this machine");
                Some(profile::measure(device, dir)?)
            } else {
                profile::stored(device)?
            };
            let machine = Machine { device: machine::accelerator(device), ..machine::machine(dir) };
            Ok((machine, machine::compute(args.compute, device), profile))
        }
        PlanDeviceArg::Named(profile) if args.measure => {
            let message = format!("--measure times this machine, but --device {} is another", profile.name);
            Err(CliError::Usage(message).into())
        }
        PlanDeviceArg::Named(profile) => {
            let device = profile.device_bytes().map(|bytes| Accelerator { memory_bytes: Some(bytes) });
            let machine = Machine { memory_bytes: profile.host_bytes(), disk_bytes: None, device };
            let compute = match args.compute {
                ComputeArg::F32 => Compute::F32,
                ComputeArg::Auto if profile.bf16_gflops <= profile.f32_gflops => Compute::F32,
                ComputeArg::Auto | ComputeArg::Bf16 => Compute::Bf16,
            };
            Ok((machine, compute, Some(profile.clone())))
        }
    }
}

/// Notes settings that have no effect, or a bad one.
pub fn notes(args: &RecipeArgs, recipe: &Recipe, decoder: &dyn Decoder, out: &Output) {
    for key in args.overrides().unread(recipe) {
        out.note(&format!("note: {key} has no effect, because nothing in this run uses it"));
    }
    if let Some(warning) = card::warning(recipe) {
        out.note(&format!("note: {warning}"));
    }
    let scheme = recipe.scheme;
    if scheme.weight.symmetry == Symmetry::Symmetric && scheme.weight.bits.get() == 2 {
        let weight = WeightSpec { symmetry: Symmetry::FullRange, ..scheme.weight };
        let full = QuantSpec { weight, ..scheme };
        out.note(&format!(
            "note: {scheme} leaves one of four codes out; {full} is symmetric too, and uses all of them"
        ));
    }
    let (seqlen, positions) = (recipe.text().tokens, decoder.dims().max_positions);
    if recipe.reads_text() && seqlen > positions {
        out.note(&format!(
            "note: segments of {seqlen} tokens exceed the {positions} positions that the model was trained for"
        ));
    }
}

/// Size of the calibration text; 0 if it is not known yet.
pub fn text_bytes(recipe: &Recipe) -> u64 {
    let data = &recipe.calibration.data;
    let dataset = DATASET_BYTES.iter().find(|(name, _)| name == data);
    let file = || std::fs::metadata(data_path(data)).map_or(0, |about| about.len());
    dataset.map_or_else(file, |(_, bytes)| *bytes)
}

/// Fails if the run does not fit, and lists settings that would.
pub fn refuse(plan: &Plan) -> Result<()> {
    if plan.fits() {
        return Ok(());
    }
    let lines = plan.problems.iter().cloned().chain(plan.suggestions.iter().map(ToString::to_string));
    Err(CliError::DoesNotFit(lines.collect::<Vec<_>>().join("\n  ")).into())
}

/// A rough duration.
pub fn about(secs: f64) -> String {
    match secs {
        ..120.0 => format!("{secs:.0} s"),
        120.0..7200.0 => format!("{:.0} min", secs / 60.0),
        _ => format!("{:.1} hours", secs / 3600.0),
    }
}

/// A name with `*` for each part of it that is a number.
fn any_number(name: &str) -> String {
    let is_number = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
    let parts: Vec<&str> = name.split('.').map(|part| if is_number(part) { "*" } else { part }).collect();
    parts.join(".")
}

/// The plan as text.
fn text(model: &str, recipe: &Recipe, plan: &Plan, setting: &Setting<'_>) -> String {
    let mut text = String::new();
    let mut line =
        |name: &str, value: String| writeln!(text, "{name:<16}{value}").expect("writing to a string cannot fail");
    line("model", format!("{model}, {} blocks", plan.n_layers));
    line("setting", format!("{} with {}", recipe.scheme, recipe.method));
    if let Some(bits) = recipe.scheme.act.bits() {
        line("activations", format!("{} bits per token: inputs of linears, queries, keys, values", bits.get()));
    }
    match recipe.rotate.kind {
        RotateKind::None => {}
        RotateKind::Merged => line("rotated", "residual stream and values, in the weights".to_owned()),
        RotateKind::Online => line(
            "rotated",
            "residual stream and values, in the weights; queries, keys and the input of the MLP's last linear, online"
                .to_owned(),
        ),
    }
    if let Some(BitBudget { average, choices }) = &recipe.bits {
        let choices: Vec<String> = choices.iter().map(ToString::to_string).collect();
        line(
            "bits",
            format!("{average} on average, from {}, chosen by their cost to the predictions", choices.join(", ")),
        );
    }
    for own in &recipe.overrides {
        line("override", own.to_string());
    }
    for (what, bits) in [("head", recipe.outer.head_bits), ("embedding", recipe.outer.embed_bits)] {
        if let Some(bits) = bits {
            line(what, format!("{bits} bits, rounded to nearest"));
        }
    }
    if recipe.reads_text() {
        let (c, Text { segments, tokens }) = (&recipe.calibration, recipe.text());
        line("calibration", format!("{segments} segments of {tokens} tokens of {}, seed {}", c.data, c.seed));
    }
    if recipe.method.learns() {
        let loss = if recipe.learn.aug_loss { "both targets" } else { "one target" };
        let (epochs, steps, lr) = (recipe.learn.epochs, plan.steps_per_block, recipe.learn.lwc_lr);
        let scales =
            if plan.sites.is_empty() { String::new() } else { format!(", {:e} for scales", recipe.transform.lr) };
        line("learning", format!("{epochs} epochs, {steps} steps per block, AdamW at {lr:e}{scales}, {loss}"));
    }
    if plan.tuning_steps > 0 {
        let (epochs, steps, lr) = (recipe.tune.epochs, plan.tuning_steps, recipe.tune.lr);
        line("tuning", format!("{epochs} epochs on new segments, {steps} steps of all blocks, AdamW at {lr:e}"));
    }
    // The linears of experts stand in one line.
    let mut linears: Vec<(String, String, usize)> = Vec::new();
    for linear in &plan.linears {
        let what = format!("[{}, {}]", linear.out_features, linear.in_features);
        let entry = (any_number(linear.name), format!("{what:<16}{} grids", linear.n_groups));
        match linears.iter_mut().find(|(name, what, _)| (name, what) == (&entry.0, &entry.1)) {
            Some((.., n)) => *n += 1,
            None => linears.push((entry.0, entry.1, 1)),
        }
    }
    for (name, what, n) in linears {
        let each = if n > 1 { format!(" each, {n} times") } else { String::new() };
        line("  linear", format!("{name:<31} {what}{each}"));
    }
    for site in &plan.sites {
        let readers = if site.readers.is_empty() { String::new() } else { format!(" -> {}", site.readers.join(", ")) };
        let shifts = if site.n_shifts > 0 { format!(" and {} shifts", site.n_shifts) } else { String::new() };
        let between = format!("{}{readers}", site.writers.join(" : "));
        line("  site", format!("{:<7}{between}: {} scales{shifts}", site.kind.name(), site.n_scales));
    }
    if plan.ranks > 1 {
        let part = recipe.calibration.batch.div_ceil(plan.ranks);
        let (sent, rate) = (bytes(plan.message_bytes), BYTES_PER_SEC / 1e9);
        let assumed = format!("assumed: {rate} GB/s between machines like this one, which each has to itself");
        let n = plan.ranks;
        line("ranks", format!("{n}, each with {part} segments of a batch; each sends {sent} per step ({assumed})"));
    }
    let rounding = recipe.method.learns() && recipe.learn.rounding == Rounding::Learned;
    let offsets = if rounding { ", and an offset for each weight" } else { "" };
    line("learned", format!("{} numbers per block{offsets}", plan.learned_per_block));
    if let Some(profile) = setting.profile {
        let estimate = if profile.estimate { " (estimate)" } else { "" };
        line("machine", format!("{}{estimate}: {}", profile.name, profile.description));
    }
    let memories = [("memory", Some(plan.memory.host), setting.machine.memory_bytes)].into_iter();
    let each = if plan.ranks > 1 { " for each rank" } else { "" };
    let of_device = setting.machine.device.and_then(|device| device.memory_bytes);
    for (name, parts, there) in memories.chain([("device memory", plan.memory.device, of_device)]) {
        let Some(parts) = parts else { continue };
        let there = there.map_or_else(|| "an unknown amount".to_owned(), bytes);
        line(name, format!("{} at most{each}, {there} available", bytes(parts.total())));
        for (part, taken) in parts_of(&parts) {
            line(part, bytes(taken));
        }
    }
    line("time", time(plan));
    line("output", bytes(plan.output_bytes));
    if plan.disk_bytes > plan.output_bytes {
        let spilled = match plan.memory.spilled_bytes {
            0 => String::new(),
            spilled => format!(", including {} of hidden states", bytes(spilled)),
        };
        line("disk", format!("{} at most during the run{spilled}", bytes(plan.disk_bytes)));
    }
    line("fits", if plan.fits() { "yes".to_owned() } else { "no".to_owned() });
    text
}

/// The parts that are not zero.
fn parts_of(parts: &Parts) -> impl Iterator<Item = (&'static str, u64)> {
    let named = [
        ("  program", parts.program_bytes),
        ("  text", parts.text_bytes),
        ("  checkpoint", parts.checkpoint_bytes),
        ("  block", parts.block_bytes),
        ("  hidden states", parts.cache_bytes),
        ("  step", parts.step_bytes),
    ];
    named.into_iter().filter(|(_, bytes)| *bytes > 0)
}

fn time(plan: &Plan) -> String {
    let Some(time) = &plan.time else { return "unknown, `--measure` times this machine".to_owned() };
    let estimate = if time.estimate { " (estimate)" } else { "" };
    let step = if plan.steps_per_block > 0 { format!(", {:.3} s per step", time.step_secs) } else { String::new() };
    let tuning = if time.tuning_secs > 0.0 { format!(", tuning {}", about(time.tuning_secs)) } else { String::new() };
    let probing =
        if time.probing_secs > 0.0 { format!(", choosing bits {}", about(time.probing_secs)) } else { String::new() };
    let (total, block) = (about(time.total_secs), time.block_secs);
    format!("about {total}{estimate}, {block:.1} s per block{step}{probing}{tuning}, in {}", plan.compute)
}
