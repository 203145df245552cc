//! AVX-512: integers for a few rows, f32 for many.
//!
//! Fused path: activations are pairs of 16-bit integers. Masking a word leaves a pair of codes in the halves of each lane, at some
//! place; codes at one place have a sum of their own, so that most need no shift. Sums of 32 bits cannot overflow and are exact.
//! Zero points meet the sum of the activations.
//!
//! Panel path: operands are the weights themselves, `scale * (code - zero point)`, which f32 holds exactly.

use std::arch::asm;
use std::arch::x86_64::*;
use std::ops::Range;

use half::f16;

use super::prefetch;
use crate::kernel::{Code, Fused, Kernel, Operands, Product, Sums, Vector};
use crate::layout::{Layout, STRIP, Segment, Tile, WordRow};
use crate::prepare::{Scale, copy_f32};
use crate::unroll::{for_each, for_rows, for_width, place, sum_and_shift, sums_of, width};

pub(crate) static KERNEL: Kernel = Kernel {
    name: "avx512",
    few_rows: 32,
    few: Operands::Int16,
    many: Operands::F32,
    is_available,
    code: Code::Vector(Vector {
        step: 1,
        fused_rows: 8,
        tile_rows: 12,
        depth: 128,
        arrange,
        narrow: copy_f32,
        fused,
        unpack,
        multiply,
    }),
};

fn is_available() -> bool {
    is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bw")
}

fn check_available() {
    assert!(is_available(), "avx512 was chosen without its instructions");
}

pub(super) fn arrange(layout: &Layout, x: &[f32], words: &mut [u32], sums: &mut [Sums]) {
    check_available();
    // SAFETY: check_available found the instructions.
    unsafe { arrange_avx512(layout, x, words, sums) }
}

fn fused(input: &Fused<'_>, strips: Range<usize>, tiles: &mut [Tile]) {
    check_available();
    // SAFETY: check_available found the instructions.
    unsafe { for_width!(input.layout.width, input.rows, [1 2 3 4 5 6 7 8], fused_avx512(input, strips, tiles)) }
}

/// Few rows, with instructions that only VNNI has.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
pub(super) fn fused_vnni(input: &Fused<'_>, strips: Range<usize>, tiles: &mut [Tile]) {
    for_width!(input.layout.width, input.rows, [1 2 3 4 5 6 7 8], fused_avx512_vnni(input, strips, tiles));
}

fn unpack(layout: &Layout, strip: usize, segments: &[Segment], panel: &mut [WordRow]) {
    check_available();
    // SAFETY: check_available found the instructions.
    unsafe { for_width!(layout.width, unpack_avx512(layout, strip, segments, panel)) }
}

fn multiply(product: Product<'_>) {
    check_available();
    let rows = product.tiles.len();
    // SAFETY: check_available found the instructions.
    unsafe { for_rows!(rows, [1 2 3 4 5 6 7 8 9 10 11 12], multiply_avx512(product)) }
}

/// The 16 lanes of half `half` of a row.
#[target_feature(enable = "avx512f")]
#[inline]
pub(super) fn lanes(row: &WordRow, half: usize) -> __m512i {
    let half: &[u32; 16] = row.0[16 * half..][..16].try_into().expect("a half has 16 lanes");
    // SAFETY: the reference is to 64 readable bytes.
    unsafe { _mm512_loadu_si512(half.as_ptr().cast()) }
}

#[target_feature(enable = "avx512f")]
#[inline]
pub(super) fn store(lanes: __m512i, row: &mut WordRow, half: usize) {
    let half: &mut [u32; 16] = (&mut row.0[16 * half..][..16]).try_into().expect("a half has 16 lanes");
    // SAFETY: the reference is to 64 writable bytes.
    unsafe { _mm512_storeu_si512(half.as_mut_ptr().cast(), lanes) }
}

#[target_feature(enable = "avx512f")]
#[inline]
pub(super) fn tile_lanes(tile: &Tile, half: usize) -> __m512 {
    let half: &[f32; 16] = tile.0[16 * half..][..16].try_into().expect("a half has 16 lanes");
    // SAFETY: the reference is to 64 readable bytes.
    unsafe { _mm512_loadu_ps(half.as_ptr()) }
}

#[target_feature(enable = "avx512f")]
#[inline]
pub(super) fn store_tile(lanes: __m512, tile: &mut Tile, half: usize) {
    let half: &mut [f32; 16] = (&mut tile.0[16 * half..][..16]).try_into().expect("a half has 16 lanes");
    // SAFETY: the reference is to 64 writable bytes.
    unsafe { _mm512_storeu_ps(half.as_mut_ptr(), lanes) }
}

/// f16 numbers of half a strip as f32.
#[target_feature(enable = "avx512f")]
#[inline]
pub(super) fn scales(scales: &[f16; STRIP], half: usize) -> __m512 {
    let half: &[f16; 16] = scales[16 * half..][..16].try_into().expect("a half has 16 lanes");
    // SAFETY: the reference is to 32 readable bytes.
    _mm512_cvtph_ps(unsafe { _mm256_loadu_si256(half.as_ptr().cast()) })
}

/// Zero points of half a strip, one in each 32-bit lane.
#[target_feature(enable = "avx512f")]
#[inline]
pub(super) fn zero_points(zero_points: &[u8; STRIP], half: usize) -> __m512i {
    let half: &[u8; 16] = zero_points[16 * half..][..16].try_into().expect("a half has 16 lanes");
    // SAFETY: the reference is to 16 readable bytes.
    _mm512_cvtepu8_epi32(unsafe { _mm_loadu_si128(half.as_ptr().cast()) })
}

#[target_feature(enable = "avx512f")]
#[inline]
pub(super) fn load_row(x: &[f32; 16]) -> __m512 {
    // SAFETY: the reference is to 64 readable bytes.
    unsafe { _mm512_loadu_ps(x.as_ptr()) }
}

/// What [`crate::prepare::arrange_integers`] does, which compilers turn into five times as many instructions.
#[target_feature(enable = "avx512f,avx512bw")]
fn arrange_avx512(layout: &Layout, x: &[f32], words: &mut [u32], sums: &mut [Sums]) {
    for (segment, sums) in layout.segments.iter().zip(sums) {
        let channels = layout.channels(segment.start)..layout.channels(segment.end);
        let words = words[channels.start / 2..channels.end / 2].as_chunks_mut::<8>().0;
        let x = x[channels].as_chunks::<16>().0;
        let (mut largest, mut not_numbers) = (_mm512_setzero_ps(), _mm512_setzero_ps());
        for x in x {
            let x = load_row(x);
            largest = _mm512_max_ps(largest, _mm512_abs_ps(x));
            not_numbers = _mm512_fmadd_ps(x, _mm512_setzero_ps(), not_numbers);
        }
        let scale = Scale::of(_mm512_reduce_max_ps(largest));
        let inverse = _mm512_set1_ps(scale.inverse);
        let mut sum = _mm512_setzero_si512();
        for (x, words) in x.iter().zip(words) {
            let integers = _mm512_cvtps_epi32(_mm512_mul_ps(load_row(x), inverse));
            sum = _mm512_add_epi32(sum, integers);
            // SAFETY: the reference is to 32 writable bytes.
            unsafe { _mm256_storeu_si256(words.as_mut_ptr().cast(), _mm512_cvtsepi32_epi16(integers)) }
        }
        *sums = [_mm512_reduce_add_epi32(sum) as f32, scale.step + _mm512_reduce_add_ps(not_numbers)];
    }
}

/// Both halves of each lane, shifted by a constant.
#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
fn shifted_right(word: __m512i, places: usize) -> __m512i {
    _mm512_srl_epi16(word, _mm_cvtsi32_si128(places as i32))
}

/// `code | word & mask`.
#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
fn or_masked(code: __m512i, word: __m512i, mask: i16) -> __m512i {
    _mm512_ternarylogic_epi32::<0xea>(word, _mm512_set1_epi16(mask), code)
}

/// Codes of pair `J` at the place of their sum.
#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
pub(super) fn codes_in_place<const BITS: u32, const J: usize>(words: &[__m512i; 3], in_place: bool) -> __m512i {
    let (sum, shift) = sum_and_shift(BITS, J, in_place);
    if BITS == 3 && J == 15 {
        // Bit 15 of the three words, to places 4, 5 and 6, by way of the shift that other pairs need too.
        let [low, middle, high] = words.map(|word| shifted_right(word, 9));
        let code = _mm512_and_si512(high, _mm512_set1_epi16(0x40));
        let code = or_masked(code, shifted_right(middle, 1), 0x20);
        let code = or_masked(code, shifted_right(low, 2), 0x10);
        return shifted_right(code, shift);
    }
    let word = if BITS == 3 { words[J / 5] } else { words[0] };
    let mask = ((1 << BITS) - 1) << if in_place { place(BITS, sum) } else { 0 };
    _mm512_and_si512(shifted_right(word, shift), _mm512_set1_epi16(mask))
}

/// Adds the products of pairs of 16-bit integers to sums of 32 bits.
#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
fn dot(sum: __m512i, w: __m512i, x: __m512i) -> __m512i {
    _mm512_add_epi32(sum, _mm512_madd_epi16(w, x))
}

/// [`dot`] in one instruction.
///
/// The compiler takes the intrinsic (`_mm512_dpwssd_epi32`) apart into a product and a sum wherever one sum waits for another,
/// to shorten that wait; here there are sums enough to fill it, and two instructions for one cost a third of the speed.
#[target_feature(enable = "avx512f,avx512vnni")]
#[inline]
fn dot_vnni(mut sum: __m512i, w: __m512i, x: __m512i) -> __m512i {
    // SAFETY: the instruction touches nothing but its operands, and the functions that this is inlined to require it.
    unsafe {
        asm!(
            "vpdpwssd {sum}, {w}, {x}",
            sum = inout(zmm_reg) sum,
            w = in(zmm_reg) w,
            x = in(zmm_reg) x,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    sum
}

/// A function for a few rows, whose sums are made by `$dot`.
macro_rules! fused {
    ($name:ident, $features:literal, $dot:ident) => {
        #[target_feature(enable = $features)]
        fn $name<const BITS: u32, const R: usize>(input: &Fused<'_>, strips: Range<usize>, tiles: &mut [Tile]) {
            let layout = input.layout;
            let (words, pairs) = const { (width(BITS).words(), width(BITS).block() / 2) };
            let n_sums = const { sums_of(BITS, R, 2, 32) };
            let in_place = n_sums > 1;
            for (strip, tiles) in strips.zip(tiles.chunks_exact_mut(R)) {
                let mut totals = [[_mm512_setzero_ps(); 2]; R];
                let all = layout.words(strip);
                let all_scales = layout.scales(strip);
                for (segment, of_x) in layout.segments.iter().zip(input.sums.as_chunks::<R>().0) {
                    let mut acc = [[[_mm512_setzero_si512(); 2]; R]; 4];
                    let rows = &all[segment.start..segment.end];
                    let x = &input.x[segment.start / words * pairs * R..segment.end / words * pairs * R];
                    for (rows, x) in rows.chunks_exact(words).zip(x.chunks_exact(pairs * R)) {
                        let mut codes = [[_mm512_setzero_si512(); 3]; 2];
                        for (i, row) in rows.iter().enumerate() {
                            prefetch(row);
                            codes[0][i] = lanes(row, 0);
                            codes[1][i] = lanes(row, 1);
                        }
                        for_each!(J in [0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15] {
                            if J < pairs {
                                let w = [
                                    codes_in_place::<BITS, J>(&codes[0], in_place),
                                    codes_in_place::<BITS, J>(&codes[1], in_place),
                                ];
                                for r in 0..R {
                                    let x = _mm512_set1_epi32(x[r * pairs + J] as i32);
                                    let sum = &mut acc[sum_and_shift(BITS, J, in_place).0][r];
                                    *sum = [$dot(sum[0], w[0], x), $dot(sum[1], w[1], x)];
                                }
                            }
                        });
                    }
                    let zeros = layout.zero_points(strip, segment.group);
                    for half in 0..2 {
                        let zero = _mm512_cvtepi32_ps(zero_points(zeros, half));
                        let scale = scales(&all_scales[segment.group], half);
                        for r in 0..R {
                            let [sum_of_x, step] = of_x[r].map(|x| _mm512_set1_ps(x));
                            let mut sum = _mm512_cvtepi32_ps(acc[0][r][half]);
                            for i in 1..n_sums {
                                let unit = _mm512_set1_ps(1.0 / (1 << place(BITS, i)) as f32);
                                sum = _mm512_fmadd_ps(unit, _mm512_cvtepi32_ps(acc[i][r][half]), sum);
                            }
                            let sum = _mm512_fnmadd_ps(zero, sum_of_x, sum);
                            totals[r][half] = _mm512_fmadd_ps(_mm512_mul_ps(scale, step), sum, totals[r][half]);
                        }
                    }
                }
                for (tile, total) in tiles.iter_mut().zip(totals) {
                    store_tile(total[0], tile, 0);
                    store_tile(total[1], tile, 1);
                }
            }
        }
    };
}

fused!(fused_avx512, "avx512f,avx512bw", dot);
fused!(fused_avx512_vnni, "avx512f,avx512bw,avx512vnni", dot_vnni);

#[target_feature(enable = "avx512f,avx512bw")]
fn unpack_avx512<const BITS: u32>(layout: &Layout, strip: usize, segments: &[Segment], panel: &mut [WordRow]) {
    let (words, block) = const { (width(BITS).words(), width(BITS).block()) };
    let mut panel = panel.chunks_exact_mut(block);
    for segment in segments {
        let zeros = layout.zero_points(strip, segment.group);
        let zeros = [zero_points(zeros, 0), zero_points(zeros, 1)];
        let scale = &layout.scales(strip)[segment.group];
        let scale = [scales(scale, 0), scales(scale, 1)];
        let rows = layout.words(strip)[segment.start..segment.end].chunks_exact(words);
        for (rows, panel) in rows.zip(panel.by_ref()) {
            rows.iter().for_each(prefetch);
            for half in 0..2 {
                let mut codes = [_mm512_setzero_si512(); 3];
                for (codes, row) in codes.iter_mut().zip(rows) {
                    *codes = lanes(row, half);
                }
                for_each!(J in [0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15] {
                    if 2 * J < block {
                        let pair = codes_in_place::<BITS, J>(&codes, false);
                        let halves = [_mm512_and_si512(pair, _mm512_set1_epi32(0xffff)), _mm512_srli_epi32::<16>(pair)];
                        for odd in 0..2 {
                            let integer = _mm512_cvtepi32_ps(_mm512_sub_epi32(halves[odd], zeros[half]));
                            let w = _mm512_mul_ps(scale[half], integer);
                            store(_mm512_castps_si512(w), &mut panel[2 * J + odd], half);
                        }
                    }
                });
            }
        }
    }
}

#[target_feature(enable = "avx512f")]
fn multiply_avx512<const R: usize>(product: Product<'_>) {
    let tiles: &mut [Tile; R] = product.tiles.try_into().expect("R tiles");
    let mut acc = [[_mm512_setzero_ps(); 2]; R];
    for (x, w) in product.x.as_chunks::<R>().0.iter().zip(product.panel) {
        let w = [_mm512_castsi512_ps(lanes(w, 0)), _mm512_castsi512_ps(lanes(w, 1))];
        for r in 0..R {
            let x = _mm512_set1_ps(f32::from_bits(x[r]));
            acc[r] = [_mm512_fmadd_ps(x, w[0], acc[r][0]), _mm512_fmadd_ps(x, w[1], acc[r][1])];
        }
    }
    for r in 0..R {
        for half in 0..2 {
            store_tile(_mm512_add_ps(acc[r][half], tile_lanes(&tiles[r], half)), &mut tiles[r], half);
        }
    }
}
