//! What an instruction set brings: operations of its vectors, and a way into functions that are compiled for it. The loops over them
//! are written once, in [`crate::fused`], [`crate::panel`] and [`crate::dot`].
//!
//! A value of an instruction set is the proof that the processor has it: it is made by a check, and operations are methods of it.
//! Loops are inlined into [`InstructionSet::run`], without which their vectors would be taken apart.

use bytemuck::{Pod, Zeroable, bytes_of, cast, cast_slice, cast_slice_mut, pod_read_unaligned};
use half::f16;

use crate::layout::{STRIP, WordRow};
use crate::places::{place, sum_and_shift};

/// Vectors of 32-bit lanes, each a column of a strip. `i` counts vectors from the start of what is read or written.
pub(crate) trait Vectors: Copy {
    /// Lanes of a vector: 32 are a multiple of twice as many.
    const LANES: usize;
    /// Registers of the processor.
    const REGISTERS: usize;
    /// Vectors that the panel path multiplies side by side.
    const PANEL_SIDE: usize;

    /// Words, pairs of 16-bit numbers or integers.
    type Words: Pod;
    /// f32 numbers.
    type Floats: Pod;
    /// Sums of products of 16-bit integers, in one or more registers.
    type Sums: Copy + Zeroable;

    #[inline(always)]
    fn words(self, from: &[u32], i: usize) -> Self::Words {
        pod_read_unaligned(cast_slice(&from[i * Self::LANES..][..Self::LANES]))
    }

    #[inline(always)]
    fn store_words(self, words: Self::Words, to: &mut [u32], i: usize) {
        cast_slice_mut(&mut to[i * Self::LANES..][..Self::LANES]).copy_from_slice(bytes_of(&words));
    }

    #[inline(always)]
    fn floats(self, from: &[f32], i: usize) -> Self::Floats {
        pod_read_unaligned(cast_slice(&from[i * Self::LANES..][..Self::LANES]))
    }

    #[inline(always)]
    fn store_floats(self, floats: Self::Floats, to: &mut [f32], i: usize) {
        cast_slice_mut(&mut to[i * Self::LANES..][..Self::LANES]).copy_from_slice(bytes_of(&floats));
    }

    #[inline(always)]
    fn as_floats(self, words: Self::Words) -> Self::Floats {
        cast(words)
    }

    #[inline(always)]
    fn as_words(self, floats: Self::Floats) -> Self::Words {
        cast(floats)
    }

    #[inline(always)]
    fn no_sums(self) -> Self::Sums {
        Zeroable::zeroed()
    }

    fn scales(self, from: &[f16; STRIP], i: usize) -> Self::Floats;
    /// One in each lane.
    fn zero_points(self, from: &[u8; STRIP], i: usize) -> Self::Words;
    /// Asks for words that lie some way behind `row`.
    fn prefetch(self, row: &WordRow);

    fn splat_word(self, word: u32) -> Self::Words;
    fn and(self, a: Self::Words, b: Self::Words) -> Self::Words;
    fn or(self, a: Self::Words, b: Self::Words) -> Self::Words;
    /// Both halves of each lane.
    fn halves_shifted_right(self, words: Self::Words, places: usize) -> Self::Words;
    /// The upper half of each lane.
    fn upper_halves(self, words: Self::Words) -> Self::Words;
    fn add_integers(self, a: Self::Words, b: Self::Words) -> Self::Words;
    fn subtract_integers(self, a: Self::Words, b: Self::Words) -> Self::Words;
    fn sum_of_integers(self, words: Self::Words) -> i32;
    /// Integers as 16-bit ones, two to a word. The largest stands for what is larger.
    fn store_halves(self, integers: Self::Words, to: &mut [u32], i: usize);

    /// Adds the products of pairs of 16-bit integers to sums of 32 bits.
    fn dot(self, sums: Self::Sums, w: Self::Words, x: Self::Words) -> Self::Sums;
    fn totals(self, sums: Self::Sums) -> Self::Floats;

    fn splat(self, number: f32) -> Self::Floats;
    /// Of integers.
    fn to_floats(self, integers: Self::Words) -> Self::Floats;
    /// The nearest; of two the even ones.
    fn to_integers(self, floats: Self::Floats) -> Self::Words;
    fn add(self, a: Self::Floats, b: Self::Floats) -> Self::Floats;
    fn multiply(self, a: Self::Floats, b: Self::Floats) -> Self::Floats;
    /// `a b + c`, rounded once.
    fn multiply_add(self, a: Self::Floats, b: Self::Floats, c: Self::Floats) -> Self::Floats;
    /// `c - a b`, rounded once.
    fn subtract_product(self, a: Self::Floats, b: Self::Floats, c: Self::Floats) -> Self::Floats;
    /// The larger of `largest` and `|x|`.
    fn larger_size(self, largest: Self::Floats, x: Self::Floats) -> Self::Floats;
    fn largest(self, floats: Self::Floats) -> f32;
    /// Lane by lane, in their order where it matters.
    fn sum(self, floats: Self::Floats) -> f32;
}

/// The [`Vectors::Words`] of an instruction set.
pub(crate) type Words<I> = <<I as InstructionSet>::Vectors as Vectors>::Words;
/// Its [`Vectors::Floats`].
pub(crate) type Floats<I> = <<I as InstructionSet>::Vectors as Vectors>::Floats;
/// Its [`Vectors::Sums`].
pub(crate) type Sums<I> = <<I as InstructionSet>::Vectors as Vectors>::Sums;

/// An instruction set: vectors, and what it does with them in a way of its own.
pub(crate) trait InstructionSet: Copy {
    type Vectors: Vectors;
    /// What the panel path multiplies.
    type Panel: Panel<Self>;

    /// Most rows that the fused path multiplies at a time.
    const FUSED_ROWS: usize;
    /// Most rows that the panel path multiplies at a time.
    const PANEL_ROWS: usize;

    /// # Panics
    /// Where the processor lacks it.
    fn new() -> Self;
    fn vectors(self) -> Self::Vectors;
    /// Runs a task in a function that is compiled for these instructions.
    fn run<T: Task<Self>>(self, task: T) -> T::Output;

    /// [`Vectors::dot`], in fewer instructions where there are some for it.
    #[inline(always)]
    fn dot(self, sums: Sums<Self>, w: Words<Self>, x: Words<Self>) -> Sums<Self> {
        self.vectors().dot(sums, w, x)
    }
}

/// A loop over the vectors of an instruction set. All of it has to be `#[inline(always)]`, closures left out.
pub(crate) trait Task<I> {
    type Output;
    fn run(self, isa: I) -> Self::Output;
}

/// Operands of the panel path: 32-bit words of one f32 number or of a pair of 16-bit ones.
pub(crate) trait Panel<I: InstructionSet> {
    /// Channels of a word.
    const STEP: usize;
    /// Whether unpacked operands are weights; else they are codes less zero points, and the sums of each segment are scaled.
    const IS_SCALED: bool;
    /// What codes of a group meet when they are unpacked.
    type Grid: Copy;

    /// Activations to words.
    fn narrow(isa: I, x: &[f32], words: &mut [u32]);
    fn grid(isa: I, zero_points: &[u8; STRIP], scales: &[f16; STRIP], i: usize) -> Self::Grid;
    /// A pair of codes in the lowest bits of both halves, to rows of operands `[2 / STEP]`.
    fn unpack<const BITS: u32>(isa: I, pair: Words<I>, grid: Self::Grid, to: &mut [WordRow], i: usize);
    fn dot(isa: I, sum: Floats<I>, x: Words<I>, w: Words<I>) -> Floats<I>;
}

/// What the panel path in 8 bits takes.
pub(crate) trait Bytes: InstructionSet {
    /// Most rows that it multiplies at a time.
    const BYTE_ROWS: usize;

    /// Each number in all bytes of its lane.
    fn in_all_bytes(self, from: &[u8; STRIP], i: usize) -> Words<Self>;
    /// Two pairs in the lowest bits of halves, less zero points, to bytes.
    fn four(self, pairs: [Words<Self>; 2], zeros: Words<Self>) -> Words<Self>;
    /// Integers of 8 bits, plus 128, as bytes in the order of [`Self::four`].
    fn store_bytes(self, integers: Words<Self>, to: &mut [u32], i: usize);
    /// Adds the products of the four bytes without a sign of `x` and those with one of `w`.
    fn dot_bytes(self, sums: Words<Self>, x: Words<Self>, w: Words<Self>) -> Words<Self>;
    /// Adds the products of 16-bit integers; the upper halves of `b` are 0.
    fn add_product(self, sums: Words<Self>, a: Words<Self>, b: Words<Self>) -> Words<Self>;
}

/// Codes of pair `J` of a block, at the place of their sum or, if not `in_place`, in the lowest bits of both halves.
#[inline(always)]
pub(crate) fn codes<V: Vectors, const BITS: u32, const J: usize>(
    v: V,
    words: &[V::Words; 3],
    in_place: bool,
) -> V::Words {
    let (sum, shift) = sum_and_shift(BITS, J, in_place);
    if BITS == 3 && J == 15 {
        // Bit 15 of the three words, to places 4, 5 and 6, by way of the shift that other pairs need too.
        let low = v.halves_shifted_right(v.halves_shifted_right(words[0], 9), 2);
        let middle = v.halves_shifted_right(v.halves_shifted_right(words[1], 9), 1);
        let high = v.and(v.halves_shifted_right(words[2], 9), in_both(v, 0x40));
        let upper = v.or(high, v.and(middle, in_both(v, 0x20)));
        return v.halves_shifted_right(v.or(upper, v.and(low, in_both(v, 0x10))), shift);
    }
    let word = if BITS == 3 { words[J / 5] } else { words[0] };
    let mask = ((1 << BITS) - 1) << if in_place { place(BITS, sum) } else { 0 };
    v.and(v.halves_shifted_right(word, shift), in_both(v, mask))
}

/// A number in both halves of each lane.
#[inline(always)]
fn in_both<V: Vectors>(v: V, half: u32) -> V::Words {
    v.splat_word(half << 16 | half)
}

/// Vector `i` of `N` numbers.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
#[inline(always)]
pub(crate) fn part<T: Copy, const N: usize>(from: &[T], i: usize) -> [T; N] {
    from[N * i..][..N].try_into().expect("as many are taken")
}

/// Writes vector `i` of `N` numbers.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
#[inline(always)]
pub(crate) fn put<T: Copy, const N: usize>(part: [T; N], to: &mut [T], i: usize) {
    to[N * i..][..N].copy_from_slice(&part);
}
