//! Matrices of 16-bit numbers, times one row: what stays dense in a packed model, such as the head.

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use rayon::prelude::*;

use crate::linear::{KernelError, check_len};
#[cfg(target_arch = "x86_64")]
use crate::x86_64::half as x86_64;

/// f16 or bf16.
pub trait Half: Copy + Send + Sync + private::Sealed {
    /// `sum of a b`, in f32, by the instructions of this processor.
    #[doc(hidden)]
    fn dot(a: &[Self], b: &[f32]) -> f32;
}

mod private {
    pub trait Sealed {}
    impl Sealed for half::f16 {}
    impl Sealed for half::bf16 {}
}

/// Channels that are widened at a time where the processor multiplies no 16-bit numbers by itself.
const PART: usize = 256;
/// Rows of the matrix in a task.
const TASK: usize = 256;

impl Half for f16 {
    fn dot(a: &[Self], b: &[f32]) -> f32 {
        #[cfg(target_arch = "x86_64")]
        if let Some(dot) = x86_64::dot_f16(a, b) {
            return dot;
        }
        widened(a, b, |from, to| from.convert_to_f32_slice(to))
    }
}

impl Half for bf16 {
    fn dot(a: &[Self], b: &[f32]) -> f32 {
        #[cfg(target_arch = "x86_64")]
        if let Some(dot) = x86_64::dot_bf16(a, b) {
            return dot;
        }
        widened(a, b, |from, to| from.convert_to_f32_slice(to))
    }
}

/// `weight [out_features, in_features]` times `x [in_features]`, into `out [out_features]`. Weights enter as they are and sums are f32;
/// rows are split over the threads of the current rayon pool. Reading the matrix is what it costs.
///
/// # Errors
/// When `weight` has another length than `out` rows of the length of `x`.
pub fn multiply_dense<T: Half>(weight: &[T], x: &[f32], out: &mut [f32]) -> Result<(), KernelError> {
    check_len("weight", &[out.len(), x.len()], weight.len())?;
    if x.is_empty() {
        out.fill(0.0);
        return Ok(());
    }
    out.par_chunks_mut(TASK).zip(weight.par_chunks(TASK * x.len())).for_each(|(out, weight)| {
        out.iter_mut().zip(weight.chunks_exact(x.len())).for_each(|(out, weight)| *out = T::dot(weight, x));
    });
    Ok(())
}

/// Part by part, in many sums side by side.
fn widened<T>(a: &[T], b: &[f32], widen: impl Fn(&[T], &mut [f32])) -> f32 {
    const SUMS: usize = 16;
    let mut wide = [0.0; PART];
    let mut sums = [0.0; SUMS];
    for (a, b) in a.chunks(PART).zip(b.chunks(PART)) {
        let wide = &mut wide[..a.len()];
        widen(a, wide);
        for (a, b) in wide.chunks(SUMS).zip(b.chunks(SUMS)) {
            sums.iter_mut().zip(a).zip(b).for_each(|((sum, a), b)| *sum += a * b);
        }
    }
    sums.iter().sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(rows: usize, width: usize) {
        // f32 sums of up to 1000 products, as a share of the sum of their magnitudes.
        const TOLERANCE: f64 = 1e-5;
        let number = |i: usize| ((i * i) as f32 * 0.61).sin();
        let x: Vec<f32> = (0..width).map(|i| number(i + 7)).collect();
        let compare = |out: &[f32], weight: &dyn Fn(usize) -> f64, what: &str| {
            for (row, out) in out.iter().enumerate() {
                let terms = x.iter().enumerate().map(|(i, &x)| weight(row * width + i) * f64::from(x));
                let (sum, size) = terms.fold((0.0, 0.0), |(sum, size), term| (sum + term, size + term.abs()));
                assert!((f64::from(*out) - sum).abs() <= TOLERANCE * size, "{what} {rows} x {width}, row {row}");
            }
        };
        let mut out = vec![f32::NAN; rows];
        let halves: Vec<f16> = (0..rows * width).map(|i| f16::from_f32(number(i))).collect();
        multiply_dense(&halves, &x, &mut out).unwrap();
        compare(&out, &|i| halves[i].to_f64(), "f16");
        let brains: Vec<bf16> = (0..rows * width).map(|i| bf16::from_f32(number(i))).collect();
        multiply_dense(&brains, &x, &mut out).unwrap();
        compare(&out, &|i| brains[i].to_f64(), "bf16");
        for (row, out) in out.iter().enumerate() {
            let portable = widened(&brains[row * width..][..width], &x, |from, to| from.convert_to_f32_slice(to));
            assert!((portable - out).abs() <= TOLERANCE as f32 * width as f32);
        }
    }

    #[test]
    fn equals_its_definition() {
        for width in [1, 7, 8, 31, 32, 33, 64, 576, 1000] {
            check(3, width);
        }
        check(600, 40);
        check(0, 8);
    }

    #[test]
    fn lengths_are_checked() {
        let error = multiply_dense(&[f16::ONE; 5], &[1.0; 2], &mut [0.0; 3]).unwrap_err();
        assert!(matches!(error, KernelError::Length { part: "weight", expected: 6, got: 5, .. }), "{error}");
    }
}
