//! The matrix that makes logits.

use half::{bf16, f16};
use oq_formats::TensorView;
use oq_kernels::{Half, Kernel, PackedLinear, multiply_dense};
use oq_quant_core::{Bits, GroupSize, QuantizedTensor, Symmetry, WeightSpec};
use tch::{Device, Kind, Tensor};

use crate::block::Compute;
use crate::decoder::Logits;
use crate::error::ModelError;
use crate::packed::{bytes_of, kernel_of, multiply_packed};
use crate::tensors::{stored_tensor_of, tensor_of};

/// How the head is held.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HeadKind {
    /// In f32, which is the fastest for many rows.
    #[default]
    Wide,
    /// As it is stored, on the CPU; in f32 elsewhere.
    Stored,
    /// Rounded to 8 bits.
    W8,
}

impl HeadKind {
    /// As records write it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Wide => "f32",
            Self::Stored => "stored",
            Self::W8 => "w8",
        }
    }
}

/// What makes logits: a matrix, and what becomes of the products with it.
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
    /// In 8 bits, on the CPU.
    Packed(Box<PackedLinear>),
}

/// Rows that are multiplied with a head of 16 bits without widening all of it first.
const DECODE_ROWS: usize = 4;
/// Values that are rounded to 8 bits at a time.
const SLAB: usize = 1 << 22;

impl Head {
    /// Takes the stored matrix.
    pub(crate) fn new(
        view: &TensorView<'_>,
        kind: HeadKind,
        device: Device,
        logits: Logits,
    ) -> Result<Self, ModelError> {
        Ok(Self { matrix: Matrix::new(view, kind, device)?, logits })
    }

    /// `x [.., width]` f32 -> `[.., vocab]` f32.
    pub fn logits(&self, x: &Tensor) -> Tensor {
        self.logits.apply(self.matrix.multiply(x))
    }

    /// Bytes that it takes.
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
            // Elsewhere than on the CPU all of it would be widened for each token.
            HeadKind::Stored if device == Device::Cpu => {
                // Known before its products are asked for.
                Kernel::chosen()?;
                Ok(Self::Dense(stored_tensor_of(view, device)?))
            }
            HeadKind::Wide | HeadKind::Stored => Ok(Self::Dense(tensor_of(view, device)?)),
            HeadKind::W8 if device != Device::Cpu => Err(ModelError::PackedDevice { device }),
            HeadKind::W8 => {
                let packed = PackedLinear::new(&in_8_bits(view, SLAB)?, None)?;
                Ok(Self::Packed(Box::new(packed.with_kernel(kernel_of(Compute::Bf16)?)?)))
            }
        }
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

/// Groups of 64, or of the largest smaller power of two that cuts the width; so many values at a time, so that memory stays small.
fn in_8_bits(view: &TensorView<'_>, slab: usize) -> Result<QuantizedTensor, ModelError> {
    let (vocab, width) = (view.shape[0], view.shape[1]);
    let group = 1 << width.trailing_zeros().min(6);
    let spec = WeightSpec {
        bits: Bits::new(8).expect("a width that there is"),
        group: GroupSize::channels(group).expect("it is not 0"),
        symmetry: Symmetry::Asymmetric,
    };
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

/// A few rows times a matrix of 16 bits: weights as they are, sums in f32.
#[allow(unsafe_code, reason = "the product is a loop of our own, which reads tensors where they lie")]
fn by_rows<T: Half + oq_slices::Number>(weight: &Tensor, x: &Tensor) -> Tensor {
    let [vocab, width] = [0, 1].map(|dim| weight.size()[dim] as usize);
    let mut shape = x.size();
    *shape.last_mut().expect("activations have a last dimension") = vocab as i64;
    let x = x.contiguous();
    // SAFETY: nothing is written meanwhile but a tensor that is made here.
    let (weight, x) = unsafe { (oq_slices::of::<T>(weight), oq_slices::of::<f32>(&x)) };
    let [y] = oq_slices::filled([&shape], |[y]: [&mut [f32]; 1]| {
        for (y, x) in y.chunks_exact_mut(vocab).zip(x.chunks_exact(width)) {
            multiply_dense(weight, x, y).expect("the output was made in the product's shape, and there is a kernel");
        }
    });
    y
}

#[cfg(test)]
mod tests {
    use oq_formats::Dtype;

    use super::*;

    #[test]
    fn slabs_make_no_difference() {
        let values: Vec<u8> = (0..7 * 96).flat_map(|i| (((i * 37 % 101) as f32 - 50.0) / 8.0).to_le_bytes()).collect();
        let view = TensorView { name: "lm_head.weight", dtype: Dtype::F32, shape: &[7, 96], bytes: &values };
        let whole = in_8_bits(&view, SLAB).unwrap();
        assert_eq!(whole.shape(), [7, 96]);
        // Two rows at a time, and the last one alone.
        assert_eq!(in_8_bits(&view, 2 * 96).unwrap(), whole);
    }
}
