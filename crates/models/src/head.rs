//! The language-model head: the matrix that maps hidden states to logits.

use half::{bf16, f16};
use oq_formats::TensorView;
use oq_kernels::{Half, Kernel, KernelError, PackedLinear, multiply_dense};
use oq_quant_core::{Bits, GroupSize, QuantizedTensor, Symmetry, WeightSpec};
use tch::{Device, Kind, Tensor};

use crate::block::Compute;
use crate::decoder::Logits;
use crate::error::ModelError;
use crate::packed::{kernel_of, multiply_packed};
use crate::tensors::{bytes_of, stored_tensor_of, tensor_of};

/// How the head is stored in memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HeadKind {
    /// In f32, which is the fastest with many rows.
    #[default]
    Wide,
    /// On the CPU, in the checkpoint's data type or with its codes; on other devices, in f32.
    Stored,
    /// Rounded to nearest with 8 bits, or with the checkpoint's codes.
    W8,
}

impl HeadKind {
    /// Its name in records.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Wide => "f32",
            Self::Stored => "stored",
            Self::W8 => "w8",
        }
    }
}

/// The head: its matrix, and how logits are computed from the products.
#[derive(Debug)]
pub struct Head {
    matrix: Matrix,
    logits: Logits,
}

/// `[vocab, width]`.
#[derive(Debug)]
enum Matrix {
    /// In f32, f16 or bf16.
    Dense(Tensor),
    /// With codes, on the CPU.
    Packed(Box<PackedLinear>),
}

/// Up to this number of rows, a 16-bit head is multiplied without converting all of it to f32.
const DECODE_ROWS: usize = 4;
/// Number of values that are rounded to 8 bits at a time.
const SLAB: usize = 1 << 22;

impl Head {
    /// Loads the stored matrix.
    pub(crate) fn new(
        view: &TensorView<'_>,
        kind: HeadKind,
        device: Device,
        logits: Logits,
    ) -> Result<Self, ModelError> {
        Ok(Self { matrix: Matrix::new(view, kind, device)?, logits })
    }

    /// Multiplies with codes that the checkpoint has, on the CPU; none if no kernel does with such codes.
    pub(crate) fn of_codes(codes: &QuantizedTensor, logits: Logits) -> Result<Option<Self>, ModelError> {
        match PackedLinear::new(codes, None) {
            Ok(packed) => Ok(Some(Self { matrix: Matrix::packed(packed)?, logits })),
            Err(KernelError::Storage { .. }) => Ok(None),
            Err(other) => Err(other.into()),
        }
    }

    /// `x [.., width]` f32 -> `[.., vocab]` f32.
    pub fn logits(&self, x: &Tensor) -> Tensor {
        self.logits.apply(self.matrix.multiply(x))
    }

    /// Size of the matrix in bytes.
    pub fn bytes(&self) -> usize {
        match &self.matrix {
            Matrix::Dense(weight) => bytes_of(weight),
            Matrix::Packed(linear) => linear.bytes(),
        }
    }
}

impl Matrix {
    fn new(view: &TensorView<'_>, kind: HeadKind, device: Device) -> Result<Self, ModelError> {
        match kind {
            // On other devices, all of it would be converted to f32 for each token.
            HeadKind::Stored if device == Device::Cpu => {
                // Fails now rather than in a product.
                Kernel::chosen()?;
                Ok(Self::Dense(stored_tensor_of(view, device)?))
            }
            HeadKind::Wide | HeadKind::Stored => Ok(Self::Dense(tensor_of(view, device)?)),
            HeadKind::W8 if device != Device::Cpu => Err(ModelError::PackedDevice { device }),
            HeadKind::W8 => Self::packed(PackedLinear::new(&in_8_bits(view, SLAB)?, None)?),
        }
    }

    fn packed(linear: PackedLinear) -> Result<Self, ModelError> {
        Ok(Self::Packed(Box::new(linear.with_kernel(kernel_of(Compute::Bf16)?)?)))
    }

    /// `x [.., width]` f32 -> `[.., vocab]` f32.
    fn multiply(&self, x: &Tensor) -> Tensor {
        let weight = match self {
            Self::Packed(linear) => return multiply_packed(linear, x),
            Self::Dense(weight) => weight,
        };
        let decodes = x.numel() <= DECODE_ROWS * weight.size()[1] as usize;
        match weight.kind() {
            Kind::Half if decodes => by_rows::<f16>(weight, x),
            Kind::BFloat16 if decodes => by_rows::<bf16>(weight, x),
            _ => x.linear(&weight.to_kind(Kind::Float), None::<&Tensor>),
        }
    }
}

/// Rounds to nearest with 8 bits, in groups of 64 or the largest smaller power of two that divides the width. Works on about `slab` values
/// at a time to save memory.
fn in_8_bits(view: &TensorView<'_>, slab: usize) -> Result<QuantizedTensor, ModelError> {
    let (vocab, width) = (view.shape[0], view.shape[1]);
    let group = 1 << width.trailing_zeros().min(6);
    let group = GroupSize::channels(group).expect("a power of two is not 0");
    let spec = WeightSpec::integer(Bits::new(8).expect("8 bits are supported"), group, Symmetry::Asymmetric);
    let rows = (slab / width).max(1);
    let row_bytes = view.bytes.len() / vocab;
    let slabs = view.bytes.chunks(rows * row_bytes).map(|bytes| {
        let shape = [bytes.len() / row_bytes, width];
        let values = TensorView { shape: &shape, bytes, ..*view }.to_f32_vec()?;
        let quantize_error = |source| ModelError::Quantize { linear: view.name.to_owned(), source };
        QuantizedTensor::quantize(&values, shape[0], width, spec).map_err(quantize_error)
    });
    Ok(QuantizedTensor::stack(&slabs.collect::<Result<Vec<_>, ModelError>>()?))
}

/// A few rows times a 16-bit matrix, with sums in f32.
#[allow(unsafe_code, reason = "the loop of oq-kernels reads the tensors' memory")]
fn by_rows<T: Half + oq_slices::Number>(weight: &Tensor, x: &Tensor) -> Tensor {
    let [vocab, width] = [0, 1].map(|dim| weight.size()[dim] as usize);
    let mut shape = x.size();
    *shape.last_mut().expect("activations have a last dimension") = vocab as i64;
    let x = x.contiguous();
    // SAFETY: while the slices live, only a tensor allocated here is written to.
    let (weight, x) = unsafe { (oq_slices::of::<T>(weight), oq_slices::of::<f32>(&x)) };
    let [y] = oq_slices::filled([&shape], |[y]: [&mut [f32]; 1]| {
        for (y, x) in y.chunks_exact_mut(vocab).zip(x.chunks_exact(width)) {
            multiply_dense(weight, x, y).expect("the output has the product's shape, and there is a kernel");
        }
    });
    y
}

#[cfg(test)]
mod tests {
    use oq_formats::Dtype;

    use super::*;

    #[test]
    fn results_do_not_depend_on_the_slab_size() {
        let values: Vec<u8> = (0..7 * 96).flat_map(|i| (((i * 37 % 101) as f32 - 50.0) / 8.0).to_le_bytes()).collect();
        let view = TensorView { name: "lm_head.weight", dtype: Dtype::F32, shape: &[7, 96], bytes: &values };
        let whole = in_8_bits(&view, SLAB).unwrap();
        assert_eq!(whole.shape(), [7, 96]);
        // Two rows at a time, and the last row alone.
        assert_eq!(in_8_bits(&view, 2 * 96).unwrap(), whole);
    }
}
