//! AVX-512 with products of bf16 pairs for many rows; few rows go the way of [`super::avx512`], with one instruction for two
//! (VNNI).
//!
//! Operands of the panel path are `code - zero point`, exact in bf16; sums of a segment are scaled in f32.

use std::arch::x86_64::*;
use std::ops::Range;

use super::avx512::{
    self, arrange, codes_in_place, lanes, load_row, scales, store, store_tile, tile_lanes, zero_points,
};
use super::prefetch;
use crate::kernel::{Code, Fused, Kernel, Operands, Product, Vector};
use crate::layout::{Layout, Segment, Tile, WordRow};
use crate::unroll::{for_each, for_rows, for_width, width};

pub(crate) static KERNEL: Kernel = Kernel {
    name: "avx512-bf16",
    few_rows: 16,
    few: Operands::Int16,
    many: Operands::Bf16,
    is_available,
    code: Code::Vector(Vector {
        step: 2,
        fused_rows: 8,
        tile_rows: 12,
        depth: 256,
        arrange,
        fused,
        narrow,
        unpack,
        multiply,
    }),
};

fn is_available() -> bool {
    is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("avx512vnni")
        && is_x86_feature_detected!("avx512bf16")
}

fn check_available() {
    assert!(is_available(), "avx512-bf16 was chosen without its instructions");
}

fn narrow(x: &[f32], words: &mut [u32]) {
    check_available();
    // SAFETY: check_available found the instructions.
    unsafe { narrow_avx512(x, words) }
}

fn fused(input: &Fused<'_>, strips: Range<usize>, tiles: &mut [Tile]) {
    check_available();
    // SAFETY: check_available found the instructions.
    unsafe { avx512::fused_vnni(input, strips, tiles) }
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

#[target_feature(enable = "avx512f,avx512bf16")]
#[inline]
fn dot(sum: __m512, x: __m512i, w: __m512i) -> __m512 {
    // SAFETY: both types are 64 bytes of which all bits have a meaning.
    let [x, w] = unsafe { std::mem::transmute::<[__m512i; 2], [__m512bh; 2]>([x, w]) };
    _mm512_dpbf16_ps(sum, w, x)
}

#[target_feature(enable = "avx512f,avx512vl,avx512bf16")]
fn narrow_avx512(x: &[f32], words: &mut [u32]) {
    for (x, words) in x.as_chunks::<16>().0.iter().zip(words.as_chunks_mut::<8>().0) {
        store_pairs(load_row(x), words);
    }
}

#[target_feature(enable = "avx512f,avx512vl,avx512bf16")]
#[inline]
fn store_pairs(x: __m512, words: &mut [u32; 8]) {
    // SAFETY: the reference is to 32 writable bytes.
    unsafe { _mm256_storeu_si256(words.as_mut_ptr().cast(), bits_of(_mm512_cvtneps_pbh(x))) }
}

#[target_feature(enable = "avx512f")]
#[inline]
fn bits_of(x: __m256bh) -> __m256i {
    // SAFETY: both types are 32 bytes of which all bits have a meaning.
    unsafe { std::mem::transmute(x) }
}

/// bf16 of the numbers -16 to 15, in the order of their lowest 5 bits.
fn signed_table() -> [u16; 32] {
    std::array::from_fn(|i| bf16_bits((i as i32) << 27 >> 27))
}

/// An integer of at most 8 bits.
fn bf16_bits(integer: i32) -> u16 {
    ((integer as f32).to_bits() >> 16) as u16
}

#[target_feature(enable = "avx512f")]
#[inline]
fn load_table(table: &[u16; 32]) -> __m512i {
    // SAFETY: the reference is to 64 readable bytes.
    unsafe { _mm512_loadu_si512(table.as_ptr().cast()) }
}

/// Codes of pair `J`, from the lowest bits of both halves.
#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
fn codes<const BITS: u32, const J: usize>(words: &[__m512i; 3]) -> __m512i {
    codes_in_place::<BITS, J>(words, false)
}

/// bf16 of 16-bit integers of at most 8 bits and a sign.
#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
fn integers(codes: __m512i) -> __m512i {
    let even = _mm512_cvtepi32_ps(_mm512_srai_epi32::<16>(_mm512_slli_epi32::<16>(codes)));
    let odd = _mm512_cvtepi32_ps(_mm512_srai_epi32::<16>(codes));
    let even = _mm512_srli_epi32::<16>(_mm512_castps_si512(even));
    // The lower halves are zeros already: the integers are exact in bf16.
    _mm512_or_si512(even, _mm512_castps_si512(odd))
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
fn unpack_avx512<const BITS: u32>(layout: &Layout, strip: usize, segments: &[Segment], panel: &mut [WordRow]) {
    let (words, pairs) = const { (width(BITS).words(), width(BITS).block() / 2) };
    let table = load_table(&signed_table());
    let mut panel = panel.chunks_exact_mut(pairs);
    for segment in segments {
        let zeros = layout.zero_points(strip, segment.group);
        let zeros = [zero_points(zeros, 0), zero_points(zeros, 1)];
        let zeros = zeros.map(|zero| _mm512_or_si512(zero, _mm512_slli_epi32::<16>(zero)));
        let rows = layout.words(strip)[segment.start..segment.end].chunks_exact(words);
        for (rows, panel) in rows.zip(panel.by_ref()) {
            rows.iter().for_each(prefetch);
            for half in 0..2 {
                let mut words = [_mm512_setzero_si512(); 3];
                for (word, row) in words.iter_mut().zip(rows) {
                    *word = lanes(row, half);
                }
                for_each!(J in [0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15] {
                    if J < pairs {
                        let integer = _mm512_sub_epi16(codes::<BITS, J>(&words), zeros[half]);
                        let w = if BITS == 8 { integers(integer) } else { _mm512_permutexvar_epi16(integer, table) };
                        store(w, &mut panel[J], half);
                    }
                });
            }
        }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
fn multiply_avx512<const R: usize>(product: Product<'_>) {
    let Product { layout, strip, segments, mut x, mut panel, tiles } = product;
    let tiles: &mut [Tile; R] = tiles.try_into().expect("R tiles");
    for segment in segments {
        let depth = layout.channels(segment.end - segment.start) / 2;
        let (x_here, x_next) = x.split_at(depth * R);
        let (panel_here, panel_next) = panel.split_at(depth);
        (x, panel) = (x_next, panel_next);
        let mut acc = [[_mm512_setzero_ps(); 2]; R];
        for (x, w) in x_here.as_chunks::<R>().0.iter().zip(panel_here) {
            let w = [lanes(w, 0), lanes(w, 1)];
            for r in 0..R {
                let x = _mm512_set1_epi32(x[r] as i32);
                acc[r] = [dot(acc[r][0], x, w[0]), dot(acc[r][1], x, w[1])];
            }
        }
        let scale = &layout.scales(strip)[segment.group];
        let scale = [scales(scale, 0), scales(scale, 1)];
        for r in 0..R {
            for half in 0..2 {
                let total = _mm512_fmadd_ps(scale[half], acc[r][half], tile_lanes(&tiles[r], half));
                store_tile(total, &mut tiles[r], half);
            }
        }
    }
}
