//! Dot products of 16-bit numbers with f32, by AVX2, FMA and F16C. Reading them is what they cost: wider vectors would wait.

use std::arch::is_x86_feature_detected;
use std::arch::x86_64::*;

use half::{bf16, f16};

/// Vectors of sums: as many multiplications are under way at a time.
const SUMS: usize = 4;
/// Numbers of a vector.
const LANES: usize = 8;

fn is_available() -> bool {
    is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c")
}

/// None where the processor lacks the instructions.
pub(crate) fn dot_f16(a: &[f16], b: &[f32]) -> Option<f32> {
    // SAFETY: the processor has the instructions.
    is_available().then(|| unsafe { dot(a, b, |a| _mm256_cvtph_ps(load(a)), f16::to_f32) })
}

/// None where the processor lacks the instructions.
pub(crate) fn dot_bf16(a: &[bf16], b: &[f32]) -> Option<f32> {
    // SAFETY: the processor has the instructions.
    is_available().then(|| unsafe {
        dot(a, b, |a| _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(load(a)))), bf16::to_f32)
    })
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn dot<T>(a: &[T], b: &[f32], widen: impl Fn(&[T; LANES]) -> __m256, widen_one: impl Fn(T) -> f32) -> f32
where
    T: Copy,
{
    let (a, a_rest) = a.as_chunks::<LANES>();
    let (b, b_rest) = b.as_chunks::<LANES>();
    let mut sums = [_mm256_setzero_ps(); SUMS];
    let (a_many, a_few) = a.as_chunks::<SUMS>();
    let (b_many, b_few) = b.as_chunks::<SUMS>();
    for (a, b) in a_many.iter().zip(b_many) {
        for i in 0..SUMS {
            sums[i] = _mm256_fmadd_ps(widen(&a[i]), load_f32(&b[i]), sums[i]);
        }
    }
    for (a, b) in a_few.iter().zip(b_few) {
        sums[0] = _mm256_fmadd_ps(widen(a), load_f32(b), sums[0]);
    }
    let sum = _mm256_add_ps(_mm256_add_ps(sums[0], sums[1]), _mm256_add_ps(sums[2], sums[3]));
    let rest: f32 = a_rest.iter().zip(b_rest).map(|(&a, b)| widen_one(a) * b).sum();
    lanes(sum).iter().sum::<f32>() + rest
}

#[inline]
#[target_feature(enable = "avx2")]
fn load<T: Copy>(x: &[T; LANES]) -> __m128i {
    const { assert!(size_of::<T>() == 2) }
    // SAFETY: eight numbers of 16 bits are the 128 bits that are read.
    unsafe { _mm_loadu_si128(x.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx2")]
fn load_f32(x: &[f32; LANES]) -> __m256 {
    // SAFETY: eight f32 are the 256 bits that are read.
    unsafe { _mm256_loadu_ps(x.as_ptr()) }
}

#[inline]
#[target_feature(enable = "avx2")]
fn lanes(x: __m256) -> [f32; LANES] {
    let mut lanes = [0.0; LANES];
    // SAFETY: eight f32 are the 256 bits that are written.
    unsafe { _mm256_storeu_ps(lanes.as_mut_ptr(), x) };
    lanes
}
