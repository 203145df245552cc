//! Activations on their way into a kernel: padded like the groups of the layout, then arranged.

use half::bf16;

use crate::kernel::Sums;
use crate::layout::Layout;

/// A number that activations or results are made of: f32 or bf16.
pub trait Element: Copy + Send + Sync + private::Sealed {
    #[doc(hidden)]
    fn widen(self) -> f32;
    #[doc(hidden)]
    fn narrow(value: f32) -> Self;
    /// The numbers as they are, if they are f32.
    #[doc(hidden)]
    fn as_f32(values: &[Self]) -> Option<&[f32]>;
}

mod private {
    pub trait Sealed {}
    impl Sealed for f32 {}
    impl Sealed for half::bf16 {}
}

impl Element for f32 {
    #[inline(always)]
    fn widen(self) -> f32 {
        self
    }

    #[inline(always)]
    fn narrow(value: f32) -> Self {
        value
    }

    fn as_f32(values: &[Self]) -> Option<&[f32]> {
        Some(values)
    }
}

impl Element for bf16 {
    #[inline(always)]
    fn widen(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }

    #[inline(always)]
    fn narrow(value: f32) -> Self {
        // To the nearest, of two the even one, without the branches that keep loops from being vectors.
        let bits = value.to_bits();
        let nearest = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
        Self::from_bits(if value.is_nan() { bits >> 16 | 0x40 } else { nearest } as u16)
    }

    fn as_f32(_: &[Self]) -> Option<&[f32]> {
        None
    }
}

/// One row `x [in_features]` as f32 `[groups * padded_group]`: the row itself if it is that already, else `buffer`.
pub(crate) fn padded<'a, A: Element>(layout: &Layout, x: &'a [A], buffer: &'a mut [f32]) -> &'a [f32] {
    match A::as_f32(x) {
        Some(x) if layout.group == layout.padded_group => x,
        _ => {
            pad(layout, x, buffer);
            buffer
        }
    }
}

/// One row `x [in_features]` into `padded [groups * padded_group]`.
pub(crate) fn pad<A: Element>(layout: &Layout, x: &[A], padded: &mut [f32]) {
    let groups = padded.chunks_exact_mut(layout.padded_group).zip(x.chunks_exact(layout.group));
    for (padded, x) in groups {
        let (values, rest) = padded.split_at_mut(layout.group);
        for (value, x) in values.iter_mut().zip(x) {
            *value = x.widen();
        }
        rest.fill(0.0);
    }
}

/// Places row `row` of `rows` in the operands of the fused path: `words` is the whole row, `x` is `[blocks, rows, block / 2]`.
pub(crate) fn place_fused(layout: &Layout, words: &[u32], row: usize, rows: usize, x: &mut [u32]) {
    let part = layout.width.block() / 2;
    for (x, words) in x.chunks_exact_mut(rows * part).zip(words.chunks_exact(part)) {
        x[row * part..][..part].copy_from_slice(words);
    }
}

/// The integers of a segment.
pub(crate) struct Scale {
    /// Size of a step.
    pub(crate) step: f32,
    /// What activations are multiplied with, before they are rounded.
    pub(crate) inverse: f32,
}

impl Scale {
    /// `largest` becomes 32767.
    pub(crate) fn of(largest: f32) -> Self {
        // The inverse of smaller steps would not be a number: such activations count as 0.
        if largest < 1e-30 {
            Self { step: 0.0, inverse: 0.0 }
        } else {
            Self { step: largest / 32767.0, inverse: 32767.0 / largest }
        }
    }
}

/// A padded row to pairs of integers of 16 bits, as [`crate::kernel::Vector::arrange`] says. A segment with an infinity or NaN
/// gets a step of NaN.
#[inline(always)]
pub(crate) fn arrange_integers(layout: &Layout, x: &[f32], words: &mut [u32], sums: &mut [Sums]) {
    for (segment, sums) in layout.segments.iter().zip(sums) {
        let channels = layout.channels(segment.start)..layout.channels(segment.end);
        // Segments are whole multiples of 16 channels.
        let words = words[channels.start / 2..channels.end / 2].as_chunks_mut::<8>().0;
        let x = x[channels].as_chunks::<16>().0;
        let (mut largest, mut not_numbers) = ([0.0f32; 16], [0.0f32; 16]);
        for x in x {
            for i in 0..16 {
                largest[i] = if x[i].abs() > largest[i] { x[i].abs() } else { largest[i] };
                not_numbers[i] += 0.0 * x[i];
            }
        }
        let Scale { step, inverse } = Scale::of(largest.into_iter().fold(0.0, f32::max));
        let mut sum = [0i32; 16];
        for (x, words) in x.iter().zip(words) {
            let integers = x.map(|x| nearest(x * inverse));
            for i in 0..16 {
                // What is not a number becomes any integer.
                sum[i] = sum[i].wrapping_add(integers[i]);
            }
            for (word, pair) in words.iter_mut().zip(integers.as_chunks::<2>().0) {
                *word = pair[0] as u32 & 0xffff | (pair[1] as u32) << 16;
            }
        }
        *sums = [sum.into_iter().fold(0, i32::wrapping_add) as f32, step + not_numbers.iter().sum::<f32>()];
    }
}

/// The integer nearest to a number of at most 16 bits; of two, the even one.
#[inline(always)]
fn nearest(x: f32) -> i32 {
    // In f32, 1.5 * 2^23 and its neighbours are whole, and stand for steps of 1 in their lowest bits.
    const WHOLE: f32 = 12_582_912.0;
    (x + WHOLE).to_bits().wrapping_sub(WHOLE.to_bits()) as i32
}

/// Operand words of f32 numbers.
pub(crate) fn copy_f32(x: &[f32], words: &mut [u32]) {
    words.iter_mut().zip(x).for_each(|(word, x)| *word = x.to_bits());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bf16_is_rounded_as_half_does_it() {
        // All numbers of bf16, and what lies just below, at and just above the middle to the next.
        for upper in 0..=u32::from(u16::MAX) {
            for lower in [0, 1, 0x7fff, 0x8000, 0x8001, 0xffff] {
                let value = f32::from_bits(upper << 16 | lower);
                assert_eq!(<bf16 as Element>::narrow(value).to_bits(), bf16::from_f32(value).to_bits(), "{value:e}");
            }
        }
    }

    #[test]
    fn nearest_integers() {
        let found = [0.0, 0.49, 0.5, 1.5, -0.5, -1.5, 32767.0, -32767.0, -32766.6].map(nearest);
        assert_eq!(found, [0, 0, 0, 2, 0, -2, 32767, -32767, -32767]);
    }
}
