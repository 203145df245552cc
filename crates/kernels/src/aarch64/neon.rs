//! NEON: integers for a few rows, f32 for many, both as the kernels of x86-64 do it.
//!
//! Fused path: a vector is one word of four columns. A product that widens takes half of it, so the even and the odd channels of a
//! column are summed side by side, and meet at the end of a segment.

use std::arch::aarch64::*;
use std::arch::is_aarch64_feature_detected;
use std::ops::Range;

use half::f16;

use crate::kernel::{Code, Fused, Kernel, Operands, Product, Sums, Vector};
use crate::layout::{Layout, STRIP, Segment, Tile, WordRow};
use crate::prepare::{arrange_integers, copy_f32};
use crate::unroll::{for_each, for_rows, for_width, place, sum_and_shift, sums_of, width};

pub(crate) static KERNEL: Kernel = Kernel {
    name: "neon",
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
    is_aarch64_feature_detected!("neon")
}

fn check_available() {
    assert!(is_available(), "neon was chosen without its instructions");
}

fn arrange(layout: &Layout, x: &[f32], words: &mut [u32], sums: &mut [Sums]) {
    check_available();
    // SAFETY: check_available found the instructions.
    unsafe { arrange_neon(layout, x, words, sums) }
}

fn fused(input: &Fused<'_>, strips: Range<usize>, tiles: &mut [Tile]) {
    check_available();
    // SAFETY: check_available found the instructions.
    unsafe { for_width!(input.layout.width, input.rows, [1 2 3 4], fused_neon(input, strips, tiles)) }
}

fn unpack(layout: &Layout, strip: usize, segments: &[Segment], panel: &mut [WordRow]) {
    check_available();
    // SAFETY: check_available found the instructions.
    unsafe { for_width!(layout.width, unpack_neon(layout, strip, segments, panel)) }
}

fn multiply(product: Product<'_>) {
    check_available();
    let rows = product.tiles.len();
    // SAFETY: check_available found the instructions.
    unsafe { for_rows!(rows, [1 2 3 4 5 6], multiply_neon(product)) }
}

/// Lanes `4 * part..` of a row.
#[target_feature(enable = "neon")]
#[inline]
fn lanes(row: &WordRow, part: usize) -> uint32x4_t {
    let lanes: &[u32; 4] = row.0[4 * part..][..4].try_into().expect("a part has 4 lanes");
    // SAFETY: the reference is to 16 readable bytes.
    unsafe { vld1q_u32(lanes.as_ptr()) }
}

#[target_feature(enable = "neon")]
#[inline]
fn store(values: float32x4_t, row: &mut WordRow, part: usize) {
    let lanes: &mut [u32; 4] = (&mut row.0[4 * part..][..4]).try_into().expect("a part has 4 lanes");
    // SAFETY: the reference is to 16 writable bytes.
    unsafe { vst1q_u32(lanes.as_mut_ptr(), vreinterpretq_u32_f32(values)) }
}

#[target_feature(enable = "neon")]
#[inline]
fn tile_lanes(tile: &Tile, part: usize) -> float32x4_t {
    let lanes: &[f32; 4] = tile.0[4 * part..][..4].try_into().expect("a part has 4 lanes");
    // SAFETY: the reference is to 16 readable bytes.
    unsafe { vld1q_f32(lanes.as_ptr()) }
}

#[target_feature(enable = "neon")]
#[inline]
fn store_tile(values: float32x4_t, tile: &mut Tile, part: usize) {
    let lanes: &mut [f32; 4] = (&mut tile.0[4 * part..][..4]).try_into().expect("a part has 4 lanes");
    // SAFETY: the reference is to 16 writable bytes.
    unsafe { vst1q_f32(lanes.as_mut_ptr(), values) }
}

/// Scales have no sign and are finite. Without its sign an f16 number is an f32 number whose exponent is 112 too small.
#[target_feature(enable = "neon")]
#[inline]
fn scales(scales: &[f16; STRIP], part: usize) -> float32x4_t {
    const UNIT: f32 = f32::from_bits((127 + 112) << 23);
    let lanes: &[f16; 4] = scales[4 * part..][..4].try_into().expect("a part has 4 lanes");
    // SAFETY: the reference is to 8 readable bytes.
    let bits = unsafe { vld1_u16(lanes.as_ptr().cast()) };
    vmulq_n_f32(vreinterpretq_f32_u32(vshll_n_u16::<13>(bits)), UNIT)
}

#[target_feature(enable = "neon")]
#[inline]
fn zero_points(zero_points: &[u8; STRIP], part: usize) -> uint32x4_t {
    let lanes: &[u8; 4] = zero_points[4 * part..][..4].try_into().expect("a part has 4 lanes");
    let bytes = vreinterpret_u8_u32(vdup_n_u32(u32::from_le_bytes(*lanes)));
    vmovl_u16(vget_low_u16(vmovl_u8(bytes)))
}

#[target_feature(enable = "neon")]
fn arrange_neon(layout: &Layout, x: &[f32], words: &mut [u32], sums: &mut [Sums]) {
    arrange_integers(layout, x, words, sums);
}

/// All halves of lanes, shifted by a constant.
#[target_feature(enable = "neon")]
#[inline]
fn shifted_right(word: uint16x8_t, places: usize) -> uint16x8_t {
    vshlq_u16(word, vdupq_n_s16(-(places as i16)))
}

/// Codes of pair `J` at the place of their sum.
#[target_feature(enable = "neon")]
#[inline]
fn codes_in_place<const BITS: u32, const J: usize>(words: &[uint16x8_t; 3], in_place: bool) -> uint16x8_t {
    let (sum, shift) = sum_and_shift(BITS, J, in_place);
    if BITS == 3 && J == 15 {
        // Bit 15 of the three words, to places 4, 5 and 6, by way of the shift that other pairs need too.
        let [low, middle, high] = words.map(|word| shifted_right(word, 9));
        let high = vandq_u16(high, vdupq_n_u16(0x40));
        let middle = vandq_u16(shifted_right(middle, 1), vdupq_n_u16(0x20));
        let low = vandq_u16(shifted_right(low, 2), vdupq_n_u16(0x10));
        return shifted_right(vorrq_u16(low, vorrq_u16(middle, high)), shift);
    }
    let word = if BITS == 3 { words[J / 5] } else { words[0] };
    let mask = ((1 << BITS) - 1) << if in_place { place(BITS, sum) } else { 0 };
    vandq_u16(shifted_right(word, shift), vdupq_n_u16(mask))
}

/// Adds the products of two columns of `w`, and of the other two.
#[target_feature(enable = "neon")]
#[inline]
fn dot(sums: [int32x4_t; 2], w: uint16x8_t, x: int16x8_t) -> [int32x4_t; 2] {
    let w = vreinterpretq_s16_u16(w);
    [vmlal_s16(sums[0], vget_low_s16(w), vget_low_s16(x)), vmlal_high_s16(sums[1], w, x)]
}

#[target_feature(enable = "neon")]
fn fused_neon<const BITS: u32, const R: usize>(input: &Fused<'_>, strips: Range<usize>, tiles: &mut [Tile]) {
    let layout = input.layout;
    let (words, pairs) = const { (width(BITS).words(), width(BITS).block() / 2) };
    let n_sums = const { sums_of(BITS, R, 4, 32) };
    let in_place = n_sums > 1;
    for (strip, tiles) in strips.zip(tiles.chunks_exact_mut(R)) {
        tiles.fill(Tile::ZERO);
        let all = layout.words(strip);
        let all_scales = layout.scales(strip);
        for (segment, of_x) in layout.segments.iter().zip(input.sums.as_chunks::<R>().0) {
            let zeros = layout.zero_points(strip, segment.group);
            let rows = &all[segment.start..segment.end];
            let x = &input.x[segment.start / words * pairs * R..segment.end / words * pairs * R];
            for two in 0..STRIP / 8 {
                let mut acc = [[[[vdupq_n_s32(0); 2]; 2]; R]; 4];
                for (rows, x) in rows.chunks_exact(words).zip(x.chunks_exact(pairs * R)) {
                    let mut codes = [[vdupq_n_u16(0); 3]; 2];
                    for (i, row) in rows.iter().enumerate() {
                        codes[0][i] = vreinterpretq_u16_u32(lanes(row, 2 * two));
                        codes[1][i] = vreinterpretq_u16_u32(lanes(row, 2 * two + 1));
                    }
                    for_each!(J in [0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15] {
                        if J < pairs {
                            let w = [
                                codes_in_place::<BITS, J>(&codes[0], in_place),
                                codes_in_place::<BITS, J>(&codes[1], in_place),
                            ];
                            for r in 0..R {
                                let x = vreinterpretq_s16_u32(vdupq_n_u32(x[r * pairs + J]));
                                let sum = &mut acc[sum_and_shift(BITS, J, in_place).0][r];
                                *sum = [dot(sum[0], w[0], x), dot(sum[1], w[1], x)];
                            }
                        }
                    });
                }
                for i in 0..2 {
                    let part = 2 * two + i;
                    let zero = vcvtq_f32_u32(zero_points(zeros, part));
                    let scale = scales(&all_scales[segment.group], part);
                    for r in 0..R {
                        let [sum_of_x, step] = of_x[r];
                        let of_columns = |[low, high]: [int32x4_t; 2]| vcvtq_f32_s32(vpaddq_s32(low, high));
                        let mut sum = of_columns(acc[0][r][i]);
                        for place_of in 1..n_sums {
                            let unit = 1.0 / (1 << place(BITS, place_of)) as f32;
                            sum = vfmaq_n_f32(sum, of_columns(acc[place_of][r][i]), unit);
                        }
                        let sum = vfmsq_n_f32(sum, zero, sum_of_x);
                        let total = vfmaq_f32(tile_lanes(&tiles[r], part), vmulq_n_f32(scale, step), sum);
                        store_tile(total, &mut tiles[r], part);
                    }
                }
            }
        }
    }
}

#[target_feature(enable = "neon")]
fn unpack_neon<const BITS: u32>(layout: &Layout, strip: usize, segments: &[Segment], panel: &mut [WordRow]) {
    let (words, block) = const { (width(BITS).words(), width(BITS).block()) };
    let mut panel = panel.chunks_exact_mut(block);
    for segment in segments {
        let zeros = layout.zero_points(strip, segment.group);
        let scale = &layout.scales(strip)[segment.group];
        let rows = layout.words(strip)[segment.start..segment.end].chunks_exact(words);
        for (rows, panel) in rows.zip(panel.by_ref()) {
            for part in 0..STRIP / 4 {
                let (zero, scale) = (zero_points(zeros, part), scales(scale, part));
                let mut codes = [vdupq_n_u16(0); 3];
                for (codes, row) in codes.iter_mut().zip(rows) {
                    *codes = vreinterpretq_u16_u32(lanes(row, part));
                }
                for_each!(J in [0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15] {
                    if 2 * J < block {
                        let pair = vreinterpretq_u32_u16(codes_in_place::<BITS, J>(&codes, false));
                        let halves = [vandq_u32(pair, vdupq_n_u32(0xffff)), vshrq_n_u32::<16>(pair)];
                        for odd in 0..2 {
                            let integer = vreinterpretq_s32_u32(vsubq_u32(halves[odd], zero));
                            store(vmulq_f32(scale, vcvtq_f32_s32(integer)), &mut panel[2 * J + odd], part);
                        }
                    }
                });
            }
        }
    }
}

#[target_feature(enable = "neon")]
fn multiply_neon<const R: usize>(product: Product<'_>) {
    let tiles: &mut [Tile; R] = product.tiles.try_into().expect("R tiles");
    for half in 0..2 {
        let mut acc = [[vdupq_n_f32(0.0); 4]; R];
        for (x, w) in product.x.as_chunks::<R>().0.iter().zip(product.panel) {
            let w = [0, 1, 2, 3].map(|i| vreinterpretq_f32_u32(lanes(w, 4 * half + i)));
            for r in 0..R {
                let x = f32::from_bits(x[r]);
                for i in 0..4 {
                    acc[r][i] = vfmaq_n_f32(acc[r][i], w[i], x);
                }
            }
        }
        for r in 0..R {
            for i in 0..4 {
                let part = 4 * half + i;
                store_tile(vaddq_f32(acc[r][i], tile_lanes(&tiles[r], part)), &mut tiles[r], part);
            }
        }
    }
}
