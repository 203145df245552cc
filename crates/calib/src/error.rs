//! Errors of a run.

use std::path::PathBuf;

use oq_formats::FormatError;
use oq_models::{LinearName, Model, ModelError};
use oq_ranks::RanksError;

use crate::disk::stages::StageError;
use crate::disk::states::StatesError;
use crate::model::error::{PassError, full_name};
use crate::nth::Nth;

use crate::block::sites::SiteError;
use crate::disk::journal::JournalError;

/// Why a run ended before its model was written. Finished blocks are kept, and `--resume` continues from them.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CalibError {
    /// The caller asked to stop.
    #[error("stopped in block {block}: {} blocks are finished in {}; continue with --resume", block.index, out.display())]
    Stopped {
        /// The block that was not finished.
        block: Nth,
        /// The output directory.
        out: PathBuf,
    },
    /// The loss of a block was not finite in any attempt.
    #[error(
        "block {block}: the loss is not finite at epoch {epoch}, batch {batch}, after {attempts} attempts down to a learning rate \
         of {lr:.1e}; lower --lwc-lr or --let-lr, or use --compute f32, and choose another --out, because that is a different run"
    )]
    Diverged {
        /// The block.
        block: Nth,
        /// The epoch.
        epoch: Nth,
        /// The batch.
        batch: Nth,
        /// Number of attempts.
        attempts: u32,
        /// The last learning rate.
        lr: f64,
    },
    /// The caller asked to stop while all blocks were tuned.
    #[error(
        "stopped in epoch {epoch} of tuning: all blocks and the state of tuning are kept in {}; continue with --resume",
        out.display()
    )]
    TuningStopped {
        /// The epoch that was not finished.
        epoch: Nth,
        /// The output directory.
        out: PathBuf,
    },
    /// The divergence of tuning or its gradient was not finite in any attempt.
    #[error(
        "tuning: the divergence or its gradient is not finite at epoch {epoch}, batch {batch}, after {attempts} attempts down to a \
         learning rate of {lr:.1e}; lower --tune-lr, or skip tuning with --tune-epochs 0, and choose another --out, \
         because that is a different run"
    )]
    TuningDiverged {
        /// The epoch.
        epoch: Nth,
        /// The batch.
        batch: Nth,
        /// Number of attempts.
        attempts: u32,
        /// The last learning rate.
        lr: f64,
    },
    /// The full-precision model itself overflows.
    #[error(
        "block {block}: the full-precision output of batch {batch} is not finite: the checkpoint overflows in f32; download it \
         again, or use another one"
    )]
    Overflow {
        /// The block.
        block: Nth,
        /// The batch.
        batch: Nth,
    },
    /// Hidden states that exceed the budget cannot be stored on disk.
    #[error(transparent)]
    States(#[from] StatesError),
    /// A failure while a block was processed, such as a full disk.
    #[error("block {block}: {source}; finished blocks are kept: once this is resolved, continue with --resume")]
    InBlock {
        /// The first block that is not finished.
        block: Nth,
        /// The cause.
        source: Box<CalibError>,
    },
    /// The number of calibration segments is wrong.
    #[error("{given} calibration segments were given, but the recipe needs {wanted}")]
    Segments {
        /// How many were given.
        given: usize,
        /// [`oq_recipe::Recipe::segments`].
        wanted: usize,
    },
    /// A batch cannot be split over so many ranks.
    #[error(
        "{ranks} ranks cannot share a batch of {smallest}, as each takes its part of every batch of segments: give a --batch of {ranks} \
         or more that divides the {samples} segments (it is {batch}), or start fewer ranks"
    )]
    TooManyRanks {
        /// Number of ranks.
        ranks: usize,
        /// Segments of the smallest batch.
        smallest: usize,
        /// Segments of a pass.
        samples: usize,
        /// Segments of a batch.
        batch: usize,
    },
    /// The recipe reads no text, so there is nothing to split over ranks.
    #[error(
        "{ranks} ranks have nothing to share: this method reads no text, and rounds weights alone; start one process"
    )]
    NothingToSplit {
        /// Number of ranks.
        ranks: usize,
    },
    /// Another rank failed, or is gone.
    #[error("{0}; finished blocks are kept: continue with --resume, on any number of ranks")]
    Ranks(#[from] RanksError),
    /// Overrides leave too few bits, or no linears, for a choice of widths.
    #[error("--bits {average}: {why}")]
    Bits {
        /// The average that was asked for.
        average: f64,
        /// What is in the way.
        why: String,
    },
    /// The quantizer refused a linear.
    #[error("{linear}: {reason}")]
    Linear {
        /// Its name in the checkpoint.
        linear: String,
        /// The reason.
        reason: String,
    },
    /// The model lacks a site that the recipe transforms.
    #[error(transparent)]
    Site(#[from] SiteError),
    /// The model cannot be read.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The output cannot be written.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// The run in the output directory cannot be resumed.
    #[error(transparent)]
    Journal(#[from] JournalError),
}

impl CalibError {
    /// [`Self::Linear`] for a linear of a block.
    pub(crate) fn of_linear(model: &Model, block: usize, linear: LinearName, reason: impl ToString) -> Self {
        Self::Linear { linear: full_name(model, block, linear), reason: reason.to_string() }
    }

    /// Adds the block to an error that does not name it.
    pub(crate) fn in_block(self, block: Nth) -> Self {
        match self {
            Self::Model(_) | Self::Format(_) | Self::Journal(_) | Self::States(_) => {
                Self::InBlock { block, source: Box::new(self) }
            }
            other => other,
        }
    }
}

impl From<PassError> for CalibError {
    fn from(error: PassError) -> Self {
        match error {
            PassError::Overflow { block, batch } => Self::Overflow { block, batch },
            PassError::Linear { linear, reason } => Self::Linear { linear, reason },
            PassError::Model(error) => Self::Model(error),
            PassError::States(error) => Self::States(error),
            PassError::Ranks(error) => Self::Ranks(error),
        }
    }
}

impl From<StageError> for CalibError {
    fn from(error: StageError) -> Self {
        match error {
            StageError::Format(error) => Self::Format(error),
            StageError::Journal(error) => Self::Journal(error),
            StageError::Model(error) => error.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_count_from_1() {
        #[track_caller]
        fn check(error: CalibError, parts: &[&str]) {
            let text = error.to_string();
            assert!(parts.iter().all(|part| text.contains(part)), "no {parts:?} in {text}");
        }
        let (block, epoch, batch, lr) = (Nth::new(2, 30), Nth::new(0, 5), Nth::new(15, 16), 1e-2);
        check(CalibError::Stopped { block, out: "out".into() }, &["stopped in block 3 of 30: 2 blocks are finished"]);
        check(CalibError::TuningStopped { epoch, out: "out".into() }, &["stopped in epoch 1 of 5 of tuning"]);
        let at = "at epoch 1 of 5, batch 16 of 16, after 5 attempts";
        check(CalibError::Diverged { block, epoch, batch, attempts: 5, lr }, &["block 3 of 30: ", at]);
        check(CalibError::TuningDiverged { epoch, batch, attempts: 5, lr }, &[at]);
        let overflow = CalibError::Overflow { block, batch };
        check(overflow, &["block 3 of 30: the full-precision output of batch 16 of 16 is not finite"]);
        let missing = FormatError::MissingFile { path: "weights".into() };
        check(CalibError::from(missing).in_block(block), &["block 3 of 30: ", "weights"]);
        let (dir, model) = ("out".into(), "model".into());
        let other = JournalError::OtherSource { dir, block, model };
        check(other.into(), &["block 3 of 30 was made from a different checkpoint"]);
    }
}
