//! Kernels of x86-64, one file per set of instructions.
//!
//! Each file's entry points look whether the processor has the instructions and then call functions that are compiled for them.
//! Inside, all is safe but loads, stores and casts, which take references to arrays of exactly their size.

#![allow(
    unsafe_code,
    reason = "vector loads and stores take pointers, and functions of an instruction set need a check"
)]
#![allow(clippy::needless_range_loop, reason = "an index runs over registers of several arrays, and loops must unroll")]

use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};

use crate::layout::{Width, WordRow};

pub(crate) mod avx2;
pub(crate) mod avx512;
pub(crate) mod avx512_bf16;

/// Repeats `body` with the constant `$j` taking each value: shifts take constants.
macro_rules! for_each {
    ($j:ident in [$($value:literal)*] $body:block) => {
        $({
            const $j: usize = $value;
            $body
        })*
    };
}
pub(crate) use for_each;

/// Calls `$function::<R>` for `R = $rows`, one of the listed.
macro_rules! for_rows {
    ($rows:expr, [$($value:literal)*], $function:ident $arguments:tt) => {
        match $rows {
            $($value => $function::<$value> $arguments,)*
            rows => unreachable!("{rows} rows of a block"),
        }
    };
}
pub(crate) use for_rows;

/// Calls `$function::<BITS>` for a width, or `$function::<BITS, R>` for a width and a number of rows.
macro_rules! for_width {
    ($width:expr, $function:ident $arguments:tt) => {
        match $width {
            Width::W2 => $function::<2> $arguments,
            Width::W3 => $function::<3> $arguments,
            Width::W4 => $function::<4> $arguments,
            Width::W8 => $function::<8> $arguments,
        }
    };
    ($width:expr, $rows:expr, [$($value:literal)*], $function:ident $arguments:tt) => {
        match ($width, $rows) {
            $((Width::W2, $value) => $function::<2, $value> $arguments,)*
            $((Width::W3, $value) => $function::<3, $value> $arguments,)*
            $((Width::W4, $value) => $function::<4, $value> $arguments,)*
            $((Width::W8, $value) => $function::<8, $value> $arguments,)*
            (_, rows) => unreachable!("{rows} rows on the fused path"),
        }
    };
}
pub(crate) use for_width;

/// The width whose codes have `bits`.
const fn width(bits: u32) -> Width {
    match bits {
        2 => Width::W2,
        3 => Width::W3,
        4 => Width::W4,
        _ => Width::W8,
    }
}

/// Where the codes of pair `j` are multiplied: the sum they go to, and how many bits a word is shifted to the right before.
const fn sum_and_shift(bits: u32, j: usize, in_place: bool) -> (usize, usize) {
    // Places 0, 3 and 6 at 3 bits, below 8 at others, before and after one shift. The last pair is put together at place 4.
    let (sum, shift) = match bits {
        2 => (j % 4, j / 4 * 8),
        3 if j == 15 => (3, 0),
        3 => (j % 5 % 3, j % 5 / 3 * 9),
        4 => (j % 2, j / 2 * 8),
        _ => (j % 2, j * 8),
    };
    if in_place { (sum, shift) } else { (0, shift + place(bits, sum)) }
}

/// Lowest bit of the codes that go to a sum.
const fn place(bits: u32, sum: usize) -> usize {
    match bits {
        2 => 2 * sum,
        3 => [0, 3, 6, 4][sum],
        4 => 4 * sum,
        _ => 0,
    }
}

/// Sums of one vector of columns. There are two vectors, and half of the `registers` hold words, codes, masks and activations.
const fn sums_of(bits: u32, rows: usize, registers: usize) -> usize {
    let sums = match bits {
        2 | 3 => 4,
        _ => 2,
    };
    if 2 * sums * rows <= registers / 2 { sums } else { 1 }
}

/// Bytes: a page, where the processor's own prefetching ends.
const PREFETCH: usize = 4096;

/// Asks for the words that lie some way behind `row`.
#[inline]
fn prefetch(row: &WordRow) {
    let behind = std::ptr::from_ref(row).cast::<i8>().wrapping_add(PREFETCH);
    // SAFETY: a prefetch reads nothing that the program sees, at whatever address.
    unsafe {
        _mm_prefetch::<_MM_HINT_T0>(behind);
        _mm_prefetch::<_MM_HINT_T0>(behind.wrapping_add(64));
    }
}
