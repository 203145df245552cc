//! MLX's affine layout: a scale and the value of code 0 (the bias) for each group.

use oq_quant_core::{Bits, packed_words, unpack_row};
use rayon::prelude::*;
use safetensors::Dtype;

use super::matrix::Matrix;
use super::parts::{Parts, check_shape, finite, words_of};
use crate::TensorView;
use crate::error::PackedFault;

const WEIGHT: &str = "weight";
const SCALES: &str = "scales";
const BIASES: &str = "biases";

/// How a matrix is packed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Mlx {
    pub(crate) bits: Bits,
    /// Channels of a group.
    pub(crate) group: usize,
}

/// A matrix whose parts fit together.
pub(crate) struct Packed<'a> {
    mlx: Mlx,
    shape: [usize; 2],
    weight: TensorView<'a>,
    scales: TensorView<'a>,
    biases: TensorView<'a>,
}

impl<'a> Packed<'a> {
    pub(crate) fn new(parts: Parts<'a>, mlx: Mlx) -> Result<Self, PackedFault> {
        let rows = parts.matrix(WEIGHT)?[0];
        // The number of groups says how many channels there are: codes may not fill the last word.
        let groups = parts.matrix(SCALES)?[1];
        let cols = groups.saturating_mul(mlx.group);
        let [weight, scales, biases] = [parts.get(WEIGHT)?, parts.get(SCALES)?, parts.get(BIASES)?];
        if weight.dtype != Dtype::U32 {
            return Err(PackedFault::PartType { part: WEIGHT, got: weight.dtype, expected: "U32" });
        }
        check_shape(WEIGHT, weight.shape, &[rows, packed_words(cols, mlx.bits)])?;
        check_shape(SCALES, scales.shape, &[rows, groups])?;
        check_shape(BIASES, biases.shape, &[rows, groups])?;
        Ok(Self { mlx, shape: [rows, cols], weight, scales, biases })
    }

    /// `[out, in]`.
    pub(crate) fn shape(&self) -> [usize; 2] {
        self.shape
    }

    pub(crate) fn matrix(&self) -> Result<Matrix, PackedFault> {
        let all: Vec<usize> = (0..self.shape[0]).collect();
        Ok(Matrix::Values(self.rows(&all)?))
    }

    /// The values of some rows: `[rows.len(), in]`.
    ///
    /// # Panics
    /// When there is no such row.
    pub(crate) fn rows(&self, rows: &[usize]) -> Result<Vec<f32>, PackedFault> {
        let (Mlx { bits, group }, cols) = (self.mlx, self.shape[1]);
        let mut values = vec![0.0; rows.len() * cols];
        values.par_chunks_mut(cols).zip(rows).try_for_each_init(
            || vec![0u8; cols],
            |codes, (values, &row)| {
                let words: Vec<u32> = words_of(row_of(&self.weight, row).bytes).collect();
                unpack_row(&words, bits, codes).expect("rows have as many words as their codes need");
                let scales = finite(SCALES, row_of(&self.scales, row))?;
                let biases = finite(BIASES, row_of(&self.biases, row))?;
                let groups = values.chunks_mut(group).zip(codes.chunks(group));
                for ((values, codes), (scale, bias)) in groups.zip(scales.iter().zip(&biases)) {
                    for (value, &code) in values.iter_mut().zip(codes) {
                        *value = scale * f32::from(code) + bias;
                    }
                }
                Ok::<_, PackedFault>(())
            },
        )?;
        Ok(values)
    }
}

/// One row of a matrix.
fn row_of<'a>(view: &TensorView<'a>, row: usize) -> TensorView<'a> {
    let len = view.bytes.len() / view.shape[0];
    TensorView { shape: &view.shape[1..], bytes: &view.bytes[row * len..][..len], ..*view }
}
