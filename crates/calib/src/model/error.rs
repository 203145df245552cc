//! Errors of a pass through all blocks.

use oq_formats::FormatError;
use oq_models::{LinearName, Model, ModelError};
use oq_ranks::RanksError;

use crate::disk::states::StatesError;
use crate::nth::Nth;

/// Why a pass through all blocks failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PassError {
    /// The full-precision model itself overflows.
    #[error("block {block}: the full-precision output of batch {batch} is not finite")]
    Overflow { block: Nth, batch: Nth },
    /// A linear cannot be quantized, or the cost of that is not finite.
    #[error("{linear}: {reason}")]
    Linear { linear: String, reason: String },
    /// The model cannot be read.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// Hidden states cannot be stored.
    #[error(transparent)]
    States(#[from] StatesError),
    /// Another rank failed, or is gone.
    #[error(transparent)]
    Ranks(#[from] RanksError),
}

impl PassError {
    /// [`Self::Linear`] for a linear of a block.
    pub(crate) fn of_linear(model: &Model, block: usize, linear: LinearName, reason: impl ToString) -> Self {
        Self::Linear { linear: full_name(model, block, linear), reason: reason.to_string() }
    }
}

impl From<FormatError> for PassError {
    fn from(error: FormatError) -> Self {
        Self::Model(error.into())
    }
}

/// A linear's name in the checkpoint.
pub(crate) fn full_name(model: &Model, block: usize, linear: LinearName) -> String {
    format!("{}{}", model.decoder().block_prefix(block), linear.0)
}
