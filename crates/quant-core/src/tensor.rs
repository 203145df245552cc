//! A quantized matrix: packed codes with a scale and zero point per group.

use half::f16;
use rayon::prelude::*;

use crate::error::TensorError;
use crate::grid::{Grid, Range};
use crate::pack::{PackError, pack_row, packed_words, unpack_row};
use crate::spec::{Storage, Symmetry, WeightSpec};
use crate::stored::{Stored, global_scale};

/// The fractions of a group's maximum and minimum at which it is clipped, both in [0, 1]: what weight clipping learns.
#[derive(Clone, Copy, Debug)]
pub struct Clip<'a> {
    /// Fraction of the maximum, `[out * groups]`.
    pub hi: &'a [f32],
    /// Fraction of the minimum, `[out * groups]`.
    pub lo: &'a [f32],
}

/// Codes and scales of a matrix `[rows, cols]` = `[out_features, in_features]`. Always valid: the sizes of the parts agree, every scale is a
/// number, and every zero point is a code (the centre code if quantization is symmetric).
#[derive(Clone, Debug, PartialEq)]
pub struct QuantizedTensor {
    spec: WeightSpec,
    rows: usize,
    cols: usize,
    words: Vec<u32>,
    stored: Stored,
}

impl QuantizedTensor {
    /// Rounds to nearest: `weight` is `[rows, cols]`, row-major.
    pub fn quantize(weight: &[f32], rows: usize, cols: usize, spec: WeightSpec) -> Result<Self, TensorError> {
        Self::build(weight, rows, cols, spec, None, |_, range| range)
    }

    /// Like [`Self::quantize`], on ranges shrunk by `clip` (OmniQuant, eq. 2). `offsets` `[rows, cols]`, in units of the scale, are added
    /// to the scaled weights before they are rounded.
    pub fn quantize_clipped(
        weight: &[f32],
        rows: usize,
        cols: usize,
        spec: WeightSpec,
        clip: Clip<'_>,
        offsets: Option<&[f32]>,
    ) -> Result<Self, TensorError> {
        let groups = rows.saturating_mul(check_groups(spec, cols)?);
        for (part, fractions) in [("clip.hi", clip.hi), ("clip.lo", clip.lo)] {
            check_len(part, [rows, cols], groups, fractions.len())?;
            if let Some(index) = fractions.iter().position(|fraction| !(0.0..=1.0).contains(fraction)) {
                return Err(TensorError::BadClip { part, index, value: fractions[index] });
            }
        }
        if let Some(offsets) = offsets {
            check_len("offsets", [rows, cols], rows.saturating_mul(cols), offsets.len())?;
            if let Some(index) = offsets.iter().position(|offset| !offset.is_finite()) {
                return Err(TensorError::BadOffset { row: index / cols, col: index % cols, value: offsets[index] });
            }
        }
        Self::build(weight, rows, cols, spec, offsets, |group, range| {
            range.clipped(clip.hi[group], clip.lo[group], spec.symmetry)
        })
    }

    fn build(
        weight: &[f32],
        rows: usize,
        cols: usize,
        spec: WeightSpec,
        offsets: Option<&[f32]>,
        clip: impl Fn(usize, Range) -> Range + Sync,
    ) -> Result<Self, TensorError> {
        let groups = check_groups(spec, cols)?;
        check_len("weight", [rows, cols], rows.saturating_mul(cols), weight.len())?;
        let row_of_bad = weight.par_chunks(cols).position_first(|row| !row.iter().all(|w| w.is_finite()));
        if let Some(row) = row_of_bad {
            let weight = &weight[row * cols..][..cols];
            let col = weight.iter().position(|w| !w.is_finite()).expect("the row has one");
            return Err(TensorError::NotFinite { row, col, value: weight[col] });
        }
        let global = match spec.storage {
            Storage::E4m3 => global_scale(weight.par_iter().map(|w| w.abs()).reduce(|| 0.0, f32::max)),
            _ => 1.0,
        };
        let row_words = packed_words(cols, spec.bits);
        let mut words = vec![0u32; rows * row_words];
        let scales: Vec<Stored> = words
            .par_chunks_mut(row_words)
            .zip(weight.par_chunks(cols))
            .enumerate()
            .map_init(
                || vec![0u8; cols],
                |codes, (row, (words, weight))| {
                    let len = cols / groups;
                    let ranges = weight.chunks(len).enumerate();
                    let ranges: Vec<Range> =
                        ranges.map(|(i, weight)| clip(row * groups + i, Range::of(weight))).collect();
                    let mut stored = Stored::empty(spec, global);
                    stored.extend(spec, &ranges);
                    for (i, (codes, weight)) in codes.chunks_mut(len).zip(weight.chunks(len)).enumerate() {
                        let grid = stored.grid(spec, i);
                        match offsets {
                            None => grid.encode_all(weight, codes),
                            Some(offsets) => {
                                grid.encode_shifted(weight, &offsets[row * cols + i * len..][..len], codes);
                            }
                        }
                    }
                    pack_row(codes, spec.bits, words).map(|()| stored)
                },
            )
            .collect::<Result<_, PackError>>()?;
        let mut stored = Stored::empty(spec, global);
        scales.into_iter().for_each(|row| stored.append(row));
        Ok(Self { spec, rows, cols, words, stored })
    }

    /// Builds a matrix of [`Storage::Half`] from parts that were read from a file, after checking that they fit together.
    ///
    /// `words` is `[rows, packed_words(cols)]`, `scales` and `zero_points` are `[rows, groups]`.
    pub fn from_parts(
        spec: WeightSpec,
        shape: [usize; 2],
        words: Vec<u32>,
        scales: Vec<f16>,
        zero_points: Vec<u8>,
    ) -> Result<Self, TensorError> {
        Self::from_stored(spec, shape, words, Stored::Half { scales, zero_points })
    }

    /// Builds a matrix from parts that were read from a file, after checking that they fit together. `words` is
    /// `[rows, packed_words(cols)]`.
    pub fn from_stored(
        spec: WeightSpec,
        [rows, cols]: [usize; 2],
        words: Vec<u32>,
        stored: Stored,
    ) -> Result<Self, TensorError> {
        check_groups(spec, cols)?;
        // Saturating: no length that a slice can have equals the product of a hostile header.
        check_len("packed codes", [rows, cols], rows.saturating_mul(packed_words(cols, spec.bits)), words.len())?;
        stored.check(spec, [rows, cols])?;
        Ok(Self { spec, rows, cols, words, stored })
    }

    /// The same codes with scales (and minima) that are multiplied by `factors`, `[rows, scale_groups]`, rounded to f16, and clamped to the
    /// allowed range.
    ///
    /// # Errors
    /// When a product is not a number.
    ///
    /// # Panics
    /// When `factors` has a different length.
    pub fn rescaled(&self, factors: &[f32]) -> Result<Self, TensorError> {
        let expected = self.rows * self.scale_groups();
        assert_eq!(factors.len(), expected, "rescaled: factors, one for each scale");
        Ok(Self { stored: self.stored.rescaled(factors)?, ..self.clone() })
    }

    /// The same grids with codes that are moved by `steps`, `[rows, cols]`, as far as the grids have codes.
    ///
    /// # Panics
    /// When `steps` has a different length.
    pub fn stepped(&self, steps: &[i8]) -> Self {
        assert_eq!(steps.len(), self.rows * self.cols, "stepped: steps and codes");
        let (row_words, max_code) = (packed_words(self.cols, self.spec.bits), self.spec.bits.max_code());
        // Symmetric grids have as many codes below the centre as above.
        let least = if self.spec.symmetry == Symmetry::Symmetric { 2 * self.spec.bits.centre() - max_code } else { 0 };
        let mut words = vec![0; self.words.len()];
        words.par_chunks_mut(row_words).zip(steps.par_chunks(self.cols)).enumerate().for_each_init(
            || vec![0u8; self.cols],
            |codes, (row, (words, steps))| {
                self.row_codes(row, codes);
                for (code, &step) in codes.iter_mut().zip(steps).filter(|(_, step)| **step != 0) {
                    // A code that a file has outside the grid stays.
                    *code = code.saturating_add_signed(step).clamp(least.min(*code), max_code);
                }
                pack_row(codes, self.spec.bits, words).expect("codes are clamped, and a row has its words");
            },
        );
        Self { words, ..self.clone() }
    }

    /// Stacks matrices vertically into one.
    ///
    /// # Panics
    /// When there are none, or one differs from the first in its spec or number of columns.
    pub fn stack(parts: &[Self]) -> Self {
        let (first, rest) = parts.split_first().expect("a stack of matrices: none given");
        let mut all = first.clone();
        for part in rest {
            let alike = (part.spec, part.cols, part.global()) == (first.spec, first.cols, first.global());
            assert!(alike, "a stack of matrices: settings and widths differ");
            all.rows += part.rows;
            all.words.extend(&part.words);
            all.stored.append(part.stored.clone());
        }
        all
    }

    fn global(&self) -> Option<f32> {
        match self.stored {
            Stored::E4m3 { global, .. } => Some(global),
            _ => None,
        }
    }

    /// The dequantized values, `[rows, cols]`, row-major.
    pub fn dequantize(&self) -> Vec<f32> {
        let mut weight = vec![0.0; self.rows * self.cols];
        self.dequantize_into(&mut weight);
        weight
    }

    /// [`Self::dequantize`] into a slice of `rows * cols` values.
    ///
    /// When `weight` has a different length.
    /// When `weight` has another length.
    pub fn dequantize_into(&self, weight: &mut [f32]) {
        assert_eq!(weight.len(), self.rows * self.cols, "dequantize_into: values of the slice and of the matrix");
        let groups = self.groups();
        let len = self.cols / groups;
        weight.par_chunks_mut(self.cols).enumerate().for_each_init(
            || vec![0u8; self.cols],
            |codes, (row, weight)| {
                self.row_codes(row, codes);
                for (i, (codes, weight)) in codes.chunks(len).zip(weight.chunks_mut(len)).enumerate() {
                    self.grid(row, i).decode_all(codes, weight);
                }
            },
        );
    }

    /// Writes the codes of one row into a slice of `cols` codes.
    ///
    /// # Panics
    /// When there is no such row, or `codes` has a different length.
    pub fn row_codes(&self, row: usize, codes: &mut [u8]) {
        assert!(row < self.rows, "row_codes: row {row} of {}", self.rows);
        assert_eq!(codes.len(), self.cols, "row_codes: codes of the slice and of a row");
        let row_words = packed_words(self.cols, self.spec.bits);
        unpack_row(&self.words[row * row_words..][..row_words], self.spec.bits, codes)
            .expect("a row has as many words as its codes take: that was checked when the tensor was made");
    }

    /// The values that the codes of one group of a row stand for.
    ///
    /// # Panics
    /// When there is no such row or group.
    pub fn grid(&self, row: usize, group: usize) -> Grid {
        // A group beyond the row's last is the next row's first in memory.
        assert!(group < self.groups(), "grid: group {group} of {}", self.groups());
        assert!(row < self.rows, "grid: row {row} of {}", self.rows);
        self.stored.grid(self.spec, row * self.groups() + group)
    }

    /// How the matrix was quantized.
    pub fn spec(&self) -> WeightSpec {
        self.spec
    }

    /// `[out_features, in_features]`.
    pub fn shape(&self) -> [usize; 2] {
        [self.rows, self.cols]
    }

    /// Groups per row.
    pub fn groups(&self) -> usize {
        self.spec.group.count(self.cols)
    }

    /// The bit stream, `[rows, packed_words(cols)]`.
    pub fn words(&self) -> &[u32] {
        &self.words
    }

    /// What is stored beside the codes.
    pub fn stored(&self) -> &Stored {
        &self.stored
    }

    /// Scales and zero points, `[rows, groups]` each, of a matrix with [`Storage::Half`]: zero points all equal the centre code unless
    /// quantization is asymmetric.
    pub fn half(&self) -> Option<(&[f16], &[u8])> {
        match &self.stored {
            Stored::Half { scales, zero_points } => Some((scales, zero_points)),
            _ => None,
        }
    }

    /// Parts of a row that have a scale of their own that can take any value: groups or super-blocks. 0 for float codes, whose scales
    /// cannot.
    pub fn scale_groups(&self) -> usize {
        match self.spec.storage {
            Storage::Half | Storage::HalfMin => self.groups(),
            Storage::Super => self.cols / Storage::SUPER,
            Storage::E8m0 | Storage::E4m3 => 0,
        }
    }

    /// Whether the spec alone says what code zero has.
    pub fn is_symmetric(&self) -> bool {
        self.spec.symmetry != Symmetry::Asymmetric
    }
}

fn check_len(part: &'static str, [rows, cols]: [usize; 2], expected: usize, got: usize) -> Result<(), TensorError> {
    if expected == got { Ok(()) } else { Err(TensorError::Length { part, rows, cols, expected, got }) }
}

fn check_groups(spec: WeightSpec, in_features: usize) -> Result<usize, TensorError> {
    spec.check_row(in_features)?;
    Ok(spec.group.count(in_features))
}

impl WeightSpec {
    /// Checks that rows of `in_features` channels can be quantized so.
    ///
    /// # Errors
    /// [`TensorError::NoSuchGrid`], and what does not divide the row.
    pub fn check_row(self, in_features: usize) -> Result<(), TensorError> {
        if !self.exists() {
            Err(TensorError::NoSuchGrid { spec: self })
        } else if self.storage == Storage::Super && !in_features.is_multiple_of(Storage::SUPER) {
            Err(TensorError::NoSuperBlocks { spec: self, in_features })
        } else if self.group.divides(in_features) {
            Ok(())
        } else {
            Err(TensorError::GroupDoesNotDivide { group: self.group.len(in_features), in_features })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scheme::QuantSpec;

    fn spec(text: &str) -> WeightSpec {
        text.parse::<QuantSpec>().unwrap().weight
    }

    #[track_caller]
    fn check_refused<T: std::fmt::Debug>(result: Result<T, TensorError>, expected: &str) {
        assert_eq!(result.expect_err("must be refused").to_string(), expected);
    }

    #[test]
    fn refuses_sizes_that_do_not_fit() {
        let quantize = |text, len, rows, cols| QuantizedTensor::quantize(&vec![0.5; len], rows, cols, spec(text));
        check_refused(
            quantize("w4a16g96", 1024, 1, 1024),
            "group 96 does not divide in_features 1024; take one that does, such as g64",
        );
        check_refused(
            quantize("w4a16g2", 0, 1, 1),
            "group 2 does not divide in_features 1; take one that does, or leave `g` out for one group per channel",
        );
        check_refused(
            quantize("w4a16", 0, 1, 0),
            "group 0 does not divide in_features 0; take one that does, or leave `g` out for one group per channel",
        );
        check_refused(quantize("w4a16", 7, 2, 4), "weight: 8 values expected for [2, 4], got 7");
        let huge = format!("weight: {m} values expected for [{m}, 2], got 0", m = usize::MAX);
        check_refused(quantize("w4a16", 0, usize::MAX, 2), &huge);
        assert_eq!(quantize("w4a16", 0, 0, 4).unwrap().dequantize(), [0.0; 0]);
    }

    #[test]
    fn refuses_numbers_that_are_not_finite() {
        let mut weight = [0.5; 8];
        for (bad, name) in [(f32::NAN, "NaN"), (f32::INFINITY, "inf"), (f32::NEG_INFINITY, "-inf")] {
            weight[6] = bad;
            let result = QuantizedTensor::quantize(&weight, 2, 4, spec("w4a16"));
            check_refused(result, &format!("weight [1, 2] is {name}"));
        }
    }

    #[test]
    fn refuses_wrong_clips() {
        let clipped = |hi: &[f32], lo: &[f32]| {
            QuantizedTensor::quantize_clipped(&[0.5; 8], 2, 4, spec("w4a16g2"), Clip { hi, lo }, None)
        };
        let ones = [1.0; 4];
        check_refused(clipped(&ones[..3], &ones), "clip.hi: 4 values expected for [2, 4], got 3");
        check_refused(clipped(&ones, &[]), "clip.lo: 4 values expected for [2, 4], got 0");
        check_refused(clipped(&[1.0, 1.0, f32::NAN, 1.0], &ones), "clip.hi 2 is NaN, not between 0 and 1");
        check_refused(clipped(&ones, &[1.0, 1.5, 1.0, 1.0]), "clip.lo 1 is 1.5, not between 0 and 1");
        check_refused(clipped(&ones, &[1.0, -0.5, 1.0, 1.0]), "clip.lo 1 is -0.5, not between 0 and 1");
    }

    #[test]
    fn refuses_wrong_offsets() {
        let shifted = |offsets: &[f32]| {
            let clip = Clip { hi: &[1.0; 4], lo: &[1.0; 4] };
            QuantizedTensor::quantize_clipped(&[0.5; 8], 2, 4, spec("w4a16g2"), clip, Some(offsets))
        };
        check_refused(shifted(&[0.0; 7]), "offsets: 8 values expected for [2, 4], got 7");
        let mut offsets = [0.0; 8];
        offsets[6] = f32::NAN;
        check_refused(shifted(&offsets), "offset [1, 2] is NaN");
    }

    #[test]
    fn refuses_parts_that_do_not_fit() {
        // [2, 8] in groups of 4 at 4 bits: 2 words, 4 scales, 4 zero points.
        let parts = |text, shape, words, scales: &[f32], zeros: &[u8]| {
            let scales = scales.iter().map(|&s| f16::from_f32(s)).collect();
            QuantizedTensor::from_parts(spec(text), shape, vec![0; words], scales, zeros.to_vec())
        };
        let (shape, scales, zeros) = ([2, 8], [0.5; 4], [8; 4]);
        assert!(parts("w4a16g4", shape, 2, &scales, &zeros).is_ok());
        assert!(parts("w4a16g4sym", shape, 2, &scales, &zeros).is_ok());
        check_refused(
            parts("w4a16g3", shape, 2, &scales, &zeros),
            "group 3 does not divide in_features 8; take one that does, or leave `g` out for one group per channel",
        );
        check_refused(parts("w4a16g4", shape, 3, &scales, &zeros), "packed codes: 2 values expected for [2, 8], got 3");
        check_refused(parts("w4a16g4", shape, 2, &scales[1..], &zeros), "scales: 4 values expected for [2, 8], got 3");
        check_refused(
            parts("w4a16g4", shape, 2, &scales, &zeros[2..]),
            "zero points: 4 values expected for [2, 8], got 2",
        );
        for (bad, name) in [(0.0, "0"), (-0.5, "-0.5"), (f32::NAN, "NaN"), (f32::INFINITY, "inf")] {
            let result = parts("w4a16g4", shape, 2, &[0.5, bad, 0.5, 0.5], &zeros);
            check_refused(result, &format!("scale 1 is {name}, not a positive number"));
        }
        check_refused(
            parts("w4a16g4", shape, 2, &scales, &[8, 8, 8, 16]),
            "zero point 3 is 16, beyond the largest code 15",
        );
        check_refused(
            parts("w4a16g4sym", shape, 2, &scales, &[8, 7, 8, 8]),
            "zero point 1 is 7, but symmetric quantization has zero point 8",
        );
        assert!(matches!(
            parts("w4a16g4", [1 << 63, 16], 0, &[], &[]),
            Err(TensorError::Length { part: "packed codes", got: 0, .. })
        ));
    }

    /// What a function says that is given something else than a `[2, 4]` in groups of 2 has.
    #[track_caller]
    fn check_panics(call: impl FnOnce(&QuantizedTensor) + std::panic::UnwindSafe, parts: &[&str]) {
        let tensor = QuantizedTensor::quantize(&[0.5; 8], 2, 4, spec("w4a16g2")).unwrap();
        let panic = std::panic::catch_unwind(move || call(&tensor)).expect_err("must panic");
        let said = panic.downcast_ref::<String>().expect("a message with numbers");
        assert!(parts.iter().all(|part| said.contains(part)), "no {parts:?} in {said}");
    }

    #[test]
    fn what_does_not_fit_the_matrix_is_named_with_both_numbers() {
        check_panics(|tensor| tensor.dequantize_into(&mut [0.0; 7]), &["dequantize_into", "left: 7", "right: 8"]);
        check_panics(|tensor| tensor.row_codes(0, &mut [0; 3]), &["row_codes", "left: 3", "right: 4"]);
        // As many words as 4 codes take.
        check_panics(|tensor| tensor.row_codes(0, &mut [0; 8]), &["row_codes", "left: 8", "right: 4"]);
        check_panics(|tensor| tensor.row_codes(2, &mut [0; 4]), &["row_codes: row 2 of 2"]);
        check_panics(|tensor| _ = tensor.grid(0, 2), &["grid: group 2 of 2"]);
        check_panics(|tensor| _ = tensor.grid(2, 0), &["grid: row 2 of 2"]);
        check_panics(|tensor| drop(tensor.rescaled(&[1.0; 3])), &["rescaled", "left: 3", "right: 4"]);
    }
}
