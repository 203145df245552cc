//! What can go wrong while measuring.

use oq_data::DataError;
use oq_models::ModelError;

/// Why a model was not measured.
#[derive(Debug, thiserror::Error)]
pub enum EvalError {
    /// Nothing to measure on.
    #[error("the text has {tokens} tokens, less than one window of {seqlen}: give a longer text or a smaller --seqlen")]
    TooShort {
        /// Tokens of the text.
        tokens: usize,
        /// Tokens of a window.
        seqlen: usize,
    },
    /// A window without a second token.
    #[error("a window of {seqlen} has no next token to predict: --seqlen must be at least 2")]
    NothingToPredict {
        /// Tokens of a window.
        seqlen: usize,
    },
    /// The model produced NaN or infinity.
    #[error("window or choice {}: the loss is {value}; the model's numbers overflow", window + 1)]
    NotFinite {
        /// Which window or choice, from 0; people read it from 1.
        window: usize,
        /// Its loss.
        value: f64,
    },
    /// A choice and its context are one token together, before which nothing stands.
    #[error("{text:?} is one token: a choice needs a context of its own")]
    OneToken {
        /// Both.
        text: String,
    },
    /// A text cannot be tokenized.
    #[error(transparent)]
    Data(#[from] DataError),
    /// The model cannot be read.
    #[error(transparent)]
    Model(#[from] ModelError),
}
