//! A weight as it is read from a packed layout: codes where our grids hold it exactly, else values.

use half::f16;
use oq_quant_core::{Bits, GroupSize, QuantizedTensor, Symmetry, WeightSpec, packed_words, unpack_row};
use rayon::prelude::*;

use super::parts::transposed;
use crate::error::PackedFault;

/// The weight of a linear in a packed model, `[out, in]`.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Matrix {
    /// Codes, with scales and zero points that a [`QuantizedTensor`] holds exactly.
    Codes(QuantizedTensor),
    /// All other weights, decoded: row-major, finite.
    Values(Vec<f32>),
}

impl Matrix {
    /// The values, row-major.
    pub fn into_values(self) -> Vec<f32> {
        match self {
            Self::Codes(codes) => codes.dequantize(),
            Self::Values(values) => values,
        }
    }
}

/// Integer codes with scales and zero points as stored: `w = scale (code - zero)`.
pub(crate) struct Integers {
    pub(crate) bits: Bits,
    pub(crate) shape: [usize; 2],
    /// Bit streams, `[rows, packed_words(cols)]`.
    pub(crate) words: Vec<u32>,
    /// `[rows, groups]`.
    pub(crate) scales: Vec<f32>,
    /// `[rows, groups]`.
    pub(crate) zeros: Vec<i32>,
}

/// Which group an input channel belongs to.
pub(crate) enum Groups {
    /// Runs of this many channels; the last may be shorter.
    Runs(usize),
    /// Each channel's own.
    Each(Vec<usize>),
}

/// Zero points `[rows, groups]`, stored as a bit stream for each group: `[groups, packed_words(rows)]`.
pub(crate) fn zeros_of_groups(words: &[u32], rows: usize, bits: Bits) -> Vec<i32> {
    let row_words = packed_words(rows, bits);
    let mut zeros = vec![0u8; words.len() / row_words * rows];
    for (zeros, words) in zeros.chunks_mut(rows).zip(words.chunks(row_words)) {
        unpack_row(words, bits, zeros).expect("a group has as many words as its zero points need");
    }
    transposed(&zeros, rows).into_iter().map(i32::from).collect()
}

impl Integers {
    /// Codes, if groups are equal runs of channels and each scale and zero point can be held; else values.
    pub(crate) fn matrix(self, groups: Groups) -> Result<Matrix, PackedFault> {
        let cols = self.shape[1];
        let of_channel = match groups {
            Groups::Runs(len) if cols.is_multiple_of(len) => match self.parts(len) {
                Some((spec, scales, zeros)) => {
                    let codes = QuantizedTensor::from_parts(spec, self.shape, self.words, scales, zeros)?;
                    return Ok(Matrix::Codes(codes));
                }
                None => (0..cols).map(|col| col / len).collect(),
            },
            Groups::Runs(len) => (0..cols).map(|col| col / len).collect(),
            Groups::Each(of_channel) => of_channel,
        };
        Ok(Matrix::Values(self.values(&of_channel)))
    }

    /// Setting, scales and zero points of a [`QuantizedTensor`]; none if it cannot hold one of them.
    fn parts(&self, len: usize) -> Option<(WeightSpec, Vec<f16>, Vec<u8>)> {
        let group = if len == self.shape[1] { GroupSize::PerChannel } else { GroupSize::channels(len).ok()? };
        let exact = |&scale: &f32| Some(f16::from_f32(scale)).filter(|half| half.to_f32() == scale && scale != 0.0);
        let scales: Vec<f16> = self.scales.iter().map(exact).collect::<Option<_>>()?;
        let code = |&zero: &i32| u8::try_from(zero).ok().filter(|zero| *zero <= self.bits.max_code());
        let zeros: Vec<u8> = self.zeros.iter().map(code).collect::<Option<_>>()?;
        let is_centred = zeros.iter().all(|zero| *zero == self.bits.centre());
        let is_positive = scales.iter().all(|scale| scale.is_sign_positive());
        let symmetry = match (is_centred, is_positive) {
            (true, true) => Symmetry::Symmetric,
            // As AutoRound writes them.
            (true, false) => Symmetry::FullRange,
            (false, true) => Symmetry::Asymmetric,
            (false, false) => return None,
        };
        Some((WeightSpec::integer(self.bits, group, symmetry), scales, zeros))
    }

    fn values(&self, of_channel: &[usize]) -> Vec<f32> {
        let [rows, cols] = self.shape;
        let (groups, row_words) = (self.scales.len() / rows, packed_words(cols, self.bits));
        let mut values = vec![0.0; rows * cols];
        values.par_chunks_mut(cols).enumerate().for_each_init(
            || vec![0u8; cols],
            |codes, (row, values)| {
                let words = &self.words[row * row_words..][..row_words];
                unpack_row(words, self.bits, codes).expect("rows have as many words as their codes need");
                for ((value, &code), group) in values.iter_mut().zip(&*codes).zip(of_channel) {
                    let at = row * groups + group;
                    *value = self.scales[at] * (i32::from(code) - self.zeros[at]) as f32;
                }
            },
        );
        values
    }
}
