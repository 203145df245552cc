//! Dot products of 16-bit numbers with f32: in plain loops, and over vectors.

#![allow(clippy::needless_range_loop, reason = "an index runs over registers of several arrays, and loops must unroll")]

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

use crate::vectors::{InstructionSet, Task, Vectors};

/// `sum of a b`, in f32.
pub(crate) type Dot<T> = fn(a: &[T], b: &[f32]) -> f32;

/// The dot products of an instruction set.
#[derive(Clone, Copy)]
pub(crate) struct Dots {
    pub(crate) f16: Dot<f16>,
    pub(crate) bf16: Dot<bf16>,
}

impl Dots {
    /// Part by part, each widened first.
    pub(crate) const PLAIN: Self = Self {
        f16: |a, b| widened(a, b, |from, to| from.convert_to_f32_slice(to)),
        bf16: |a, b| widened(a, b, |from, to| from.convert_to_f32_slice(to)),
    };

    /// Over the vectors of an instruction set.
    pub(crate) const fn of<I: InstructionSet>() -> Self
    where
        I::Vectors: Widen<f16> + Widen<bf16>,
    {
        Self { f16: |a, b| I::new().run(Product { a, b }), bf16: |a, b| I::new().run(Product { a, b }) }
    }
}

/// Vectors of 16-bit numbers to vectors of f32.
pub(crate) trait Widen<T>: Vectors {
    /// `i` counts vectors from the start of `from`.
    fn widen(self, from: &[T], i: usize) -> Self::Floats;
}

/// Channels that are widened at a time where no vectors are.
const PART: usize = 256;

/// Part by part, in many sums side by side.
fn widened<T>(a: &[T], b: &[f32], widen: impl Fn(&[T], &mut [f32])) -> f32 {
    const SUMS: usize = 16;
    let mut wide = [0.0; PART];
    let mut sums = [0.0; SUMS];
    for (a, b) in a.chunks(PART).zip(b.chunks(PART)) {
        let wide = &mut wide[..a.len()];
        widen(a, wide);
        for (a, b) in wide.chunks(SUMS).zip(b.chunks(SUMS)) {
            sums.iter_mut().zip(a).zip(b).for_each(|((sum, a), b)| *sum += a * b);
        }
    }
    sums.iter().sum()
}

/// Vectors of sums: as many multiplications are under way at a time.
const SUMS: usize = 4;

struct Product<'a, T> {
    a: &'a [T],
    b: &'a [f32],
}

impl<I: InstructionSet, T: Copy + Into<f32>> Task<I> for Product<'_, T>
where
    I::Vectors: Widen<T>,
{
    type Output = f32;

    #[inline(always)]
    fn run(self, isa: I) -> f32 {
        let v = isa.vectors();
        let lanes = const { I::Vectors::LANES };
        let (a, b) = (self.a.chunks_exact(SUMS * lanes), self.b.chunks_exact(SUMS * lanes));
        let (a_few, b_few) = (a.remainder().chunks_exact(lanes), b.remainder().chunks_exact(lanes));
        let (a_rest, b_rest) = (a_few.remainder(), b_few.remainder());
        let mut sums = [v.splat(0.0); SUMS];
        for (a, b) in a.zip(b) {
            for i in 0..SUMS {
                sums[i] = v.multiply_add(v.widen(a, i), v.floats(b, i), sums[i]);
            }
        }
        for (a, b) in a_few.zip(b_few) {
            sums[0] = v.multiply_add(v.widen(a, 0), v.floats(b, 0), sums[0]);
        }
        let rest: f32 = a_rest.iter().zip(b_rest).map(|(&a, b)| a.into() * b).sum();
        v.sum(v.add(v.add(sums[0], sums[1]), v.add(sums[2], sums[3]))) + rest
    }
}
