//! NEON: vectors of 128 bits.

use std::arch::aarch64::*;

use bytemuck::must_cast;
use half::f16;
use oq_isa::Isa;

use crate::layout::{STRIP, WordRow};
use crate::macros::operations;
use crate::panel::Weights;
use crate::vectors::{InstructionSet, Task, Vectors, part, put};

/// Made where the processor has the instructions.
#[derive(Clone, Copy)]
pub(crate) struct Neon(());

impl InstructionSet for Neon {
    type Vectors = Self;
    type Panel = Weights;

    const FUSED_ROWS: usize = 4;
    const PANEL_ROWS: usize = 6;

    #[inline(always)]
    fn new() -> Self {
        assert!(Isa::Neon.is_available(), "neon was chosen without its instructions");
        Self(())
    }

    #[inline(always)]
    fn vectors(self) -> Self {
        self
    }

    fn run<T: Task<Self>>(self, task: T) -> T::Output {
        #[target_feature(enable = "neon")]
        fn compiled<T: Task<Neon>>(isa: Neon, task: T) -> T::Output {
            task.run(isa)
        }
        // SAFETY: the processor has the instructions, as `new` found.
        unsafe { compiled(self, task) }
    }
}

impl Vectors for Neon {
    const LANES: usize = 4;
    const REGISTERS: usize = 32;
    const PANEL_SIDE: usize = 4;

    type Words = uint32x4_t;
    type Floats = float32x4_t;
    /// A product that widens takes half of a vector: of two columns, and of the other two, even and odd channels are summed side by side.
    type Sums = [int32x4_t; 2];

    #[inline(always)]
    fn prefetch(self, _: &WordRow) {}

    operations! {
        /// Scales are finite. With its sign moved to the front an f16 number is an f32 number whose exponent is 112 too small.
        fn scales(self, from: &[f16; STRIP], i: usize) -> float32x4_t {
            const UNIT: f32 = f32::from_bits((127 + 112) << 23);
            const SIGN_AND_NUMBER: u32 = (1 << 31) | (0x7fff << 13);
            let widened = vshll_n_s16::<13>(must_cast(part::<_, 4>(from, i))); // copies of the sign in front
            let halves = vandq_u32(vreinterpretq_u32_s32(widened), vdupq_n_u32(SIGN_AND_NUMBER));
            vmulq_n_f32(vreinterpretq_f32_u32(halves), UNIT)
        }
        fn zero_points(self, from: &[u8; STRIP], i: usize) -> uint32x4_t {
            let bytes = vreinterpret_u8_u32(vdup_n_u32(u32::from_le_bytes(part(from, i))));
            vmovl_u16(vget_low_u16(vmovl_u8(bytes)))
        }
        fn splat_word(self, word: u32) -> uint32x4_t { vdupq_n_u32(word) }
        fn and(self, a: uint32x4_t, b: uint32x4_t) -> uint32x4_t { vandq_u32(a, b) }
        fn or(self, a: uint32x4_t, b: uint32x4_t) -> uint32x4_t { vorrq_u32(a, b) }
        fn halves_shifted_right(self, words: uint32x4_t, places: usize) -> uint32x4_t {
            vreinterpretq_u32_u16(vshlq_u16(vreinterpretq_u16_u32(words), vdupq_n_s16(-(places as i16))))
        }
        fn upper_halves(self, words: uint32x4_t) -> uint32x4_t { vshrq_n_u32::<16>(words) }
        fn add_integers(self, a: uint32x4_t, b: uint32x4_t) -> uint32x4_t { vaddq_u32(a, b) }
        fn subtract_integers(self, a: uint32x4_t, b: uint32x4_t) -> uint32x4_t { vsubq_u32(a, b) }
        fn sum_of_integers(self, words: uint32x4_t) -> i32 { vaddvq_s32(vreinterpretq_s32_u32(words)) }
        fn store_halves(self, integers: uint32x4_t, to: &mut [u32], i: usize) {
            put::<_, 2>(must_cast(vqmovn_s32(vreinterpretq_s32_u32(integers))), to, i)
        }
        fn dot(self, sums: Self::Sums, w: uint32x4_t, x: uint32x4_t) -> Self::Sums {
            let (w, x) = (vreinterpretq_s16_u32(w), vreinterpretq_s16_u32(x));
            [vmlal_s16(sums[0], vget_low_s16(w), vget_low_s16(x)), vmlal_high_s16(sums[1], w, x)]
        }
        fn totals(self, sums: Self::Sums) -> float32x4_t { vcvtq_f32_s32(vpaddq_s32(sums[0], sums[1])) }
        fn splat(self, number: f32) -> float32x4_t { vdupq_n_f32(number) }
        fn to_floats(self, integers: uint32x4_t) -> float32x4_t { vcvtq_f32_s32(vreinterpretq_s32_u32(integers)) }
        fn to_integers(self, floats: float32x4_t) -> uint32x4_t { vreinterpretq_u32_s32(vcvtnq_s32_f32(floats)) }
        fn add(self, a: float32x4_t, b: float32x4_t) -> float32x4_t { vaddq_f32(a, b) }
        fn multiply(self, a: float32x4_t, b: float32x4_t) -> float32x4_t { vmulq_f32(a, b) }
        fn multiply_add(self, a: float32x4_t, b: float32x4_t, c: float32x4_t) -> float32x4_t { vfmaq_f32(c, a, b) }
        fn subtract_product(self, a: float32x4_t, b: float32x4_t, c: float32x4_t) -> float32x4_t { vfmsq_f32(c, a, b) }
        fn larger_size(self, largest: float32x4_t, x: float32x4_t) -> float32x4_t { vmaxq_f32(largest, vabsq_f32(x)) }
        fn largest(self, floats: float32x4_t) -> f32 { vmaxvq_f32(floats) }
        fn sum(self, floats: float32x4_t) -> f32 { vaddvq_f32(floats) }
    }
}
