//! From the gradient of the output to those of queries, keys and values.
//!
//! ```text
//! dV = Pᵀ dO     dP = dO Vᵀ     dS = scale P (dP - rowsum(O dO))     dQ = dS K     dK = dSᵀ Q
//! ```

use half::bf16;
use rayon::prelude::*;

use crate::choice::chosen;
use crate::forward::Kept;
use crate::loops::{Left, Loops, Out, Product, Right, RowGrads, Rows};
use crate::pack::{Padded, ROWS, columns, row_pairs, rows};
use crate::shape::Shape;

/// Keys whose gradients stay in the second cache while the rows pass.
const KEYS: usize = 256;

/// Gradients with respect to queries, keys and values, in their shapes.
#[derive(Clone, Debug, PartialEq)]
pub struct Grads {
    /// `[batch, heads, tokens, head_dim]`.
    pub q: Vec<bf16>,
    /// `[batch, kv_heads, tokens, head_dim]`.
    pub k: Vec<bf16>,
    /// `[batch, kv_heads, tokens, head_dim]`.
    pub v: Vec<bf16>,
}

/// Gradients from `d_out [batch, heads, tokens, head_dim]`; `kept` is what [`crate::forward`] gave for the same `q`, `k`, `v`.
///
/// # Panics
/// When a slice does not have the length that `shape` says, the key/value heads do not divide the query heads, or `OMNIQUANT_KERNEL` names
/// an instruction set that cannot be used.
pub fn backward(shape: Shape, q: &[bf16], k: &[bf16], v: &[bf16], kept: &Kept, d_out: &[bf16]) -> Grads {
    backward_with(chosen(), shape, [q, k, v], kept, d_out)
}

pub(crate) fn backward_with(
    loops: &dyn Loops,
    shape: Shape,
    [q, k, v]: [&[bf16]; 3],
    kept: &Kept,
    d_out: &[bf16],
) -> Grads {
    shape.check(q, [k, v]);
    shape.check(d_out, [k, v]);
    shape.check(&kept.out, [k, v]);
    let mut d_q = vec![bf16::ZERO; q.len()];
    let [mut d_k, mut d_v] = [vec![bf16::ZERO; k.len()], vec![bf16::ZERO; v.len()]];
    if q.is_empty() {
        return Grads { q: d_q, k: d_k, v: d_v };
    }
    let len = shape.head_len();
    let of_heads: Vec<[Vec<f32>; 2]> = (d_q.par_chunks_mut(len).enumerate())
        .map(|(task, d_q)| {
            let own = task * len..(task + 1) * len;
            let head = Head {
                q: &q[own.clone()],
                k: shape.kv_of(k, task),
                v: shape.kv_of(v, task),
                out: &kept.out[own.clone()],
                d_out: &d_out[own],
                lse: &kept.lse[task * shape.tokens..(task + 1) * shape.tokens],
            };
            head.grads(loops, shape, d_q)
        })
        .collect();
    // Heads that share keys and values, in one order.
    let shared = of_heads.par_chunks(shape.queries_per_kv());
    shared.zip(d_k.par_chunks_mut(len).zip(d_v.par_chunks_mut(len))).for_each(|(heads, (d_k, d_v))| {
        for (which, out) in [d_k, d_v].into_iter().enumerate() {
            sum_heads(shape, heads.iter().map(|head| &head[which][..]), out);
        }
    });
    Grads { q: d_q, k: d_k, v: d_v }
}

/// Sum of padded heads: each `[rows, columns]` -> `[t, d]`.
fn sum_heads<'a>(shape: Shape, heads: impl Iterator<Item = &'a [f32]> + Clone, out: &mut [bf16]) {
    let columns = Padded::new(shape.tokens, shape.head_dim).columns;
    for (r, out) in out.chunks_exact_mut(shape.head_dim).enumerate() {
        for (c, out) in out.iter_mut().enumerate() {
            *out = bf16::from_f32(heads.clone().map(|head| head[r * columns + c]).sum());
        }
    }
}

/// What one query head has, each `[t, d]`, and `lse [t]`.
struct Head<'a> {
    q: &'a [bf16],
    k: &'a [bf16],
    v: &'a [bf16],
    out: &'a [bf16],
    d_out: &'a [bf16],
    lse: &'a [f32],
}

impl Head<'_> {
    /// Writes `dQ [t, d]`, returns `dK` and `dV` padded.
    fn grads(&self, loops: &dyn Loops, shape: Shape, d_q_out: &mut [bf16]) -> [Vec<f32>; 2] {
        let (t, d) = (shape.tokens, shape.head_dim);
        let size = Padded::new(t, d);
        let (width, channel_pairs) = (size.columns, size.columns / 2);
        let (q, q_pairs) = (rows(self.q, d, size), row_pairs(self.q, d, size));
        let (k, k_pairs) = (columns(self.k, d, size), row_pairs(self.k, d, size));
        let v = columns(self.v, d, size);
        let (d_out, d_out_pairs) = (rows(self.d_out, d, size), row_pairs(self.d_out, d, size));
        let dots = self.dots(d);
        let [mut d_q, mut d_k, mut d_v] = [(); 3].map(|()| vec![0.0; size.rows * width]);
        let [mut scores, mut d_probs] = [(); 2].map(|()| vec![0.0; ROWS * KEYS]);
        let [mut probs, mut d_scores, mut d_score_rows] = [(); 3].map(|()| vec![0; ROWS / 2 * KEYS]);

        for key in (0..size.rows).step_by(KEYS) {
            for first in (key..size.rows).step_by(ROWS) {
                let n = KEYS.min(first + ROWS - key); // keys that the last of these rows sees here
                let by_channels = Product { m: ROWS, n, pairs: channel_pairs, add: false };
                for (left, right, out) in [(&q, &k, &mut scores), (&d_out, &v, &mut d_probs)] {
                    loops.product(
                        by_channels,
                        Left { data: &left[first * channel_pairs..], row: channel_pairs, step: 1 },
                        Right { data: &right[key..], step: size.rows },
                        Out { data: out, row: n },
                    );
                }
                for r in (0..ROWS).step_by(2) {
                    let both = [r, r + 1];
                    let row = |all: &[f32], r: usize| all.get(first + r).copied().unwrap_or(0.0);
                    let (first_row, second_row) = d_score_rows[r * n / 2..(r + 2) * n / 2].split_at_mut(n / 2);
                    loops.score_grads(
                        shape.scale(),
                        Rows {
                            scores: both.map(|r| &scores[r * n..(r + 1) * n]),
                            d_probs: both.map(|r| &d_probs[r * n..(r + 1) * n]),
                            lse: both.map(|r| row(self.lse, r)),
                            dots: both.map(|r| row(&dots, r)),
                            // Padded rows see nothing.
                            visible: both.map(|r| if first + r < t { n.min(first + r + 1 - key) } else { 0 }),
                        },
                        RowGrads {
                            probs: &mut probs[r / 2 * n..(r / 2 + 1) * n],
                            scores: &mut d_scores[r / 2 * n..(r / 2 + 1) * n],
                            score_rows: [first_row, second_row],
                        },
                    );
                }
                let by_rows = Product { m: n, n: width, pairs: ROWS / 2, add: true };
                for (left, right, out) in [(&probs, &d_out_pairs, &mut d_v), (&d_scores, &q_pairs, &mut d_k)] {
                    loops.product(
                        by_rows,
                        Left { data: left, row: 1, step: n },
                        Right { data: &right[first / 2 * width..], step: width },
                        Out { data: &mut out[key * width..], row: width },
                    );
                }
                loops.product(
                    Product { m: ROWS, n: width, pairs: n / 2, add: true },
                    Left { data: &d_score_rows, row: n / 2, step: 1 },
                    Right { data: &k_pairs[key / 2 * width..], step: width },
                    Out { data: &mut d_q[first * width..], row: width },
                );
            }
        }
        sum_heads(shape, std::iter::once(&d_q[..]), d_q_out);
        [d_k, d_v]
    }

    /// `rowsum(O dO)`, `[t]`.
    fn dots(&self, d: usize) -> Vec<f32> {
        let rows = self.out.chunks_exact(d).zip(self.d_out.chunks_exact(d));
        rows.map(|(out, grad)| out.iter().zip(grad).map(|(a, b)| a.to_f32() * b.to_f32()).sum()).collect()
    }
}
