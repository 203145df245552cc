//! The progress of a run, in optimizer steps of a block.

use std::time::Instant;

use oq_recipe::Recipe;

/// The work of a run.
#[derive(Debug)]
pub(crate) struct Work {
    n_blocks: usize,
    /// Steps per epoch.
    batches: usize,
    epochs: usize,
    /// Epochs of tuning. Each runs the full-precision model once, and each of its steps goes through all blocks.
    tune_epochs: usize,
    /// Blocks that an earlier run finished.
    pub(crate) resumed_blocks: usize,
    /// Work that was already done when this run began to learn.
    found: usize,
    started: Instant,
}

/// Duration of a step of tuning per block, in steps of a block: it has two more forward passes, and computes weights twice.
const TUNING_STEPS: usize = 2;

impl Work {
    /// The work of a run that begins now.
    pub(crate) fn of(recipe: &Recipe, n_blocks: usize, resumed_blocks: usize) -> Self {
        let learns = recipe.method.learns();
        let (samples, batch) = (recipe.text().segments, recipe.calibration.batch);
        let batches = if learns { samples.div_ceil(batch) } else { 1 };
        let epochs = if learns { recipe.learn.epochs } else { 1 };
        let tune_epochs = recipe.tune_epochs();
        let mut work =
            Self { n_blocks, batches, epochs, tune_epochs, resumed_blocks, found: 0, started: Instant::now() };
        work.found = work.in_block(resumed_blocks, 0, 0);
        work
    }

    /// All work.
    pub(crate) fn total(&self) -> usize {
        self.in_tuning(self.tune_epochs, 0, 0)
    }

    /// Work done after `steps` steps of an epoch of a block.
    pub(crate) fn in_block(&self, block: usize, epoch: usize, steps: usize) -> usize {
        (block * self.epochs + epoch) * self.batches + steps
    }

    /// Work done after `epochs` epochs of tuning and, in the next one, `passed` blocks of the full-precision pass and `steps` steps.
    pub(crate) fn in_tuning(&self, epochs: usize, passed: usize, steps: usize) -> usize {
        // A forward pass alone takes a third of a step, and the block's weights have to be read.
        let pass = self.batches.div_ceil(2);
        let epoch = self.n_blocks * (pass + self.batches * TUNING_STEPS);
        self.in_block(self.n_blocks, 0, 0) + epochs * epoch + passed * pass + steps * self.n_blocks * TUNING_STEPS
    }

    /// Sets the epochs of tuning, and the steps of the next one, that an earlier run made.
    pub(crate) fn resume_tuning(&mut self, epochs: usize, steps: usize) {
        if self.resumed_blocks == self.n_blocks {
            self.found = self.in_tuning(epochs, 0, steps);
            self.started = Instant::now();
        }
    }

    /// Estimated seconds left, from the pace of this run's own steps.
    pub(crate) fn secs_left(&self, done: usize) -> Option<f64> {
        let own = done.checked_sub(self.found).filter(|&own| own > 0)?;
        Some(self.started.elapsed().as_secs_f64() * (self.total() - done) as f64 / own as f64)
    }
}
