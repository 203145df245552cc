//! A block's weights and who multiplies with them.

use std::collections::BTreeMap;

use tch::Tensor;

use crate::family::LinearName;

/// The operations of a block that depend on how its weights are held.
pub trait BlockOps {
    /// `x [.., in]` -> `x Wᵀ + b`, `[.., out]`.
    fn linear(&self, name: LinearName, x: &Tensor) -> Tensor;
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
        self.tensors.get(name).unwrap_or_else(|| panic!("{name} is not in the block's layout"))
    }

    /// A linear's weight, `[out, in]`.
    pub fn weight(&self, linear: LinearName) -> &Tensor {
        self.get(&format!("{}.weight", linear.0))
    }

    /// A linear's bias, `[out]`, where it has one.
    pub fn bias(&self, linear: LinearName) -> Option<&Tensor> {
        self.tensors.get(&format!("{}.bias", linear.0))
    }

    /// Puts another weight in a linear's place.
    pub fn set_weight(&mut self, linear: LinearName, weight: Tensor) {
        self.tensors.insert(format!("{}.weight", linear.0), weight);
    }
}

/// Multiplies with the weights as they are.
pub struct DenseOps<'a>(pub &'a BlockWeights);

impl BlockOps for DenseOps<'_> {
    fn linear(&self, name: LinearName, x: &Tensor) -> Tensor {
        x.linear(self.0.weight(name), self.0.bias(name))
    }

    fn param(&self, name: &str) -> Tensor {
        self.0.get(name).shallow_clone()
    }
}
