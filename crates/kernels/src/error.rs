//! What a product is refused for.

use oq_isa::IsaError;
use oq_quant_core::WeightSpec;

/// Why a product was not computed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum KernelError {
    /// A slice has the wrong length.
    #[error("{part}: {expected} values expected for {shape}, got {got}")]
    Length {
        /// Which slice.
        part: &'static str,
        /// Its shape.
        shape: String,
        /// Values there should be.
        expected: usize,
        /// Values there are.
        got: usize,
    },
    /// Weights of a type that kernels do not multiply.
    #[error("kernels multiply integer codes with f16 scales and integer zero points, not {spec}")]
    Storage {
        /// How the weights are quantized.
        spec: WeightSpec,
    },
    /// A kernel does not multiply 8-bit activations.
    #[error("kernel {kernel} does not multiply 8-bit activations: avx512-bf16 does (AVX-512 with VNNI and BF16)")]
    Int8 {
        /// Its name.
        kernel: &'static str,
    },
    /// No kernel has that name, or the processor lacks its instructions.
    #[error(transparent)]
    Isa(#[from] IsaError),
}

/// # Errors
/// When `got` is not the product of `shape`.
pub(crate) fn check_len(part: &'static str, shape: &[usize], got: usize) -> Result<(), KernelError> {
    let expected = shape.iter().fold(1usize, |product, n| product.saturating_mul(*n));
    if expected == got { Ok(()) } else { Err(KernelError::Length { part, shape: format!("{shape:?}"), expected, got }) }
}
