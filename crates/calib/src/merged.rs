//! A block as it is stored.

use std::collections::BTreeMap;

use oq_let::{Transform, Values};
use oq_models::{BlockWeights, LinearName, dequantized};
use oq_quant_core::QuantizedTensor;
use tch::Tensor;

/// A block as it is stored.
pub(crate) struct Merged {
    /// Codes of every linear that is quantized.
    pub(crate) codes: BTreeMap<LinearName, QuantizedTensor>,
    /// Weights of linears in full precision, in f32: those that differ from the checkpoint's, or all.
    pub(crate) floats: BTreeMap<LinearName, Tensor>,
    /// Norms and biases that the transformation changed, by name, in f32; at first also weights of linears in full precision.
    pub(crate) params: BTreeMap<String, Tensor>,
}

impl Merged {
    /// Takes the named norms and biases from `weights`, unless they were changed.
    pub(crate) fn keep_params(&mut self, weights: &BlockWeights, names: impl Iterator<Item = String>) {
        for name in names {
            self.params.entry(name).or_insert_with_key(|name| weights.get(name).shallow_clone());
        }
    }

    /// Replaces a block's tensors by the dequantized codes and all that changed.
    pub(crate) fn put_into(&self, weights: &mut BlockWeights) {
        for (&name, packed) in &self.codes {
            let weight = dequantized(packed, weights.weight(name).device());
            weights.set(name.weight(), weight);
        }
        for (&name, weight) in &self.floats {
            weights.set(name.weight(), weight.shallow_clone());
        }
        for (name, tensor) in &self.params {
            weights.set(name.clone(), tensor.shallow_clone());
        }
    }
}

/// Applies a transformation, and quantizes the linears named; others stay in full precision.
pub(crate) fn merge<E>(
    weights: &BlockWeights,
    transform: &Transform,
    values: &Values,
    linears: impl IntoIterator<Item = LinearName>,
    quantize: impl Fn(LinearName, &Tensor) -> Result<QuantizedTensor, E>,
) -> Result<Merged, (LinearName, E)> {
    let mut params = tch::no_grad(|| transform.apply(values, |name| weights.find(name)));
    let mut codes = BTreeMap::new();
    for name in linears {
        let moved = params.remove(&name.weight());
        let packed = quantize(name, moved.as_ref().unwrap_or_else(|| weights.weight(name)));
        codes.insert(name, packed.map_err(|error| (name, error))?);
    }
    Ok(Merged { codes, floats: BTreeMap::new(), params })
}
