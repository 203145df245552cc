//! Errors of generation.

use oq_data::DataError;
use oq_models::ModelError;

/// Why generation failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GenerateError {
    /// The prompt is empty.
    #[error("the prompt has no tokens: give it some text")]
    Empty,
    /// More positions than the model supports.
    #[error("{tokens} tokens after {before} are beyond the {limit} positions of the model: shorten the prompt")]
    ContextFull {
        /// Tokens to process.
        tokens: usize,
        /// Tokens processed before.
        before: usize,
        /// Positions that the model supports.
        limit: usize,
    },
    /// The model produced NaN or infinity.
    #[error("position {position}: a logit is {value}, so the model's activations overflow")]
    NotFinite {
        /// Position, from 0.
        position: usize,
        /// The logit.
        value: f32,
    },
    /// A sampling setting is invalid.
    #[error("{name} is {value}: {expected}")]
    Setting {
        /// The setting.
        name: &'static str,
        /// Its value.
        value: f64,
        /// What it must be.
        expected: &'static str,
    },
    /// The model cannot be read.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The tokenizer failed.
    #[error(transparent)]
    Data(#[from] DataError),
}
