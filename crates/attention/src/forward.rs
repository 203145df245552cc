//! From queries, keys and values to what attention mixes.

use half::bf16;
use rayon::prelude::*;

use crate::choice::chosen;
use crate::loops::{Left, Loops, Out, Product, Right};
use crate::pack::{Padded, ROWS, columns, row_pairs, rows};
use crate::shape::Shape;

/// The output, and what the backward needs of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Kept {
    /// `[batch, heads, tokens, head_dim]`.
    pub out: Vec<bf16>,
    /// Logarithms of the sums of `exp(S)` over each row, `[batch, heads, tokens]`.
    pub lse: Vec<f32>,
}

/// `softmax(scale Q Kᵀ) V`, causal.
///
/// # Panics
/// When a slice does not have the length that `shape` says, the key/value heads do not divide the query heads, or `OMNIQUANT_KERNEL` names
/// an instruction set that cannot be used.
pub fn forward(shape: Shape, q: &[bf16], k: &[bf16], v: &[bf16]) -> Kept {
    forward_with(chosen(), shape, q, k, v)
}

pub(crate) fn forward_with(loops: &dyn Loops, shape: Shape, q: &[bf16], k: &[bf16], v: &[bf16]) -> Kept {
    shape.check(q, [k, v]);
    let mut out = vec![bf16::ZERO; q.len()];
    let mut lse = vec![0.0; shape.batch * shape.heads * shape.tokens];
    if out.is_empty() {
        return Kept { out, lse };
    }
    let heads = out.par_chunks_mut(shape.head_len()).zip(lse.par_chunks_mut(shape.tokens));
    heads.zip(q.par_chunks(shape.head_len())).enumerate().for_each(|(task, ((out, lse), q))| {
        head(loops, shape, [q, shape.kv_of(k, task), shape.kv_of(v, task)], out, lse);
    });
    Kept { out, lse }
}

/// One head: `q`, `k`, `v`, `out` `[t, d]`, `lse [t]`.
fn head(loops: &dyn Loops, shape: Shape, [q, k, v]: [&[bf16]; 3], out: &mut [bf16], lse: &mut [f32]) {
    let (t, d) = (shape.tokens, shape.head_dim);
    let size = Padded::new(t, d);
    let (q, k, v) = (rows(q, d, size), columns(k, d, size), row_pairs(v, d, size));
    let channel_pairs = size.columns / 2;
    let mut scores = vec![0.0; ROWS * size.rows];
    let mut probs = vec![0; ROWS * size.rows / 2];
    let mut mixed = vec![0.0; ROWS * size.columns];
    for first in (0..t).step_by(ROWS) {
        let keys = first + ROWS; // what the last of these rows sees, padded rows included
        loops.product(
            Product { m: ROWS, n: keys, pairs: channel_pairs, add: false },
            Left { data: &q[first * channel_pairs..], row: channel_pairs, step: 1 },
            Right { data: &k, step: size.rows },
            Out { data: &mut scores, row: keys },
        );
        let mut sums = [1.0; ROWS];
        let lse = &mut lse[first..t.min(first + ROWS)];
        for (r, (lse, sum)) in lse.iter_mut().zip(&mut sums).enumerate() {
            let probs = &mut probs[r * keys / 2..(r + 1) * keys / 2];
            (*sum, *lse) = loops.softmax(shape.scale(), &scores[r * keys..(r + 1) * keys], first + r + 1, probs);
        }
        loops.product(
            Product { m: ROWS, n: size.columns, pairs: keys / 2, add: false },
            Left { data: &probs, row: keys / 2, step: 1 },
            Right { data: &v, step: size.columns },
            Out { data: &mut mixed, row: size.columns },
        );
        let out = out[first * d..].chunks_exact_mut(d);
        for ((out, mixed), sum) in out.zip(mixed.chunks_exact(size.columns)).zip(sums) {
            for (out, mixed) in out.iter_mut().zip(mixed) {
                *out = bf16::from_f32(mixed / sum);
            }
        }
    }
}
