//! AVX2: integers for a few rows, f32 for many, both as [`super::avx512`] does it, in half a strip at a time.

use std::arch::x86_64::*;
use std::ops::Range;

use half::f16;

use super::prefetch;
use crate::kernel::{Code, Fused, Kernel, Operands, Product, Sums, Vector};
use crate::layout::{Layout, STRIP, Segment, Tile, WordRow};
use crate::prepare::{arrange_integers, copy_f32};
use crate::unroll::{for_each, for_rows, for_width, place, sum_and_shift, sums_of, width};

pub(crate) static KERNEL: Kernel = Kernel {
    name: "avx2",
    few_rows: 12,
    few: Operands::Int16,
    many: Operands::F32,
    is_available,
    code: Code::Vector(Vector {
        step: 1,
        fused_rows: 4,
        tile_rows: 6,
        depth: 128,
        arrange,
        narrow: copy_f32,
        fused,
        unpack,
        multiply,
    }),
};

fn is_available() -> bool {
    is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c")
}

fn check_available() {
    assert!(is_available(), "avx2 was chosen without its instructions");
}

fn arrange(layout: &Layout, x: &[f32], words: &mut [u32], sums: &mut [Sums]) {
    check_available();
    // SAFETY: check_available found the instructions.
    unsafe { arrange_avx2(layout, x, words, sums) }
}

fn fused(input: &Fused<'_>, strips: Range<usize>, tiles: &mut [Tile]) {
    check_available();
    // SAFETY: check_available found the instructions.
    unsafe { for_width!(input.layout.width, input.rows, [1 2 3 4], fused_avx2(input, strips, tiles)) }
}

fn unpack(layout: &Layout, strip: usize, segments: &[Segment], panel: &mut [WordRow]) {
    check_available();
    // SAFETY: check_available found the instructions.
    unsafe { for_width!(layout.width, unpack_avx2(layout, strip, segments, panel)) }
}

fn multiply(product: Product<'_>) {
    check_available();
    let rows = product.tiles.len();
    // SAFETY: check_available found the instructions.
    unsafe { for_rows!(rows, [1 2 3 4 5 6], multiply_avx2(product)) }
}

/// Lanes `8 * quarter..` of a row.
#[target_feature(enable = "avx2")]
#[inline]
fn lanes(row: &WordRow, quarter: usize) -> __m256i {
    let lanes: &[u32; 8] = row.0[8 * quarter..][..8].try_into().expect("a quarter has 8 lanes");
    // SAFETY: the reference is to 32 readable bytes.
    unsafe { _mm256_loadu_si256(lanes.as_ptr().cast()) }
}

#[target_feature(enable = "avx2")]
#[inline]
fn store(values: __m256, row: &mut WordRow, quarter: usize) {
    let lanes: &mut [u32; 8] = (&mut row.0[8 * quarter..][..8]).try_into().expect("a quarter has 8 lanes");
    // SAFETY: the reference is to 32 writable bytes.
    unsafe { _mm256_storeu_si256(lanes.as_mut_ptr().cast(), _mm256_castps_si256(values)) }
}

#[target_feature(enable = "avx2")]
#[inline]
fn tile_lanes(tile: &Tile, quarter: usize) -> __m256 {
    let lanes: &[f32; 8] = tile.0[8 * quarter..][..8].try_into().expect("a quarter has 8 lanes");
    load_row(lanes)
}

#[target_feature(enable = "avx2")]
#[inline]
fn store_tile(values: __m256, tile: &mut Tile, quarter: usize) {
    let lanes: &mut [f32; 8] = (&mut tile.0[8 * quarter..][..8]).try_into().expect("a quarter has 8 lanes");
    // SAFETY: the reference is to 32 writable bytes.
    unsafe { _mm256_storeu_ps(lanes.as_mut_ptr(), values) }
}

#[target_feature(enable = "avx2")]
#[inline]
fn load_row(x: &[f32; 8]) -> __m256 {
    // SAFETY: the reference is to 32 readable bytes.
    unsafe { _mm256_loadu_ps(x.as_ptr()) }
}

#[target_feature(enable = "avx2,f16c")]
#[inline]
fn scales(scales: &[f16; STRIP], quarter: usize) -> __m256 {
    let lanes: &[f16; 8] = scales[8 * quarter..][..8].try_into().expect("a quarter has 8 lanes");
    // SAFETY: the reference is to 16 readable bytes.
    _mm256_cvtph_ps(unsafe { _mm_loadu_si128(lanes.as_ptr().cast()) })
}

#[target_feature(enable = "avx2")]
#[inline]
fn zero_points(zero_points: &[u8; STRIP], quarter: usize) -> __m256i {
    let lanes: &[u8; 8] = zero_points[8 * quarter..][..8].try_into().expect("a quarter has 8 lanes");
    // SAFETY: the reference is to 8 readable bytes.
    _mm256_cvtepu8_epi32(unsafe { _mm_loadl_epi64(lanes.as_ptr().cast()) })
}

#[target_feature(enable = "avx2")]
fn arrange_avx2(layout: &Layout, x: &[f32], words: &mut [u32], sums: &mut [Sums]) {
    arrange_integers(layout, x, words, sums);
}

/// Both halves of each lane, shifted by a constant.
#[target_feature(enable = "avx2")]
#[inline]
fn shifted_right(word: __m256i, places: usize) -> __m256i {
    _mm256_srl_epi16(word, _mm_cvtsi32_si128(places as i32))
}

/// Codes of pair `J` at the place of their sum.
#[target_feature(enable = "avx2")]
#[inline]
fn codes_in_place<const BITS: u32, const J: usize>(words: &[__m256i; 3], in_place: bool) -> __m256i {
    let (sum, shift) = sum_and_shift(BITS, J, in_place);
    if BITS == 3 && J == 15 {
        // Bit 15 of the three words, to places 4, 5 and 6, by way of the shift that other pairs need too.
        let [low, middle, high] = words.map(|word| shifted_right(word, 9));
        let high = _mm256_and_si256(high, _mm256_set1_epi16(0x40));
        let middle = _mm256_and_si256(shifted_right(middle, 1), _mm256_set1_epi16(0x20));
        let low = _mm256_and_si256(shifted_right(low, 2), _mm256_set1_epi16(0x10));
        return shifted_right(_mm256_or_si256(low, _mm256_or_si256(middle, high)), shift);
    }
    let word = if BITS == 3 { words[J / 5] } else { words[0] };
    let mask = ((1 << BITS) - 1) << if in_place { place(BITS, sum) } else { 0 };
    _mm256_and_si256(shifted_right(word, shift), _mm256_set1_epi16(mask))
}

/// Adds the products of pairs of 16-bit integers to sums of 32 bits.
#[target_feature(enable = "avx2")]
#[inline]
fn dot(sum: __m256i, w: __m256i, x: __m256i) -> __m256i {
    _mm256_add_epi32(sum, _mm256_madd_epi16(w, x))
}

#[target_feature(enable = "avx2,fma,f16c")]
fn fused_avx2<const BITS: u32, const R: usize>(input: &Fused<'_>, strips: Range<usize>, tiles: &mut [Tile]) {
    let layout = input.layout;
    let (words, pairs) = const { (width(BITS).words(), width(BITS).block() / 2) };
    let n_sums = const { sums_of(BITS, R, 2, 16) };
    let in_place = n_sums > 1;
    for (strip, tiles) in strips.zip(tiles.chunks_exact_mut(R)) {
        tiles.fill(Tile::ZERO);
        let all = layout.words(strip);
        let all_scales = layout.scales(strip);
        for (segment, of_x) in layout.segments.iter().zip(input.sums.as_chunks::<R>().0) {
            let zeros = layout.zero_points(strip, segment.group);
            let rows = &all[segment.start..segment.end];
            let x = &input.x[segment.start / words * pairs * R..segment.end / words * pairs * R];
            for half in 0..2 {
                let mut acc = [[[_mm256_setzero_si256(); 2]; R]; 4];
                for (rows, x) in rows.chunks_exact(words).zip(x.chunks_exact(pairs * R)) {
                    let mut codes = [[_mm256_setzero_si256(); 3]; 2];
                    for (i, row) in rows.iter().enumerate() {
                        if half == 0 {
                            prefetch(row);
                        }
                        codes[0][i] = lanes(row, 2 * half);
                        codes[1][i] = lanes(row, 2 * half + 1);
                    }
                    for_each!(J in [0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15] {
                        if J < pairs {
                            let w = [
                                codes_in_place::<BITS, J>(&codes[0], in_place),
                                codes_in_place::<BITS, J>(&codes[1], in_place),
                            ];
                            for r in 0..R {
                                let x = _mm256_set1_epi32(x[r * pairs + J] as i32);
                                let sum = &mut acc[sum_and_shift(BITS, J, in_place).0][r];
                                *sum = [dot(sum[0], w[0], x), dot(sum[1], w[1], x)];
                            }
                        }
                    });
                }
                for i in 0..2 {
                    let quarter = 2 * half + i;
                    let zero = _mm256_cvtepi32_ps(zero_points(zeros, quarter));
                    let scale = scales(&all_scales[segment.group], quarter);
                    for r in 0..R {
                        let [sum_of_x, step] = of_x[r].map(|x| _mm256_set1_ps(x));
                        let mut sum = _mm256_cvtepi32_ps(acc[0][r][i]);
                        for part in 1..n_sums {
                            let unit = _mm256_set1_ps(1.0 / (1 << place(BITS, part)) as f32);
                            sum = _mm256_fmadd_ps(unit, _mm256_cvtepi32_ps(acc[part][r][i]), sum);
                        }
                        let sum = _mm256_fnmadd_ps(zero, sum_of_x, sum);
                        let total = tile_lanes(&tiles[r], quarter);
                        store_tile(_mm256_fmadd_ps(_mm256_mul_ps(scale, step), sum, total), &mut tiles[r], quarter);
                    }
                }
            }
        }
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
fn unpack_avx2<const BITS: u32>(layout: &Layout, strip: usize, segments: &[Segment], panel: &mut [WordRow]) {
    let (words, block) = const { (width(BITS).words(), width(BITS).block()) };
    let mut panel = panel.chunks_exact_mut(block);
    for segment in segments {
        let zeros = layout.zero_points(strip, segment.group);
        let scale = &layout.scales(strip)[segment.group];
        let rows = layout.words(strip)[segment.start..segment.end].chunks_exact(words);
        for (rows, panel) in rows.zip(panel.by_ref()) {
            rows.iter().for_each(prefetch);
            for quarter in 0..4 {
                let (zero, scale) = (zero_points(zeros, quarter), scales(scale, quarter));
                let mut codes = [_mm256_setzero_si256(); 3];
                for (codes, row) in codes.iter_mut().zip(rows) {
                    *codes = lanes(row, quarter);
                }
                for_each!(J in [0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15] {
                    if 2 * J < block {
                        let pair = codes_in_place::<BITS, J>(&codes, false);
                        let halves = [_mm256_and_si256(pair, _mm256_set1_epi32(0xffff)), _mm256_srli_epi32::<16>(pair)];
                        for odd in 0..2 {
                            let integer = _mm256_cvtepi32_ps(_mm256_sub_epi32(halves[odd], zero));
                            store(_mm256_mul_ps(scale, integer), &mut panel[2 * J + odd], quarter);
                        }
                    }
                });
            }
        }
    }
}

#[target_feature(enable = "avx2,fma")]
fn multiply_avx2<const R: usize>(product: Product<'_>) {
    let tiles: &mut [Tile; R] = product.tiles.try_into().expect("R tiles");
    for half in 0..2 {
        let mut acc = [[_mm256_setzero_ps(); 2]; R];
        for (x, w) in product.x.as_chunks::<R>().0.iter().zip(product.panel) {
            let w = [0, 1].map(|i| _mm256_castsi256_ps(lanes(w, 2 * half + i)));
            for r in 0..R {
                let x = _mm256_set1_ps(f32::from_bits(x[r]));
                acc[r] = [_mm256_fmadd_ps(x, w[0], acc[r][0]), _mm256_fmadd_ps(x, w[1], acc[r][1])];
            }
        }
        for r in 0..R {
            for i in 0..2 {
                let quarter = 2 * half + i;
                store_tile(_mm256_add_ps(acc[r][i], tile_lanes(&tiles[r], quarter)), &mut tiles[r], quarter);
            }
        }
    }
}
