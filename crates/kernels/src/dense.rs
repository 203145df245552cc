//! Matrices of 16-bit numbers, times one row: what stays dense in a packed model, such as the head.

use half::{bf16, f16};
use rayon::prelude::*;

use crate::error::{KernelError, check_len};
use crate::kernel::Kernel;

/// f16 or bf16.
pub trait Half: Copy + Send + Sync + private::Sealed {}

impl Half for f16 {}
impl Half for bf16 {}

mod private {
    use half::{bf16, f16};

    use crate::dot::Dot;
    use crate::kernel::Kernel;

    pub trait Sealed: Sized {
        fn dot(kernel: &Kernel) -> Dot<Self>;
    }

    impl Sealed for f16 {
        fn dot(kernel: &Kernel) -> Dot<Self> {
            kernel.dots.f16
        }
    }

    impl Sealed for bf16 {
        fn dot(kernel: &Kernel) -> Dot<Self> {
            kernel.dots.bf16
        }
    }
}

/// Rows of the matrix in a task.
const TASK: usize = 256;

/// `weight [out_features, in_features]` times `x [in_features]`, into `out [out_features]`. Weights enter as they are and sums are f32;
/// rows are split over the threads of the current rayon pool. Reading the matrix is what it costs.
///
/// # Errors
/// When `weight` has another length than `out` rows of the length of `x`, or `OMNIQUANT_KERNEL` names a kernel that cannot be used.
pub fn multiply_dense<T: Half>(weight: &[T], x: &[f32], out: &mut [f32]) -> Result<(), KernelError> {
    check_len("weight", &[out.len(), x.len()], weight.len())?;
    let dot = T::dot(Kernel::chosen()?);
    if x.is_empty() {
        out.fill(0.0);
        return Ok(());
    }
    out.par_chunks_mut(TASK).zip(weight.par_chunks(TASK * x.len())).for_each(|(out, weight)| {
        out.iter_mut().zip(weight.chunks_exact(x.len())).for_each(|(out, weight)| *out = dot(weight, x));
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::KERNELS;

    /// All dot products that this processor can run.
    #[track_caller]
    fn check_dot(width: usize) {
        // f32 sums of up to 1000 products, as a share of the sum of their magnitudes.
        const TOLERANCE: f64 = 1e-5;
        let number = |i: usize| ((i * i) as f32 * 0.61).sin();
        let x: Vec<f32> = (0..width).map(|i| number(i + 7)).collect();
        let halves: Vec<f16> = (0..width).map(|i| f16::from_f32(number(i))).collect();
        let brains: Vec<bf16> = (0..width).map(|i| bf16::from_f32(number(i))).collect();
        let compare = |out: f32, weight: &dyn Fn(usize) -> f64, what: &str| {
            let terms = x.iter().enumerate().map(|(i, &x)| weight(i) * f64::from(x));
            let (sum, size) = terms.fold((0.0, 0.0), |(sum, size), term| (sum + term, size + term.abs()));
            assert!((f64::from(out) - sum).abs() <= TOLERANCE * size, "{what}, {width}: {out} and not {sum}");
        };
        for kernel in KERNELS.iter().filter(|kernel| kernel.is_available()) {
            compare((kernel.dots.f16)(&halves, &x), &|i| halves[i].to_f64(), kernel.name);
            compare((kernel.dots.bf16)(&brains, &x), &|i| brains[i].to_f64(), kernel.name);
        }
    }

    #[test]
    fn dot_products_equal_their_definition() {
        for width in [0, 1, 7, 8, 31, 32, 33, 40, 64, 576, 1000] {
            check_dot(width);
        }
    }

    #[track_caller]
    fn check(rows: usize, width: usize) {
        // Whole numbers, so that sums are exact.
        let number = |i: usize| (i * i % 17) as f32 - 8.0;
        let x: Vec<f32> = (0..width).map(|i| number(i + 7)).collect();
        let expected: Vec<f32> =
            (0..rows).map(|row| x.iter().enumerate().map(|(i, x)| number(row * width + i) * x).sum()).collect();
        let mut out = vec![f32::NAN; rows];
        let halves: Vec<f16> = (0..rows * width).map(|i| f16::from_f32(number(i))).collect();
        multiply_dense(&halves, &x, &mut out).unwrap();
        assert_eq!(out, expected, "f16 {rows} x {width}");
        let brains: Vec<bf16> = (0..rows * width).map(|i| bf16::from_f32(number(i))).collect();
        multiply_dense(&brains, &x, &mut out).unwrap();
        assert_eq!(out, expected, "bf16 {rows} x {width}");
    }

    #[test]
    fn rows_are_split_and_none_is_left_out() {
        for (rows, width) in [(3, 576), (600, 40), (257, 1), (0, 8), (5, 0)] {
            check(rows, width);
        }
    }

    #[test]
    fn lengths_are_checked() {
        let error = multiply_dense(&[f16::ONE; 5], &[1.0; 2], &mut [0.0; 3]).unwrap_err();
        assert!(matches!(error, KernelError::Length { part: "weight", expected: 6, got: 5, .. }), "{error}");
    }
}
