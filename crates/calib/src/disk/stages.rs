//! Where a run's shards go: those of learned blocks and, if all blocks are tuned afterwards, those of tuned ones.

use std::path::{Path, PathBuf};

use oq_formats::{FormatError, remove_file, remove_leftovers};
use oq_models::{Model, ModelError};
use oq_recipe::{RUN_FOLDER, Recipe};

use crate::disk::journal::{Journal, JournalError, Stage};
use crate::disk::names::{TUNING, UNTUNED};
use crate::disk::output::Output;
use crate::widths::Widths;

/// Why existing shards cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StageError {
    /// A file cannot be read or written.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// The journal cannot be written.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The scheme does not suit the model.
    #[error(transparent)]
    Model(#[from] ModelError),
}

/// The shards of a run. Its journal has a line for each: learned blocks first, then tuned ones, if there are any.
pub(crate) struct Stages<'a> {
    /// The packed model.
    pub(crate) output: Output<'a>,
    /// The blocks before tuning, in a folder of their own, which is removed when the model is complete.
    untuned: Option<Output<'a>>,
    untuned_dir: PathBuf,
    n_blocks: usize,
}

impl<'a> Stages<'a> {
    /// Creates the directories, or continues in existing ones.
    pub(crate) fn create(out: &Path, model: &'a Model, recipe: &Recipe) -> Result<Self, StageError> {
        let widths = Widths::of_recipe(model.decoder(), recipe)?;
        let output = Output::create(out, model, widths.clone())?;
        remove_leftovers(&out.join(RUN_FOLDER))?;
        let untuned_dir = out.join(UNTUNED);
        let untuned = || Output::create(&untuned_dir, model, widths);
        let untuned = (recipe.tune_epochs() > 0).then(untuned).transpose()?;
        Ok(Self { output, untuned, untuned_dir, n_blocks: model.decoder().dims().n_layers })
    }

    /// Sets how linears are quantized, if that is not known at first.
    pub(crate) fn set_widths(&mut self, widths: &Widths) {
        let outputs = [Some(&mut self.output), self.untuned.as_mut()];
        outputs.into_iter().flatten().for_each(|output| output.set_widths(widths.clone()));
    }

    /// Output for learned blocks.
    pub(crate) fn learned(&self) -> &Output<'a> {
        self.untuned.as_ref().unwrap_or(&self.output)
    }

    /// Output of learned blocks that tuning starts from, if there is tuning.
    pub(crate) fn untuned(&self) -> Option<&Output<'a>> {
        self.untuned.as_ref()
    }

    /// File of the state of tuning.
    pub(crate) fn tuning_path(&self) -> PathBuf {
        self.untuned_dir.join(TUNING)
    }

    /// Whether the journal has all shards of a finished run.
    pub(crate) fn has_all(&self, journal: &Journal) -> bool {
        let has = |blocks: usize| blocks == self.n_blocks;
        has(journal.learned().len()) && (self.untuned.is_none() || has(journal.tuned().len()))
    }

    /// Whether the run is finished and its files are intact.
    pub(crate) fn are_complete(&self, journal: &Journal) -> Result<bool, StageError> {
        Ok(self.has_all_blocks(journal)? && self.output.is_complete())
    }

    /// Removes `config.json`, so that the model does not count as finished while parts of it are made again.
    pub(crate) fn reopen(&self) -> Result<(), StageError> {
        Ok(remove_file(&self.output.dir().join("config.json"))?)
    }

    /// Removes the state of tuning if blocks that it depends on are missing.
    pub(crate) fn forget_tuning(&self, journal: &Journal) -> Result<(), StageError> {
        if journal.learned().len() < self.n_blocks {
            remove_file(&self.tuning_path())?;
        }
        Ok(())
    }

    /// Whether all blocks of the packed model are intact. Intermediate files may be gone.
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

    /// Drops the first shard that does not match the journal, and those after it.
    pub(crate) fn forget_broken(&self, journal: &mut Journal) -> Result<(), StageError> {
        if self.has_all_blocks(journal)? {
            return Ok(());
        }
        let broken = match self.first_broken_learned(journal)? {
            Some(broken) => Some(broken),
            None => self.first_broken_tuned(journal)?,
        };
        if let Some((stage, shard)) = broken {
            tracing::warn!(shard, "a finished shard is missing or damaged: it is made again");
            journal.forget(stage)?;
        }
        Ok(())
    }

    /// The first shard of a learned block that is missing or damaged, with its file name.
    fn first_broken_learned(&self, journal: &Journal) -> Result<Option<(Stage, String)>, StageError> {
        for (block, finished) in journal.learned().iter().enumerate() {
            if !self.learned().is_intact(block, &finished.sha256)? {
                return Ok(Some((Stage::Learned(block), finished.shard.clone())));
            }
        }
        Ok(None)
    }

    /// The first shard of a tuned block that is missing or damaged, with its file name.
    fn first_broken_tuned(&self, journal: &Journal) -> Result<Option<(Stage, String)>, StageError> {
        for (block, finished) in journal.tuned().iter().enumerate() {
            if !self.output.is_intact(block, &finished.sha256)? {
                return Ok(Some((Stage::Tuned(block), finished.shard.clone())));
            }
        }
        Ok(None)
    }

    /// Removes files that only tuning needed, once the model is complete.
    pub(crate) fn clean_up(&self) {
        if self.untuned.is_some()
            && let Err(error) = std::fs::remove_dir_all(&self.untuned_dir)
        {
            tracing::warn!(dir = %self.untuned_dir.display(), %error, "cannot remove the blocks from before tuning");
        }
    }
}
