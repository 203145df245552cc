//! AWQ's layout for matrix products (`version: gemm`).

use oq_quant_core::{Bits, pack_row, packed_words};
use rayon::prelude::*;

use super::matrix::{Groups, Integers, Matrix};
use super::parts::{Parts, transposed};
use crate::error::PackedFault;

const QWEIGHT: &str = "qweight";
const QZEROS: &str = "qzeros";
const SCALES: &str = "scales";
/// Codes of a word.
const IN_WORD: usize = 8;
/// Which of a word's columns each of its nibbles holds, the lowest first.
const ORDER: [usize; IN_WORD] = [0, 2, 4, 6, 1, 3, 5, 7];

/// `[out, in]`.
pub(crate) fn shape(parts: Parts<'_>) -> Result<[usize; 2], PackedFault> {
    let [cols, words] = parts.matrix(QWEIGHT)?;
    Ok([words * IN_WORD, cols])
}

/// Reads a linear of groups of `group` channels; none for one group per output channel.
pub(crate) fn read(parts: Parts<'_>, group: Option<usize>) -> Result<Matrix, PackedFault> {
    let [rows, cols] = shape(parts)?;
    let bits = Bits::new(4).expect("4 is a width");
    let run = group.unwrap_or(cols);
    let n_groups = cols.div_ceil(run);
    let scales = transposed(&parts.floats(SCALES, &[n_groups, rows])?, rows);
    let stored = parts.words(QZEROS, &[n_groups, rows / IN_WORD])?;
    let zeros = by_rows(&stored, n_groups).into_iter().map(i32::from).collect();
    let codes = by_rows(&parts.words(QWEIGHT, &[cols, rows / IN_WORD])?, cols);
    let row_words = packed_words(cols, bits);
    let mut words = vec![0; rows * row_words];
    words.par_chunks_mut(row_words).zip(codes.par_chunks(cols)).for_each(|(words, codes)| {
        pack_row(codes, bits, words).expect("nibbles are codes of 4 bits");
    });
    Integers { bits, shape: [rows, cols], words, scales, zeros }.matrix(Groups::Runs(run))
}

/// Nibbles of words `[cols, rows / 8]` -> `[rows, cols]`.
fn by_rows(words: &[u32], cols: usize) -> Vec<u8> {
    let columns = transposed(words, words.len() / cols); // [rows / 8, cols]
    let mut nibbles = vec![0; words.len() * IN_WORD];
    nibbles.par_chunks_mut(IN_WORD * cols).zip(columns.par_chunks(cols)).for_each(|(nibbles, words)| {
        for (place, row) in ORDER.into_iter().enumerate() {
            for (nibble, word) in nibbles[row * cols..].iter_mut().zip(words) {
                *nibble = (word >> (4 * place) & 15) as u8;
            }
        }
    });
    nibbles
}
