//! AVX2, with FMA and F16C: vectors of 256 bits.

use std::arch::x86_64::*;

use bytemuck::must_cast;
use half::{bf16, f16};
use oq_isa::Isa;

use super::prefetch::prefetch;
use crate::dot::Widen;
use crate::layout::{STRIP, WordRow};
use crate::macros::operations;
use crate::panel::Weights;
use crate::vectors::{InstructionSet, Task, Vectors, part, put};

/// Made where the processor has the instructions.
#[derive(Clone, Copy)]
pub(crate) struct Avx2(());

impl InstructionSet for Avx2 {
    type Vectors = Self;
    type Panel = Weights;

    const FUSED_ROWS: usize = 4;
    const PANEL_ROWS: usize = 6;

    #[inline(always)]
    fn new() -> Self {
        assert!(Isa::Avx2.is_available(), "avx2 was chosen without its instructions");
        Self(())
    }

    #[inline(always)]
    fn vectors(self) -> Self {
        self
    }

    fn run<T: Task<Self>>(self, task: T) -> T::Output {
        #[target_feature(enable = "avx2,fma,f16c")]
        fn compiled<T: Task<Avx2>>(isa: Avx2, task: T) -> T::Output {
            task.run(isa)
        }
        // SAFETY: the processor has the instructions, as `new` found.
        unsafe { compiled(self, task) }
    }
}

impl Vectors for Avx2 {
    const LANES: usize = 8;
    const REGISTERS: usize = 16;
    const PANEL_SIDE: usize = 2;

    type Words = __m256i;
    type Floats = __m256;
    type Sums = __m256i;

    #[inline(always)]
    fn prefetch(self, row: &WordRow) {
        prefetch(row);
    }

    #[inline(always)]
    fn sum_of_integers(self, words: __m256i) -> i32 {
        must_cast::<_, [i32; 8]>(words).into_iter().fold(0, i32::wrapping_add)
    }

    #[inline(always)]
    fn largest(self, floats: __m256) -> f32 {
        must_cast::<_, [f32; 8]>(floats).into_iter().fold(0.0, f32::max)
    }

    #[inline(always)]
    fn sum(self, floats: __m256) -> f32 {
        must_cast::<_, [f32; 8]>(floats).into_iter().sum()
    }

    operations! {
        fn scales(self, from: &[f16; STRIP], i: usize) -> __m256 { _mm256_cvtph_ps(must_cast(part::<_, 8>(from, i))) }
        fn zero_points(self, from: &[u8; STRIP], i: usize) -> __m256i {
            _mm256_cvtepu8_epi32(_mm_cvtsi64_si128(i64::from_le_bytes(part(from, i))))
        }
        fn splat_word(self, word: u32) -> __m256i { _mm256_set1_epi32(word.cast_signed()) }
        fn and(self, a: __m256i, b: __m256i) -> __m256i { _mm256_and_si256(a, b) }
        fn or(self, a: __m256i, b: __m256i) -> __m256i { _mm256_or_si256(a, b) }
        fn halves_shifted_right(self, words: __m256i, places: usize) -> __m256i {
            _mm256_srl_epi16(words, _mm_cvtsi32_si128(places as i32))
        }
        fn upper_halves(self, words: __m256i) -> __m256i { _mm256_srli_epi32::<16>(words) }
        fn add_integers(self, a: __m256i, b: __m256i) -> __m256i { _mm256_add_epi32(a, b) }
        fn subtract_integers(self, a: __m256i, b: __m256i) -> __m256i { _mm256_sub_epi32(a, b) }
        fn store_halves(self, integers: __m256i, to: &mut [u32], i: usize) {
            let halves = _mm_packs_epi32(_mm256_castsi256_si128(integers), _mm256_extracti128_si256::<1>(integers));
            put::<_, 4>(must_cast(halves), to, i)
        }
        fn dot(self, sums: __m256i, w: __m256i, x: __m256i) -> __m256i {
            _mm256_add_epi32(sums, _mm256_madd_epi16(w, x))
        }
        fn totals(self, sums: __m256i) -> __m256 { _mm256_cvtepi32_ps(sums) }
        fn splat(self, number: f32) -> __m256 { _mm256_set1_ps(number) }
        fn to_floats(self, integers: __m256i) -> __m256 { _mm256_cvtepi32_ps(integers) }
        fn to_integers(self, floats: __m256) -> __m256i { _mm256_cvtps_epi32(floats) }
        fn add(self, a: __m256, b: __m256) -> __m256 { _mm256_add_ps(a, b) }
        fn multiply(self, a: __m256, b: __m256) -> __m256 { _mm256_mul_ps(a, b) }
        fn multiply_add(self, a: __m256, b: __m256, c: __m256) -> __m256 { _mm256_fmadd_ps(a, b, c) }
        fn subtract_product(self, a: __m256, b: __m256, c: __m256) -> __m256 { _mm256_fnmadd_ps(a, b, c) }
        fn larger_size(self, largest: __m256, x: __m256) -> __m256 {
            _mm256_max_ps(largest, _mm256_andnot_ps(_mm256_set1_ps(-0.0), x))
        }
    }
}

impl Widen<f16> for Avx2 {
    operations! {
        fn widen(self, from: &[f16], i: usize) -> __m256 { _mm256_cvtph_ps(must_cast(part::<_, 8>(from, i))) }
    }
}

impl Widen<bf16> for Avx2 {
    operations! {
        fn widen(self, from: &[bf16], i: usize) -> __m256 {
            must_cast(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(must_cast(part::<_, 8>(from, i)))))
        }
    }
}
