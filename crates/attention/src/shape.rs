//! Sizes of what attention reads.

use half::bf16;

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
    pub(crate) fn head_len(&self) -> usize {
        self.tokens * self.head_dim
    }

    pub(crate) fn scale(&self) -> f32 {
        (self.head_dim as f32).powf(-0.5)
    }

    /// Query heads that share a key/value head.
    pub(crate) fn queries_per_kv(&self) -> usize {
        self.heads / self.kv_heads
    }

    /// The part of `k` or `v` that query head `task` of all sequences reads.
    pub(crate) fn kv_of<'a>(&self, kv: &'a [bf16], task: usize) -> &'a [bf16] {
        // Heads of all sequences follow one another, in groups that share.
        let start = task / self.queries_per_kv() * self.head_len();
        &kv[start..start + self.head_len()]
    }

    pub(crate) fn check(&self, q: &[bf16], kv: [&[bf16]; 2]) {
        assert!(self.heads.is_multiple_of(self.kv_heads), "{self:?}: kv_heads must divide heads");
        assert_eq!(q.len(), self.q_len(), "{self:?}: elements of q");
        for kv in kv {
            assert_eq!(kv.len(), self.kv_len(), "{self:?}: elements of k and v");
        }
    }
}
