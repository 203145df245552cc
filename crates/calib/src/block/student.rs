//! The block that learns. An equivalent transformation rescales its channels, and its linears are fake-quantized on clipped grids.
//! Codes start from rounding that may be compensated, and get offsets that may be learned.
//!
//! The quantizer is not part of autograd. Each step has two graphs. The first goes from scales and shifts to the transformed tensors,
//! where it is cut: weights are fake-quantized without a graph, and they and the other transformed tensors become leaves of the second
//! graph, which is the block. libtorch differentiates the block down to these leaves. The closed form in `oq-lwc` turns the gradients
//! of quantized weights into those of clipping strengths and transformed weights. libtorch takes the latter through the first graph.

use std::collections::{BTreeMap, BTreeSet};

use oq_let::{Transform, Values};
use oq_lwc::{Lwc, LwcError};
use oq_models::{BlockOps, BlockWeights, Compute, LinearName};
use oq_quant_core::{ActSpec, WeightSpec};
use oq_ranks::{Ranks, RanksError};
use tch::{Kind, Tensor};

use crate::block::graph::{StudentOps, backward};
use crate::block::inputs::Inputs;
use crate::block::learned::{Clipped, Learned};
use crate::block::start::{StartError, started};
use crate::compute::Place;
use crate::merged::{Merged, merge};
use crate::optim::{AdamW, Descending};

/// What a block learns: clipping and optionally rounding of each linear, and scales and shifts of its sites.
pub(crate) struct Student<'a> {
    weights: &'a BlockWeights,
    transform: &'a Transform,
    act: ActSpec,
    compute: Compute,
    clips: BTreeMap<LinearName, Lwc>,
    /// Linears whose clipping stays as it started.
    held: BTreeSet<LinearName>,
    /// Those of them whose rounding stays too: experts that too few tokens reach.
    fixed: BTreeSet<LinearName>,
    values: Values,
    rounding: Option<Descending>,
    ranks: &'a Ranks,
}

/// How far all usual steps together move an offset, in codes.
const REACH: f64 = 0.25;
/// How much further where clipping stays: what scales cannot learn, codes do.
const FURTHER: f64 = 2.0;
/// The largest rate: if there are few steps, they reach less far.
const LARGEST_RATE: f64 = 0.01;

/// Learning rates.
#[derive(Clone, Copy)]
pub(crate) struct Rates {
    pub(crate) clip: f64,
    pub(crate) transform: f64,
}

impl<'a> Student<'a> {
    /// Clipping and rounding at their start for every linear named, quantized as `specs` says, with the statistics of its inputs where
    /// they were collected; and the transformation at the given values.
    pub(crate) fn new(
        weights: &'a BlockWeights,
        linears: &[LinearName],
        (specs, act): (&dyn Fn(LinearName) -> WeightSpec, ActSpec),
        (transform, values): (&'a Transform, Values),
        seen: &Inputs,
        (place, ranks): (Place, &'a Ranks),
    ) -> Result<Self, StartError> {
        let clips = started(weights, linears, specs, seen, (place.device, ranks))?;
        // Scales of few bits change in jumps, each of which rounds many weights anew: what compensation won would be lost.
        let jumps = |(&name, clip): (&LinearName, &Lwc)| {
            (clip.spec().storage.has_coarse_scales() && seen.moments(name).is_some()).then_some(name)
        };
        let held = clips.iter().filter_map(jumps).collect();
        let (compute, fixed) = (place.compute, BTreeSet::new());
        Ok(Self { weights, transform, act, compute, clips, held, fixed, values, rounding: None, ranks })
    }

    /// Leaves the clipping and rounding of these linears as they start.
    pub(crate) fn fix(&mut self, linears: &[LinearName]) {
        self.held.extend(linears);
        self.fixed.extend(linears);
    }

    /// Learns rounding too, in `steps` steps, each scaled by `fraction`.
    pub(crate) fn round_within(&mut self, steps: usize, fraction: f64) {
        let first = (2.0 * REACH / (steps + 1) as f64).min(LARGEST_RATE);
        self.rounding = Some(Descending::new(fraction * first, steps));
    }

    /// An optimizer of all other parameters.
    pub(crate) fn optimizer(&self, rates: Rates) -> AdamW {
        let learned = self.clips.iter().filter(|(name, _)| !self.held.contains(name));
        let strengths = learned.flat_map(|(_, clip)| [(&clip.gamma, rates.clip), (&clip.beta, rates.clip)]);
        AdamW::new(strengths.chain(self.values.tensors().map(|value| (value, rates.transform))))
    }

    /// One step that decreases `loss`, a function of the block's operations, summed over the ranks. Returns the loss before the step. If
    /// the loss or a gradient is not finite, it returns NaN and changes nothing.
    pub(crate) fn step(
        &mut self,
        optimizer: &mut AdamW,
        loss: impl FnOnce(&dyn BlockOps) -> Tensor,
    ) -> Result<f64, RanksError> {
        let Some(Gradients { value, moved, of_quantized, of_params }) = self.gradients(loss)? else {
            return Ok(f64::NAN);
        };
        if let Some(rate) = self.rounding.as_mut().map(Descending::next) {
            for (&name, clip) in self.clips.iter_mut().filter(|(name, _)| !self.fixed.contains(name)) {
                let rate = if self.held.contains(&name) { FURTHER * rate } else { rate };
                let name = name.weight();
                let weight = moved.get(&name).unwrap_or_else(|| self.weights.get(&name));
                clip.move_offsets(weight, &of_quantized[name.as_str()], rate);
            }
        }
        let learned = self.clips.iter_mut().filter(|(name, _)| !self.held.contains(name));
        let strengths = learned.flat_map(|(_, clip)| [&mut clip.gamma, &mut clip.beta]);
        optimizer.step(strengths.chain(self.values.tensors_mut()).zip(of_params));
        self.values.keep_off_zero();
        Ok(value)
    }

    /// The gradients of a step; none if the loss or a gradient is not finite. They are those of all ranks together, and so is the choice.
    fn gradients(&self, loss: impl FnOnce(&dyn BlockOps) -> Tensor) -> Result<Option<Gradients>, RanksError> {
        let values = self.values.leaves();
        // Runs disable gradients otherwise.
        let moved = tch::with_grad(|| self.transform.apply(&values, |name| self.weights.find(name)));
        let leaves = self.cut(&moved);
        let ops = StudentOps::new(self.weights, &leaves, self.act, self.compute);
        let loss = tch::with_grad(|| loss(&ops));
        let value = loss.detach();
        // In a block that attention cuts, only learned norms are upstream of both parts.
        let (names, learning): (Vec<&str>, Vec<&Tensor>) =
            leaves.iter().filter(|(_, leaf)| leaf.requires_grad()).map(|(name, leaf)| (name.as_str(), leaf)).unzip();
        let mut grads = backward(loss, learning, ops.cut(), !moved.is_empty());
        // Offsets move by what is not linear in these. All else is, and is summed over the ranks where it is smaller.
        if self.rounding.is_some() {
            grads = self.ranks.sum(grads)?;
        }
        let mut grads: BTreeMap<&str, Tensor> = names.into_iter().zip(grads).collect();

        let (mut of_params, mut of_held, mut of_quantized) = (Vec::new(), Vec::new(), BTreeMap::new());
        for (linear, clip) in &self.clips {
            let name = linear.weight();
            let Some(grad) = grads.get_mut(name.as_str()) else { continue };
            if self.rounding.is_some() && !self.fixed.contains(linear) {
                of_quantized.insert(name.clone(), grad.shallow_clone());
            }
            let is_held = self.held.contains(linear);
            let of_clip = match moved.get(&name) {
                Some(weight) => {
                    let (of_clip, of_weight) = clip.gradients_with_weight(weight, grad);
                    *grad = of_weight;
                    (!is_held).then_some(of_clip)
                }
                None => (!is_held).then(|| clip.gradients(self.weights.get(&name), grad)),
            };
            match of_clip {
                Some(of_clip) => of_params.extend([of_clip.gamma, of_clip.beta]),
                None => of_held.push(grad.sum(Kind::Float)),
            }
        }
        if !moved.is_empty() {
            // The linear function of the transformed tensors that has these gradients.
            let linear = tch::with_grad(|| {
                moved.iter().map(|(name, tensor)| (tensor * &grads[name.as_str()]).sum(Kind::Float)).sum::<Tensor>()
            });
            of_params.extend(Tensor::run_backward(&[linear], &values.tensors().collect::<Vec<_>>(), false, false));
        }
        if self.rounding.is_none() {
            of_params = self.ranks.sum(of_params)?;
        }
        let sum: Tensor = of_params.iter().map(|grad| grad.sum(Kind::Float)).chain(of_held).sum();
        // Read together: reading waits for the device.
        let read = Tensor::stack(&[value.to_kind(Kind::Float), sum.to_kind(Kind::Float)], 0);
        let read = self.ranks.sum(vec![read])?.remove(0);
        let [value, sum] = Vec::<f32>::try_from(read).expect("f32").try_into().expect("two numbers");
        let is_finite = value.is_finite() && sum.is_finite();
        Ok(is_finite.then_some(Gradients { value: value.into(), moved, of_quantized, of_params }))
    }

    /// The leaves of the block's graph: the quantized weights of all linears, and everything else that the transformation changed.
    fn cut(&self, moved: &BTreeMap<String, Tensor>) -> BTreeMap<String, Tensor> {
        let cut = |tensor: Tensor, learns: bool| tensor.detach().set_requires_grad(learns);
        let mut leaves: BTreeMap<String, Tensor> =
            moved.iter().map(|(name, tensor)| (name.clone(), cut(tensor.shallow_clone(), true))).collect();
        for (linear, clip) in &self.clips {
            let name = linear.weight();
            let moves = moved.get(&name);
            let quantized =
                clip.fake_quantize_as(self.compute.kind(), moves.unwrap_or_else(|| self.weights.get(&name)));
            leaves.insert(name, cut(quantized, moves.is_some() || !self.fixed.contains(linear)));
        }
        leaves
    }

    /// The block with everything learned merged into it.
    pub(crate) fn merge(&self) -> Result<Merged, (LinearName, LwcError)> {
        merge(self.weights, self.transform, &self.values, self.clips.keys().copied(), |name, weight| {
            self.clips[&name].quantize(weight)
        })
    }

    /// What was learned, for the record.
    pub(crate) fn into_learned(self) -> Learned {
        let moved = tch::no_grad(|| self.transform.apply(&self.values, |name| self.weights.find(name)));
        let clips = self.clips.into_iter().map(|(name, clip)| {
            let weight = moved.get(&name.weight()).unwrap_or_else(|| self.weights.weight(name));
            (name, Clipped::of(clip, weight))
        });
        Learned { clips: clips.collect(), values: self.values }
    }
}

/// The result of a step's backward pass.
struct Gradients {
    /// The loss.
    value: f64,
    /// The transformed tensors.
    moved: BTreeMap<String, Tensor>,
    /// Gradients of quantized weights, if rounding is learned.
    of_quantized: BTreeMap<String, Tensor>,
    /// Gradients of each linear's strengths, then of scales and shifts.
    of_params: Vec<Tensor>,
}

#[cfg(test)]
mod tests;
