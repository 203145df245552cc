//! Heads in the layouts that products read. Two bf16 that are multiplied and summed together make one `u32`, the first in the low
//! half. Rows are padded to [`ROWS`] and channels to [`COLUMNS`] with zeros, so that no product has a tail.

use half::bf16;

/// Rows come in multiples of this.
pub const ROWS: usize = 64;
/// Channels come in multiples of this.
pub const COLUMNS: usize = 16;

/// A head `[t, d]`, padded.
#[derive(Clone, Copy)]
pub struct Padded {
    pub rows: usize,
    pub columns: usize,
}

impl Padded {
    pub fn new(t: usize, d: usize) -> Self {
        Self { rows: t.next_multiple_of(ROWS), columns: d.next_multiple_of(COLUMNS) }
    }
}

pub fn pair(first: bf16, second: bf16) -> u32 {
    u32::from(first.to_bits()) | u32::from(second.to_bits()) << 16
}

/// Pairs along channels, row by row: `x [t, d]` -> `[rows, columns / 2]`.
pub fn rows(x: &[bf16], d: usize, size: Padded) -> Vec<u32> {
    let half = size.columns / 2;
    let mut packed = vec![0; size.rows * half];
    for (packed, row) in packed.chunks_exact_mut(half).zip(x.chunks_exact(d)) {
        let (pairs, rest) = row.as_chunks::<2>();
        for (packed, &[first, second]) in packed.iter_mut().zip(pairs) {
            *packed = pair(first, second);
        }
        if let [last] = rest {
            packed[d / 2] = pair(*last, bf16::ZERO);
        }
    }
    packed
}

/// [`rows`] turned around: `[columns / 2, rows]`.
pub fn columns(x: &[bf16], d: usize, size: Padded) -> Vec<u32> {
    /// Rows that are written side by side: a line of the cache.
    const SIDE: usize = 16;
    let half = size.columns / 2;
    let by_rows = rows(x, d, size);
    let mut packed = vec![0; size.rows * half];
    for (block, source) in by_rows.chunks_exact(SIDE * half).enumerate() {
        for p in 0..half {
            let start = p * size.rows + block * SIDE;
            for (r, packed) in packed[start..start + SIDE].iter_mut().enumerate() {
                *packed = source[r * half + p];
            }
        }
    }
    packed
}

/// Pairs along rows: `x [t, d]` -> `[rows / 2, columns]`.
pub fn row_pairs(x: &[bf16], d: usize, size: Padded) -> Vec<u32> {
    let mut packed = vec![0; size.rows / 2 * size.columns];
    let mut chunks = x.chunks_exact(2 * d);
    let mut lines = packed.chunks_exact_mut(size.columns);
    for (packed, two) in lines.by_ref().zip(chunks.by_ref()) {
        let (first, second) = two.split_at(d);
        for ((packed, &first), &second) in packed.iter_mut().zip(first).zip(second) {
            *packed = pair(first, second);
        }
    }
    // An odd number of rows; its line was not taken, as there were no more chunks.
    let last = &x[x.len() / (2 * d) * 2 * d..];
    let start = x.len() / (2 * d) * size.columns;
    for (packed, &first) in packed[start..].iter_mut().zip(last) {
        *packed = pair(first, bf16::ZERO);
    }
    packed
}
