//! Tensors in a mapped file, and their values as f32.

use half::{bf16, f16, slice::HalfFloatSliceExt};
use rayon::prelude::*;
use safetensors::Dtype;

use crate::FormatError;

/// A tensor in a mapped file: row-major, little-endian, with any alignment.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TensorView<'a> {
    /// Name in the checkpoint.
    pub name: &'a str,
    /// Type of its elements.
    pub dtype: Dtype,
    /// Its shape; empty for a scalar.
    pub shape: &'a [usize],
    /// Its elements.
    pub bytes: &'a [u8],
}

/// Values converted per task: enough to hide the overhead of a task, few enough to share the work evenly.
const CHUNK: usize = 1 << 16;
/// Values converted at a time from an aligned buffer on the stack; the file is not aligned.
const BATCH: usize = 512;

impl TensorView<'_> {
    /// Number of elements.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The values as f32, row-major; exact for F16, BF16 and F32.
    ///
    /// # Errors
    /// [`FormatError::NotFloat`] for other types.
    pub fn to_f32_vec(&self) -> Result<Vec<f32>, FormatError> {
        let mut values = vec![0.0f32; self.len()];
        match self.dtype {
            Dtype::F32 => convert::<4>(self.bytes, &mut values, |bytes, values| {
                for (value, bytes) in values.iter_mut().zip(bytes) {
                    *value = f32::from_le_bytes(*bytes);
                }
            }),
            Dtype::F16 => convert::<2>(self.bytes, &mut values, |bytes, values| {
                let mut batch = [f16::ZERO; BATCH];
                let batch = &mut batch[..values.len()];
                for (half, bytes) in batch.iter_mut().zip(bytes) {
                    *half = f16::from_le_bytes(*bytes);
                }
                batch.convert_to_f32_slice(values);
            }),
            Dtype::BF16 => convert::<2>(self.bytes, &mut values, |bytes, values| {
                for (value, bytes) in values.iter_mut().zip(bytes) {
                    *value = bf16::from_le_bytes(*bytes).to_f32();
                }
            }),
            dtype => return Err(FormatError::NotFloat { tensor: self.name.to_owned(), dtype }),
        }
        Ok(values)
    }

    /// Fails on NaN and infinities, in one pass over the bytes.
    ///
    /// # Errors
    /// [`FormatError::NotFinite`], and [`FormatError::NotFloat`] for other types than F16, BF16 and F32.
    pub fn check_finite(&self) -> Result<(), FormatError> {
        let bad = match self.dtype {
            Dtype::F32 => first_element(self.bytes, |bytes| not_finite(f32::from_le_bytes(bytes))),
            Dtype::F16 => first_element(self.bytes, |bytes| not_finite(f16::from_le_bytes(bytes).to_f32())),
            Dtype::BF16 => first_element(self.bytes, |bytes| not_finite(bf16::from_le_bytes(bytes).to_f32())),
            dtype => return Err(FormatError::NotFloat { tensor: self.name.to_owned(), dtype }),
        };
        match bad {
            None => Ok(()),
            Some((index, value)) => Err(FormatError::NotFinite { tensor: self.name.to_owned(), index, value }),
        }
    }

    /// [`Self::to_f32_vec`], failing on NaN and infinities.
    pub fn to_finite_f32_vec(&self) -> Result<Vec<f32>, FormatError> {
        let values = self.to_f32_vec()?;
        match first_non_finite(&values) {
            None => Ok(values),
            Some(index) => Err(FormatError::NotFinite { tensor: self.name.to_owned(), index, value: values[index] }),
        }
    }
}

/// Keeps NaN and infinities only.
fn not_finite(value: f32) -> Option<f32> {
    (!value.is_finite()).then_some(value)
}

/// The first element of `N` bytes for which `wanted` returns a value, with its index.
fn first_element<const N: usize>(bytes: &[u8], wanted: impl Fn([u8; N]) -> Option<f32> + Sync) -> Option<(usize, f32)> {
    bytes.par_chunks(CHUNK * N).enumerate().find_map_first(|(chunk, bytes)| {
        let mut elements = bytes.as_chunks::<N>().0.iter().enumerate();
        elements.find_map(|(at, bytes)| Some((chunk * CHUNK + at, wanted(*bytes)?)))
    })
}

/// Index of the first NaN or infinity.
pub(crate) fn first_non_finite(values: &[f32]) -> Option<usize> {
    first_where(values, |value| !value.is_finite())
}

/// Index of the first value that is `wanted`. Works in chunks, because rayon's `position_first` synchronizes after every value.
fn first_where(values: &[f32], wanted: impl Fn(f32) -> bool + Sync) -> Option<usize> {
    values
        .par_chunks(CHUNK)
        .enumerate()
        .find_map_first(|(chunk, values)| values.iter().position(|&value| wanted(value)).map(|at| chunk * CHUNK + at))
}

/// Values as f16, bf16 or f32 bytes, rounded to nearest even.
///
/// # Errors
/// [`FormatError::OutOfRange`] for a value that is not finite or exceeds `dtype`; [`FormatError::NotFloat`] for a `dtype` that is none of
/// the three.
pub(crate) fn f32_to_bytes(tensor: &str, values: &[f32], dtype: Dtype) -> Result<Vec<u8>, FormatError> {
    let check = |unfit: Option<usize>| match unfit {
        None => Ok(()),
        Some(index) => Err(FormatError::OutOfRange { tensor: tensor.to_owned(), index, value: values[index], dtype }),
    };
    match dtype {
        Dtype::F32 => {
            check(first_non_finite(values))?;
            Ok(to_bytes(values, f32::to_le_bytes))
        }
        Dtype::F16 => {
            check(first_where(values, |value| !f16::from_f32(value).is_finite()))?;
            Ok(to_bytes(values, |value| f16::from_f32(value).to_le_bytes()))
        }
        Dtype::BF16 => {
            check(first_where(values, |value| !bf16::from_f32(value).is_finite()))?;
            Ok(to_bytes(values, |value| bf16::from_f32(value).to_le_bytes()))
        }
        dtype => Err(FormatError::NotFloat { tensor: tensor.to_owned(), dtype }),
    }
}

/// The bytes of every value, one after the other: `to_bytes(&values, f32::to_le_bytes)`.
pub fn to_bytes<T: Copy + Sync, const N: usize>(values: &[T], bytes: impl Fn(T) -> [u8; N] + Sync) -> Vec<u8> {
    let mut out = vec![0; values.len() * N];
    out.par_chunks_mut(CHUNK * N).zip(values.par_chunks(CHUNK)).for_each(|(out, values)| {
        for (out, &value) in out.as_chunks_mut().0.iter_mut().zip(values) {
            *out = bytes(value);
        }
    });
    out
}

/// Runs `batch` over equal chunks of at most [`BATCH`] elements of `N` bytes each.
fn convert<const N: usize>(bytes: &[u8], values: &mut [f32], batch: impl Fn(&[[u8; N]], &mut [f32]) + Sync) {
    let (elements, rest) = bytes.as_chunks::<N>();
    debug_assert!(rest.is_empty() && elements.len() == values.len(), "the header was checked against the shape");
    values.par_chunks_mut(CHUNK).zip(elements.par_chunks(CHUNK)).for_each(|(values, elements)| {
        for (values, elements) in values.chunks_mut(BATCH).zip(elements.chunks(BATCH)) {
            batch(elements, values);
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every 16-bit pattern, at an odd address, against `half` one at a time.
    #[track_caller]
    fn check_all_patterns(dtype: Dtype, expected: impl Fn(u16) -> f32) {
        let patterns = 1 << 16;
        let mut bytes = vec![0xAA];
        bytes.extend((0..=u16::MAX).flat_map(u16::to_le_bytes));
        let view = TensorView { name: "w", dtype, shape: &[patterns / 8, 8], bytes: &bytes[1..] };
        let values = view.to_f32_vec().unwrap();
        assert_eq!(values.len(), patterns);
        for (bits, value) in (0..=u16::MAX).zip(values) {
            let expected = expected(bits);
            assert!(
                value.to_bits() == expected.to_bits() || (value.is_nan() && expected.is_nan()),
                "{bits:#06x}: {value}"
            );
        }
    }

    #[test]
    fn f16_and_bf16_agree_with_half_on_every_pattern() {
        check_all_patterns(Dtype::F16, |bits| f16::from_bits(bits).to_f32());
        check_all_patterns(Dtype::BF16, |bits| bf16::from_bits(bits).to_f32());
    }

    #[test]
    fn f32_is_read_as_it_is() {
        // More than one chunk and not a whole number of batches.
        let expected: Vec<f32> = (0..CHUNK + BATCH + 3).map(|i| i as f32 * 0.37 - 9.0).collect();
        let bytes = f32_to_bytes("w", &expected, Dtype::F32).unwrap();
        let view = TensorView { name: "w", dtype: Dtype::F32, shape: &[expected.len()], bytes: &bytes };
        assert_eq!(view.to_finite_f32_vec().unwrap(), expected);
    }

    #[test]
    fn integers_are_not_weights() {
        let view = TensorView { name: "ids", dtype: Dtype::I64, shape: &[1], bytes: &[0; 8] };
        let message = view.to_f32_vec().unwrap_err().to_string();
        assert!(message.contains("`ids` is I64"), "{message}");
    }

    #[test]
    fn the_first_damaged_value_is_named() {
        let mut values = vec![1.0f32; 3 * CHUNK];
        values[CHUNK + 7] = f32::NEG_INFINITY;
        values[2 * CHUNK] = f32::NAN;
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        let view = TensorView { name: "w", dtype: Dtype::F32, shape: &[3, CHUNK], bytes: &bytes };
        for outcome in [view.to_finite_f32_vec().map(drop), view.check_finite()] {
            match outcome {
                Err(FormatError::NotFinite { index, .. }) => assert_eq!(index, CHUNK + 7),
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn writing_refuses_what_overflows() {
        assert!(f32_to_bytes("w", &[65504.0], Dtype::F16).is_ok());
        let message = f32_to_bytes("norm", &[0.0, 7e4], Dtype::F16).unwrap_err().to_string();
        assert!(message.contains("`norm`: value 1 is 70000, beyond F16"), "{message}");
        assert!(f32_to_bytes("w", &[7e4], Dtype::BF16).is_ok());
        assert!(f32_to_bytes("w", &[f32::NAN], Dtype::F32).is_err());
    }
}
