//! Our own layout with scales that our own grids do not hold.

use oq_quant_core::{Symmetry, WeightSpec, packed_words};

use super::matrix::{Groups, Integers, Matrix, zeros_of_groups};
use super::parts::{Parts, transposed};
use crate::error::PackedFault;
use crate::packed::parts::{PACKED, SCALE, ZERO_POINT};

pub(crate) fn read(parts: Parts<'_>, [rows, cols]: [usize; 2], spec: WeightSpec) -> Result<Matrix, PackedFault> {
    let WeightSpec { bits, symmetry, .. } = spec;
    let groups = spec.group.count(cols);
    let zeros = match symmetry {
        Symmetry::Asymmetric => {
            let stored = parts.words(ZERO_POINT, &[packed_words(rows, bits), groups])?;
            zeros_of_groups(&transposed(&stored, groups), rows, bits)
        }
        _ => vec![i32::from(bits.centre()); rows * groups],
    };
    let words = parts.words(PACKED, &[rows, packed_words(cols, bits)])?;
    let scales = parts.floats(SCALE, &[rows, groups])?;
    Integers { spec, shape: [rows, cols], words, scales, zeros }.matrix(Groups::Runs)
}
