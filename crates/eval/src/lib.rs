//! Measures a model: next-token perplexity, divergence from another model, zero-shot accuracy and logits, one block of weights in memory at a
//! time.

mod accuracy;
mod divergence;
mod error;
mod forward;
mod perplexity;
mod reference;
mod statistics;
mod tree;
mod windows;
mod zero_shot;

pub use accuracy::{Accuracy, Answer, Prediction};
pub use divergence::{Divergence, divergence};
pub use error::EvalError;
pub use forward::{Progress, logits};
pub use perplexity::{Gather, Perplexity, perplexity};
pub use reference::Reference;
pub use zero_shot::{Asked, zero_shot};

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
