//! AVX-512 with bf16 products.

#![allow(unsafe_code, reason = "vector instructions take addresses, and may only run where the processor has them")]

use std::arch::x86_64::*;
use std::mem::transmute;

use oq_isa::Isa;

use crate::loops::{Left, Loops, Out, Product, Right, RowGrads, Rows};

/// Had where the processor has the instructions.
pub struct Avx512Bf16(());

impl Avx512Bf16 {
    /// # Panics
    /// Where the processor lacks the instructions.
    pub fn get() -> &'static Self {
        assert!(Isa::Avx512Bf16.is_available(), "avx512-bf16 was chosen without its instructions");
        &Self(())
    }
}

/// Rows of a tile; with [`VECTORS`] columns of 16 it fills half of the registers.
const TILE_ROWS: usize = 4;
/// Vectors of columns of a tile.
const VECTORS: usize = 4;
/// Numbers of a vector.
const LANES: usize = 16;
/// Pairs of the right factor that stay in the first cache while all rows pass: 16 KiB.
const PAIRS: usize = 64;

impl Loops for Avx512Bf16 {
    fn product(&self, product: Product, left: Left<'_>, right: Right<'_>, out: Out<'_>) {
        product.check(left, right, &out);
        // SAFETY: the processor has the instructions, as `get` found; `check` holds every address below within the slices.
        unsafe { all_tiles(product, left, right, out) }
    }

    fn softmax(&self, scale: f32, scores: &[f32], visible: usize, probs: &mut [u32]) -> (f32, f32) {
        assert!(scores.len().is_multiple_of(LANES) && probs.len() == scores.len() / 2 && visible <= scores.len());
        // SAFETY: the processor has the instructions, as `get` found; lengths were compared.
        unsafe { softmax_row(scale, scores, visible, probs) }
    }

    fn score_grads(&self, scale: f32, rows: Rows<'_>, grads: RowGrads<'_>) {
        let n = grads.probs.len();
        assert!(n.is_multiple_of(LANES) && grads.scores.len() == n);
        assert!(rows.scores.iter().chain(&rows.d_probs).all(|row| row.len() == n));
        assert!(grads.score_rows.iter().all(|row| row.len() == n / 2));
        // SAFETY: the processor has the instructions, as `get` found; lengths were compared.
        unsafe { score_grads_of_two(scale, rows, grads) }
    }
}

/// # Safety
/// Where the instructions are, after [`Product::check`].
#[target_feature(enable = "avx512f,avx512bf16")]
unsafe fn all_tiles(product: Product, left: Left<'_>, right: Right<'_>, out: Out<'_>) {
    let Product { m, n, pairs, add } = product;
    for pair in (0..pairs).step_by(PAIRS) {
        let tile = Tile {
            left: left.row,
            left_step: left.step,
            right_step: right.step,
            out: out.row,
            pairs: PAIRS.min(pairs - pair),
            add: add || pair > 0,
        };
        let mut column = 0;
        while column < n {
            let vectors = ((n - column) / LANES).min(VECTORS);
            for row in (0..m).step_by(TILE_ROWS) {
                // SAFETY: the tile lies within the product, whose ends `check` has compared with the slices.
                unsafe {
                    let a = left.data.as_ptr().add(row * left.row + pair * left.step);
                    let b = right.data.as_ptr().add(pair * right.step + column);
                    let c = out.data.as_mut_ptr().add(row * out.row + column);
                    match vectors {
                        4 => tile.run::<4>(a, b, c),
                        3 => tile.run::<3>(a, b, c),
                        2 => tile.run::<2>(a, b, c),
                        _ => tile.run::<1>(a, b, c),
                    }
                }
            }
            column += vectors * LANES;
        }
    }
}

/// Strides, in elements, and the sum of a tile.
#[derive(Clone, Copy)]
struct Tile {
    left: usize,
    left_step: usize,
    right_step: usize,
    out: usize,
    pairs: usize,
    add: bool,
}

impl Tile {
    /// # Safety
    /// Four rows of `a`, `V` vectors of `b` and both of `c` are within their slices.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bf16")]
    unsafe fn run<const V: usize>(self, a: *const u32, b: *const u32, c: *mut f32) {
        let mut sums = [[_mm512_setzero_ps(); V]; TILE_ROWS];
        // SAFETY: see above; every access is one of the tile's.
        unsafe {
            if self.add {
                for (row, sums) in sums.iter_mut().enumerate() {
                    for (v, sum) in sums.iter_mut().enumerate() {
                        *sum = _mm512_loadu_ps(c.add(row * self.out + v * LANES));
                    }
                }
            }
            for pair in 0..self.pairs {
                let mut right = [_mm512_setzero_si512(); V];
                for (v, right) in right.iter_mut().enumerate() {
                    *right = _mm512_loadu_si512(b.add(pair * self.right_step + v * LANES).cast());
                }
                for (row, sums) in sums.iter_mut().enumerate() {
                    let left = *a.add(row * self.left + pair * self.left_step);
                    let left = as_bf16(_mm512_set1_epi32(left.cast_signed()));
                    for (sum, &right) in sums.iter_mut().zip(&right) {
                        *sum = _mm512_dpbf16_ps(*sum, left, as_bf16(right));
                    }
                }
            }
            for (row, sums) in sums.iter().enumerate() {
                for (v, &sum) in sums.iter().enumerate() {
                    _mm512_storeu_ps(c.add(row * self.out + v * LANES), sum);
                }
            }
        }
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
fn as_bf16(bits: __m512i) -> __m512bh {
    // SAFETY: both are 512 bits, and all bits make numbers.
    unsafe { transmute(bits) }
}

/// `exp(x)` to about 1e-7 of itself; 0 far below, as for negative infinity.
#[inline]
#[target_feature(enable = "avx512f")]
fn exp(x: __m512) -> __m512 {
    // Below this exp is 0 in f32; a larger exponent of 2 would not be a number to scale by.
    // Of a NaN and a number the instruction takes the second.
    let x = _mm512_max_ps(_mm512_set1_ps(-110.0), x);
    let x = _mm512_mul_ps(x, _mm512_set1_ps(std::f32::consts::LOG2_E));
    let whole = _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(x);
    let part = _mm512_sub_ps(x, whole);
    // Powers of ln 2 over factorials, highest first.
    const SERIES: [f32; 7] =
        [1.540_353e-4, 1.333_355_8e-3, 9.618_129e-3, 5.550_411e-2, 0.240_226_5, std::f32::consts::LN_2, 1.0];
    let mut sum = _mm512_set1_ps(SERIES[0]);
    for factor in &SERIES[1..] {
        sum = _mm512_fmadd_ps(sum, part, _mm512_set1_ps(*factor));
    }
    _mm512_scalef_ps(sum, whole)
}

/// A one for each of the lanes from `start` on that are below `end`.
#[inline]
fn lanes_below(start: usize, end: usize) -> __mmask16 {
    match end.saturating_sub(start) {
        n if n >= LANES => !0,
        n => (1 << n) - 1,
    }
}

/// # Safety
/// Where the instructions are; `probs` is half as long as `scores`, whose length is a multiple of the lanes.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
unsafe fn softmax_row(scale: f32, scores: &[f32], visible: usize, probs: &mut [u32]) -> (f32, f32) {
    let mut max = _mm512_set1_ps(f32::NEG_INFINITY);
    for start in (0..visible).step_by(LANES) {
        // SAFETY: the length is a multiple of the lanes.
        let s = unsafe { _mm512_loadu_ps(scores.as_ptr().add(start)) };
        max = _mm512_mask_max_ps(max, lanes_below(start, visible), s, max);
    }
    let max = _mm512_reduce_max_ps(max) * scale;
    let (scales, maxima) = (_mm512_set1_ps(scale), _mm512_set1_ps(max));
    let mut sums = _mm512_setzero_ps();
    for start in (0..scores.len()).step_by(LANES) {
        let lanes = lanes_below(start, visible);
        // SAFETY: the length is a multiple of the lanes, and 16 bf16 are 8 pairs.
        unsafe {
            let s = _mm512_loadu_ps(scores.as_ptr().add(start));
            let e = if lanes == 0 { _mm512_setzero_ps() } else { exp(_mm512_fmsub_ps(s, scales, maxima)) };
            let e = _mm512_maskz_mov_ps(lanes, e);
            sums = _mm512_add_ps(sums, e);
            let e: __m256i = transmute(_mm512_cvtneps_pbh(e));
            _mm256_storeu_si256(probs.as_mut_ptr().add(start / 2).cast(), e);
        }
    }
    let sum = _mm512_reduce_add_ps(sums);
    (sum, max + sum.ln())
}

/// # Safety
/// Where the instructions are; all rows have the length of `grads.probs`, a multiple of the lanes, and packed rows half of it.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
unsafe fn score_grads_of_two(scale: f32, rows: Rows<'_>, grads: RowGrads<'_>) {
    let RowGrads { probs, scores, mut score_rows } = grads;
    let scales = _mm512_set1_ps(scale);
    for start in (0..probs.len()).step_by(LANES) {
        let mut halves = [[_mm256_setzero_si256(); 2]; 2];
        for (row, halves) in halves.iter_mut().enumerate() {
            let lanes = lanes_below(start, rows.visible[row]);
            if lanes == 0 {
                continue;
            }
            // SAFETY: all rows are as long as `probs`, a multiple of the lanes.
            let (s, d) = unsafe {
                let s = _mm512_loadu_ps(rows.scores[row].as_ptr().add(start));
                (s, _mm512_loadu_ps(rows.d_probs[row].as_ptr().add(start)))
            };
            let p = exp(_mm512_fmsub_ps(s, scales, _mm512_set1_ps(rows.lse[row])));
            let p = _mm512_maskz_mov_ps(lanes, p);
            let d = _mm512_sub_ps(d, _mm512_set1_ps(rows.dots[row]));
            let ds = _mm512_maskz_mul_ps(lanes, _mm512_mul_ps(p, scales), d);
            // SAFETY: both are 256 bits, and all bits are numbers.
            *halves = unsafe { [p, ds].map(|x| transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(x))) };
        }
        // SAFETY: as above; 16 bf16 are 8 pairs along a row, 16 of two rows are 16 pairs.
        unsafe {
            for (out, [_, ds]) in score_rows.iter_mut().zip(halves) {
                _mm256_storeu_si256(out.as_mut_ptr().add(start / 2).cast(), ds);
            }
            for (out, idx) in [(&mut *probs, 0), (&mut *scores, 1)] {
                let (low, high) = (_mm512_cvtepu16_epi32(halves[0][idx]), _mm512_cvtepu16_epi32(halves[1][idx]));
                let pairs = _mm512_or_si512(low, _mm512_slli_epi32::<16>(high));
                _mm512_storeu_si512(out.as_mut_ptr().add(start).cast(), pairs);
            }
        }
    }
}
