//! Plain Rust: what the loops of other instruction sets must equal.

use half::bf16;

use crate::loops::{Left, Loops, Out, Product, Right, RowGrads, Rows};
use crate::pack::pair;

pub struct Plain;

fn unpair(pair: u32) -> [f32; 2] {
    [f32::from_bits(pair << 16), f32::from_bits(pair & 0xffff_0000)]
}

fn rounded_pair(first: f32, second: f32) -> u32 {
    pair(bf16::from_f32(first), bf16::from_f32(second))
}

impl Loops for Plain {
    fn product(&self, product: Product, left: Left<'_>, right: Right<'_>, out: Out<'_>) {
        product.check(left, right, &out);
        for m in 0..product.m {
            let row = &mut out.data[m * out.row..m * out.row + product.n];
            if !product.add {
                row.fill(0.0);
            }
            for p in 0..product.pairs {
                let [a, b] = unpair(left.data[m * left.row + p * left.step]);
                for (sum, &right) in row.iter_mut().zip(&right.data[p * right.step..]) {
                    let [c, d] = unpair(right);
                    *sum += a * c + b * d;
                }
            }
        }
    }

    fn softmax(&self, scale: f32, scores: &[f32], visible: usize, probs: &mut [u32]) -> (f32, f32) {
        let max = scores[..visible].iter().fold(f32::NEG_INFINITY, |max, &s| max.max(s)) * scale;
        let exp = |idx: usize| if idx < visible { (scores[idx] * scale - max).exp() } else { 0.0 };
        let mut sum = 0.0;
        for (idx, probs) in probs.iter_mut().enumerate() {
            let (first, second) = (exp(2 * idx), exp(2 * idx + 1));
            sum += first + second;
            *probs = rounded_pair(first, second);
        }
        (sum, max + sum.ln())
    }

    fn score_grads(&self, scale: f32, rows: Rows<'_>, grads: RowGrads<'_>) {
        let of = |row: usize, idx: usize| {
            if idx >= rows.visible[row] {
                return (0.0, 0.0);
            }
            let prob = (rows.scores[row][idx] * scale - rows.lse[row]).exp();
            (prob, scale * prob * (rows.d_probs[row][idx] - rows.dots[row]))
        };
        for (idx, (probs, scores)) in grads.probs.iter_mut().zip(grads.scores).enumerate() {
            let [(p0, s0), (p1, s1)] = [of(0, idx), of(1, idx)];
            *probs = rounded_pair(p0, p1);
            *scores = rounded_pair(s0, s1);
        }
        for (row, out) in grads.score_rows.into_iter().enumerate() {
            for (idx, out) in out.iter_mut().enumerate() {
                *out = rounded_pair(of(row, 2 * idx).1, of(row, 2 * idx + 1).1);
            }
        }
    }
}
