//! Where a run's shards go: those of learned blocks, and, where all blocks are tuned afterwards, those of the tuned ones.

use std::path::{Path, PathBuf};

use oq_formats::{FormatError, remove_file};
use oq_models::Model;
use oq_recipe::Recipe;

use crate::disk::journal::{Journal, JournalError, Stage};
use crate::disk::names::{TUNING, UNTUNED};
use crate::disk::output::Output;
use crate::widths::Widths;

/// Why shards cannot be taken up.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StageError {
    /// A file cannot be read or written.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// The journal cannot be written.
    #[error(transparent)]
    Journal(#[from] JournalError),
}

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
    pub(crate) fn create(out: &Path, model: &'a Model, recipe: &Recipe) -> Result<Self, StageError> {
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
        self.untuned_dir.join(TUNING)
    }

    /// Whether the journal has all shards of a whole run.
    pub(crate) fn has_all(&self, journal: &Journal) -> bool {
        let has = |blocks: usize| blocks == self.n_blocks;
        has(journal.learned().len()) && (self.untuned.is_none() || has(journal.tuned().len()))
    }

    /// Whether nothing is left to do.
    pub(crate) fn are_complete(&self, journal: &Journal) -> Result<bool, StageError> {
        Ok(self.has_all_blocks(journal)? && self.output.is_complete())
    }

    /// Takes back that the model is finished, before anything of it is made again.
    pub(crate) fn reopen(&self) -> Result<(), StageError> {
        Ok(remove_file(&self.output.dir().join("config.json"))?)
    }

    /// Removes what tuning had come to, where blocks that it was learned on are made again.
    pub(crate) fn forget_tuning(&self, journal: &Journal) -> Result<(), StageError> {
        if journal.learned().len() < self.n_blocks {
            remove_file(&self.tuning_path())?;
        }
        Ok(())
    }

    /// Whether all blocks of the packed model are as they were written; what led to them may be gone.
    fn has_all_blocks(&self, journal: &Journal) -> Result<bool, StageError> {
        if !self.has_all(journal) {
            return Ok(false);
        }
        let broken = match self.untuned {
            Some(_) => self.first_broken_tuned(journal)?,
            None => self.first_broken_learned(journal)?,
        };
        Ok(broken.is_none())
    }

    /// Strikes the first shard that is not what the journal says, and those after it.
    pub(crate) fn forget_broken(&self, journal: &mut Journal) -> Result<(), StageError> {
        if self.has_all_blocks(journal)? {
            return Ok(());
        }
        let broken = match self.first_broken_learned(journal)? {
            Some(broken) => Some(broken),
            None => self.first_broken_tuned(journal)?,
        };
        if let Some((stage, shard)) = broken {
            tracing::warn!(shard, "a finished shard is not what the journal says: it is made again");
            journal.forget(stage)?;
        }
        // What was tuned came from all learned blocks.
        if journal.learned().len() < self.n_blocks && !journal.tuned().is_empty() {
            journal.forget(Stage::Tuned(0))?;
        }
        Ok(())
    }

    /// The first shard of a learned block that is not the one that was written, with its file's name.
    fn first_broken_learned(&self, journal: &Journal) -> Result<Option<(Stage, String)>, StageError> {
        for (block, finished) in journal.learned().iter().enumerate() {
            if !self.learned().is_intact(block, &finished.sha256)? {
                return Ok(Some((Stage::Learned(block), finished.shard.clone())));
            }
        }
        Ok(None)
    }

    /// The same of tuned blocks.
    fn first_broken_tuned(&self, journal: &Journal) -> Result<Option<(Stage, String)>, StageError> {
        for (block, finished) in journal.tuned().iter().enumerate() {
            if !self.output.is_intact(block, &finished.sha256)? {
                return Ok(Some((Stage::Tuned(block), finished.shard.clone())));
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
