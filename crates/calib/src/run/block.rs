//! The main part of a run: one block after the other.

use std::ops::ControlFlow;
use std::time::Instant;

use oq_formats::Staged;
use oq_let::{Transform, Values};
use oq_models::{Compute, Context};
use oq_quant_core::{QuantizedTensor, TensorError, WeightSpec};
use oq_ranks::{Ranks, RanksError};
use oq_recipe::{BlockDetails, BlockRecord, Event, Loss, Transform as Transformation};
use oq_runtime::trim_memory;
use tch::Tensor;

use super::options::Notice;
use super::passes::{BlockTargets, States, forward_all};
use super::running::Run;
use crate::block::details::{Sample, Subject};
use crate::block::inputs::Seen;
use crate::block::learn::{Descent, LearnError, LearnEvent, Task, error, learn_block};
use crate::block::peak::Peak;
use crate::block::sites::sites_of;
use crate::compute::Place;
use crate::disk::journal::{Finished, Journal};
use crate::error::CalibError;
use crate::merged::{Merged, merge};
use crate::nth::Nth;
use crate::split::shares;

/// Only these are asked for.
const IS_QUANTIZED: &str = "linears in full precision were left out";

impl Run<'_> {
    pub(super) fn all_blocks(&mut self, journal: &mut Journal, segments: &[Vec<u32>]) -> Result<(), CalibError> {
        let _no_grad = tch::no_grad_guard();
        let t = segments.first().map_or(0, Vec::len);
        let ctx = self.model.decoder().context(t, self.options.device);
        let (own, of_tuning) = segments.split_at(segments.len().min(self.recipe.text().segments));
        if self.work.resumed_blocks < self.n_blocks {
            let (batch, all) = self.elements(own);
            let cache = self.cache(batch, all);
            let mut states = self.first_states(&cache, own)?;
            for block_idx in 0..self.n_blocks {
                let taken = self.take_block(block_idx, &ctx, (&mut states, own), journal);
                taken.map_err(|error| error.in_block(Nth::new(block_idx, self.n_blocks)))?;
                self.progress(block_idx + 1)?;
            }
        }
        if self.stages.tunes() { self.tune(&ctx, of_tuning, journal) } else { Ok(()) }
    }

    /// Runs the hidden states through a block, and quantizes it unless an earlier run did.
    fn take_block(
        &mut self,
        block_idx: usize,
        ctx: &Context,
        (states, segments): (&mut States<'_>, &[Vec<u32>]),
        journal: &mut Journal,
    ) -> Result<(), CalibError> {
        if block_idx < self.work.resumed_blocks {
            return self.replay_block(block_idx, ctx, states);
        }
        let (record, written, details) = self.one_block(block_idx, ctx, (states, segments))?;
        // Before the journal: a block that is in the journal is not made again.
        if let (Some(file), Some(details)) = (&self.details, details) {
            file.add(&details)?;
        }
        if let Some(Written { staged, shard, sha256, source }) = written {
            // As with tuned blocks: whoever sees the shard finds it in the journal.
            journal.finish_learned(Finished { shard, sha256, source, surroundings: None, record: record.clone() })?;
            staged.place()?;
        }
        self.emit(Event::BlockFinished(record), block_idx + 1)
    }

    fn one_block(
        &mut self,
        block_idx: usize,
        ctx: &Context,
        (states, segments): (&mut States<'_>, &[Vec<u32>]),
    ) -> Result<(BlockRecord, Option<Written>, Option<BlockDetails>), CalibError> {
        let started = Instant::now();
        self.emit(Event::BlockStarted { block: block_idx }, block_idx)?;
        let decoder = self.model.decoder();
        // Before this block allocates memory.
        trim_memory();
        let ranks = &self.options.ranks;
        // This reads the block from disk; loading it then hits the page cache.
        let source = ranks.is_first().then(|| self.sources.of(block_idx).map(str::to_owned)).transpose()?;
        let mut weights = self.load_block(block_idx)?;
        let (linears, _) = self.stages.output.widths().parted(decoder, block_idx);
        // A block in full precision stays what it is.
        let sites = if linears.is_empty() { Vec::new() } else { sites_of(decoder, self.recipe, block_idx)? };
        let transform = Transform::new(sites, self.options.device);
        let learns = self.recipe.method.learns() && !linears.is_empty();
        let sample = if learns && ranks.is_first() { Sample::of(&states.full) } else { None };
        let BlockTargets { second, inputs, starved, mut beyond_f16 } =
            self.pass_in_full(block_idx, &weights, (&linears, transform.sites()), ctx, states)?;
        let seen = Seen { weights: &weights, inputs: &inputs };
        let Transformation { shift, alpha, .. } = self.recipe.transform;
        let start = Values::smooth(transform.sites(), shift, alpha, &seen, self.options.device);

        let (mut merged, descent, learned) = if learns {
            let targets = [Some(&states.full), second.as_ref()].into_iter().flatten().collect();
            let settled = starved.settled.within(&weights, self.options.compute);
            let task = Task {
                decoder,
                layer: block_idx,
                ctx,
                weights: &settled,
                linears: &starved.settled.rest_of(&linears),
                specs: &|name| self.stages.output.widths().of(block_idx, name).expect(IS_QUANTIZED),
                transform: &transform,
                fixed: &starved.fixed(&decoder.layer(block_idx).experts),
                start: &start,
                seen: &inputs,
                recipe: self.recipe,
                place: Place { device: self.options.device, compute: self.options.compute },
                inputs: &states.quantized,
                targets,
                ranks,
                shares: shares(ranks, segments, self.recipe.calibration.batch),
            };
            let learned = learn_block(&task, &mut |event| self.on_learn_event(block_idx, event));
            let (mut merged, descent, mut learned) = learned.map_err(|error| self.learn_error(block_idx, error))?;
            starved.settled.join(&mut merged, &mut learned);
            (merged, descent, Some(learned))
        } else {
            let widths = self.stages.output.widths();
            let round =
                |name, weight: &Tensor| round_to_nearest(weight, widths.of(block_idx, name).expect(IS_QUANTIZED));
            let merged = merge(&weights, &transform, &start, linears.iter().copied(), round);
            (
                merged.map_err(|(name, error)| CalibError::of_linear(self.model, block_idx, name, error))?,
                Descent::default(),
                None,
            )
        };
        // Only starts need statistics, and those of experts are large.
        drop(inputs);
        if self.model.is_rotated() {
            merged.keep_params(&weights, self.stages.output.params(block_idx).map(|param| param.name.to_owned()));
        }
        self.stages.output.settle_floats(block_idx, &mut merged, &weights)?;
        let written = self.stage_block(block_idx, &mut merged, source)?;
        let (mut final_loss, mut details) = (None, None);
        if self.recipe.method.learns() {
            let original = weights.cast(&[], Compute::F32);
            merged.put_into(&mut weights);
            details = sample.zip(learned).and_then(|(sample, learned)| {
                let subject = Subject {
                    decoder,
                    layer: block_idx,
                    act: self.recipe.scheme.act,
                    linears: &linears,
                    specs: &|name| self.stages.output.widths().of(block_idx, name).expect(IS_QUANTIZED),
                    weights: &original,
                    learned: &weights,
                    transform: &transform,
                };
                subject.details(&sample, &learned)
            });
            drop(original);
            let cast = self.cast(block_idx, &weights);
            let ops = self.quantized(&cast);
            let peak = Peak::default();
            // This pass cannot be stopped, because what was learned would be lost.
            forward_all((decoder, block_idx), &peak.watch(&ops), ctx, &mut states.quantized, &mut || Ok(()))?;
            // The mean squared error, whatever the loss was, so that runs can be compared.
            let (mut errors, mut sizes) = (Vec::new(), Vec::new());
            for (a, b) in states.quantized.iter().zip(states.full.iter()) {
                // The last batch may be smaller.
                peak.see(&a);
                sizes.push(a.size()[0] as f64);
                errors.push(error(Loss::Mse, &a, &b));
            }
            let errors = Vec::<f32>::try_from(Tensor::stack(&errors, 0)).expect("f32");
            let sum: f64 = errors.into_iter().zip(&sizes).map(|(error, size)| f64::from(error) * size).sum();
            final_loss = Some(ranks.total(sum)? / ranks.total(sizes.iter().sum())?);
            beyond_f16 = peak.beyond_f16();
        }
        let beyond_f16 = largest(ranks, beyond_f16)?;
        let record = BlockRecord {
            index: block_idx,
            losses: descent.losses,
            final_loss,
            wall_secs: started.elapsed().as_secs_f64(),
            retries: descent.retries as usize,
            beyond_f16,
            starved: starved.experts,
        };
        Ok((record, written, details))
    }

    /// Writes a block's shard on the first rank, to be placed once the journal has it. The others wait for it and go on with what is in it, so that all have the same block,
    /// whatever their processors compute.
    fn stage_block(
        &self,
        block_idx: usize,
        merged: &mut Merged,
        source: Option<String>,
    ) -> Result<Option<Written>, CalibError> {
        let (output, ranks) = (&self.stages.output, &self.options.ranks);
        if ranks.is_first() {
            let (staged, shard, sha256) = output.stage_block(block_idx, merged)?;
            ranks.barrier()?;
            return Ok(Some(Written { staged, shard, sha256, source }));
        }
        ranks.barrier()?;
        *merged = output.read_staged(block_idx, self.options.device)?;
        Ok(None)
    }

    fn on_learn_event(&mut self, block: usize, event: LearnEvent) -> ControlFlow<()> {
        let done = |epoch: usize, steps: usize| self.work.in_block(block, epoch, steps);
        match event {
            LearnEvent::Step { epoch, batch } => {
                let (done, total) = (done(epoch.index, batch.index + 1), self.work.total());
                (self.on)(Notice::Progress { done, total })
            }
            LearnEvent::Epoch { epoch, loss, lr } => {
                let secs_left = self.work.secs_left(done(epoch.index + 1, 0));
                (self.on)(Notice::Event(Event::Epoch { block, epoch: epoch.index, loss, lr, secs_left }))
            }
            LearnEvent::Retry { epoch, batch, lr } => {
                let shown = Nth::new(block, self.n_blocks);
                tracing::warn!(block = %shown, %epoch, %batch, lr, "the loss is not finite: the block restarts at a lower learning rate");
                (self.on)(Notice::Event(Event::Retry { block, epoch: epoch.index, batch: batch.index, lr }))
            }
        }
    }

    pub(super) fn learn_error(&self, block: usize, error: LearnError) -> CalibError {
        match error {
            LearnError::Stopped => self.stopped(block),
            LearnError::Ranks(error) => error.into(),
            LearnError::Diverged { epoch, batch, attempts, lr } => {
                CalibError::Diverged { block: Nth::new(block, self.n_blocks), epoch, batch, attempts, lr }
            }
            LearnError::Linear { linear, source } => CalibError::of_linear(self.model, block, linear, source),
        }
    }
}

/// A block's shard, as this rank wrote it.
struct Written {
    staged: Staged,
    shard: String,
    sha256: String,
    /// Hash of the weights that it was made from.
    source: Option<String>,
}

/// The largest number of all ranks that have one; all are positive.
fn largest(ranks: &Ranks, own: Option<f64>) -> Result<Option<f64>, RanksError> {
    let largest = ranks.max(vec![Tensor::from_slice(&[own.unwrap_or(0.0)])])?[0].double_value(&[0]);
    Ok((largest > 0.0).then_some(largest))
}

/// Codes of a weight `[out, in]` on the MinMax grids of its groups.
fn round_to_nearest(weight: &Tensor, spec: WeightSpec) -> Result<QuantizedTensor, TensorError> {
    let (rows, cols) = weight.size2().expect("a weight is [out, in]");
    let flat = Vec::<f32>::try_from(weight.contiguous().view(-1)).expect("blocks are loaded in f32");
    QuantizedTensor::quantize(&flat, rows as usize, cols as usize, spec)
}
