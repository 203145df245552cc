//! The panel path: codes of some segments of a strip are unpacked once, into operands that all rows are multiplied with.

#![allow(clippy::needless_range_loop, reason = "an index runs over registers of several arrays, and loops must unroll")]

use half::f16;

use crate::layout::{Layout, STRIP, Segment, Tile, Width, WordRow};
use crate::macros::{for_each, with_bits, with_rows};
use crate::vectors::{Floats, InstructionSet, Panel, Task, Vectors, Words, codes};

/// Vectors that a strip has at most.
const VECTORS: usize = STRIP / 4;
/// [`Vectors::PANEL_SIDE`] is at most this.
const SIDE: usize = 4;

/// How operands of the panel path lie: those of some channels of a group, or of what is left at its end.
pub(crate) struct Piece {
    pub(crate) channels: usize,
    /// Words of a row of activations.
    pub(crate) words: usize,
    /// Rows of unpacked codes.
    pub(crate) rows: usize,
}

/// One call of [`multiply`].
pub(crate) struct Product<'a> {
    pub(crate) layout: &'a Layout,
    pub(crate) strip: usize,
    /// The segments that `x` and `panel` span.
    pub(crate) segments: &'a [Segment],
    /// Operand words `[pieces, words, tiles]`.
    pub(crate) x: &'a [u32],
    /// Operands `[pieces, rows, 32]`.
    pub(crate) panel: &'a [WordRow],
    /// One tile for each row, at most [`InstructionSet::PANEL_ROWS`] here.
    pub(crate) tiles: &'a mut [Tile],
}

/// A padded row to operand words.
pub(crate) fn narrow<I: InstructionSet>(_: &Layout, x: &[f32], words: &mut [u32]) {
    I::new().run(Narrow { x, words });
}

/// Codes of some segments of a strip to operands `[channels / step, 32]`.
pub(crate) fn unpack<I: InstructionSet>(layout: &Layout, strip: usize, segments: &[Segment], panel: &mut [WordRow]) {
    let isa = I::new();
    with_bits!(layout.width, BITS => isa.run(Unpack::<BITS> { layout, strip, segments, panel }));
}

/// Adds a product of unpacked operands to tiles.
pub(crate) fn multiply<I: InstructionSet>(product: Product<'_>) {
    let isa = I::new();
    with_rows!(product.tiles.len(), at most I::PANEL_ROWS, R => isa.run(Rows::<R>(product)));
}

struct Narrow<'a> {
    x: &'a [f32],
    words: &'a mut [u32],
}

impl<I: InstructionSet> Task<I> for Narrow<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self, isa: I) {
        I::Panel::narrow(isa, self.x, self.words);
    }
}

struct Unpack<'a, const BITS: u32> {
    layout: &'a Layout,
    strip: usize,
    segments: &'a [Segment],
    panel: &'a mut [WordRow],
}

impl<I: InstructionSet, const BITS: u32> Task<I> for Unpack<'_, BITS> {
    type Output = ();

    #[inline(always)]
    fn run(self, isa: I) {
        let Self { layout, strip, segments, panel } = self;
        unpack_segments::<I, BITS>(isa, layout, strip, segments, panel);
    }
}

#[inline(always)]
fn unpack_segments<I: InstructionSet, const BITS: u32>(
    isa: I,
    layout: &Layout,
    strip: usize,
    segments: &[Segment],
    panel: &mut [WordRow],
) {
    let v = isa.vectors();
    let vectors = const { STRIP / I::Vectors::LANES };
    let block = const { Width::holding(BITS).block() / I::Panel::STEP };
    let words = const { Width::holding(BITS).words() };
    let (all, scales) = (layout.words(strip), layout.scales(strip));
    let mut panel = panel.chunks_exact_mut(block);
    for segment in segments {
        let (zeros, scales) = (layout.zero_points(strip, segment.group), &scales[segment.group]);
        let mut grids = [I::Panel::grid(isa, zeros, scales, 0); VECTORS];
        for i in 1..vectors {
            grids[i] = I::Panel::grid(isa, zeros, scales, i);
        }
        let rows = all[segment.start..segment.end].chunks_exact(words);
        for (rows, panel) in rows.zip(panel.by_ref()) {
            rows.iter().for_each(|row| v.prefetch(row));
            for i in 0..vectors {
                unpack_block::<I, BITS>(isa, rows, grids[i], panel, i);
            }
        }
    }
}

/// Vector `i` of a block's columns.
#[inline(always)]
fn unpack_block<I: InstructionSet, const BITS: u32>(
    isa: I,
    rows: &[WordRow],
    grid: <I::Panel as Panel<I>>::Grid,
    panel: &mut [WordRow],
    i: usize,
) {
    let v = isa.vectors();
    let mut words = [v.splat_word(0); 3];
    for (words, row) in words.iter_mut().zip(rows) {
        *words = v.words(&row.0, i);
    }
    let rows_of_pair = const { 2 / I::Panel::STEP };
    for_each!(J in [0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15] {
        if J < const { Width::holding(BITS).block() / 2 } {
            let to = &mut panel[J * rows_of_pair..(J + 1) * rows_of_pair];
            I::Panel::unpack::<BITS>(isa, codes::<_, BITS, J>(v, &words, false), grid, to, i);
        }
    });
}

/// `R` rows.
struct Rows<'a, const R: usize>(Product<'a>);

impl<I: InstructionSet, const R: usize> Task<I> for Rows<'_, R> {
    type Output = ();

    #[inline(always)]
    fn run(self, isa: I) {
        let Product { layout, strip, segments, x, panel, tiles } = self.0;
        let tiles: &mut [Tile; R] = tiles.try_into().expect("R tiles");
        if I::Panel::IS_SCALED {
            multiply_segment(isa, x, panel, None, tiles);
            return;
        }
        let (mut x, mut panel) = (x, panel);
        for segment in segments {
            let depth = layout.channels(segment.end - segment.start) / I::Panel::STEP;
            let (x_here, x_next) = x.split_at(depth * R);
            let (panel_here, panel_next) = panel.split_at(depth);
            (x, panel) = (x_next, panel_next);
            multiply_segment(isa, x_here, panel_here, Some(&layout.scales(strip)[segment.group]), tiles);
        }
    }
}

/// Adds `x [depth, R]` times `panel [depth, 32]` to `tiles`, with scales if there are some.
#[inline(always)]
fn multiply_segment<I: InstructionSet, const R: usize>(
    isa: I,
    x: &[u32],
    panel: &[WordRow],
    scales: Option<&[f16; STRIP]>,
    tiles: &mut [Tile; R],
) {
    let v = isa.vectors();
    let side = I::Vectors::PANEL_SIDE;
    for part in 0..const { STRIP / I::Vectors::LANES / I::Vectors::PANEL_SIDE } {
        let first = part * side;
        let mut sums = [[v.splat(0.0); SIDE]; R];
        for (x, row) in x.as_chunks::<R>().0.iter().zip(panel) {
            let mut w = [v.splat_word(0); SIDE];
            for i in 0..side {
                w[i] = v.words(&row.0, first + i);
            }
            for r in 0..R {
                let x = v.splat_word(x[r]);
                for i in 0..side {
                    sums[r][i] = I::Panel::dot(isa, sums[r][i], x, w[i]);
                }
            }
        }
        for i in 0..side {
            let scale = match scales {
                Some(scales) => v.scales(scales, first + i),
                None => v.splat(1.0),
            };
            for r in 0..R {
                let total = v.multiply_add(scale, sums[r][i], v.floats(&tiles[r].0, first + i));
                v.store_floats(total, &mut tiles[r].0, first + i);
            }
        }
    }
}

/// Operands of f32: the weights themselves, `scale * (code - zero point)`, which f32 holds exactly.
pub(crate) struct Weights;

impl<I: InstructionSet> Panel<I> for Weights {
    const STEP: usize = 1;
    const IS_SCALED: bool = true;
    type Grid = (Words<I>, Floats<I>);

    #[inline(always)]
    fn narrow(_: I, x: &[f32], words: &mut [u32]) {
        words.iter_mut().zip(x).for_each(|(word, x)| *word = x.to_bits());
    }

    #[inline(always)]
    fn grid(isa: I, zero_points: &[u8; STRIP], scales: &[f16; STRIP], i: usize) -> Self::Grid {
        let v = isa.vectors();
        (v.zero_points(zero_points, i), v.scales(scales, i))
    }

    #[inline(always)]
    fn unpack<const BITS: u32>(isa: I, pair: Words<I>, (zero, scale): Self::Grid, to: &mut [WordRow], i: usize) {
        let v = isa.vectors();
        let halves = [v.and(pair, v.splat_word(0xffff)), v.upper_halves(pair)];
        for odd in 0..2 {
            let integer = v.to_floats(v.subtract_integers(halves[odd], zero));
            v.store_words(v.as_words(v.multiply(scale, integer)), &mut to[odd].0, i);
        }
    }

    #[inline(always)]
    fn dot(isa: I, sum: Floats<I>, x: Words<I>, w: Words<I>) -> Floats<I> {
        let v = isa.vectors();
        v.multiply_add(v.as_floats(x), v.as_floats(w), sum)
    }
}
