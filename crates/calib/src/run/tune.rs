//! The last part of a run: tuning all blocks together.

use std::ops::ControlFlow;
use std::path::Path;
use std::time::{Duration, Instant};

use oq_formats::sha256_file;
use oq_models::Context;
use oq_recipe::Event;
use oq_runtime::trim_memory;

use super::options::Notice;
use super::passes::forward_all;
use super::running::Run;
use crate::block::learn::ATTEMPTS;
use crate::compute::{Place, ids_of, is_finite};
use crate::disk::journal::{Finished, Journal, TunedRecord};
use crate::disk::states::{Cache, Store};
use crate::error::CalibError;
use crate::model::tune::{Subject, Tuner};
use crate::nth::Nth;

/// Time between saves, and so the most work that a kill can undo.
const SAVED_EVERY: Duration = Duration::from_secs(600);

impl Run<'_> {
    /// Tunes the blocks towards the last hidden states in full precision, each epoch on its own segments, and writes them.
    pub(super) fn tune(
        &mut self,
        ctx: &Context,
        segments: &[Vec<u32>],
        journal: &mut Journal,
    ) -> Result<(), CalibError> {
        let (model, options, recipe) = (self.model, self.options, self.recipe);
        let (samples, batch) = (recipe.text().segments, recipe.calibration.batch);
        let subject = Subject {
            model,
            blocks: &self.stages.output,
            ctx,
            act: recipe.scheme.act,
            place: Place { device: options.device, compute: options.compute },
            batches: samples.div_ceil(batch),
            tune: &recipe.tune,
            ranks: &options.ranks,
        };
        // All epochs have as many segments.
        let (batch, of_targets) = self.elements(&segments[..samples]);
        let of_inputs = self.n_blocks * batch;
        let cache = |len| Cache { len, total: of_targets + of_inputs, ..self.cache(batch, 0) };
        let (of_targets, cache) = (cache(of_targets), cache(of_inputs));
        let mut targets = Store::new(&of_targets);
        let mut tuner = Tuner::new(subject, Store::new(&cache))?;
        let path = self.stages.tuning_path();
        let restored = tuner.restore(&path);
        if let Err(error) = &restored {
            tracing::warn!(%error, "the state of tuning cannot be read: tuning starts again");
        }
        if options.ranks.any(restored.is_err())? {
            tuner.start(recipe.tune.lr)?;
        }
        // The first rank may write it soon.
        options.ranks.barrier()?;
        self.work.resume_tuning(tuner.divergences().len(), tuner.epoch().steps);
        // Each restart has halved the learning rate.
        let mut retries = (recipe.tune.lr / tuner.lr()).log2().round() as u32;
        while tuner.divergences().len() < recipe.tune.epochs {
            let epoch = tuner.divergences().len();
            let segments = &segments[epoch * samples..][..samples];
            self.finish_in_full(ctx, segments, epoch, &mut targets)?;
            match self.tuning_epoch(&mut tuner, &targets, segments, &path)? {
                Ok(()) => {
                    let divergence = tuner.finish_epoch();
                    if options.ranks.is_first() {
                        tuner.save(&path)?;
                    }
                    let secs_left = self.work.secs_left(self.work.in_tuning(epoch + 1, 0, 0));
                    self.emit(Event::Tuned { epoch, divergence, lr: tuner.lr(), secs_left }, self.n_blocks)?;
                }
                Err(batch) => {
                    retries += 1;
                    let (epoch, batch) = (Nth::new(epoch, recipe.tune.epochs), Nth::new(batch, targets.len()));
                    let lr = tuner.lr();
                    if retries == ATTEMPTS {
                        return Err(CalibError::TuningDiverged { epoch, batch, attempts: ATTEMPTS, lr });
                    }
                    tracing::warn!(%epoch, %batch, lr, "the divergence is not finite: tuning restarts at a lower learning rate");
                    tuner.start(lr / 2.0)?;
                }
            }
        }
        let state = options.ranks.is_first().then(|| sha256_file(&path)).transpose()?;
        for block in journal.tuned().len()..self.n_blocks {
            if self.tuning_progress(recipe.tune.epochs, 0, 0).is_break() {
                return Err(self.stopped_in_tuning(recipe.tune.epochs - 1));
            }
            let Some(state) = &state else { continue };
            let (staged, shard, sha256) = self.stages.output.stage_block(block, &tuner.merged(block)?)?;
            let divergences = tuner.divergences().to_vec();
            let record = TunedRecord { tuned: block, divergences, retries, state: state.clone() };
            // The codes are those of the learned block.
            let source = journal.learned()[block].source.clone();
            // In this order: the learned block, which this one is made from, is there until the journal knows this one.
            journal.finish_tuned(Finished { shard, sha256, source, surroundings: None, record })?;
            staged.place()?;
        }
        Ok(())
    }

    /// The last hidden states of an epoch's segments in full precision.
    fn finish_in_full(
        &mut self,
        ctx: &Context,
        segments: &[Vec<u32>],
        epoch: usize,
        states: &mut Store<'_>,
    ) -> Result<(), CalibError> {
        self.embed(segments, states)?;
        for block in 0..self.n_blocks {
            let cast = self.cast(block, &self.load_block(block)?);
            forward_all((self.model.decoder(), block), &self.full(&cast), ctx, states, &mut || {
                self.check_tuning(epoch, block)
            })?;
            if let Some(batch) = states.iter().position(|x| !is_finite(&x)) {
                let (block, batch) = (Nth::new(block, self.n_blocks), Nth::new(batch, states.len()));
                return Err(CalibError::Overflow { block, batch });
            }
            self.check_tuning(epoch, block + 1)?;
        }
        Ok(())
    }

    fn tuning_progress(&mut self, epoch: usize, passed: usize, steps: usize) -> ControlFlow<()> {
        let (done, total) = (self.work.in_tuning(epoch, passed, steps), self.work.total());
        (self.on)(Notice::Progress { done, total })
    }

    /// Fails if asked to stop, before the first step of this epoch and after `passed` blocks in full precision.
    fn check_tuning(&mut self, epoch: usize, passed: usize) -> Result<(), CalibError> {
        match self.tuning_progress(epoch, passed, 0) {
            ControlFlow::Break(()) => Err(self.stopped_in_tuning(epoch)),
            ControlFlow::Continue(()) => Ok(()),
        }
    }

    fn stopped_in_tuning(&self, epoch: usize) -> CalibError {
        CalibError::TuningStopped { epoch: Nth::new(epoch, self.recipe.tune.epochs), out: self.options.out.clone() }
    }

    /// Runs the remaining steps of an epoch. An inner error is the batch at which the divergence was not finite. The state is saved to
    /// `path` from time to time, and when stopped.
    fn tuning_epoch(
        &mut self,
        tuner: &mut Tuner<'_>,
        targets: &Store<'_>,
        segments: &[Vec<u32>],
        path: &Path,
    ) -> Result<Result<(), usize>, CalibError> {
        let outer = self.model.outer(self.options.device);
        let epoch = tuner.divergences().len();
        let mut saved = Instant::now();
        let batches = segments.chunks(self.recipe.calibration.batch).enumerate();
        for (idx, batch) in batches.skip(tuner.epoch().steps) {
            let x = self.model.decoder().embed(&outer, &ids_of(self.options.ranks.part(batch)))?;
            trim_memory();
            let divergence = tuner.step(x, &targets.get(idx), batch.len())?;
            if !divergence.is_finite() {
                return Ok(Err(idx));
            }
            tracing::debug!(batch = %Nth::new(idx, targets.len()), divergence, "tuned");
            let is_stopped = self.tuning_progress(epoch, self.n_blocks, idx + 1).is_break();
            // The caller saves the state of the whole epoch.
            if idx + 1 == targets.len() {
                break;
            }
            if self.options.ranks.is_first() && (is_stopped || saved.elapsed() > SAVED_EVERY) {
                tuner.save(path)?;
                saved = Instant::now();
            }
            if is_stopped {
                return Err(self.stopped_in_tuning(epoch));
            }
        }
        Ok(Ok(()))
    }
}
