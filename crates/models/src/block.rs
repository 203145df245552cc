//! A block's weights and who multiplies with them.

use std::collections::BTreeMap;

use oq_quant_core::ActSpec;
use tch::{Kind, Tensor};

use crate::act::{ActPoint, quantize_act};
use crate::attention::{Scores, attention};
use crate::online::{Online, turn};
use crate::structure::{Linear, LinearName};

/// The operations of a block that depend on how its weights are held.
pub trait BlockOps {
    /// `x [.., in]` -> `x Wᵀ + b`, `[.., out]`.
    fn linear(&self, name: LinearName, x: &Tensor) -> Tensor;
    /// Several linears of one input, in their order.
    fn linears(&self, names: &[LinearName], x: &Tensor) -> Vec<Tensor> {
        names.iter().map(|&name| self.linear(name, x)).collect()
    }
    /// An activation on its way into a product, as it is seen there: like `x`.
    fn act(&self, point: ActPoint, x: Tensor) -> Tensor;
    /// [`attention`], called at most once in a block.
    fn attention(&self, q: &Tensor, k: &Tensor, v: &Tensor, scores: &Scores<'_>) -> Tensor {
        attention(q, k, v, scores)
    }
    /// A tensor that is not a linear's: `input_layernorm.weight`.
    fn param(&self, name: &str) -> Tensor;
}

/// [`BlockOps::linears`], for patterns.
pub(crate) fn several<const N: usize>(ops: &dyn BlockOps, names: &[LinearName; N], x: &Tensor) -> [Tensor; N] {
    ops.linears(names, x).try_into().expect("one output for each linear")
}

/// One block's tensors in f32, by their names below the block's prefix.
#[derive(Debug)]
pub struct BlockWeights {
    tensors: BTreeMap<String, Tensor>,
    online: Option<Online>,
}

impl BlockWeights {
    /// Takes a block's tensors.
    pub fn new(tensors: BTreeMap<String, Tensor>) -> Self {
        Self { tensors, online: None }
    }

    /// The same tensors, for activations that are rotated while the block runs.
    pub fn with_online(self, online: Option<Online>) -> Self {
        Self { online, ..self }
    }

    /// An activation on its way into a product, rotated where these weights are for rotated ones.
    pub fn turn(&self, point: ActPoint, x: Tensor) -> Tensor {
        turn(self.online.as_ref(), point, x)
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

    /// A tensor by name, where there is one.
    pub fn find(&self, name: &str) -> Option<&Tensor> {
        self.tensors.get(name)
    }

    /// Puts a tensor in the place of another.
    pub fn set(&mut self, name: String, tensor: Tensor) {
        self.tensors.insert(name, tensor);
    }

    /// The same block with its linears' weights as products need them; norms and biases stay f32.
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

/// What products are computed in. Norms, rotations, residual sums, softmax and losses are f32 either way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Compute {
    /// Inputs, weights and outputs in f32.
    #[default]
    F32,
    /// Inputs, weights and outputs in bf16, summed in f32.
    Bf16,
}

impl Compute {
    /// A tensor on its way into a product.
    pub fn cast(self, x: Tensor) -> Tensor {
        match self {
            // Of f64 too, in tests.
            Self::F32 => x,
            Self::Bf16 => x.to_kind(self.kind()),
        }
    }

    /// The kind of products' factors.
    pub const fn kind(self) -> Kind {
        match self {
            Self::F32 => Kind::Float,
            Self::Bf16 => Kind::BFloat16,
        }
    }

    /// As records and the command line write it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
        }
    }
}

/// Multiplies with the weights as they are.
pub struct DenseOps<'a> {
    weights: &'a BlockWeights,
    act: ActSpec,
    compute: Compute,
}

impl<'a> DenseOps<'a> {
    /// Activations stay in floating point, products are computed in the weights' own kind.
    pub fn new(weights: &'a BlockWeights) -> Self {
        Self { weights, act: ActSpec::Float, compute: Compute::F32 }
    }

    /// Activations go through `act` on their way into every product.
    pub fn with_act(self, act: ActSpec) -> Self {
        Self { act, ..self }
    }

    /// Products are computed so; linears' weights are in that kind already ([`BlockWeights::cast`]).
    pub fn with_compute(self, compute: Compute) -> Self {
        Self { compute, ..self }
    }
}

impl BlockOps for DenseOps<'_> {
    fn linear(&self, name: LinearName, x: &Tensor) -> Tensor {
        multiply(x, self.weights.weight(name), self.weights.bias(name))
    }

    fn act(&self, point: ActPoint, x: Tensor) -> Tensor {
        self.compute.cast(quantize_act(self.act, self.weights.turn(point, x)))
    }

    fn param(&self, name: &str) -> Tensor {
        self.weights.get(name).shallow_clone()
    }
}

/// `x Wᵀ + b` in the kind of `x` and `W`, whatever the kind of `b`.
pub fn multiply(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Tensor {
    x.linear(weight, bias.map(|bias| bias.to_kind(weight.kind())))
}
