//! `int-quantized` of compressed-tensors: a byte for each code, with a sign.

use oq_quant_core::{Bits, pack_row, packed_words};
use rayon::prelude::*;
use safetensors::Dtype;

use super::matrix::{Groups, Integers, Matrix};
use super::parts::{Parts, check_shape, finite};
use crate::TensorView;
use crate::error::PackedFault;

const WEIGHT: &str = "weight";
const SCALE: &str = "weight_scale";
const ZERO_POINT: &str = "weight_zero_point";

/// Reads a linear of codes of `bits` bits.
pub(crate) fn read(parts: Parts<'_>, bits: Bits) -> Result<Matrix, PackedFault> {
    let [rows, cols] = parts.matrix(WEIGHT)?;
    let view = parts.get(WEIGHT)?;
    let centre = i32::from(bits.centre());
    let row_words = packed_words(cols, bits);
    let mut words = vec![0; rows * row_words];
    words.par_chunks_mut(row_words).zip(view.bytes.par_chunks(cols)).enumerate().try_for_each_init(
        || vec![0; cols],
        |codes, (row, (words, bytes))| {
            for (col, (code, &byte)) in codes.iter_mut().zip(bytes).enumerate() {
                let number = byte as i8;
                let outside = PackedFault::NoCode { row, col, value: number, bits: bits.get() };
                let shifted = u8::try_from(i32::from(number) + centre).ok().filter(|code| *code <= bits.max_code());
                *code = shifted.ok_or(outside)?;
            }
            pack_row(codes, bits, words).map_err(|error| PackedFault::Tensor(error.into()))
        },
    )?;
    let scale = parts.get(SCALE)?;
    let n_groups = groups_of(scale.shape, [rows, cols])?;
    let scales = spread(finite(SCALE, scale)?, rows * n_groups);
    let zeros = match parts.find(ZERO_POINT) {
        None => vec![centre; rows * n_groups],
        Some(view) => {
            check_shape(ZERO_POINT, view.shape, scale.shape)?;
            let zeros = signed(view)?.into_iter().map(|zero| zero + centre).collect();
            spread(zeros, rows * n_groups)
        }
    };
    Integers { bits, shape: [rows, cols], words, scales, zeros }.matrix(Groups::Runs(cols / n_groups))
}

/// Groups of a row, by the shape of scales: one scale for all, or `[rows, groups]`.
fn groups_of(shape: &[usize], [rows, cols]: [usize; 2]) -> Result<usize, PackedFault> {
    match *shape {
        [] | [1] | [1, 1] => Ok(1),
        [n] if n == rows => Ok(1),
        [n, groups] if n == rows && groups > 0 && cols.is_multiple_of(groups) => Ok(groups),
        _ => Err(PackedFault::PartShape { part: SCALE, got: shape.to_vec(), expected: vec![rows, 1] }),
    }
}

fn spread<T: Copy>(values: Vec<T>, len: usize) -> Vec<T> {
    if values.len() == 1 { vec![values[0]; len] } else { values }
}

fn signed(view: TensorView<'_>) -> Result<Vec<i32>, PackedFault> {
    match view.dtype {
        Dtype::I8 => Ok(view.bytes.iter().map(|&byte| i32::from(byte as i8)).collect()),
        got => Err(PackedFault::PartType { part: ZERO_POINT, got, expected: "I8" }),
    }
}
