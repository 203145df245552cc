//! The start of a run with average bits: choosing the width of each linear.

use std::ops::ControlFlow;
use std::time::Instant;

use oq_models::Model;
use oq_recipe::{BitBudget, Event, Recipe, Text};

use super::options::{Notice, Options};
use crate::block::sites::sites_of;
use crate::compute::Place;
use crate::disk::identity::{Identity, Sources};
use crate::disk::journal::{Journal, Stage};
use crate::disk::states::{Cache, Store};
use crate::error::CalibError;
use crate::model::choice::Choice;
use crate::model::sensitivity::{Probe, n_segments};
use crate::nth::Nth;
use crate::widths::{Open, Widths};

/// What is needed to choose widths.
pub(super) struct Subject<'a> {
    pub(super) model: &'a Model,
    pub(super) recipe: &'a Recipe,
    pub(super) budget: &'a BitBudget,
    pub(super) segments: &'a [Vec<u32>],
    pub(super) options: &'a Options,
    pub(super) identity: &'a Identity,
    pub(super) sources: &'a Sources<'a>,
}

impl Subject<'_> {
    /// The widths that an earlier run chose or, without these, those that are measured now. Blocks with other widths are dropped.
    pub(super) fn widths(
        &self,
        journal: &mut Journal,
        on: &mut dyn FnMut(Notice) -> ControlFlow<()>,
    ) -> Result<Widths, CalibError> {
        let (decoder, recipe, out) = (self.model.decoder(), self.recipe, &self.options.out);
        let sources: Result<Vec<String>, _> =
            (0..decoder.dims().n_layers).map(|block| self.sources.of(block).map(str::to_owned)).collect();
        let sources = sources?;
        let stored = || Choice::read(out, self.identity, &sources).and_then(|choice| choice.widths(decoder, recipe));
        let (before, ranks) = (stored(), &self.options.ranks);
        if !ranks.any(before.is_none())?
            && let Some(widths) = before
        {
            return Ok(widths);
        }
        if !journal.learned().is_empty() {
            tracing::warn!("the chosen widths are missing or damaged: all blocks are made again");
            journal.forget(Stage::Learned(0))?;
        }
        let open = Open::of(decoder, recipe)?;
        // All ranks take what the first one wrote.
        let choice = self.choose(sources.clone(), &open, on)?;
        if ranks.is_first() {
            choice.write(out)?;
        }
        ranks.barrier()?;
        let event = Event::BitsChosen { average: choice.average, linears: choice.linears() };
        if on(Notice::Event(event)).is_break() {
            return Err(self.stopped());
        }
        Ok(stored().expect("the file was written for this run, and all linears of the model were measured"))
    }

    fn choose(
        &self,
        sources: Vec<String>,
        open: &Open,
        on: &mut dyn FnMut(Notice) -> ControlFlow<()>,
    ) -> Result<Choice, CalibError> {
        let _no_grad = tch::no_grad_guard();
        let Self { model, recipe, budget, options, .. } = *self;
        let started = Instant::now();
        // These are not among the segments that tuning reads.
        let Text { segments, tokens } = recipe.text();
        let segments = &self.segments[..n_segments(segments, tokens)];
        let Options { device, compute, cache_memory, out, ranks, .. } = options;
        let (dims, tokens) = (model.decoder().dims(), ranks.part(segments).iter().map(Vec::len).sum::<usize>());
        let (of_inputs, of_states) = (dims.n_layers * tokens * dims.hidden, tokens * dims.hidden);
        let total = of_inputs + of_states;
        // One segment at a time.
        let batch = segments.first().map_or(0, Vec::len) * dims.hidden;
        let cache = |len| Cache { device: *device, budget: *cache_memory, batch, len, total, dir: out.clone() };
        let (inputs, states) = (cache(of_inputs), cache(of_states));
        let probe = Probe {
            model,
            place: Place { device: *device, compute: *compute },
            specs: &|block, linear| open.linears.get(&(block, linear)).copied(),
            clips: recipe.method.learns(),
            sites: &|layer| sites_of(model.decoder(), recipe, layer).expect("they were checked before the run"),
            compensates: recipe.compensates(),
            choices: &budget.choices,
            segments,
            ranks: ranks.clone(),
            seed: recipe.calibration.seed,
        };
        let total = 2 * dims.n_layers;
        let mut on = |done| on(Notice::Progress { done, total });
        match probe.units(Store::new(&inputs), Store::new(&states), &mut on)? {
            ControlFlow::Continue(units) => {
                Ok(Choice::new((self.identity, sources), (budget, open), units, started.elapsed().as_secs_f64()))
            }
            ControlFlow::Break(()) => Err(self.stopped()),
        }
    }

    fn stopped(&self) -> CalibError {
        let n_blocks = self.model.decoder().dims().n_layers;
        CalibError::Stopped { block: Nth::new(0, n_blocks), out: self.options.out.clone() }
    }
}
