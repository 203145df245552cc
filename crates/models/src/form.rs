//! How a model's matrices are held and multiplied.

use oq_quant_core::ActSpec;

use crate::block::{BlockOps, BlockWeights, Compute, DenseOps};
use crate::head::HeadKind;
use crate::packed::{PackedOps, bytes_of};

/// Who multiplies with a block's linears.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Kernels {
    /// libtorch, with dense weights; packed ones are decoded first. On any device.
    #[default]
    Dense,
    /// Our own loops, with packed weights as they are. On the CPU.
    Packed,
}

impl Kernels {
    /// As records and the command line write it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Dense => "dense",
            Self::Packed => "packed",
        }
    }
}

/// How a model's matrices are held and multiplied.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Form {
    /// Who multiplies with linears.
    pub kernels: Kernels,
    /// What products of blocks are computed in.
    pub compute: Compute,
    /// How the head is held.
    pub head: HeadKind,
}

impl Form {
    /// Of these three.
    pub const fn new(kernels: Kernels, compute: Compute, head: HeadKind) -> Self {
        Self { kernels, compute, head }
    }
}

/// A block ready to run.
#[derive(Debug)]
pub enum Block {
    /// Of dense weights.
    Dense {
        /// Linears in the kind of products, the rest in f32.
        weights: BlockWeights,
        /// How activations are seen.
        act: ActSpec,
        /// What products are computed in.
        compute: Compute,
    },
    /// Of packed weights.
    Packed(PackedOps),
}

impl Block {
    /// Hands its operations to `f`.
    pub fn with_ops<R>(&self, f: impl FnOnce(&dyn BlockOps) -> R) -> R {
        match self {
            Self::Dense { weights, act, compute } => f(&DenseOps::new(weights).with_act(*act).with_compute(*compute)),
            Self::Packed(ops) => f(ops),
        }
    }

    /// Bytes of its weights.
    pub fn bytes(&self) -> usize {
        match self {
            Self::Dense { weights, .. } => weights.tensors().values().map(bytes_of).sum(),
            Self::Packed(ops) => ops.bytes(),
        }
    }
}
