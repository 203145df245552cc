//! Kernels of x86-64, one file per set of instructions.
//!
//! Each file's entry points look whether the processor has the instructions and then call functions that are compiled for them.
//! Inside, all is safe but loads, stores and casts, which take references to arrays of exactly their size.

#![allow(
    unsafe_code,
    reason = "vector loads and stores take pointers, and functions of an instruction set need a check"
)]
#![allow(clippy::needless_range_loop, reason = "an index runs over registers of several arrays, and loops must unroll")]

use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};

use crate::layout::WordRow;

pub(crate) mod avx2;
pub(crate) mod avx512;
pub(crate) mod avx512_bf16;
pub(crate) mod half;

/// Bytes: two pages. The processor's own prefetching ends at a page.
const PREFETCH: usize = 8192;

/// Asks for the words that lie some way behind `row`, into the second-level cache: from there the processor fetches them by itself, and
/// the first has few places for lines on their way from memory.
#[inline]
fn prefetch(row: &WordRow) {
    let behind = std::ptr::from_ref(row).cast::<i8>().wrapping_add(PREFETCH);
    // SAFETY: a prefetch reads nothing that the program sees, at whatever address.
    unsafe {
        _mm_prefetch::<_MM_HINT_T1>(behind);
        _mm_prefetch::<_MM_HINT_T1>(behind.wrapping_add(64));
    }
}
