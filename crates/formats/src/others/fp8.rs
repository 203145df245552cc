//! FP8: weights that are numbers of 8 bits with an exponent (e4m3).

use rayon::prelude::*;
use safetensors::Dtype;

use super::matrix::Matrix;
use super::parts::{Parts, finite};
use crate::TensorView;
use crate::error::PackedFault;

const WEIGHT: &str = "weight";
const SCALE: &str = "weight_scale";
const SCALE_INV: &str = "weight_scale_inv";

/// Reads bytes of e4m3 and scales of any granularity. `block` is how many rows and channels share one, if the config says so.
pub(crate) fn read(parts: Parts<'_>, block: Option<[usize; 2]>) -> Result<Matrix, PackedFault> {
    let [rows, cols] = parts.matrix(WEIGHT)?;
    let weight = parts.get(WEIGHT)?;
    let (part, view) = match parts.find(SCALE_INV) {
        Some(view) => (SCALE_INV, view),
        None => (SCALE, parts.get(SCALE)?),
    };
    let [high, wide] = shared_by(part, view.shape, [rows, cols], block)?;
    let (scales, per_row) = (scales(part, view)?, cols.div_ceil(wide));
    let numbers: Vec<f32> = (0..=u8::MAX).map(e4m3).collect();
    let mut values = vec![0.0; rows * cols];
    let fill = |(row, (values, bytes)): (usize, (&mut [f32], &[u8]))| {
        let scales = &scales[row / high * per_row..][..per_row];
        for ((values, bytes), scale) in values.chunks_mut(wide).zip(bytes.chunks(wide)).zip(scales) {
            for (value, byte) in values.iter_mut().zip(bytes) {
                *value = numbers[usize::from(*byte)] * scale;
            }
        }
        not_finite(row, values)
    };
    values.par_chunks_mut(cols).zip(weight.bytes.par_chunks(cols)).enumerate().try_for_each(fill)?;
    Ok(Matrix::Values(values))
}

/// How many rows and channels share a scale, by the shape of the scales.
fn shared_by(
    part: &'static str,
    shape: &[usize],
    [rows, cols]: [usize; 2],
    block: Option<[usize; 2]>,
) -> Result<[usize; 2], PackedFault> {
    if let Some([high, wide]) = block
        && shape == [rows.div_ceil(high), cols.div_ceil(wide)]
    {
        return Ok([high, wide]);
    }
    match *shape {
        [] | [1] | [1, 1] => Ok([rows, cols]),
        [n] | [n, 1] if n == rows => Ok([1, cols]),
        [n, groups] if n == rows && groups > 0 && cols.is_multiple_of(groups) => Ok([1, cols / groups]),
        _ => Err(PackedFault::PartShape { part, got: shape.to_vec(), expected: vec![rows, 1] }),
    }
}

fn not_finite(row: usize, values: &[f32]) -> Result<(), PackedFault> {
    match values.iter().position(|value| !value.is_finite()) {
        Some(col) => Err(oq_quant_core::TensorError::NotFinite { row, col, value: values[col] }.into()),
        None => Ok(()),
    }
}

/// Scales in floating point of any width.
fn scales(part: &'static str, view: TensorView<'_>) -> Result<Vec<f32>, PackedFault> {
    match view.dtype {
        Dtype::F8_E8M0 => Ok(view.bytes.iter().map(|&byte| e8m0(byte)).collect()),
        _ => finite(part, view),
    }
}

/// The number of a byte of e4m3, which has no infinity.
fn e4m3(byte: u8) -> f32 {
    let (exponent, mantissa) = (i32::from(byte >> 3 & 15), f32::from(byte & 7) / 8.0);
    let magnitude = match (exponent, byte & 7) {
        (15, 7) => f32::NAN,
        (0, _) => mantissa * 2f32.powi(-6),
        _ => (1.0 + mantissa) * 2f32.powi(exponent - 7),
    };
    if byte & 0x80 == 0 { magnitude } else { -magnitude }
}

/// The power of two of a byte of e8m0.
fn e8m0(byte: u8) -> f32 {
    match byte {
        0 => f32::from_bits(1 << 22),
        u8::MAX => f32::NAN,
        _ => f32::from_bits(u32::from(byte) << 23),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_numbers() {
        assert_eq!([0, 1, 8, 0x38, 0x7e, 0xb8].map(e4m3), [0.0, 2f32.powi(-9), 2f32.powi(-6), 1.0, 448.0, -1.0]);
        assert!(e4m3(0x7f).is_nan() && e4m3(0xff).is_nan() && e8m0(255).is_nan());
        assert_eq!([0, 1, 127, 254].map(e8m0), [2f32.powi(-127), 2f32.powi(-126), 1.0, 2f32.powi(127)]);
    }
}
