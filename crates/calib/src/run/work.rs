//! How much of a run is done, in steps of a block.

use std::time::Instant;

use oq_recipe::{Calibration, Recipe};

/// What a run has to do.
#[derive(Debug)]
pub(crate) struct Work {
    n_blocks: usize,
    /// Steps of an epoch.
    batches: usize,
    epochs: usize,
    /// Epochs of tuning, in each of which the model is run in full precision and every step goes through all blocks.
    tune_epochs: usize,
    /// Blocks that an earlier run had finished.
    pub(crate) resumed_blocks: usize,
    /// What this run found done when it began to learn.
    found: usize,
    started: Instant,
}

/// Steps of a block that a step of tuning takes as long as, for each block: it runs forwards twice more, and makes weights twice.
const TUNING_STEPS: usize = 2;

impl Work {
    /// Of a run that begins now.
    pub(crate) fn of(recipe: &Recipe, n_blocks: usize, resumed_blocks: usize) -> Self {
        let learns = recipe.method.learns();
        let Calibration { samples, batch, .. } = recipe.calibration;
        let batches = if learns { samples.div_ceil(batch) } else { 1 };
        let epochs = if learns { recipe.learn.epochs } else { 1 };
        let tune_epochs = recipe.tune_epochs();
        let mut work =
            Self { n_blocks, batches, epochs, tune_epochs, resumed_blocks, found: 0, started: Instant::now() };
        work.found = work.in_block(resumed_blocks, 0, 0);
        work
    }

    /// All of it.
    pub(crate) fn total(&self) -> usize {
        self.in_tuning(self.tune_epochs, 0, 0)
    }

    /// Done after so many steps of an epoch of a block.
    pub(crate) fn in_block(&self, block: usize, epoch: usize, steps: usize) -> usize {
        (block * self.epochs + epoch) * self.batches + steps
    }

    /// Done after so many epochs of tuning, and in the next one `passed` blocks of the pass in full precision and so many steps.
    pub(crate) fn in_tuning(&self, epochs: usize, passed: usize, steps: usize) -> usize {
        // Forwards alone: a third of a step, and a block's weights are read.
        let pass = self.batches.div_ceil(2);
        let epoch = self.n_blocks * (pass + self.batches * TUNING_STEPS);
        self.in_block(self.n_blocks, 0, 0) + epochs * epoch + passed * pass + steps * self.n_blocks * TUNING_STEPS
    }

    /// Notes that an earlier run had done so many epochs of tuning, and so many steps of the next.
    pub(crate) fn resume_tuning(&mut self, epochs: usize, steps: usize) {
        if self.resumed_blocks == self.n_blocks {
            self.found = self.in_tuning(epochs, 0, steps);
            self.started = Instant::now();
        }
    }

    /// Seconds to the end at the pace of this run's own steps.
    pub(crate) fn secs_left(&self, done: usize) -> Option<f64> {
        let own = done.checked_sub(self.found).filter(|&own| own > 0)?;
        Some(self.started.elapsed().as_secs_f64() * (self.total() - done) as f64 / own as f64)
    }
}
