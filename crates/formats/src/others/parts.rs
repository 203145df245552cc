//! The tensors of one linear, by their names behind that of the linear.

use rayon::prelude::*;
use safetensors::Dtype;

use crate::error::PackedFault;
use crate::{Checkpoint, TensorView};

/// The tensors of one linear.
#[derive(Clone, Copy)]
pub(crate) struct Parts<'a> {
    checkpoint: &'a Checkpoint,
    name: &'a str,
}

impl<'a> Parts<'a> {
    /// Those of the linear `name`, as in the checkpoint without `.weight`.
    pub(crate) fn new(checkpoint: &'a Checkpoint, name: &'a str) -> Self {
        Self { checkpoint, name }
    }

    /// The part, if there is one.
    pub(crate) fn find(self, part: &str) -> Option<TensorView<'a>> {
        self.checkpoint.tensor(&format!("{}.{part}", self.name)).ok()
    }

    pub(crate) fn get(self, part: &'static str) -> Result<TensorView<'a>, PackedFault> {
        self.find(part).ok_or(PackedFault::Missing { part })
    }

    /// `[rows, cols]` of a part, neither of them 0.
    pub(crate) fn matrix(self, part: &'static str) -> Result<[usize; 2], PackedFault> {
        match self.get(part)?.shape {
            &[rows, cols] if rows > 0 && cols > 0 => Ok([rows, cols]),
            other => Err(PackedFault::NoMatrix { part, got: other.to_vec() }),
        }
    }

    /// Words of 32 bits.
    pub(crate) fn words(self, part: &'static str, shape: &[usize]) -> Result<Vec<u32>, PackedFault> {
        let view = self.get(part)?;
        check_shape(part, view.shape, shape)?;
        match view.dtype {
            Dtype::I32 | Dtype::U32 => Ok(words_of(view.bytes).collect()),
            got => Err(PackedFault::PartType { part, got, expected: "I32 or U32" }),
        }
    }

    /// Finite numbers.
    pub(crate) fn floats(self, part: &'static str, shape: &[usize]) -> Result<Vec<f32>, PackedFault> {
        let view = self.get(part)?;
        check_shape(part, view.shape, shape)?;
        finite(part, view)
    }
}

/// The words of a part, least significant byte first.
pub(crate) fn words_of(bytes: &[u8]) -> impl Iterator<Item = u32> {
    bytes.as_chunks().0.iter().map(|bytes| u32::from_le_bytes(*bytes))
}

/// The values of a part in floating point, all finite.
pub(crate) fn finite(part: &'static str, view: TensorView<'_>) -> Result<Vec<f32>, PackedFault> {
    let expected = "F16, BF16 or F32";
    let values = view.to_f32_vec().map_err(|_| PackedFault::PartType { part, got: view.dtype, expected })?;
    match values.iter().position(|value| !value.is_finite()) {
        Some(index) => Err(PackedFault::NoNumber { part, index, value: values[index] }),
        None => Ok(values),
    }
}

pub(crate) fn check_shape(part: &'static str, got: &[usize], expected: &[usize]) -> Result<(), PackedFault> {
    if got == expected {
        return Ok(());
    }
    Err(PackedFault::PartShape { part, got: got.to_vec(), expected: expected.to_vec() })
}

/// A matrix by columns instead of rows: `[rows, cols]` -> `[cols, rows]`, row-major. `cols` must not be 0.
pub fn transposed<T: Copy + Default + Send + Sync>(values: &[T], cols: usize) -> Vec<T> {
    /// Columns per task, so that it uses whole cache lines.
    const TILE: usize = 16;
    let rows = values.len() / cols;
    let mut out = vec![T::default(); values.len()];
    out.par_chunks_mut(TILE * rows).enumerate().for_each(|(tile, out)| {
        for (row, values) in values.chunks(cols).enumerate() {
            for (value, out) in values[tile * TILE..].iter().zip(out.chunks_mut(rows)) {
                out[row] = *value;
            }
        }
    });
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transposed_matrix_has_rows_for_columns() {
        for (rows, cols) in [(1, 1), (3, 5), (7, 40), (33, 2), (16, 16)] {
            let values: Vec<usize> = (0..rows * cols).collect();
            let out = transposed(&values, cols);
            assert!((0..rows * cols).all(|at| out[at % cols * rows + at / cols] == at), "{rows} {cols}");
        }
    }
}
