//! Passes of the calibration segments' hidden states through blocks.

use oq_let::Site;
use oq_models::{BlockOps, BlockWeights, Context, Decoder, LinearName};

use super::running::Run;
use super::starved::Starved;
use crate::block::inputs::{Given, InputOps, Inputs};
use crate::block::peak::Peak;
use crate::block::whole::over_ranks;
use crate::compute::is_finite;
use crate::disk::states::{Cache, Store};
use crate::error::CalibError;
use crate::nth::Nth;

/// Hidden states of the calibration segments between blocks; no batches if the method does not use them.
pub(super) struct States<'a> {
    /// After the full-precision blocks.
    pub(super) full: Store<'a>,
    /// After the quantized blocks.
    pub(super) quantized: Store<'a>,
}

/// Results of a full-precision pass besides the hidden states.
pub(super) struct BlockTargets<'a> {
    /// The second targets, if requested: the full-precision block's outputs on the quantized blocks' outputs.
    pub(super) second: Option<Store<'a>>,
    /// Statistics of the linears' inputs.
    pub(super) inputs: Inputs,
    /// Experts that too few tokens reach.
    pub(super) starved: Starved,
    /// The largest activation, if it exceeds f16; not recorded if the quantized block's is.
    pub(super) beyond_f16: Option<f64>,
}

impl Run<'_> {
    /// The embedded segments, for methods that read text.
    pub(super) fn first_states<'c>(&self, cache: &'c Cache, segments: &[Vec<u32>]) -> Result<States<'c>, CalibError> {
        let mut states = States { full: Store::new(cache), quantized: Store::new(cache) };
        if !self.recipe.method.reads_text() {
            return Ok(states);
        }
        self.embed(segments, &mut states.full)?;
        if self.recipe.method.learns() {
            states.quantized = states.full.copy()?;
        }
        Ok(states)
    }

    /// Runs the hidden states through a block that an earlier run finished.
    pub(super) fn replay_block(
        &mut self,
        block_idx: usize,
        ctx: &Context,
        states: &mut States<'_>,
    ) -> Result<(), CalibError> {
        if !self.recipe.method.reads_text() {
            return Ok(());
        }
        let decoder = self.model.decoder();
        let mut weights = self.load_block(block_idx)?;
        let cast = self.cast(block_idx, &weights);
        let ops = self.full(&cast);
        forward_all((decoder, block_idx), &ops, ctx, &mut states.full, &mut || self.progress(block_idx))?;
        drop(cast);
        if self.recipe.method.learns() {
            self.stages.output.read_block(block_idx, self.options.device)?.put_into(&mut weights);
            let cast = self.cast(block_idx, &weights);
            let ops = self.quantized(&cast);
            forward_all((decoder, block_idx), &ops, ctx, &mut states.quantized, &mut || self.progress(block_idx))?;
        }
        Ok(())
    }

    /// Runs the hidden states through the block in full precision, for its targets and for the statistics of its inputs.
    pub(super) fn pass_in_full<'c>(
        &mut self,
        block_idx: usize,
        weights: &BlockWeights,
        (linears, sites): (&[LinearName], &[Site]),
        ctx: &Context,
        states: &mut States<'c>,
    ) -> Result<BlockTargets<'c>, CalibError> {
        if states.full.is_empty() {
            let (inputs, starved) = (Inputs::default(), Starved::default());
            return Ok(BlockTargets { second: None, inputs, starved, beyond_f16: None });
        }
        let decoder = self.model.decoder();
        let cast = self.cast(block_idx, weights);
        let full = self.full(&cast);
        let has_second = self.recipe.targets() > 1;
        let mut second = has_second.then(|| states.quantized.empty());
        if let Some(second) = &mut second {
            for x in states.quantized.iter() {
                self.progress(block_idx)?;
                second.push(&decoder.block(block_idx, &full, ctx, &x))?;
            }
        }
        let learns = self.recipe.method.learns();
        let starved = self.starved(block_idx, (weights, &cast), (linears, sites), ctx, &states.full)?;
        let rest = starved.settled.rest_of(linears);
        let watched = InputOps::new(full, sites, &rest, self.start(), Given::Routed(starved.with_sites.clone()));
        let peak = Peak::default();
        let peaking = peak.watch(&watched);
        let ops: &dyn BlockOps = if learns { &watched } else { &peaking };
        for batch in 0..states.full.len() {
            self.progress(block_idx)?;
            let x = decoder.block(block_idx, ops, ctx, &states.full.get(batch));
            if !is_finite(&x) {
                let (block, batch) = (Nth::new(block_idx, self.n_blocks), Nth::new(batch, states.full.len()));
                return Err(CalibError::Overflow { block, batch });
            }
            if !learns {
                peak.see(&x);
            }
            states.full.set(batch, &x)?;
        }
        drop(peaking);
        let inputs = over_ranks(&self.options.ranks, watched.finish(), weights, &decoder.layer(block_idx))?;
        Ok(BlockTargets { second, inputs, starved, beyond_f16: peak.beyond_f16() })
    }
}

/// Runs all batches through a block, in place; `on_batch` is called before each.
pub(super) fn forward_all(
    (decoder, layer): (&dyn Decoder, usize),
    ops: &dyn BlockOps,
    ctx: &Context,
    states: &mut Store<'_>,
    on_batch: &mut dyn FnMut() -> Result<(), CalibError>,
) -> Result<(), CalibError> {
    for batch in 0..states.len() {
        on_batch()?;
        states.set(batch, &decoder.block(layer, ops, ctx, &states.get(batch)))?;
    }
    Ok(())
}
