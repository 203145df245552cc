//! `omniquant sweep`: quantizes a model at several settings, one after the other or some at a time, and compares the results.
//!
//! A setting is a run of `omniquant quantize` ([`child`]) in a folder of its own, and what is finished is known by the records there, so that
//! a sweep has no state that a kill could damage. What runs share is the comparison with the model in full precision, whose predictions
//! are computed once ([`runs`]). They share nothing of the learning: the inputs and targets of a block depend on the recipe's rotation and
//! segments and on the type of the products, and a run has to give the same bytes whether it is part of a sweep or not. Each tokenizes its
//! own text, which takes half a second for a megabyte.

mod child;
mod record;
mod runs;
mod settings;

use std::path::{Path, PathBuf};

use anyhow::{Result, anyhow};
use oq_calib::{Machine, check};
use oq_formats::atomic_write;
use oq_models::Model;
use oq_models::family::decoder_of;
use oq_report::comparison;
use serde_json::{Value, json};

use self::record::{Results, Sweep, plan_text, plan_value};
use self::runs::Runs;
use self::settings::{Common, Refusals, Setting};
use crate::args::{Global, SweepArgs};
use crate::commands::eval::Subject;
use crate::output::Output;
use crate::resolve::Named;
use crate::{machine, profile};

/// The comparison of the results.
const PAGE: &str = "report.html";
/// The settings, and what is known of them.
const SETTINGS: &str = "sweep.json";

pub fn run(args: &SweepArgs, global: &Global, out: &Output) -> Result<()> {
    let device = machine::device(args.device)?;
    let named = Named::new(&args.model)?;
    let config = named.config(out)?;
    let decoder = decoder_of(&config)?;
    let dir = args.out.clone().unwrap_or_else(|| PathBuf::from(format!("{}-sweep", named.stem())));
    let machine = Machine { device: machine::accelerator(device), ..machine::machine(&dir) };
    let profile = profile::stored(device).unwrap_or_else(|error| {
        out.note(&format!("note: {error:#}"));
        None
    });
    let planned = oq_calib::Setting {
        compute: machine::compute(args.compute, device),
        // Disk space is for all runs together.
        machine: Machine { disk_bytes: None, ..machine },
        profile: profile.as_ref(),
        text_bytes: 0,
        cache_memory: args.cache_memory.map(|size| size.0),
        ranks: 1,
    };
    let common = Common { named: &named, config: &config, decoder: &*decoder, out: &dir, planned };
    let budget = args.budget.map(|size| size.0);
    let (settings, left_out) = settings::within(budget, settings::all(args, &common)?)?;
    let jobs = usize::from(args.jobs);
    let none = std::collections::BTreeMap::new();
    let sweep = Sweep { model: &named.name, settings: &settings, left_out: &left_out, budget, jobs, failed: &none };
    let left: Vec<&Setting> = settings.iter().filter(|setting| !setting.is_quantized()).collect();
    let fits = settings::refuse_unfit(&left, &machine, jobs);
    if args.dry_run {
        out.result(&plan_value(&sweep), || plan_text(&sweep))?;
        return Ok(fits?);
    }
    out.note(plan_text(&sweep).trim_end());
    match fits {
        Err(error) if args.force => out.note(&format!("note: {error}")),
        fits => fits?,
    }
    let model = Model::open(&named.directory(out)?)?;
    let mut refusals = Refusals::default();
    for setting in &settings {
        if let Err(error) = check(&model, &setting.recipe) {
            refusals.add(&setting.name, &error.into());
        }
    }
    refusals.refuse()?;
    // The text is loaded first, so that it cannot be found missing after hours of learning.
    let subject = Subject::new(named.entry, &model, &args.eval, None, out)?;
    std::fs::create_dir_all(&dir)?;
    let write = |failed: &_| write(&dir, &Sweep { failed, ..sweep });
    let runs = Runs { settings: &settings, model: &model, name: &named.name, subject: &subject, device, dir: &dir };
    let failed = runs.all((args, global), &write, out)?;
    let sweep = Sweep { failed: &failed, ..sweep };
    let value = write(&failed)?;
    let results = Results::new(&settings);
    let page = Some(dir.join(PAGE)).filter(|page| page.exists());
    let shown = json!({"out": dir, "page": page, "sweep": value});
    let report = page.map_or_else(String::new, |page| format!("report: {}\n", page.display()));
    out.result(&shown, || record::text(&sweep, &results) + &report)?;
    if failed.is_empty() {
        return Ok(());
    }
    let lines: Vec<String> = failed.iter().map(|(&i, why)| format!("\n  {}: {why}", settings[i].name)).collect();
    let of = settings.len();
    Err(anyhow!("{} of {of} settings failed; the same command tries them again:{}", failed.len(), lines.concat()))
}

/// Writes `sweep.json`, whose content it returns, and the page, once there is something to show.
fn write(dir: &Path, sweep: &Sweep<'_>) -> Result<Value> {
    let results = Results::new(sweep.settings);
    let value = record::value(sweep, &results);
    atomic_write(&dir.join(SETTINGS), (serde_json::to_string_pretty(&value)? + "\n").as_bytes())?;
    if !results.runs.is_empty() {
        atomic_write(&dir.join(PAGE), comparison(&results.runs).as_bytes())?;
    }
    Ok(value)
}
