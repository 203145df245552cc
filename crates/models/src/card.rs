//! Packed weights on a card, multiplied by the kernels of `oq-cuda`.

use oq_cuda::{FEW, Kernels, Packed};
use oq_quant_core::QuantizedTensor;
use tch::{Device, Kind, Tensor};

use crate::block::{Compute, multiply};
use crate::dequantized::sent;
use crate::tensors::bytes_of;

/// A matrix of codes on a card. Few rows of activations are multiplied with the codes themselves, for more the weights are decoded, each
/// time anew.
pub(crate) struct CardLinear {
    kernels: &'static Kernels,
    packed: Packed,
    /// `[out]`.
    bias: Option<Tensor>,
    /// Of products with decoded weights.
    compute: Compute,
}

impl CardLinear {
    /// Sends codes to a card; none where this process has no kernels.
    pub(crate) fn new(
        codes: &QuantizedTensor,
        bias: Option<&[f32]>,
        (device, compute): (Device, Compute),
    ) -> Option<Self> {
        let kernels = oq_cuda::of(device)?;
        let bias = bias.map(|bias| Tensor::from_slice(bias).to_device(device));
        Some(Self { kernels, packed: sent(codes, device), bias, compute })
    }

    /// `x [.., in]` -> `[.., out]` f32.
    pub(crate) fn multiply(&self, x: &Tensor) -> Tensor {
        let mut shape = x.size();
        *shape.last_mut().expect("activations have a last dimension") = self.packed.rows() as i64;
        let x = x.reshape([-1, self.packed.cols as i64]);
        let y = if x.size()[0] as usize <= FEW && self.packed.multiplies() {
            self.kernels.multiply(&self.packed, &x.to_kind(Kind::Float).contiguous(), self.bias.as_ref())
        } else {
            let kind = self.compute.kind();
            multiply(&x.to_kind(kind), &self.kernels.decode(&self.packed, kind), self.bias.as_ref())
                .to_kind(Kind::Float)
        };
        y.view(&shape[..])
    }

    /// Size in bytes.
    pub(crate) fn bytes(&self) -> usize {
        let Packed { words, grids, table, .. } = &self.packed;
        [Some(words), Some(grids), table.as_ref(), self.bias.as_ref()].into_iter().flatten().map(bytes_of).sum()
    }
}

impl std::fmt::Debug for CardLinear {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("CardLinear").field("packed", &self.packed).finish_non_exhaustive()
    }
}
