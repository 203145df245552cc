//! AVX-512 with products of 16-bit integers in one instruction (VNNI), for a few rows, and of bf16 pairs or 8-bit integers (VNNI), for many.

use std::arch::asm;
use std::arch::x86_64::*;

use bytemuck::must_cast;
use half::f16;
use oq_isa::Isa;

use super::avx512::Avx512;
use crate::layout::{STRIP, WordRow};
use crate::macros::operations;
use crate::vectors::{Bytes, InstructionSet, Panel, Task, Vectors, put};

/// Made where the processor has the instructions.
#[derive(Clone, Copy)]
pub(crate) struct Avx512Bf16(Avx512);

impl InstructionSet for Avx512Bf16 {
    type Vectors = Avx512;
    type Panel = Pairs;

    const FUSED_ROWS: usize = 8;
    const PANEL_ROWS: usize = 12;

    #[inline(always)]
    fn new() -> Self {
        assert!(Isa::Avx512Bf16.is_available(), "avx512-bf16 was chosen without its instructions");
        Self(Avx512::new())
    }

    #[inline(always)]
    fn vectors(self) -> Avx512 {
        self.0
    }

    fn run<T: Task<Self>>(self, task: T) -> T::Output {
        #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx512bf16")]
        fn compiled<T: Task<Avx512Bf16>>(isa: Avx512Bf16, task: T) -> T::Output {
            task.run(isa)
        }
        // SAFETY: the processor has the instructions, as `new` found.
        unsafe { compiled(self, task) }
    }

    operations! {
        fn dot(self, sums: __m512i, w: __m512i, x: __m512i) -> __m512i { dot_integers(sums, w, x) }
    }
}

/// [`Vectors::dot`] in one instruction.
///
/// The compiler takes the intrinsic (`_mm512_dpwssd_epi32`) apart into a product and a sum wherever one sum waits for another,
/// to shorten that wait; here there are sums enough to fill it, and two instructions for one cost a third of the speed.
#[target_feature(enable = "avx512f,avx512vnni")]
#[inline]
fn dot_integers(mut sums: __m512i, w: __m512i, x: __m512i) -> __m512i {
    // SAFETY: the instruction touches nothing but its operands, and the functions that this is inlined to require it.
    unsafe {
        asm!(
            "vpdpwssd {sums}, {w}, {x}",
            sums = inout(zmm_reg) sums,
            w = in(zmm_reg) w,
            x = in(zmm_reg) x,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    sums
}

/// Operands are `code - zero point`, exact in bf16, two to a word; sums of a segment are scaled in f32.
pub(crate) struct Pairs;

impl Panel<Avx512Bf16> for Pairs {
    const STEP: usize = 2;
    const IS_SCALED: bool = false;
    /// Zero points in both halves of each lane.
    type Grid = __m512i;

    #[inline(always)]
    fn narrow(isa: Avx512Bf16, x: &[f32], words: &mut [u32]) {
        for (x, words) in x.chunks_exact(16).zip(words.chunks_exact_mut(8)) {
            isa.store_pairs(isa.vectors().floats(x, 0), words);
        }
    }

    #[inline(always)]
    fn grid(isa: Avx512Bf16, zero_points: &[u8; STRIP], _: &[f16; STRIP], i: usize) -> __m512i {
        isa.in_both_halves(isa.vectors().zero_points(zero_points, i))
    }

    #[inline(always)]
    fn unpack<const BITS: u32>(isa: Avx512Bf16, pair: __m512i, zeros: __m512i, to: &mut [WordRow], i: usize) {
        let operands = if BITS == 8 { isa.converted(pair, zeros) } else { isa.looked_up(pair, zeros) };
        isa.vectors().store_words(operands, &mut to[0].0, i);
    }

    #[inline(always)]
    fn dot(isa: Avx512Bf16, sum: __m512, x: __m512i, w: __m512i) -> __m512 {
        isa.dot_bf16(sum, x, w)
    }
}

impl Avx512Bf16 {
    operations! {
        fn store_pairs(self, x: __m512, words: &mut [u32]) { put::<_, 8>(narrowed(x), words, 0) }
        fn in_both_halves(self, x: __m512i) -> __m512i { _mm512_or_si512(x, _mm512_slli_epi32::<16>(x)) }
        /// Differences of at most 5 bits and a sign, in bf16.
        fn looked_up(self, pair: __m512i, zeros: __m512i) -> __m512i {
            _mm512_permutexvar_epi16(_mm512_sub_epi16(pair, zeros), must_cast(SIGNED))
        }
        /// Differences of at most 8 bits and a sign, in bf16.
        fn converted(self, pair: __m512i, zeros: __m512i) -> __m512i {
            let integers = _mm512_sub_epi16(pair, zeros);
            let even = _mm512_cvtepi32_ps(_mm512_srai_epi32::<16>(_mm512_slli_epi32::<16>(integers)));
            let odd = _mm512_cvtepi32_ps(_mm512_srai_epi32::<16>(integers));
            // The lower halves are zeros already: the integers are exact in bf16.
            _mm512_or_si512(_mm512_srli_epi32::<16>(_mm512_castps_si512(even)), _mm512_castps_si512(odd))
        }
        fn dot_bf16(self, sum: __m512, x: __m512i, w: __m512i) -> __m512 { dot_pairs(sum, x, w) }
    }
}

impl Bytes for Avx512Bf16 {
    const BYTE_ROWS: usize = 6;

    operations! {
        fn in_all_bytes(self, from: &[u8; STRIP], i: usize) -> __m512i {
            _mm512_mullo_epi32(self.vectors().zero_points(from, i), _mm512_set1_epi32(0x0101_0101))
        }
        fn four(self, [even, odd]: [__m512i; 2], zeros: __m512i) -> __m512i {
            _mm512_sub_epi8(_mm512_or_si512(even, _mm512_slli_epi32::<8>(odd)), zeros)
        }
        fn store_bytes(self, integers: __m512i, to: &mut [u32], i: usize) {
            let bytes = _mm_xor_si128(_mm512_cvtepi32_epi8(integers), _mm_set1_epi8(-128));
            let order = _mm_setr_epi8(0, 2, 1, 3, 4, 6, 5, 7, 8, 10, 9, 11, 12, 14, 13, 15);
            put::<_, 4>(must_cast(_mm_shuffle_epi8(bytes, order)), to, i)
        }
        fn dot_bytes(self, sums: __m512i, x: __m512i, w: __m512i) -> __m512i { _mm512_dpbusd_epi32(sums, x, w) }
        fn add_product(self, sums: __m512i, a: __m512i, b: __m512i) -> __m512i { dot_integers(sums, a, b) }
    }
}

/// bf16 of the numbers -16 to 15, in the order of their lowest 5 bits.
const SIGNED: [u16; 32] = {
    let mut table = [0; 32];
    let mut i = 0;
    while i < 32 {
        let integer = (i as i32) << 27 >> 27;
        table[i] = ((integer as f32).to_bits() >> 16) as u16;
        i += 1;
    }
    table
};

#[target_feature(enable = "avx512f,avx512bf16")]
#[inline]
fn dot_pairs(sum: __m512, x: __m512i, w: __m512i) -> __m512 {
    // SAFETY: both types are 64 bytes of which all bits have a meaning.
    let [x, w] = unsafe { std::mem::transmute::<[__m512i; 2], [__m512bh; 2]>([x, w]) };
    _mm512_dpbf16_ps(sum, w, x)
}

/// To the nearest bf16, of two the even one; two to a word.
#[target_feature(enable = "avx512f,avx512vl,avx512bf16")]
#[inline]
fn narrowed(x: __m512) -> [u32; 8] {
    // SAFETY: both types are 32 bytes of which all bits have a meaning.
    unsafe { std::mem::transmute::<__m256bh, [u32; 8]>(_mm512_cvtneps_pbh(x)) }
}
