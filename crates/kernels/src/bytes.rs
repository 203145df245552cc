//! The panel path in 8 bits: activations are rounded to 8-bit integers, and four channels are multiplied at a time.
//!
//! A piece is 32 channels of a group, or what is left at its end. Each row has a scale of its own for each piece, 1/127 of the largest.
//! The instruction multiplies bytes without a sign by bytes with one. Activations are the former, as `x + 128`; codes less their zero
//! points are the latter. So sums of a piece start at -128 times the sum of its codes, which is unpacked beside them, and zero points
//! cost nothing. Codes of 8 bits are taken relative to 128, as differences from zero points need nine; what is missing,
//! `(128 - zero point)` times the sum of `x`, is added to the start.
//!
//! A word is four channels in the order 0, 2, 1, 3: two neighbouring pairs of the layout, one shifted by 8 bits.

#![allow(clippy::needless_range_loop, reason = "an index runs over registers of several arrays, and loops must unroll")]

use half::f16;

use crate::layout::{Layout, STRIP, Segment, Tile, Width, WordRow};
use crate::macros::{for_each, with_bits, with_rows};
use crate::panel::{Piece, Product};
use crate::prepare::Scale;
use crate::vectors::{Bytes, Task, Vectors, Words, codes};

/// Words of codes or activations of a piece.
const WORDS: usize = 8;
/// Channels of a piece.
const CHANNELS: usize = 4 * WORDS;
/// What follows the activations of a piece: their sum, and the size of a step.
const OF_X: [usize; 2] = [WORDS, WORDS + 1];
/// What follows the codes of a piece: where sums start.
const START: usize = WORDS;

/// The operands of this path.
pub(crate) const PIECE: Piece = Piece { channels: CHANNELS, words: WORDS + 2, rows: WORDS + 1 };

/// Vectors that are multiplied side by side.
const SIDE: usize = 2;

/// A padded row to operand words `[pieces, 10]`. A piece with an infinity or NaN gets a step of NaN.
pub(crate) fn narrow<I: Bytes>(layout: &Layout, x: &[f32], words: &mut [u32]) {
    I::new().run(Narrow { layout, x, words });
}

/// Codes of some segments of a strip to operands `[pieces, 9, 32]`.
pub(crate) fn unpack<I: Bytes>(layout: &Layout, strip: usize, segments: &[Segment], panel: &mut [WordRow]) {
    let isa = I::new();
    with_bits!(layout.width, BITS => isa.run(Unpack::<BITS> { layout, strip, segments, panel }));
}

/// Adds a product of unpacked operands to tiles.
pub(crate) fn multiply<I: Bytes>(product: Product<'_>) {
    let isa = I::new();
    let is_wide = product.layout.width == Width::W8;
    with_rows!(product.tiles.len(), at most I::BYTE_ROWS, R => match is_wide {
        true => isa.run(Rows::<R, true>(product)),
        false => isa.run(Rows::<R, false>(product)),
    });
}

struct Narrow<'a> {
    layout: &'a Layout,
    x: &'a [f32],
    words: &'a mut [u32],
}

impl<I: Bytes> Task<I> for Narrow<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self, isa: I) {
        let pieces = self.x.chunks_exact(self.layout.padded_group).flat_map(|group| group.chunks(CHANNELS));
        for (x, words) in pieces.zip(self.words.as_chunks_mut::<{ PIECE.words }>().0) {
            narrow_piece(isa, x, words);
        }
    }
}

/// Channels are 16 or 32.
#[inline(always)]
fn narrow_piece<I: Bytes>(isa: I, x: &[f32], words: &mut [u32; PIECE.words]) {
    let v = isa.vectors();
    let lanes = const { I::Vectors::LANES };
    let (mut largest, mut not_numbers) = (v.splat(0.0), v.splat(0.0));
    for x in x.chunks_exact(lanes) {
        let x = v.floats(x, 0);
        largest = v.larger_size(largest, x);
        not_numbers = v.multiply_add(x, v.splat(0.0), not_numbers);
    }
    let Scale { step, inverse } = Scale::of(v.largest(largest), 127.0);
    // Where a piece is short, there are no codes either.
    words.fill(0);
    let mut sum = v.splat_word(0);
    for (i, x) in x.chunks_exact(lanes).enumerate() {
        let integers = v.to_integers(v.multiply(v.floats(x, 0), v.splat(inverse)));
        sum = v.add_integers(sum, integers);
        isa.store_bytes(integers, words, i);
    }
    // At most 32 times 127: 16 bits hold it.
    words[OF_X[0]] = v.sum_of_integers(sum).cast_unsigned() & 0xffff;
    words[OF_X[1]] = (step + v.sum(not_numbers)).to_bits();
}

struct Unpack<'a, const BITS: u32> {
    layout: &'a Layout,
    strip: usize,
    segments: &'a [Segment],
    panel: &'a mut [WordRow],
}

impl<I: Bytes, const BITS: u32> Task<I> for Unpack<'_, BITS> {
    type Output = ();

    #[inline(always)]
    fn run(self, isa: I) {
        let Self { layout, strip, segments, panel } = self;
        let v = isa.vectors();
        let words = const { Width::holding(BITS).words() };
        let mut panel = panel.as_chunks_mut::<{ PIECE.rows }>().0.iter_mut();
        for segment in segments {
            let zero_points = layout.zero_points(strip, segment.group);
            let rows = &layout.words(strip)[segment.start..segment.end];
            for rows in rows.chunks(words * CHANNELS / const { Width::holding(BITS).block() }) {
                let panel = panel.next().expect("a panel spans the segments");
                rows.iter().for_each(|row| v.prefetch(row));
                panel[layout.channels(rows.len()) / 4..].fill(WordRow::ZERO);
                for i in 0..const { STRIP / I::Vectors::LANES } {
                    let zeros = if BITS == 8 { v.splat_word(0x8080_8080) } else { isa.in_all_bytes(zero_points, i) };
                    unpack_piece::<I, BITS>(isa, rows, zeros, panel, i);
                }
            }
        }
    }
}

/// Vector `i` of a piece's columns.
#[inline(always)]
fn unpack_piece<I: Bytes, const BITS: u32>(
    isa: I,
    rows: &[WordRow],
    zeros: Words<I>,
    panel: &mut [WordRow; PIECE.rows],
    i: usize,
) {
    let v = isa.vectors();
    let block = const { Width::holding(BITS).block() / 4 };
    let (codes_of, start) = panel.split_at_mut(START);
    let mut sum = v.splat_word(0);
    for (rows, to) in rows.chunks_exact(const { Width::holding(BITS).words() }).zip(codes_of.chunks_exact_mut(block)) {
        let mut words = [v.splat_word(0); 3];
        for (words, row) in words.iter_mut().zip(rows) {
            *words = v.words(&row.0, i);
        }
        macro_rules! word {
            ($($word:literal, $even:literal, $odd:literal;)*) => {
                $(if $word < block {
                    let pairs = [codes::<_, BITS, $even>(v, &words, false), codes::<_, BITS, $odd>(v, &words, false)];
                    let word = isa.four(pairs, zeros);
                    sum = isa.dot_bytes(sum, v.splat_word(0x8080_8080), word);
                    v.store_words(word, &mut to[$word].0, i);
                })*
            };
        }
        word!(0, 0, 1; 1, 2, 3; 2, 4, 5; 3, 6, 7; 4, 8, 9; 5, 10, 11; 6, 12, 13; 7, 14, 15;);
    }
    v.store_words(v.subtract_integers(v.splat_word(0), sum), &mut start[0].0, i);
}

/// `R` rows, of codes that are relative to 128 if `WIDE`.
struct Rows<'a, const R: usize, const WIDE: bool>(Product<'a>);

impl<I: Bytes, const R: usize, const WIDE: bool> Task<I> for Rows<'_, R, WIDE> {
    type Output = ();

    #[inline(always)]
    fn run(self, isa: I) {
        let Product { layout, strip, segments, mut x, mut panel, tiles } = self.0;
        let tiles: &mut [Tile; R] = tiles.try_into().expect("R tiles");
        for segment in segments {
            let pieces = layout.channels(segment.end - segment.start).div_ceil(CHANNELS);
            let (x_here, x_next) = x.split_at(pieces * PIECE.words * R);
            let (panel_here, panel_next) = panel.split_at(pieces * PIECE.rows);
            (x, panel) = (x_next, panel_next);
            let scales = &layout.scales(strip)[segment.group];
            let zero_points = layout.zero_points(strip, segment.group);
            multiply_segment::<I, R, WIDE>(isa, x_here, panel_here, zero_points, scales, tiles);
        }
    }
}

/// Adds `x [pieces, 10, R]` times `panel [pieces, 9, 32]` to `tiles`.
#[inline(always)]
fn multiply_segment<I: Bytes, const R: usize, const WIDE: bool>(
    isa: I,
    x: &[u32],
    panel: &[WordRow],
    zero_points: &[u8; STRIP],
    scales: &[f16; STRIP],
    tiles: &mut [Tile; R],
) {
    let v = isa.vectors();
    for part in 0..const { STRIP / I::Vectors::LANES / SIDE } {
        let first = part * SIDE;
        let mut totals = [[v.splat(0.0); SIDE]; R];
        for (x, panel) in x.chunks_exact(PIECE.words * R).zip(panel.as_chunks::<{ PIECE.rows }>().0) {
            let x: &[[u32; R]; PIECE.words] = x.as_chunks::<R>().0.try_into().expect("all words of a piece");
            let mut sums = [[v.splat_word(0); SIDE]; R];
            for i in 0..SIDE {
                let start = v.words(&panel[START].0, first + i);
                let beyond = v.subtract_integers(v.splat_word(128), v.zero_points(zero_points, first + i));
                for r in 0..R {
                    let sum_of_x = v.splat_word(x[OF_X[0]][r]);
                    sums[r][i] = if WIDE { isa.add_product(start, beyond, sum_of_x) } else { start };
                }
            }
            for_each!(J in [0 1 2 3 4 5 6 7] {
                let mut w = [v.splat_word(0); SIDE];
                for i in 0..SIDE {
                    w[i] = v.words(&panel[J].0, first + i);
                }
                for r in 0..R {
                    let x = v.splat_word(x[J][r]);
                    for i in 0..SIDE {
                        sums[r][i] = isa.dot_bytes(sums[r][i], x, w[i]);
                    }
                }
            });
            for r in 0..R {
                let step = v.splat(f32::from_bits(x[OF_X[1]][r]));
                for i in 0..SIDE {
                    totals[r][i] = v.multiply_add(step, v.to_floats(sums[r][i]), totals[r][i]);
                }
            }
        }
        for i in 0..SIDE {
            let scale = v.scales(scales, first + i);
            for r in 0..R {
                let total = v.multiply_add(scale, totals[r][i], v.floats(&tiles[r].0, first + i));
                v.store_floats(total, &mut tiles[r].0, first + i);
            }
        }
    }
}
