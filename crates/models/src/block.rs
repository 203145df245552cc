//! A block's weights, and the operations that the forward pass uses them through.

use std::collections::BTreeMap;

use oq_quant_core::ActSpec;
use tch::{Kind, Tensor};

use crate::act::{ActPoint, quantize_act};
use crate::attention::{Scores, attention};
use crate::online::{Online, rotate_online};
use crate::structure::{Linear, LinearName};

/// The operations of a block that depend on how its weights are stored.
pub trait BlockOps {
    /// `x [.., in]` -> `x Wᵀ + b`, `[.., out]`.
    fn linear(&self, name: LinearName, x: &Tensor) -> Tensor;
    /// Several linears with the same input; outputs are in the order of `names`.
    fn linears(&self, names: &[LinearName], x: &Tensor) -> Vec<Tensor> {
        names.iter().map(|&name| self.linear(name, x)).collect()
    }
    /// Prepares an activation for a product: online rotation, quantization, type. The shape stays.
    fn act(&self, point: ActPoint, x: Tensor) -> Tensor;
    /// [`attention`]. A block calls it at most once.
    fn attention(&self, q: &Tensor, k: &Tensor, v: &Tensor, scores: &Scores<'_>) -> Tensor {
        attention(q, k, v, scores)
    }
    /// The tokens that an expert computes, of `all` that the layer has: those that the router chose it for. More may be added, whose
    /// outputs are not used.
    fn tokens_of_expert(&self, _expert: usize, tokens: Vec<i64>, _all: usize) -> Vec<i64> {
        tokens
    }
    /// A tensor that is not a linear's: `input_layernorm.weight`.
    fn param(&self, name: &str) -> Tensor;
}

/// [`BlockOps::linears`] that returns an array.
pub(crate) fn linears<const N: usize>(ops: &dyn BlockOps, names: &[LinearName; N], x: &Tensor) -> [Tensor; N] {
    ops.linears(names, x).try_into().expect("one output for each linear")
}

/// One block's tensors in f32, by name without the block's prefix.
#[derive(Debug)]
pub struct BlockWeights {
    tensors: BTreeMap<String, Tensor>,
    online: Option<Online>,
}

impl BlockWeights {
    /// From a block's tensors, without online rotation.
    pub fn new(tensors: BTreeMap<String, Tensor>) -> Self {
        Self { tensors, online: None }
    }

    /// The same tensors with an online rotation of activations.
    pub fn with_online(self, online: Option<Online>) -> Self {
        Self { online, ..self }
    }

    /// Applies the online rotation of this point, if the weights have one.
    pub fn rotate_online(&self, point: ActPoint, x: Tensor) -> Tensor {
        rotate_online(self.online.as_ref(), point, x)
    }

    /// A tensor by name.
    ///
    /// # Panics
    /// When the block's layout does not name it.
    pub fn get(&self, name: &str) -> &Tensor {
        self.find(name).unwrap_or_else(|| panic!("{name} is not in the block's layout"))
    }

    /// A linear's weight, `[out, in]`.
    pub fn weight(&self, linear: LinearName) -> &Tensor {
        self.get(&linear.weight())
    }

    /// A linear's bias, `[out]`, where it has one.
    pub fn bias(&self, linear: LinearName) -> Option<&Tensor> {
        self.find(&linear.bias())
    }

    /// A tensor by name, if there is one.
    pub fn find(&self, name: &str) -> Option<&Tensor> {
        self.tensors.get(name)
    }

    /// Replaces or adds a tensor.
    pub fn set(&mut self, name: String, tensor: Tensor) {
        self.tensors.insert(name, tensor);
    }

    /// A copy whose linears' weights have the kind that products need. Norms and biases stay f32.
    pub fn cast(&self, linears: &[Linear], compute: Compute) -> Self {
        let mut cast = Self::new(self.tensors.iter().map(|(name, t)| (name.clone(), t.shallow_clone())).collect())
            .with_online(self.online.clone());
        for linear in linears {
            cast.set(linear.name.weight(), compute.cast(self.weight(linear.name).shallow_clone()));
        }
        cast
    }

    /// All tensors by their names.
    pub fn tensors(&self) -> &BTreeMap<String, Tensor> {
        &self.tensors
    }
}

/// Data type of products. Norms, rotations, residual sums, softmax and losses are always f32.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Compute {
    /// Inputs, weights and outputs in f32.
    #[default]
    F32,
    /// Inputs, weights and outputs in bf16, summed in f32.
    Bf16,
}

impl Compute {
    /// Converts a factor of a product.
    pub fn cast(self, x: Tensor) -> Tensor {
        match self {
            // Not converted: tests use f64.
            Self::F32 => x,
            Self::Bf16 => x.to_kind(self.kind()),
        }
    }

    /// The kind of a product's factors.
    pub const fn kind(self) -> Kind {
        match self {
            Self::F32 => Kind::Float,
            Self::Bf16 => Kind::BFloat16,
        }
    }

    /// Its name in records and on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
        }
    }
}

/// Operations with dense weights.
pub struct DenseOps<'a> {
    weights: &'a BlockWeights,
    act: ActSpec,
    compute: Compute,
}

impl<'a> DenseOps<'a> {
    /// With activations in floating point and products in the weights' own kind.
    pub fn new(weights: &'a BlockWeights) -> Self {
        Self { weights, act: ActSpec::Float, compute: Compute::F32 }
    }

    /// Fake-quantizes activations before every product.
    pub fn with_act(self, act: ActSpec) -> Self {
        Self { act, ..self }
    }

    /// Sets the data type of products. The linears' weights must have it already ([`BlockWeights::cast`]).
    pub fn with_compute(self, compute: Compute) -> Self {
        Self { compute, ..self }
    }
}

impl BlockOps for DenseOps<'_> {
    fn linear(&self, name: LinearName, x: &Tensor) -> Tensor {
        multiply(x, self.weights.weight(name), self.weights.bias(name))
    }

    fn act(&self, point: ActPoint, x: Tensor) -> Tensor {
        self.compute.cast(quantize_act(self.act, point, self.weights.rotate_online(point, x)))
    }

    fn param(&self, name: &str) -> Tensor {
        self.weights.get(name).shallow_clone()
    }
}

/// `x Wᵀ + b` in the kind of `x` and `W`; `b` is converted to it.
pub fn multiply(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Tensor {
    x.linear(weight, bias.map(|bias| bias.to_kind(weight.kind())))
}
