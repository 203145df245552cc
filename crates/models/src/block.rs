//! A block's weights and who multiplies with them.

use std::collections::BTreeMap;

use oq_quant_core::ActSpec;
use tch::Tensor;

use crate::act::quantize_act;
use crate::family::LinearName;

/// Where activations may be quantized.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ActPoint {
    /// What one or more linears read, `[b, t, in]`.
    LinearInput,
    /// Queries and keys, turned by their positions, and values: `[b, heads, t, d]`.
    Heads,
}

/// The operations of a block that depend on how its weights are held.
pub trait BlockOps {
    /// `x [.., in]` -> `x Wᵀ + b`, `[.., out]`.
    fn linear(&self, name: LinearName, x: &Tensor) -> Tensor;
    /// An activation on its way into a product, as it is seen there: like `x`.
    fn act(&self, point: ActPoint, x: Tensor) -> Tensor;
    /// A tensor that is not a linear's: `input_layernorm.weight`.
    fn param(&self, name: &str) -> Tensor;
}

/// One block's tensors in f32, by their names below the block's prefix.
#[derive(Debug)]
pub struct BlockWeights {
    tensors: BTreeMap<String, Tensor>,
}

impl BlockWeights {
    /// Takes a block's tensors.
    pub fn new(tensors: BTreeMap<String, Tensor>) -> Self {
        Self { tensors }
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
        self.get(&format!("{}.weight", linear.0))
    }

    /// A linear's bias, `[out]`, where it has one.
    pub fn bias(&self, linear: LinearName) -> Option<&Tensor> {
        self.find(&format!("{}.bias", linear.0))
    }

    /// A tensor by name, where there is one.
    pub fn find(&self, name: &str) -> Option<&Tensor> {
        self.tensors.get(name)
    }

    /// Puts a tensor in the place of another.
    pub fn set(&mut self, name: String, tensor: Tensor) {
        self.tensors.insert(name, tensor);
    }

    /// All tensors by their names.
    pub fn tensors(&self) -> &BTreeMap<String, Tensor> {
        &self.tensors
    }
}

/// Multiplies with the weights as they are.
pub struct DenseOps<'a> {
    weights: &'a BlockWeights,
    act: ActSpec,
}

impl<'a> DenseOps<'a> {
    /// Activations stay in floating point.
    pub fn new(weights: &'a BlockWeights) -> Self {
        Self::with_act(weights, ActSpec::Float)
    }

    /// Activations go through `act` on their way into every product.
    pub fn with_act(weights: &'a BlockWeights, act: ActSpec) -> Self {
        Self { weights, act }
    }
}

impl BlockOps for DenseOps<'_> {
    fn linear(&self, name: LinearName, x: &Tensor) -> Tensor {
        x.linear(self.weights.weight(name), self.weights.bias(name))
    }

    fn act(&self, _point: ActPoint, x: Tensor) -> Tensor {
        quantize_act(self.act, x)
    }

    fn param(&self, name: &str) -> Tensor {
        self.weights.get(name).shallow_clone()
    }
}
