//! Learnable equivalent transformation (OmniQuant, eq. 3-5): channels are rescaled, and shifted, where they are written, and
//! scaled back where they are read, so that a block computes the same function and is easier to quantize.
//!
//! A [`Site`] says as data which channels of which modules share a scale. Ties are part of it: the two channels that a rotary
//! embedding turns together, the query heads that read one key/value head, the parts of a fused projection. [`Transform`] applies
//! sites to a block's tensors, with autograd's graph while [`Values`] are learned and without it when they are merged: it is one
//! function. [`Values::smooth`] is SmoothQuant's start (arXiv 2211.10438).
//!
//! With `c` the scales and `d` the shifts of a module's input channels, `r` and `e` those of its output channels:
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
