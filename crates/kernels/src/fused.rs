//! The fused path: a few rows of activations times codes where they lie, in registers.
//!
//! Activations are pairs of 16-bit integers. Masking a word leaves a pair of codes in the halves of each lane, at some place; codes at
//! one place have a sum of their own, so that most need no shift. Sums of 32 bits cannot overflow and are exact. Zero points meet the
//! sum of the activations.

#![allow(clippy::needless_range_loop, reason = "an index runs over registers of several arrays, and loops must unroll")]

use std::ops::Range;

use half::f16;

use crate::layout::{Layout, STRIP, Tile, Width, WordRow};
use crate::macros::{for_each, with_bits, with_rows};
use crate::places::{place, sum_and_shift, sums_of};
use crate::prepare::Scale;
use crate::vectors::{self, InstructionSet, Task, Vectors, codes};

/// Vectors of columns that are multiplied side by side.
const SIDE: usize = 2;
/// Parts that a strip has at most.
const PARTS: usize = STRIP / (SIDE * 4);
/// Sums that a column has at most.
const SUMS: usize = 4;

/// Of one segment of a row of integers: their sum, which zero points are multiplied with, and the size of a step.
pub(crate) type Sums = [f32; 2];

/// A few rows of activations, arranged for this path.
pub(crate) struct Fused<'a> {
    pub(crate) layout: &'a Layout,
    /// At most [`InstructionSet::FUSED_ROWS`].
    pub(crate) rows: usize,
    /// Pairs of integers `[blocks, rows, block / 2]`.
    pub(crate) x: &'a [u32],
    /// `[segments, rows]`.
    pub(crate) sums: &'a [Sums],
}

/// A padded row to pairs of integers, and for each segment their sum and the size of a step. A segment with an infinity or NaN gets a step
/// of NaN.
pub(crate) fn arrange<I: InstructionSet>(layout: &Layout, x: &[f32], words: &mut [u32], sums: &mut [Sums]) {
    I::new().run(Arrange { layout, x, words, sums });
}

/// A few rows times strips, straight from codes: `tiles` is `[strips, rows]`.
pub(crate) fn fused<I: InstructionSet>(input: &Fused<'_>, strips: Range<usize>, tiles: &mut [Tile]) {
    let isa = I::new();
    with_bits!(input.layout.width, BITS => with_rows!(input.rows, at most I::FUSED_ROWS, R => {
        isa.run(Strips::<BITS, R> { input, strips, tiles })
    }));
}

/// Places row `row` of `rows` in the operands of the path: `words` is the whole row, `x` is `[blocks, rows, block / 2]`.
pub(crate) fn place_row(layout: &Layout, words: &[u32], row: usize, rows: usize, x: &mut [u32]) {
    with_bits!(layout.width, BITS => place_blocks::<{ Width::holding(BITS).block() / 2 }>(words, row, rows, x));
}

fn place_blocks<const PAIRS: usize>(words: &[u32], row: usize, rows: usize, x: &mut [u32]) {
    let blocks = x.as_chunks_mut::<PAIRS>().0.iter_mut().skip(row).step_by(rows);
    blocks.zip(words.as_chunks::<PAIRS>().0).for_each(|(x, words)| *x = *words);
}

struct Arrange<'a> {
    layout: &'a Layout,
    x: &'a [f32],
    words: &'a mut [u32],
    sums: &'a mut [Sums],
}

impl<I: InstructionSet> Task<I> for Arrange<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self, isa: I) {
        let Self { layout, x, words, sums } = self;
        for (segment, sums) in layout.segments.iter().zip(sums) {
            let channels = layout.channels(segment.start)..layout.channels(segment.end);
            let words = &mut words[channels.start / 2..channels.end / 2];
            *sums = arrange_segment(isa.vectors(), &x[channels], words);
        }
    }
}

/// Channels are whole multiples of 16.
#[inline(always)]
fn arrange_segment<V: Vectors>(v: V, x: &[f32], words: &mut [u32]) -> Sums {
    let (mut largest, mut not_numbers) = (v.splat(0.0), v.splat(0.0));
    for x in x.chunks_exact(V::LANES) {
        let x = v.floats(x, 0);
        largest = v.larger_size(largest, x);
        not_numbers = v.multiply_add(x, v.splat(0.0), not_numbers);
    }
    let Scale { step, inverse } = Scale::of(v.largest(largest), 32767.0);
    let mut sum = v.splat_word(0);
    for (x, words) in x.chunks_exact(V::LANES).zip(words.chunks_exact_mut(V::LANES / 2)) {
        let integers = v.to_integers(v.multiply(v.floats(x, 0), v.splat(inverse)));
        sum = v.add_integers(sum, integers);
        v.store_halves(integers, words, 0);
    }
    [v.sum_of_integers(sum) as f32, step + v.sum(not_numbers)]
}

/// `R` rows times strips.
struct Strips<'a, const BITS: u32, const R: usize> {
    input: &'a Fused<'a>,
    strips: Range<usize>,
    tiles: &'a mut [Tile],
}

impl<I: InstructionSet, const BITS: u32, const R: usize> Task<I> for Strips<'_, BITS, R> {
    type Output = ();

    #[inline(always)]
    fn run(self, isa: I) {
        let Self { input: &Fused { layout, x, sums, .. }, strips, tiles } = self;
        let v = isa.vectors();
        let parts = const { STRIP / (SIDE * I::Vectors::LANES) };
        let pairs = const { Width::holding(BITS).block() / 2 };
        let words = const { Width::holding(BITS).words() };
        for (strip, tiles) in strips.zip(tiles.chunks_exact_mut(R)) {
            let (all, scales) = (layout.words(strip), layout.scales(strip));
            let mut totals = [[[v.splat(0.0); SIDE]; R]; PARTS];
            for (segment, of_x) in layout.segments.iter().zip(sums.as_chunks::<R>().0) {
                let rows = &all[segment.start..segment.end];
                let x = &x[segment.start / words * pairs * R..segment.end / words * pairs * R];
                let grid =
                    Grid { zero_points: layout.zero_points(strip, segment.group), scales: &scales[segment.group] };
                for part in 0..parts {
                    let sums = segment_sums::<I, BITS, R>(isa, rows, x, part);
                    add_segment::<_, BITS, R>(v, &grid, of_x, part, &sums, &mut totals[part]);
                }
            }
            for part in 0..parts {
                for r in 0..R {
                    for i in 0..SIDE {
                        v.store_floats(totals[part][r][i], &mut tiles[r].0, part * SIDE + i);
                    }
                }
            }
        }
    }
}

/// Sums of a column for each row, at most [`SUMS`].
const fn n_sums<V: Vectors>(bits: u32, rows: usize) -> usize {
    sums_of(bits, rows, SIDE * size_of::<V::Sums>() / size_of::<V::Words>(), V::REGISTERS)
}

/// The products of a segment's codes with integers, part `part` of the columns.
#[inline(always)]
fn segment_sums<I: InstructionSet, const BITS: u32, const R: usize>(
    isa: I,
    rows: &[WordRow],
    x: &[u32],
    part: usize,
) -> [[[vectors::Sums<I>; SIDE]; R]; SUMS] {
    let v = isa.vectors();
    let pairs = const { Width::holding(BITS).block() / 2 };
    let in_place = const { n_sums::<I::Vectors>(BITS, R) > 1 };
    let mut sums = [[[v.no_sums(); SIDE]; R]; SUMS];
    let blocks = rows.chunks_exact(const { Width::holding(BITS).words() });
    for (rows, x) in blocks.zip(x.chunks_exact(pairs * R)) {
        let mut words = [[v.splat_word(0); 3]; SIDE];
        for (i, row) in rows.iter().enumerate() {
            if part == 0 {
                v.prefetch(row);
            }
            words[0][i] = v.words(&row.0, part * SIDE);
            words[1][i] = v.words(&row.0, part * SIDE + 1);
        }
        for_each!(J in [0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15] {
            if J < pairs {
                let w = [codes::<_, BITS, J>(v, &words[0], in_place), codes::<_, BITS, J>(v, &words[1], in_place)];
                for r in 0..R {
                    let x = v.splat_word(x[r * pairs + J]);
                    let sum = &mut sums[sum_and_shift(BITS, J, in_place).0][r];
                    *sum = [isa.dot(sum[0], w[0], x), isa.dot(sum[1], w[1], x)];
                }
            }
        });
    }
    sums
}

/// What codes of a segment meet.
struct Grid<'a> {
    zero_points: &'a [u8; STRIP],
    scales: &'a [f16; STRIP],
}

/// Adds a segment's sums, scaled, to `totals`.
#[inline(always)]
fn add_segment<V: Vectors, const BITS: u32, const R: usize>(
    v: V,
    grid: &Grid<'_>,
    of_x: &[Sums; R],
    part: usize,
    sums: &[[[V::Sums; SIDE]; R]; SUMS],
    totals: &mut [[V::Floats; SIDE]; R],
) {
    for i in 0..SIDE {
        let zero = v.to_floats(v.zero_points(grid.zero_points, part * SIDE + i));
        let scale = v.scales(grid.scales, part * SIDE + i);
        for r in 0..R {
            let [sum_of_x, step] = of_x[r];
            let mut sum = v.totals(sums[0][r][i]);
            for at in 1..const { n_sums::<V>(BITS, R) } {
                let unit = v.splat(1.0 / (1 << place(BITS, at)) as f32);
                sum = v.multiply_add(unit, v.totals(sums[at][r][i]), sum);
            }
            let sum = v.subtract_product(zero, v.splat(sum_of_x), sum);
            totals[r][i] = v.multiply_add(v.multiply(scale, v.splat(step)), sum, totals[r][i]);
        }
    }
}
