//! Buffers that a thread keeps between calls.

use std::cell::Cell;

use crate::kernel::Sums;
use crate::layout::{Tile, WordRow};

/// Buffers of one call, and of one task of a call. They only grow.
#[derive(Default)]
pub(crate) struct Scratch {
    /// Padded rows of activations.
    pub(crate) rows: Vec<f32>,
    /// Rows of operand words.
    pub(crate) words: Vec<u32>,
    /// Arranged operand words.
    pub(crate) x: Vec<u32>,
    /// Sums of one row, and of all rows, on the fused path.
    pub(crate) sums: [Vec<Sums>; 2],
    /// Results by strip.
    pub(crate) tiles: Vec<Tile>,
    /// Unpacked operands.
    pub(crate) panel: Vec<WordRow>,
}

thread_local! {
    static KEPT: Cell<Option<Box<Scratch>>> = const { Cell::new(None) };
}

/// Runs `f` on this thread's buffers. A call inside another, as work stealing may bring about, gets buffers of its own.
pub(crate) fn with<R>(f: impl FnOnce(&mut Scratch) -> R) -> R {
    let mut scratch = KEPT.take().unwrap_or_default();
    let result = f(&mut scratch);
    KEPT.set(Some(scratch));
    result
}

/// The first `len` of a buffer, which grows if need be; what they hold is left over from before.
pub(crate) fn sized<T: Clone>(buffer: &mut Vec<T>, len: usize, fill: T) -> &mut [T] {
    if buffer.len() < len {
        buffer.resize(len, fill);
    }
    &mut buffer[..len]
}
