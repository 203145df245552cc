//! Codes, scales and zero points of a [`QuantizedTensor`] in the orders that formats want.

use half::f16;
use oq_quant_core::{QuantizedTensor, Stored, pack_row, packed_words};
use rayon::prelude::*;

/// Columns that are transposed together, so that what is read of a row is a line of the cache.
const STRIP: usize = 16;

/// Scales and zero points, `[rows, groups]`.
///
/// # Panics
/// When the tensor stores something else, which the formats that ask for these do not hold.
pub(crate) fn scales_and_zeros(tensor: &QuantizedTensor) -> (&[f16], &[u8]) {
    match tensor.stored() {
        Stored::Half { scales, zero_points } => (scales, zero_points),
        other => panic!("f16 scales and zero points: {other:?} has none"),
    }
}

/// `values` `[rows, cols]` as `[cols, rows]`.
pub(crate) fn transposed<T: Copy + Default + Send + Sync>(values: &[T], cols: usize) -> Vec<T> {
    let rows = values.len() / cols;
    let mut out = vec![T::default(); values.len()];
    out.par_chunks_mut(rows * STRIP).enumerate().for_each(|(strip, out)| {
        for (row, values) in values.chunks(cols).enumerate() {
            let values = values[strip * STRIP..].iter().take(STRIP);
            for (out, value) in out[row..].iter_mut().step_by(rows).zip(values) {
                *out = *value;
            }
        }
    });
    out
}

/// Zero points `[rows, groups]`, each changed by `change`, as bit streams along the rows: `[groups, rows * bits / 32]`.
pub(crate) fn zero_stream(tensor: &QuantizedTensor, change: fn(u8) -> u8) -> Vec<u32> {
    let [rows, _] = tensor.shape();
    let bits = tensor.spec().bits;
    let zeros: Vec<u8> = transposed(scales_and_zeros(tensor).1, tensor.groups()).into_iter().map(change).collect();
    let mut words = vec![0; packed_words(rows, bits) * tensor.groups()];
    for (zeros, words) in zeros.chunks(rows).zip(words.chunks_mut(packed_words(rows, bits))) {
        pack_row(zeros, bits, words).expect("zero points of a quantized tensor are codes");
    }
    words
}

/// Eight rows side by side, four bits each in one word: `[rows / 8, cols]`, the row at `order[i]` of each eight in nibble `i`.
pub(crate) fn nibbles_of_rows(tensor: &QuantizedTensor, order: [usize; 8]) -> Vec<u32> {
    let [rows, cols] = tensor.shape();
    let mut words = vec![0; rows / 8 * cols];
    words.par_chunks_mut(cols).enumerate().for_each_init(
        || vec![0u8; cols],
        |codes, (eight, words)| {
            for (nibble, row) in order.into_iter().enumerate() {
                tensor.row_codes(8 * eight + row, codes);
                for (word, code) in words.iter_mut().zip(&*codes) {
                    *word |= u32::from(*code) << (4 * nibble);
                }
            }
        },
    );
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_of_a_matrix_changes_its_place() {
        // Fewer and more columns than a strip.
        for (rows, cols) in [(1, 1), (3, 5), (2, 16), (7, 35), (40, 16)] {
            let values: Vec<u32> = (0..rows * cols).collect();
            let flipped = transposed(&values, cols as usize);
            let at = |row: u32, col: u32| flipped[(col * rows + row) as usize];
            assert!((0..rows).all(|row| (0..cols).all(|col| at(row, col) == row * cols + col)), "{rows} x {cols}");
        }
    }
}
