//! AVX-512: vectors of 512 bits.

use std::arch::x86_64::*;

use bytemuck::must_cast;
use half::f16;
use oq_isa::Isa;

use super::prefetch::prefetch;
use crate::layout::{STRIP, WordRow};
use crate::macros::operations;
use crate::panel::Weights;
use crate::vectors::{InstructionSet, Task, Vectors, part, put};

/// Made where the processor has the instructions.
#[derive(Clone, Copy)]
pub(crate) struct Avx512(());

impl InstructionSet for Avx512 {
    type Vectors = Self;
    type Panel = Weights;

    const FUSED_ROWS: usize = 8;
    const PANEL_ROWS: usize = 12;

    #[inline(always)]
    fn new() -> Self {
        assert!(Isa::Avx512.is_available(), "avx512 was chosen without its instructions");
        Self(())
    }

    #[inline(always)]
    fn vectors(self) -> Self {
        self
    }

    fn run<T: Task<Self>>(self, task: T) -> T::Output {
        #[target_feature(enable = "avx512f,avx512bw")]
        fn compiled<T: Task<Avx512>>(isa: Avx512, task: T) -> T::Output {
            task.run(isa)
        }
        // SAFETY: the processor has the instructions, as `new` found.
        unsafe { compiled(self, task) }
    }
}

impl Vectors for Avx512 {
    const LANES: usize = 16;
    const REGISTERS: usize = 32;
    const PANEL_SIDE: usize = 2;

    type Words = __m512i;
    type Floats = __m512;
    type Sums = __m512i;

    #[inline(always)]
    fn prefetch(self, row: &WordRow) {
        prefetch(row);
    }

    operations! {
        fn scales(self, from: &[f16; STRIP], i: usize) -> __m512 { _mm512_cvtph_ps(must_cast(part::<_, 16>(from, i))) }
        fn zero_points(self, from: &[u8; STRIP], i: usize) -> __m512i {
            _mm512_cvtepu8_epi32(must_cast(part::<_, 16>(from, i)))
        }
        fn splat_word(self, word: u32) -> __m512i { _mm512_set1_epi32(word.cast_signed()) }
        fn and(self, a: __m512i, b: __m512i) -> __m512i { _mm512_and_si512(a, b) }
        fn or(self, a: __m512i, b: __m512i) -> __m512i { _mm512_or_si512(a, b) }
        fn halves_shifted_right(self, words: __m512i, places: usize) -> __m512i {
            _mm512_srl_epi16(words, _mm_cvtsi32_si128(places as i32))
        }
        fn upper_halves(self, words: __m512i) -> __m512i { _mm512_srli_epi32::<16>(words) }
        fn add_integers(self, a: __m512i, b: __m512i) -> __m512i { _mm512_add_epi32(a, b) }
        fn subtract_integers(self, a: __m512i, b: __m512i) -> __m512i { _mm512_sub_epi32(a, b) }
        fn sum_of_integers(self, words: __m512i) -> i32 { _mm512_reduce_add_epi32(words) }
        fn store_halves(self, integers: __m512i, to: &mut [u32], i: usize) {
            put::<_, 8>(must_cast(_mm512_cvtsepi32_epi16(integers)), to, i)
        }
        fn dot(self, sums: __m512i, w: __m512i, x: __m512i) -> __m512i {
            _mm512_add_epi32(sums, _mm512_madd_epi16(w, x))
        }
        fn totals(self, sums: __m512i) -> __m512 { _mm512_cvtepi32_ps(sums) }
        fn splat(self, number: f32) -> __m512 { _mm512_set1_ps(number) }
        fn to_floats(self, integers: __m512i) -> __m512 { _mm512_cvtepi32_ps(integers) }
        fn to_integers(self, floats: __m512) -> __m512i { _mm512_cvtps_epi32(floats) }
        fn add(self, a: __m512, b: __m512) -> __m512 { _mm512_add_ps(a, b) }
        fn multiply(self, a: __m512, b: __m512) -> __m512 { _mm512_mul_ps(a, b) }
        fn multiply_add(self, a: __m512, b: __m512, c: __m512) -> __m512 { _mm512_fmadd_ps(a, b, c) }
        fn subtract_product(self, a: __m512, b: __m512, c: __m512) -> __m512 { _mm512_fnmadd_ps(a, b, c) }
        fn larger_size(self, largest: __m512, x: __m512) -> __m512 { _mm512_max_ps(largest, _mm512_abs_ps(x)) }
        fn largest(self, floats: __m512) -> f32 { _mm512_reduce_max_ps(floats) }
        fn sum(self, floats: __m512) -> f32 { _mm512_reduce_add_ps(floats) }
    }
}
