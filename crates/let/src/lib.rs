//! Learnable equivalent transformation (OmniQuant, eq. 3-5). Channels are rescaled, and optionally shifted, where they are written, and
//! scaled back where they are read, so that a block computes the same function but is easier to quantize.
//!
//! A [`Site`] describes as data which channels of which modules share a scale. [`Transform`] applies sites to a block's tensors, with
//! autograd's graph while [`Values`] are learned and without it when they are merged, in the same function. [`Values::smooth`] is
//! SmoothQuant's start (arXiv 2211.10438).
//!
//! Channels that must have the same scale are tied:
//!
//! - A rotary embedding rotates channels `i` and `i + d/2` of a head together, so queries and keys have one scale for both. The paper's
//!   code leaves them free, which changes the model.
//! - Query heads that read the same key/value head share its scales, so grouped-query models are transformed too.
//! - Falcon's fused projection is one module with several [`Port`]s; a norm that feeds attention and MLP is one site with two readers.
//! - Qwen 3 normalizes queries and keys per head. Their scales go into the norms' weights, one set for all heads.
//!
//! With `c` and `d` the scales and shifts of a module's input channels, `r` and `e` those of its output channels:
//!
//! ```text
//! linear:  W' = diag(1/r) W diag(c)     b' = (b + W d - e) / r
//! norm:    w' = w / r                   b' = (b - e) / r
//! ```
//!
//! Scales are positive and at least [`MIN_SCALE`].

mod site;
mod start;
mod transform;

pub use site::{Action, Port, Site};
pub use start::{InputStats, Source};
pub use transform::{MIN_SCALE, Transform, Values};

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
