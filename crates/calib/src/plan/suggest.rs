//! Settings that would fit when a run does not.

use std::fmt;

use oq_models::{Compute, Decoder};
use oq_recipe::Recipe;
use serde::Serialize;

use super::counts::Counts;
use super::memory::MemoryPlan;
use super::setting::Setting;
use super::shortage::{Shortage, gib};

/// Shorter segments would not represent a model's text.
const SHORTEST_SEGMENT: usize = 128;

/// A setting with which memory suffices.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Suggestion {
    /// Options as typed: `--samples 64`.
    pub options: String,
    /// Memory that the run would need on the device that computes blocks.
    pub bytes: u64,
}

impl fmt::Display for Suggestion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} would need {}, which fits", self.options, gib(self.bytes))
    }
}

/// Hidden states on disk, except those that memory has room for, in whole MiB.
fn within_budget(kinds: &[(Counts, u64)], setting: &Setting<'_>) -> Option<Suggestion> {
    let with = |budget| MemoryPlan::of_kinds(kinds, &Setting { cache_memory: Some(budget), ..*setting });
    let none = with(0);
    let room = setting.machine.memory_bytes?.checked_sub(none.host.total())? >> 20;
    let room = room.min(none.spilled_bytes.div_ceil(1 << 20));
    let memory = with(room << 20);
    let bytes = memory.device.unwrap_or(memory.host).total();
    let fits = Shortage::of(&memory, setting.machine).is_empty();
    fits.then(|| Suggestion { options: format!("--cache-memory {room}MiB"), bytes })
}

/// The mildest settings that fit, each with one change: products in bf16, one segment per step, hidden states on disk, fewer segments,
/// or shorter ones. If no single change suffices, fewer and shorter segments together.
pub(super) fn suggestions(
    decoder: &dyn Decoder,
    recipe: &Recipe,
    kinds: &[(Counts, u64)],
    setting: &Setting<'_>,
) -> Vec<Suggestion> {
    let budget = setting.cache_memory.is_none().then(|| within_budget(kinds, setting));
    let fits = |recipe: &Recipe, compute: Compute, options: String| {
        // These settings do not affect sites.
        let kinds = Counts::of_kinds(decoder, recipe, compute, setting.ranks).ok()?;
        let memory = MemoryPlan::of_kinds(&kinds, setting);
        let bytes = memory.device.unwrap_or(memory.host).total();
        Shortage::of(&memory, setting.machine).is_empty().then_some(Suggestion { options, bytes })
    };
    if !recipe.reads_text() {
        return Vec::new();
    }
    let calibration = &recipe.calibration;
    let with = |samples: usize, seqlen: usize, batch: usize| {
        let mut recipe = recipe.clone();
        recipe.calibration.samples = samples;
        recipe.calibration.seqlen = seqlen;
        recipe.calibration.batch = batch;
        recipe
    };
    let (samples, seqlen, batch) = (calibration.samples, calibration.seqlen, calibration.batch);
    let fewer = halves(samples, batch);
    let shorter = halves(seqlen, SHORTEST_SEGMENT);
    let compute = setting.compute;
    let bf16 = (compute == Compute::F32).then(|| fits(recipe, Compute::Bf16, "--compute bf16".to_owned())).flatten();
    // A segment for each rank.
    let least = setting.ranks.max(1);
    let single = (batch > least).then(|| fits(&with(samples, seqlen, least), compute, format!("--batch {least}")));
    let single = single.flatten();
    let of_samples = fewer.clone().find_map(|n| fits(&with(n, seqlen, batch), compute, format!("--samples {n}")));
    let of_seqlen = shorter.clone().find_map(|n| fits(&with(samples, n, batch), compute, format!("--seqlen {n}")));
    let suggestions: Vec<Suggestion> =
        [bf16, single, budget.flatten(), of_samples, of_seqlen].into_iter().flatten().collect();
    if !suggestions.is_empty() {
        return suggestions;
    }
    // As much text as fits, starting with the most.
    let mut pairs: Vec<(usize, usize)> =
        fewer.flat_map(|samples| shorter.clone().map(move |seqlen| (samples, seqlen))).collect();
    pairs.sort_by_key(|(samples, seqlen)| std::cmp::Reverse((samples.saturating_mul(*seqlen), *seqlen)));
    let both = pairs.into_iter().find_map(|(samples, seqlen)| {
        fits(&with(samples, seqlen, batch), compute, format!("--samples {samples} --seqlen {seqlen}"))
    });
    both.into_iter().collect()
}

/// Half of `n`, half of that, and so on, down to `least`.
fn halves(n: usize, least: usize) -> impl Iterator<Item = usize> + Clone {
    std::iter::successors(Some(n / 2), |n| Some(n / 2)).take_while(move |&n| n >= least.max(1))
}
