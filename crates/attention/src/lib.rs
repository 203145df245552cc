//! Causal attention in bf16 on the CPU: of whole sequences, forward and backward, and of a sequence that grows ([`Cache`]).
//!
//! ```text
//! S = scale Q Kᵀ     P = softmax(S), each row over the positions up to its own     O = P V
//! ```
//!
//! Products take bf16 and sum in f32; scores, softmax and the sums of gradients are f32. Nothing of the size `t x t` is kept: the
//! forward keeps the logarithm of each row's sum, from which the backward makes `P` again (Dao et al. 2022, arXiv 2205.14135). Work
//! is cut by heads, and every sum has one order, so that the result does not depend on the number of threads.
//!
//! ```
//! use half::bf16;
//! use oq_attention::{Shape, forward};
//!
//! let shape = Shape { batch: 1, heads: 4, kv_heads: 2, tokens: 3, head_dim: 8 };
//! let q = vec![bf16::ONE; shape.q_len()];
//! let kv = vec![bf16::ONE; shape.kv_len()];
//! let kept = forward(shape, &q, &kv, &kv);
//! assert_eq!(kept.out, q); // a mean of ones
//! ```

mod backward;
mod cache;
mod forward;
mod isa;
mod pack;

use half::bf16;

pub use backward::{Grads, backward};
pub use cache::Cache;
pub use forward::{Kept, forward};

/// Sizes of the tensors, all contiguous: `q` and the output `[batch, heads, tokens, head_dim]`, `k` and `v`
/// `[batch, kv_heads, tokens, head_dim]`. Query head `i` reads key/value head `i / (heads / kv_heads)`.
///
/// Scores are multiplied by `head_dim^-0.5`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Sequences.
    pub batch: usize,
    /// Query heads.
    pub heads: usize,
    /// Key/value heads; they divide the query heads.
    pub kv_heads: usize,
    /// Positions of each sequence.
    pub tokens: usize,
    /// Channels of a head.
    pub head_dim: usize,
}

impl Shape {
    /// Elements of `q`, of the output and of their gradients.
    pub fn q_len(&self) -> usize {
        self.batch * self.heads * self.head_len()
    }

    /// Elements of `k` and of `v`.
    pub fn kv_len(&self) -> usize {
        self.batch * self.kv_heads * self.head_len()
    }

    /// Elements of one head.
    fn head_len(&self) -> usize {
        self.tokens * self.head_dim
    }

    fn scale(&self) -> f32 {
        (self.head_dim as f32).powf(-0.5)
    }

    /// Query heads that share a key/value head.
    fn share(&self) -> usize {
        self.heads / self.kv_heads
    }

    /// The part of `k` or `v` that query head `task` of all sequences reads.
    fn kv_of<'a>(&self, kv: &'a [bf16], task: usize) -> &'a [bf16] {
        // Heads of all sequences follow one another, in groups that share.
        let start = task / self.share() * self.head_len();
        &kv[start..start + self.head_len()]
    }

    fn check(&self, q: &[bf16], kv: [&[bf16]; 2]) {
        assert!(self.heads.is_multiple_of(self.kv_heads), "{self:?}: kv_heads must divide heads");
        assert_eq!(q.len(), self.q_len(), "{self:?}: elements of q");
        for kv in kv {
            assert_eq!(kv.len(), self.kv_len(), "{self:?}: elements of k and v");
        }
    }
}

/// Whether this processor multiplies bf16 (AVX-512 BF16). Where it does not, results are as good, but slow.
pub fn is_fast() -> bool {
    isa::is_fast()
}

#[cfg(test)]
mod tests;

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
