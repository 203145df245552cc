//! A run in progress: what all of its parts share.

use std::ops::ControlFlow;

use oq_models::{BlockWeights, DenseOps, Model};
use oq_recipe::{Event, Recipe};

use super::options::{Notice, Options};
use super::work::Work;
use crate::compute::{ids_of, load_block};
use crate::disk::details::DetailsFile;
use crate::disk::identity::Sources;
use crate::disk::stages::Stages;
use crate::disk::states::{Cache, Store};
use crate::error::CalibError;
use crate::nth::Nth;
use crate::split::own_parts;

/// A run in progress.
pub(super) struct Run<'a> {
    pub(super) model: &'a Model,
    pub(super) sources: &'a Sources<'a>,
    pub(super) recipe: &'a Recipe,
    pub(super) options: &'a Options,
    pub(super) stages: &'a Stages<'a>,
    /// On the first rank.
    pub(super) details: Option<DetailsFile>,
    pub(super) on: &'a mut dyn FnMut(Notice) -> ControlFlow<()>,
    pub(super) n_blocks: usize,
    pub(super) work: Work,
}

impl Run<'_> {
    /// How stores of `len` elements, in batches of `batch`, hold their batches.
    pub(super) fn cache(&self, batch: usize, len: usize) -> Cache {
        let n_stores = 1 + self.recipe.targets();
        let Options { device, cache_memory, out, .. } = self.options;
        Cache { device: *device, budget: *cache_memory, batch, len, total: n_stores * len, dir: out.clone() }
    }

    /// Elements of the hidden states of this rank's part of the segments of a pass: of the largest batch, and of all.
    pub(super) fn elements(&self, segments: &[Vec<u32>]) -> (usize, usize) {
        let per_segment = segments.first().map_or(0, Vec::len) * self.model.decoder().dims().hidden;
        let parts = own_parts(&self.options.ranks, segments, self.recipe.calibration.batch).map(<[_]>::len);
        let (largest, all) = parts.fold((0, 0), |(largest, all), part| (part.max(largest), all + part));
        (largest * per_segment, all * per_segment)
    }

    /// Replaces the content of `states` by this rank's part of the embedded segments.
    pub(super) fn embed(&self, segments: &[Vec<u32>], states: &mut Store<'_>) -> Result<(), CalibError> {
        let outer = self.model.outer(self.options.device);
        for (idx, batch) in own_parts(&self.options.ranks, segments, self.recipe.calibration.batch).enumerate() {
            states.put(idx, &self.model.decoder().embed(&outer, &ids_of(batch))?)?;
        }
        Ok(())
    }

    /// Loads a block's tensors, and reads the next block ahead.
    pub(super) fn load_block(&self, block_idx: usize) -> Result<BlockWeights, CalibError> {
        Ok(load_block(self.model, block_idx, Some(block_idx + 1), self.options.device)?)
    }

    /// A block's weights in the type of the products.
    pub(super) fn cast(&self, block_idx: usize, weights: &BlockWeights) -> BlockWeights {
        weights.cast(&self.model.decoder().layer(block_idx).linears, self.options.compute)
    }

    /// The full-precision block.
    pub(super) fn full<'a>(&self, cast: &'a BlockWeights) -> DenseOps<'a> {
        DenseOps::new(cast).with_compute(self.options.compute)
    }

    /// The quantized block.
    pub(super) fn quantized<'a>(&self, cast: &'a BlockWeights) -> DenseOps<'a> {
        self.full(cast).with_act(self.recipe.scheme.act)
    }

    /// Reports progress after `blocks` finished blocks, and fails if asked to stop.
    pub(super) fn progress(&mut self, blocks: usize) -> Result<(), CalibError> {
        let (done, total) = (self.work.in_block(blocks, 0, 0), self.work.total());
        let flow = (self.on)(Notice::Progress { done, total });
        self.check(flow, blocks)
    }

    pub(super) fn emit(&mut self, event: Event, block: usize) -> Result<(), CalibError> {
        let flow = (self.on)(Notice::Event(event));
        self.check(flow, block)
    }

    /// `block`: the first one that this run has not passed.
    pub(super) fn check(&self, flow: ControlFlow<()>, block: usize) -> Result<(), CalibError> {
        let block = block.max(self.work.resumed_blocks);
        match flow {
            ControlFlow::Break(()) if block < self.n_blocks => Err(self.stopped(block)),
            _ => Ok(()),
        }
    }

    pub(super) fn stopped(&self, block: usize) -> CalibError {
        CalibError::Stopped { block: Nth::new(block, self.n_blocks), out: self.options.out.clone() }
    }
}
