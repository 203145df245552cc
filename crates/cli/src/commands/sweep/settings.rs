//! The settings of a sweep, each a scheme with a preset. All of them are resolved and planned before the first one runs.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use oq_calib::{Machine, Plan};
use oq_models::Decoder;
use oq_quant_core::QuantSpec;
use oq_recipe::{Preset, REPORT, Recipe};
use oq_report::Run;
use serde_json::Value;

use crate::args::{RecipeArgs, SweepArgs};
use crate::commands::plan::text_bytes;
use crate::commands::quantize::written;
use crate::exit::CliError;
use crate::last_part::last_part;
use crate::output::{bytes, with_causes};
use crate::resolve::Named;

/// A setting.
pub struct Setting {
    /// `w4a16g128-fast`, which is also the name of its folder.
    pub name: String,
    pub dir: PathBuf,
    /// Its options, as `omniquant quantize` takes them.
    pub args: RecipeArgs,
    pub recipe: Recipe,
    pub plan: Plan,
}

impl Setting {
    /// The record of its run, if that has begun.
    pub fn run(&self) -> Option<Run> {
        Run::read(&self.dir).ok()
    }

    /// Whether its run has written all that it writes. The page comes last.
    pub fn is_quantized(&self) -> bool {
        self.run().is_some_and(|run| run.surroundings.is_some()) && self.dir.join(REPORT).exists()
    }
}

/// What all settings have in common.
pub struct Common<'a> {
    pub named: &'a Named,
    pub config: &'a Value,
    pub decoder: &'a dyn Decoder,
    /// The sweep's directory.
    pub out: &'a Path,
    /// How each run is planned, but for the size of its text.
    pub planned: oq_calib::Setting<'a>,
}

/// Why settings cannot run: their names, and what is wrong.
#[derive(Default)]
pub struct Refusals(Vec<(String, String)>);

impl Refusals {
    pub fn add(&mut self, name: &str, error: &anyhow::Error) {
        let why = with_causes(error, ": ");
        match self.0.iter_mut().find(|(_, known)| *known == why) {
            Some((names, _)) => *names += &format!(", {name}"),
            None => self.0.push((name.to_owned(), why)),
        }
    }

    /// Fails with all of them, if there are any.
    pub fn refuse(self) -> Result<(), CliError> {
        if self.0.is_empty() {
            return Ok(());
        }
        let lines: Vec<String> = self.0.iter().map(|(names, why)| format!("\n  {names}: {why}")).collect();
        let mend = "correct them, or take them out of the list";
        Err(CliError::Usage(format!(
            "nothing was started, because some settings cannot run:{}\n{mend}",
            lines.concat()
        )))
    }
}

/// Every scheme with every preset, in the order in which they are listed.
pub fn all(args: &SweepArgs, common: &Common<'_>) -> Result<Vec<Setting>> {
    let mut refusals = Refusals::default();
    let schemes: Vec<QuantSpec> = listed(&args.schemes, "--schemes", &mut refusals);
    let presets: Vec<Preset> = listed(&args.presets, "--presets", &mut refusals);
    let mut settings = Vec::new();
    for (scheme, preset) in schemes.iter().flat_map(|scheme| presets.iter().map(move |preset| (*scheme, *preset))) {
        let name = format!("{scheme}-{}", preset.name());
        match setting(&name, (scheme, preset), args, common) {
            Ok(setting) => settings.push(setting),
            Err(error) => refusals.add(&name, &error),
        }
    }
    refusals.refuse()?;
    Ok(settings)
}

/// The values of a list, each once.
fn listed<T: std::str::FromStr + PartialEq>(words: &[String], option: &str, refusals: &mut Refusals) -> Vec<T>
where
    T::Err: std::fmt::Display,
{
    let mut values = Vec::new();
    for word in words {
        match word.trim().parse::<T>() {
            Ok(value) if values.contains(&value) => {}
            Ok(value) => values.push(value),
            Err(error) => refusals.add(&format!("{option} {word}"), &anyhow::anyhow!("{error}")),
        }
    }
    values
}

fn setting(
    name: &str,
    (scheme, preset): (QuantSpec, Preset),
    args: &SweepArgs,
    common: &Common<'_>,
) -> Result<Setting> {
    let Common { named, config, decoder, out, planned } = common;
    let args = RecipeArgs { scheme: Some(scheme), recipe: None, preset: Some(preset), more: args.recipe.clone() };
    let recipe = named.recipe(&args, Some(config))?;
    let text = &recipe.calibration.data;
    if text == "-" || Path::new(text).metadata().is_ok_and(|about| !about.is_file() && !about.is_dir()) {
        bail!("--calib {text}: every run reads this text, and it can be read only once: give a file");
    }
    let plan = Plan::new(*decoder, &recipe, &oq_calib::Setting { text_bytes: text_bytes(&recipe), ..*planned })?;
    let setting = Setting { name: name.to_owned(), dir: out.join(name), args, recipe, plan };
    if let Some(run) = setting.run().filter(|run| !run.blocks.is_empty()) {
        let dir = setting.dir.display();
        if run.model_name() != last_part(&named.name) {
            bail!("{dir} has a run of another model, {}: choose another --out", run.model);
        }
        if run.recipe != setting.recipe {
            bail!("{dir} has a run with other options: choose another --out, or give the options of that run");
        }
    }
    Ok(setting)
}

/// Takes out the settings whose result will be larger than `budget`.
pub fn within(budget: Option<u64>, settings: Vec<Setting>) -> Result<(Vec<Setting>, Vec<Setting>), CliError> {
    let fits = |setting: &Setting| budget.is_none_or(|budget| setting.plan.output_bytes <= budget);
    let (kept, left_out): (Vec<Setting>, Vec<Setting>) = settings.into_iter().partition(fits);
    match left_out.iter().min_by_key(|setting| setting.plan.output_bytes) {
        Some(least) if kept.is_empty() => Err(CliError::DoesNotFit(format!(
            "all settings become larger than --budget {}; the smallest, {}, has {}: give a larger --budget or smaller schemes",
            bytes(budget.unwrap_or_default()),
            least.name,
            bytes(least.plan.output_bytes)
        ))),
        _ => Ok((kept, left_out)),
    }
}

/// Fails if the runs that are left to do do not fit on the machine, `jobs` at a time.
pub fn refuse_unfit(left: &[&Setting], machine: &Machine, jobs: usize) -> Result<(), CliError> {
    let mut lines: Vec<String> = Vec::new();
    for setting in left.iter().filter(|setting| !setting.plan.fits()) {
        lines.push(format!("{}: {}", setting.name, setting.plan.problems.join("; ")));
    }
    if let Some(unfit) = left.iter().find(|setting| !setting.plan.fits()) {
        lines.extend(unfit.plan.suggestions.iter().map(ToString::to_string));
    } else {
        let host = left.iter().map(|setting| setting.plan.memory.host.total()).collect();
        let device = left.iter().filter_map(|setting| Some(setting.plan.memory.device?.total())).collect();
        let of_device = machine.device.and_then(|device| device.memory_bytes);
        let places = [("memory", host, machine.memory_bytes), ("the device's memory", device, of_device)];
        lines.extend(places.into_iter().filter_map(|(what, sizes, free)| too_many(what, sizes, free?, jobs)));
    }
    let mut extra: Vec<u64> = left.iter().map(|setting| setting.plan.disk_bytes - setting.plan.output_bytes).collect();
    let outputs = left.iter().map(|setting| setting.plan.output_bytes.saturating_sub(written(&setting.dir)));
    let disk = outputs.sum::<u64>() + largest(&mut extra, jobs);
    if let Some(free) = machine.disk_bytes.filter(|free| *free < disk) {
        let [disk, free] = [disk, free].map(bytes);
        lines
            .push(format!("the runs need {disk} on disk, but {free} is free: choose another --out, or fewer settings"));
    }
    if lines.is_empty() { Ok(()) } else { Err(CliError::DoesNotFit(lines.join("\n  "))) }
}

/// The sum of the `n` largest.
fn largest(sizes: &mut [u64], n: usize) -> u64 {
    sizes.sort_unstable_by(|a, b| b.cmp(a));
    sizes.iter().take(n).sum()
}

/// Why so many runs at a time do not fit, each of which would alone.
fn too_many(what: &str, mut sizes: Vec<u64>, free: u64, jobs: usize) -> Option<String> {
    let needed = largest(&mut sizes, jobs);
    let most = (1..jobs).rev().find(|&n| largest(&mut sizes, n) <= free);
    let [needed_text, free_text] = [needed, free].map(bytes);
    (needed > free).then(|| {
        let mend = most.map_or_else(String::new, |n| format!(": --jobs {n} would fit"));
        format!("{jobs} runs at a time need {needed_text} of {what}, but {free_text} is available{mend}")
    })
}

/// The memory that the runs take together at most, `jobs` at a time.
pub fn peak_bytes(settings: &[&Setting], jobs: usize) -> u64 {
    largest(&mut settings.iter().map(|setting| setting.plan.memory.host.total()).collect::<Vec<_>>(), jobs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_at_a_time_are_limited_by_the_largest() {
        const GIB: u64 = 1 << 30;
        let check = |jobs: usize, free: u64, expected: Option<&str>| {
            assert_eq!(too_many("memory", vec![GIB, 3 * GIB, 2 * GIB], free * GIB, jobs).as_deref(), expected);
        };
        check(1, 3, None);
        check(2, 5, None);
        check(9, 6, None);
        let said = "3 runs at a time need 6.00 GiB of memory, but 5.00 GiB is available: --jobs 2 would fit";
        check(3, 5, Some(said));
        check(2, 2, Some("2 runs at a time need 5.00 GiB of memory, but 2.00 GiB is available"));
    }

    #[test]
    fn equal_reasons_are_given_once() {
        let mut refusals = Refusals::default();
        Refusals::default().refuse().unwrap();
        ["a", "b"].iter().for_each(|name| refusals.add(name, &anyhow::anyhow!("too wide")));
        refusals.add("c", &anyhow::anyhow!("too long"));
        let said = refusals.refuse().unwrap_err().to_string();
        assert!(said.contains("\n  a, b: too wide\n  c: too long\n"), "{said}");
    }
}
