//! Words that are asked for before they are read.

use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};

use crate::layout::WordRow;

/// Bytes: two pages. The processor's own prefetching ends at a page.
const PREFETCH: usize = 8192;

/// Asks for the words that lie some way behind `row`, into the second-level cache: from there the processor fetches them by itself, and
/// the first has few places for lines on their way from memory.
#[inline(always)]
pub(super) fn prefetch(row: &WordRow) {
    let behind = std::ptr::from_ref(row).cast::<i8>().wrapping_add(PREFETCH);
    // SAFETY: a prefetch reads nothing that the program sees, at whatever address.
    unsafe {
        _mm_prefetch::<_MM_HINT_T1>(behind);
        _mm_prefetch::<_MM_HINT_T1>(behind.wrapping_add(64));
    }
}
