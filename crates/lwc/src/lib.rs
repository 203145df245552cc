//! Learnable weight clipping (OmniQuant, eq. 2) and its closed-form gradient.
//!
//! A group of weights is clipped to a learned fraction of its range: `sigmoid(gamma)` of its maximum and `sigmoid(beta)` of its minimum.
//! [`Lwc`] holds the strengths `gamma` and `beta` of one linear. Learning does not use libtorch's autograd for them: [`Lwc::fake_quantize`]
//! computes the weight that the block runs with, the block's backward gives the gradient with respect to that weight, and
//! [`Lwc::gradients`] turns it into the gradient of the strengths.
//!
//! With `Q = 2^bits - 1`, `a = sigmoid(gamma)`, `b = sigmoid(beta)`, `M = max(w, 0)` and `m = min(w, 0)` of a group:
//!
//! ```text
//! hi = a M     lo = b m     s = clamp((hi - lo) / Q, SCALE_MIN, SCALE_MAX)     z = round(-lo / s), a code
//! q  = clamp(round(w / s) + z, 0, Q)                                          w' = (q - z) s
//! ```
//!
//! and with the straight-through estimator for rounding (`z` and active clamps have no gradient), `G = dL/dw'`, `k = 1` where a code was
//! not clamped and `live = 1` where the scale was not:
//!
//! ```text
//! dL/ds     =  live sum G ((q - z) - k w / s)
//! dL/dgamma =  dL/ds M a (1 - a) / Q        dL/dbeta = -dL/ds m b (1 - b) / Q
//! dL/dw     =  G k + dL/ds a / Q [w = M] / #max - dL/ds b / Q [w = m] / #min
//! ```
//!
//! Symmetric quantization has `s = clamp(max(hi, -lo) / (2^(bits-1) - 1), ..)` and `z = 2^(bits-1)`. Only the larger end has a gradient,
//! and two equal ends get half of it each.
//!
//! Rounding can be learned too: `q = clamp(round(w / s + v) + z, 0, Q)` with an offset `v` per weight, which [`Lwc::move_offsets`] moves.
//! The gradients are those above, computed with these codes.
//!
//! During learning the scale is not rounded to f16, and ties are rounded to even. [`Lwc::quantize`] computes the final codes, on the grids
//! of [`oq_quant_core`].

mod card;
mod composed;
mod fused;
mod levels;
mod operations;
mod strengths;
mod tensors;
mod usual;

pub use strengths::{Lwc, LwcError, LwcGrads, START};
pub use usual::Usual;

#[cfg(test)]
mod tests;

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
