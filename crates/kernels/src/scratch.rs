//! Buffers that a thread keeps between calls.

use std::cell::RefCell;

use crate::fused::Sums;
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
    static KEPT: RefCell<Vec<Scratch>> = const { RefCell::new(Vec::new()) };
}

/// Runs `f` on buffers of this thread. A call has some, and a task of it that runs on the same thread has others.
pub(crate) fn with<R>(f: impl FnOnce(&mut Scratch) -> R) -> R {
    let mut scratch = KEPT.with_borrow_mut(Vec::pop).unwrap_or_default();
    let result = f(&mut scratch);
    KEPT.with_borrow_mut(|kept| kept.push(scratch));
    result
}

/// The first `len` of a buffer, which grows if need be; what they hold is left over from before.
pub(crate) fn sized<T: Clone>(buffer: &mut Vec<T>, len: usize, fill: T) -> &mut [T] {
    if buffer.len() < len {
        buffer.resize(len, fill);
    }
    &mut buffer[..len]
}
