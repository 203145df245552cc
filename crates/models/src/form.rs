//! How a model's weights are stored in memory and multiplied.

use oq_quant_core::ActSpec;

use crate::block::{BlockOps, BlockWeights, Compute, DenseOps};
use crate::head::HeadKind;
use crate::packed::{PackedOps, Prefill};
use crate::tensors::bytes_of;

/// The implementation of products with a block's linears.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Kernels {
    /// libtorch with dense weights, on any device. Packed weights are dequantized first.
    #[default]
    Dense,
    /// The kernels of `oq-kernels`, directly on packed weights. CPU only.
    Packed,
}

impl Kernels {
    /// Its name in records and on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Dense => "dense",
            Self::Packed => "packed",
        }
    }
}

/// How a model's weights are stored in memory and multiplied.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Form {
    /// The implementation of products with linears.
    pub kernels: Kernels,
    /// Data type of products in blocks.
    pub compute: Compute,
    /// How the head is stored.
    pub head: HeadKind,
    /// What packed linears round activations of many tokens to.
    pub prefill: Prefill,
}

impl Form {
    /// A form with these three choices.
    pub const fn new(kernels: Kernels, compute: Compute, head: HeadKind) -> Self {
        Self { kernels, compute, head, prefill: Prefill::Auto }
    }

    /// The same form with what packed linears round activations of many tokens to.
    pub const fn with_prefill(self, prefill: Prefill) -> Self {
        Self { prefill, ..self }
    }
}

/// A loaded block.
#[derive(Debug)]
pub enum Block {
    /// With dense weights.
    Dense {
        /// Linears in the data type of products, everything else in f32.
        weights: BlockWeights,
        /// Quantization of activations.
        act: ActSpec,
        /// Data type of products.
        compute: Compute,
    },
    /// With packed weights.
    Packed(PackedOps),
}

impl Block {
    /// Calls `f` with the block's operations.
    pub fn with_ops<R>(&self, f: impl FnOnce(&dyn BlockOps) -> R) -> R {
        match self {
            Self::Dense { weights, act, compute } => f(&DenseOps::new(weights).with_act(*act).with_compute(*compute)),
            Self::Packed(ops) => f(ops),
        }
    }

    /// Size of its tensors in bytes.
    pub fn bytes(&self) -> usize {
        match self {
            Self::Dense { weights, .. } => weights.tensors().values().map(bytes_of).sum(),
            Self::Packed(ops) => ops.bytes(),
        }
    }
}
