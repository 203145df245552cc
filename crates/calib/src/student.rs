//! The block that learns: its linears fake-quantized by clipping parameters.
//!
//! The quantizer is cut out of autograd. Each step computes `w'` without a graph, makes it a leaf, lets libtorch differentiate
//! the block down to `dL/dw'`, and takes the parameters' gradients from the closed form in `oq-lwc`: two passes over the
//! weights where autograd through the definition makes twelve or more.

use std::collections::BTreeMap;

use oq_lwc::{Lwc, LwcError};
use oq_models::{BlockOps, BlockWeights, LinearName};
use oq_quant_core::{QuantizedTensor, WeightSpec};
use tch::{Device, Tensor};

use crate::adamw::AdamW;

/// What a block learns: clipping of each of its linears.
pub(crate) struct Student<'a> {
    weights: &'a BlockWeights,
    clips: BTreeMap<LinearName, Lwc>,
}

impl<'a> Student<'a> {
    /// Clipping at its start for every linear named.
    pub(crate) fn new(
        weights: &'a BlockWeights,
        linears: impl IntoIterator<Item = LinearName>,
        spec: WeightSpec,
        device: Device,
    ) -> Result<Self, LwcError> {
        let clips = linears
            .into_iter()
            .map(|name| {
                let (out_features, in_features) = weights.weight(name).size2().expect("a weight is [out, in]");
                Ok((name, Lwc::new(out_features as usize, in_features as usize, spec, device)?))
            })
            .collect::<Result<_, LwcError>>()?;
        Ok(Self { weights, clips })
    }

    /// An optimizer of all parameters.
    pub(crate) fn optimizer(&self, lr: f64) -> AdamW {
        AdamW::new(self.clips.values().flat_map(|clip| [&clip.gamma, &clip.beta]), lr)
    }

    /// One step down `loss`, a function of the block's operations. Returns the loss before the step; when it or a gradient
    /// is not finite, NaN, and nothing has moved.
    pub(crate) fn step(&mut self, optimizer: &mut AdamW, loss: impl FnOnce(&dyn BlockOps) -> Tensor) -> f64 {
        let leaves: BTreeMap<LinearName, Tensor> = self
            .clips
            .iter()
            .map(|(&name, clip)| (name, clip.fake_quantize(self.weights.weight(name)).set_requires_grad(true)))
            .collect();
        // Runs record no graph otherwise.
        let loss = tch::with_grad(|| loss(&StudentOps { weights: self.weights, leaves: &leaves }));
        let value = loss.double_value(&[]);
        if !value.is_finite() {
            return f64::NAN;
        }
        let inputs: Vec<&Tensor> = leaves.values().collect();
        let weight_grads = Tensor::run_backward(&[&loss], &inputs, false, false);
        drop(loss);
        let mut grads = Vec::with_capacity(2 * weight_grads.len());
        for ((name, clip), grad) in self.clips.iter().zip(&weight_grads) {
            let clip_grads = clip.gradients(self.weights.weight(*name), grad);
            grads.extend([clip_grads.gamma, clip_grads.beta]);
        }
        if grads.iter().any(|grad| !grad.sum(tch::Kind::Float).double_value(&[]).is_finite()) {
            return f64::NAN;
        }
        let params = self.clips.values_mut().flat_map(|clip| [&mut clip.gamma, &mut clip.beta]);
        optimizer.step(params.zip(grads));
        value
    }

    /// Final codes of every linear.
    pub(crate) fn quantize(&self) -> Result<BTreeMap<LinearName, QuantizedTensor>, (LinearName, LwcError)> {
        self.clips
            .iter()
            .map(|(&name, clip)| {
                clip.quantize(self.weights.weight(name)).map(|packed| (name, packed)).map_err(|e| (name, e))
            })
            .collect()
    }
}

/// Multiplies with the leaves.
struct StudentOps<'a> {
    weights: &'a BlockWeights,
    leaves: &'a BTreeMap<LinearName, Tensor>,
}

impl BlockOps for StudentOps<'_> {
    fn linear(&self, name: LinearName, x: &Tensor) -> Tensor {
        x.linear(&self.leaves[&name], self.weights.bias(name))
    }

    fn param(&self, name: &str) -> Tensor {
        self.weights.get(name).shallow_clone()
    }
}
