//! A plan of a run: what it will do, and whether it fits, without reading weights.

mod counts;
mod memory;
mod messages;
mod setting;
mod shortage;
mod suggest;
mod time;

use oq_let::Site;
use oq_models::{Decoder, specs_of_layer};
use oq_quant_core::SiteKind;
use oq_recipe::Recipe;
use serde::Serialize;

use crate::block::sites::sites_of;
use crate::check::check_sites;
use crate::error::CalibError;
use crate::split::check_ranks;
use counts::Counts;
use shortage::{Shortage, gib};

pub use memory::{MemoryPlan, Parts};
pub use messages::BYTES_PER_SEC;
pub use setting::{Accelerator, Machine, Setting};
pub use suggest::Suggestion;
pub use time::{StepTime, TimePlan};

/// One linear of a block under the recipe.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LinearPlan {
    /// Name within the block.
    pub name: &'static str,
    /// Rows.
    pub out_features: usize,
    /// Columns.
    pub in_features: usize,
    /// Groups, each with a clipping strength for its maximum and one for its minimum; 0 in full precision.
    pub n_groups: usize,
}

/// One site of a block under the recipe.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SitePlan {
    /// The kind of site.
    pub kind: SiteKind,
    /// Modules that write its channels.
    pub writers: Vec<&'static str>,
    /// Modules that read them; none for queries and keys.
    pub readers: Vec<&'static str>,
    /// Number of scales; tied channels share one.
    pub n_scales: usize,
    /// Number of shifts.
    pub n_shifts: usize,
}

impl SitePlan {
    fn new(site: &Site, shift: bool) -> Self {
        let mut writers: Vec<&str> = site.writers().map(|port| port.module).collect();
        // Queries and keys may be rows of the same module.
        writers.dedup();
        Self {
            kind: site.kind,
            writers,
            readers: site.readers().map(|port| port.module).collect(),
            n_scales: site.n_scales,
            n_shifts: if shift && site.can_shift { site.n_scales } else { 0 },
        }
    }
}

/// A plan of a run. If several ranks share it, memory is that of one of them.
#[derive(Clone, Debug, Serialize)]
pub struct Plan {
    /// Number of blocks.
    pub n_layers: usize,
    /// The linears of a block; if layers differ, of the largest one.
    pub linears: Vec<LinearPlan>,
    /// Sites at which channels are rescaled.
    pub sites: Vec<SitePlan>,
    /// Clipping strengths, scales and shifts learned per block. If rounding is learned, there is also an offset for each weight.
    pub learned_per_block: usize,
    /// Optimizer steps per block.
    pub steps_per_block: usize,
    /// Optimizer steps of tuning all blocks together.
    pub tuning_steps: usize,
    /// Calibration tokens.
    pub calibration_tokens: usize,
    /// Processes that share the run.
    pub ranks: usize,
    /// Bytes that each of them sends in a step.
    pub message_bytes: u64,
    /// The type of the products.
    pub compute: &'static str,
    /// Peak memory.
    pub memory: MemoryPlan,
    /// Size of the packed model.
    pub output_bytes: u64,
    /// Peak disk space: the packed model, hidden states and, with tuning, its state.
    pub disk_bytes: u64,
    /// Duration, if the machine's speed is known.
    pub time: Option<TimePlan>,
    /// What does not fit.
    pub problems: Vec<String>,
    /// Settings with which memory suffices.
    pub suggestions: Vec<Suggestion>,
}

impl Plan {
    /// Plans a run of `recipe` on a model of this shape.
    ///
    /// # Errors
    /// If the recipe asks for what the model does not have, whatever the memory.
    pub fn new(decoder: &dyn Decoder, recipe: &Recipe, setting: &Setting<'_>) -> Result<Self, CalibError> {
        check_sites(decoder, recipe)?;
        check_ranks(recipe, setting.ranks)?;
        let kinds = Counts::of_kinds(decoder, recipe, setting.compute, setting.ranks)?;
        let (counts, _) = &kinds[0];
        let sites = sites_of(decoder, recipe, counts.layer)?;
        let specs = specs_of_layer(decoder, recipe.quantization(), counts.layer)?;
        let linears = decoder.layer(counts.layer).linears.into_iter().zip(specs).map(|(linear, spec)| {
            let (rows, cols) = (linear.out_features, linear.in_features);
            let n_groups = spec.weight.map_or(0, |weight| rows * weight.group.count(cols));
            LinearPlan { name: linear.name.0, out_features: rows, in_features: cols, n_groups }
        });
        let linears: Vec<LinearPlan> = linears.collect();
        let on_device = setting.machine.device.is_some();
        let memory = MemoryPlan::of_kinds(&kinds, setting);
        let short = Shortage::of(&memory, setting.machine);
        let mut problems: Vec<String> = short.iter().map(Shortage::text).collect();
        let suggestions =
            if short.is_empty() { Vec::new() } else { suggest::suggestions(decoder, recipe, &kinds, setting) };
        let sum = |of: fn(&Counts) -> u64| {
            kinds.iter().fold(0u64, |sum, (counts, n)| sum.saturating_add(n.saturating_mul(of(counts))))
        };
        let output_bytes = sum(|counts| counts.block_bytes).saturating_add(counts.outer_bytes);
        // A file is replaced by a new one, which is written before the old one goes.
        let tuning_bytes = sum(Counts::tuning_bytes).saturating_mul(2);
        let replaced = if tuning_bytes > 0 { counts.block_bytes } else { 0 };
        let disk_bytes =
            [memory.spilled_bytes, tuning_bytes, replaced].into_iter().fold(output_bytes, u64::saturating_add);
        if let Some(free) = setting.machine.disk_bytes.filter(|free| *free < disk_bytes) {
            let needed = gib(disk_bytes);
            problems.push(format!("needs {needed} on disk, but {} is free: choose another --out", gib(free)));
        }
        let learns = recipe.method.learns();
        let sites: Vec<SitePlan> = sites.iter().map(|site| SitePlan::new(site, recipe.transform.shift)).collect();
        Ok(Self {
            n_layers: decoder.dims().n_layers,
            learned_per_block: if learns {
                let strengths: usize = linears.iter().map(|linear| 2 * linear.n_groups).sum();
                strengths + sites.iter().map(|site| site.n_scales + site.n_shifts).sum::<usize>()
            } else {
                0
            },
            steps_per_block: counts.steps as usize,
            tuning_steps: counts.tuning_steps as usize,
            calibration_tokens: if recipe.reads_text() {
                recipe.text().segments.saturating_mul(recipe.text().tokens)
            } else {
                0
            },
            ranks: setting.ranks,
            message_bytes: messages::per_step(counts),
            linears,
            sites,
            compute: setting.compute.name(),
            memory,
            output_bytes,
            disk_bytes,
            time: setting.profile.map(|profile| TimePlan::of_kinds(&kinds, profile, on_device)),
            problems,
            suggestions,
        })
    }

    /// Whether the run fits on the machine.
    pub fn fits(&self) -> bool {
        self.problems.is_empty()
    }
}
