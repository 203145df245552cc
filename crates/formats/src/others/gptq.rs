//! GPTQ's layout, which AutoRound uses too.

use oq_quant_core::{Bits, packed_words};
use safetensors::Dtype;

use super::matrix::{Groups, Integers, Matrix, zeros_of_groups};
use super::parts::{Parts, check_shape, transposed, words_of};
use crate::error::PackedFault;

const QWEIGHT: &str = "qweight";
const QZEROS: &str = "qzeros";
const SCALES: &str = "scales";
const G_IDX: &str = "g_idx";

/// How a linear is packed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Gptq {
    pub(crate) bits: Bits,
    /// Channels of a group, unless `g_idx` says otherwise; none for one group per output channel.
    pub(crate) group: Option<usize>,
    /// Added to stored zero points: 1 in version 1. Programs that unpack them do not take the sum modulo 2^bits.
    pub(crate) zero_offset: i32,
}

/// `[out, in]`.
pub(crate) fn shape(parts: Parts<'_>, bits: Bits) -> Result<[usize; 2], PackedFault> {
    let [words, out] = parts.matrix(QWEIGHT)?;
    // Whole runs of 32 codes, which take `bits` words.
    let bits = bits.get() as usize;
    if words.is_multiple_of(bits) {
        return Ok([out, words / bits * 32]);
    }
    Err(PackedFault::PartShape {
        part: QWEIGHT,
        got: vec![words, out],
        expected: vec![words.next_multiple_of(bits), out],
    })
}

pub(crate) fn read(parts: Parts<'_>, Gptq { bits, group, zero_offset }: Gptq) -> Result<Matrix, PackedFault> {
    let [rows, cols] = shape(parts, bits)?;
    let of_channel = parts.find(G_IDX).map(|view| g_idx(view, cols)).transpose()?;
    let n_groups = parts.matrix(SCALES)?[0];
    let run = group.unwrap_or(cols);
    let groups = match of_channel {
        // Several programs write one even if it says nothing new.
        Some(each) if each.iter().enumerate().all(|(col, group)| *group == col / run) => Groups::Runs(run),
        Some(each) => Groups::Each(each),
        None => Groups::Runs(run),
    };
    let needed = match &groups {
        Groups::Runs(run) => cols.div_ceil(*run),
        Groups::Each(each) => {
            if let Some(index) = each.iter().position(|group| *group >= n_groups) {
                return Err(PackedFault::NoSuchGroup { index, value: each[index] as i64, groups: n_groups });
            }
            n_groups
        }
    };
    let scales = transposed(&parts.floats(SCALES, &[needed, rows])?, rows);
    let stored = parts.words(QZEROS, &[needed, packed_words(rows, bits)])?;
    let zeros = zeros_of_groups(&stored, rows, bits).into_iter().map(|zero| zero + zero_offset).collect();
    let words = transposed(&parts.words(QWEIGHT, &[packed_words(cols, bits), rows])?, rows);
    Integers { bits, shape: [rows, cols], words, scales, zeros }.matrix(groups)
}

/// The group of each input channel.
fn g_idx(view: crate::TensorView<'_>, cols: usize) -> Result<Vec<usize>, PackedFault> {
    check_shape(G_IDX, view.shape, &[cols])?;
    let group = |(index, number): (usize, i64)| {
        usize::try_from(number).map_err(|_| PackedFault::NoSuchGroup { index, value: number, groups: cols })
    };
    match view.dtype {
        Dtype::I32 => words_of(view.bytes).map(|word| i64::from(word as i32)).enumerate().map(group).collect(),
        Dtype::I64 => {
            let numbers = view.bytes.as_chunks().0.iter().map(|bytes| i64::from_le_bytes(*bytes));
            numbers.enumerate().map(group).collect()
        }
        got => Err(PackedFault::PartType { part: G_IDX, got, expected: "I32 or I64" }),
    }
}
