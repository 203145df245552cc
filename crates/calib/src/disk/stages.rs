//! A run's shards, and which of them have to be made again: those of learned blocks and, if all blocks are tuned afterwards, of tuned ones.

use std::path::{Path, PathBuf};

use oq_formats::{FormatError, remove_file, remove_leftovers};
use oq_models::{Model, ModelError};
use oq_recipe::{RUN_FOLDER, Recipe};

use crate::disk::journal::{Journal, JournalError, Stage};
use crate::disk::names::TUNING;
use crate::disk::output::{Output, is_intact};
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

/// The shards of a run. Its journal has a line for each: learned blocks first, then tuned ones, if there are any. A tuned block replaces the
/// learned one, once its line is written.
pub(crate) struct Stages<'a> {
    /// The packed model.
    pub(crate) output: Output<'a>,
    /// Whether all blocks are tuned after they are learned.
    tunes: bool,
    n_blocks: usize,
}

impl<'a> Stages<'a> {
    /// Creates the directories, or continues in existing ones.
    pub(crate) fn create(out: &Path, model: &'a Model, recipe: &Recipe) -> Result<Self, StageError> {
        let widths = Widths::of_recipe(model.decoder(), recipe)?;
        let output = Output::create(out, model, widths)?;
        remove_leftovers(&out.join(RUN_FOLDER))?;
        Ok(Self { output, tunes: recipe.tune_epochs() > 0, n_blocks: model.decoder().dims().n_layers })
    }

    /// Whether all blocks are tuned after they are learned.
    pub(crate) fn tunes(&self) -> bool {
        self.tunes
    }

    /// File of the state of tuning.
    pub(crate) fn tuning_path(&self) -> PathBuf {
        self.output.dir().join(TUNING)
    }

    /// Whether the journal has all shards of a finished run.
    pub(crate) fn has_all(&self, journal: &Journal) -> bool {
        let has = |blocks: usize| blocks == self.n_blocks;
        has(journal.learned().len()) && (!self.tunes || has(journal.tuned().len()))
    }

    /// Whether the run is finished and its files are intact.
    pub(crate) fn are_complete(&self, journal: &Journal) -> Result<bool, StageError> {
        Ok(self.has_all(journal) && self.first_broken(journal)?.is_none() && self.output.is_complete())
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

    /// Drops what does not match the journal, and what depends on it.
    pub(crate) fn forget_broken(&self, journal: &mut Journal) -> Result<(), StageError> {
        while let Some(Broken { stage, file }) = self.first_broken(journal)? {
            if let Some(file) = file {
                tracing::warn!(file, "a finished file is missing or damaged: what depends on it is made again");
            }
            journal.forget(stage)?;
        }
        Ok(())
    }

    /// The first shard from which on the run has to be made again.
    fn first_broken(&self, journal: &Journal) -> Result<Option<Broken>, StageError> {
        let (learned, tuned) = (journal.learned(), journal.tuned());
        // Learned blocks that were replaced are gone, and others cannot be learned without them.
        let all_again = |file: &str| Broken { stage: Stage::Learned(0), file: Some(file.to_owned()) };
        for (block, finished) in tuned.iter().enumerate() {
            if self.output.is_intact(block, &finished.sha256)? {
                continue;
            }
            // The process may have ended between the journal's line and the shard's placement.
            let is_last = block + 1 == tuned.len();
            let is_learned = is_last && self.output.is_intact(block, &learned[block].sha256)?;
            let unplaced = Broken { stage: Stage::Tuned(block), file: None };
            return Ok(Some(if is_learned { unplaced } else { all_again(&finished.shard) }));
        }
        if let Some(last) = tuned.last().filter(|_| tuned.len() < self.n_blocks)
            && !is_intact(&self.tuning_path(), &last.record.state)?
        {
            return Ok(Some(all_again(TUNING)));
        }
        for (block, finished) in learned.iter().enumerate().skip(tuned.len()) {
            if !self.output.is_intact(block, &finished.sha256)? {
                let this = Broken { stage: Stage::Learned(block), file: Some(finished.shard.clone()) };
                return Ok(Some(if tuned.is_empty() { this } else { all_again(&finished.shard) }));
            }
        }
        Ok(None)
    }

    /// Removes the file that only tuning needed, once the model is complete.
    pub(crate) fn clean_up(&self) {
        if let Err(error) = remove_file(&self.tuning_path()) {
            tracing::warn!(%error, "cannot remove the state of tuning");
        }
    }
}

/// A shard that has to be made again.
struct Broken {
    stage: Stage,
    /// The file that is missing or damaged, if one is.
    file: Option<String>,
}
