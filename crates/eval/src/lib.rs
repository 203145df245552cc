//! Measures a model: next-token perplexity and logits, one block of weights in memory at a time.

mod error;
mod forward;
mod perplexity;

pub use error::EvalError;
pub use forward::{Progress, logits};
pub use perplexity::{Perplexity, perplexity};
