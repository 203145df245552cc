//! What can go wrong while generating.

use oq_data::DataError;
use oq_models::ModelError;

/// Why nothing more was generated.
#[derive(Debug, thiserror::Error)]
pub enum GenerateError {
    /// Nothing to continue.
    #[error("the prompt has no tokens: give it some text")]
    Empty,
    /// More positions than the model has learned.
    #[error("{tokens} tokens after {before} are beyond the {limit} positions of the model: shorten the prompt")]
    ContextFull {
        /// Tokens to be read.
        tokens: usize,
        /// Tokens read before.
        before: usize,
        /// Positions there are.
        limit: usize,
    },
    /// The model produced NaN or infinity.
    #[error("position {position}: a logit is {value}; the model's numbers overflow")]
    NotFinite {
        /// Which position, from 0.
        position: usize,
        /// The logit.
        value: f32,
    },
    /// Sampling cannot be done so.
    #[error("{name} is {value}: {expected}")]
    Setting {
        /// Which setting.
        name: &'static str,
        /// Its value.
        value: f64,
        /// What it must be.
        expected: &'static str,
    },
    /// The model cannot be read.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The tokenizer refuses.
    #[error(transparent)]
    Data(#[from] DataError),
}
