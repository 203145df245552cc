//! Where a run's shards go: those of learned blocks, and, where all blocks are tuned afterwards, those of the tuned ones.

use std::ops::Range;
use std::path::{Path, PathBuf};

use oq_formats::remove_file;
use oq_models::Model;
use oq_recipe::Recipe;

use crate::error::CalibError;
use crate::journal::{Journal, UNTUNED};
use crate::output::Output;
use crate::widths::Widths;

/// The shards of a run. Its journal has a line for each: first of learned blocks, then of tuned ones, if there are such.
pub(crate) struct Stages<'a> {
    /// The packed model.
    pub(crate) output: Output<'a>,
    /// The blocks before they are tuned, in a folder of its own that goes when the model is whole.
    untuned: Option<Output<'a>>,
    untuned_dir: PathBuf,
    n_blocks: usize,
}

impl<'a> Stages<'a> {
    /// Makes the directories, or takes up those that are there.
    pub(crate) fn create(out: &Path, model: &'a Model, recipe: &Recipe) -> Result<Self, CalibError> {
        let output = Output::create(out, model, Widths::uniform(recipe.scheme))?;
        let untuned_dir = out.join(UNTUNED);
        let untuned = || Output::create(&untuned_dir, model, Widths::uniform(recipe.scheme));
        let untuned = (recipe.tune_epochs() > 0).then(untuned).transpose()?;
        Ok(Self { output, untuned, untuned_dir, n_blocks: model.decoder().dims().n_layers })
    }

    /// Says how linears are quantized, where that is known later.
    pub(crate) fn set_widths(&mut self, widths: &Widths) {
        let outputs = [Some(&mut self.output), self.untuned.as_mut()];
        outputs.into_iter().flatten().for_each(|output| output.set_widths(widths.clone()));
    }

    /// Where learned blocks go.
    pub(crate) fn learned(&self) -> &Output<'a> {
        self.untuned.as_ref().unwrap_or(&self.output)
    }

    /// Where learned blocks are for tuning, if there is any.
    pub(crate) fn untuned(&self) -> Option<&Output<'a>> {
        self.untuned.as_ref()
    }

    /// Where tuning keeps what it has come to.
    pub(crate) fn tuning_path(&self) -> PathBuf {
        self.untuned_dir.join("tuning.safetensors")
    }

    /// Shards of a whole run.
    pub(crate) fn n_shards(&self) -> usize {
        if self.untuned.is_some() { 2 * self.n_blocks } else { self.n_blocks }
    }

    /// Whether nothing is left to do.
    pub(crate) fn are_complete(&self, journal: &Journal) -> Result<bool, CalibError> {
        Ok(self.has_all_blocks(journal)? && self.output.is_complete())
    }

    /// Takes back that the model is finished, before anything of it is made again.
    pub(crate) fn reopen(&self) -> Result<(), CalibError> {
        Ok(remove_file(&self.output.dir().join("config.json"))?)
    }

    /// Removes what tuning had come to, where blocks that it was learned on are made again.
    pub(crate) fn forget_tuning(&self, journal: &Journal) -> Result<(), CalibError> {
        if journal.finished().len() < self.n_blocks {
            remove_file(&self.tuning_path())?;
        }
        Ok(())
    }

    /// Whether all blocks of the packed model are as they were written; what led to them may be gone.
    fn has_all_blocks(&self, journal: &Journal) -> Result<bool, CalibError> {
        let last = self.n_shards() - self.n_blocks..self.n_shards();
        Ok(journal.finished().len() == self.n_shards() && self.first_broken(last, journal)?.is_none())
    }

    /// Strikes the first shard that is not what the journal says, and those after it.
    pub(crate) fn forget_broken(&self, journal: &mut Journal) -> Result<(), CalibError> {
        if self.has_all_blocks(journal)? {
            return Ok(());
        }
        if let Some(bad) = self.first_broken(0..journal.finished().len(), journal)? {
            let shard = &journal.finished()[bad].shard;
            tracing::warn!(shard, "a finished shard is not what the journal says: it is made again");
            journal.truncate(bad)?;
        }
        Ok(())
    }

    /// The first of these shards that is not the one that was written.
    fn first_broken(&self, shards: Range<usize>, journal: &Journal) -> Result<Option<usize>, CalibError> {
        for at in shards {
            let (output, block) =
                if at < self.n_blocks { (self.learned(), at) } else { (&self.output, at - self.n_blocks) };
            if !output.is_intact(block, &journal.finished()[at].sha256)? {
                return Ok(Some(at));
            }
        }
        Ok(None)
    }

    /// Removes what only tuning needed, once the model is whole.
    pub(crate) fn clean_up(&self) {
        if self.untuned.is_some()
            && let Err(error) = std::fs::remove_dir_all(&self.untuned_dir)
        {
            tracing::warn!(dir = %self.untuned_dir.display(), %error, "blocks before tuning cannot be removed");
        }
    }
}
