//! The block that learns: its channels rescaled by an equivalent transformation, its linears fake-quantized on clipped grids, their
//! codes rounded from a start that may be compensated, by offsets that may be learned.
//!
//! The quantizer is cut out of autograd. Each step has two graphs. The first goes from scales and shifts to the transformed tensors.
//! There it is cut: weights are fake-quantized without a graph, and they and the other transformed tensors become leaves of the
//! second, which is the block. libtorch differentiates the block down to these leaves; the closed form in `oq-lwc` takes the
//! gradients of quantized weights to clipping strengths and to transformed weights; libtorch takes those through the first graph.
//!
//! Where attention is our own ([`Mixed`]), the block's graph is cut there once more: from the loss down to what attention gave, and
//! from queries, keys and values down to the leaves.

use std::cell::RefCell;
use std::collections::BTreeMap;

use oq_let::{Transform, Values};
use oq_lwc::{Lwc, LwcError};
use oq_models::{
    ActPoint, BlockOps, BlockWeights, Compute, LinearName, Mixed, Scores, attention, multiply, quantize_act,
};
use oq_quant_core::{ActSpec, QuantizedTensor, WeightSpec};
use tch::{Device, Kind, Tensor};

use crate::adamw::AdamW;
use crate::compensate::{self, Rounded};
use crate::inputs::Inputs;

/// What a block learns: clipping and, where that is asked for, rounding of each of its linears, scales and shifts of its sites.
pub(crate) struct Student<'a> {
    weights: &'a BlockWeights,
    transform: &'a Transform,
    act: ActSpec,
    compute: Compute,
    clips: BTreeMap<LinearName, Lwc>,
    values: Values,
    rounding: Option<Descending>,
}

/// The largest step that an offset takes: a sign says little of how far to go.
const LARGEST_STEP: f64 = 0.02;

/// A rate that falls linearly to 0.
pub(crate) struct Descending {
    first: f64,
    steps: usize,
    left: usize,
}

impl Descending {
    pub(crate) fn new(first: f64, steps: usize) -> Self {
        Self { first, steps, left: steps }
    }

    pub(crate) fn next(&mut self) -> f64 {
        let rate = self.first * self.left as f64 / self.steps as f64;
        self.left = self.left.saturating_sub(1);
        rate
    }

    /// Passes over so many values.
    pub(crate) fn skip(&mut self, steps: usize) {
        self.left = self.left.saturating_sub(steps);
    }
}

/// Where and in what a block is computed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    pub(crate) device: Device,
    pub(crate) compute: Compute,
}

/// Learning rates by what is learned.
#[derive(Clone, Copy)]
pub(crate) struct Rates {
    pub(crate) clip: f64,
    pub(crate) transform: f64,
}

/// A block as it will be stored.
pub(crate) struct Merged {
    /// Codes of every linear.
    pub(crate) codes: BTreeMap<LinearName, QuantizedTensor>,
    /// Norms and biases that the transformation changed, by name, f32.
    pub(crate) params: BTreeMap<String, Tensor>,
}

impl Merged {
    /// Takes the params named as they are in `weights`, where they were not changed.
    pub(crate) fn keep_params(&mut self, weights: &BlockWeights, names: impl Iterator<Item = String>) {
        for name in names {
            self.params.entry(name).or_insert_with_key(|name| weights.get(name).shallow_clone());
        }
    }

    /// Puts the values of the codes, and what else changed, in the place of a block's tensors.
    pub(crate) fn put_into(&self, weights: &mut BlockWeights) {
        for (&name, packed) in &self.codes {
            let weight = dequantized(packed, weights.weight(name));
            weights.set(weight_name(name), weight);
        }
        for (name, tensor) in &self.params {
            weights.set(name.clone(), tensor.shallow_clone());
        }
    }
}

/// The values of codes, in the shape and on the device of the weight that they stand for.
pub(crate) fn dequantized(packed: &QuantizedTensor, like: &Tensor) -> Tensor {
    Tensor::from_slice(&packed.dequantize()).view_as(like).to_device(like.device())
}

impl<'a> Student<'a> {
    /// Clipping and rounding at their start for every linear named, quantized as `specs` says, as far as its inputs were `seen`, and
    /// the transformation at the values given.
    pub(crate) fn new(
        weights: &'a BlockWeights,
        linears: &[LinearName],
        (specs, act): (&dyn Fn(LinearName) -> WeightSpec, ActSpec),
        (transform, values): (&'a Transform, Values),
        seen: &Inputs,
        place: Place,
    ) -> Result<Self, (LinearName, LwcError)> {
        let clips = linears
            .iter()
            .map(|&name| {
                let (out_features, in_features) = weights.weight(name).size2().expect("a weight is [out, in]");
                let clip = Lwc::new(out_features as usize, in_features as usize, specs(name), place.device);
                let mut clip = clip.map_err(|error| (name, error))?;
                if let Some(moments) = seen.moments(name) {
                    clip.start_from_search(weights.weight(name), &moments.squares);
                    if !moments.products.is_empty() {
                        clip.offsets = Some(weights.weight(name).zeros_like());
                    }
                }
                Ok((name, clip))
            })
            .collect::<Result<BTreeMap<_, _>, _>>()?;
        // All of them are there before the first is filled in, so that what that takes leaves no holes between them.
        for (names, moments) in seen.of_linears() {
            let rounded = clips.iter().filter_map(|(&name, clip)| {
                let offsets = clip.offsets.as_ref().filter(|_| names.contains(&name.0))?;
                Some(Rounded { weight: weights.weight(name), clip, offsets })
            });
            compensate::fill(&rounded.collect::<Vec<_>>(), moments);
        }
        Ok(Self { weights, transform, act, compute: place.compute, clips, values, rounding: None })
    }

    /// Learns rounding too, in so many steps, each a `share` of what it would be.
    pub(crate) fn round_within(&mut self, steps: usize, share: f64) {
        // All of its values come to a half, or to less where there are few of them.
        let first = (1.0 / (steps + 1) as f64).min(LARGEST_STEP);
        self.rounding = Some(Descending::new(share * first, steps));
    }

    /// An optimizer of all other parameters.
    pub(crate) fn optimizer(&self, rates: Rates) -> AdamW {
        let strengths = self.clips.values().flat_map(|clip| [&clip.gamma, &clip.beta]);
        let strengths = strengths.map(|strength| (strength, rates.clip));
        AdamW::new(strengths.chain(self.values.tensors().map(|value| (value, rates.transform))))
    }

    /// One step down `loss`, a function of the block's operations. Returns the loss before the step; when it or a gradient
    /// is not finite, NaN, and nothing has moved.
    pub(crate) fn step(&mut self, optimizer: &mut AdamW, loss: impl FnOnce(&dyn BlockOps) -> Tensor) -> f64 {
        let Some(Gradients { value, moved, of_quantized, of_params }) = self.gradients(loss) else { return f64::NAN };
        if let Some(rate) = self.rounding.as_mut().map(Descending::next) {
            for (&name, clip) in &mut self.clips {
                let name = weight_name(name);
                let weight = moved.get(&name).unwrap_or_else(|| self.weights.get(&name));
                clip.move_offsets(weight, &of_quantized[name.as_str()], rate);
            }
        }
        let strengths = self.clips.values_mut().flat_map(|clip| [&mut clip.gamma, &mut clip.beta]);
        optimizer.step(strengths.chain(self.values.tensors_mut()).zip(of_params));
        self.values.keep_off_zero();
        value
    }

    /// What a step needs; none where the loss or a gradient is not finite.
    fn gradients(&self, loss: impl FnOnce(&dyn BlockOps) -> Tensor) -> Option<Gradients> {
        let values = self.values.leaves();
        // Runs record no graph otherwise.
        let moved = tch::with_grad(|| self.transform.apply(&values, |name| self.weights.find(name)));
        let leaves = self.cut(&moved);
        let ops = StudentOps::new(self.weights, &leaves, self.act, self.compute);
        let loss = tch::with_grad(|| loss(&ops));
        let value = loss.double_value(&[]);
        if !value.is_finite() {
            return None;
        }
        // Only norms that learn stand above both parts of a block that attention has cut.
        let grads = backward(loss, leaves.values().collect(), ops.cut(), !moved.is_empty());
        let mut grads: BTreeMap<&str, Tensor> = leaves.keys().map(String::as_str).zip(grads).collect();

        let (mut of_params, mut of_quantized) = (Vec::new(), BTreeMap::new());
        for (&name, clip) in &self.clips {
            let name = weight_name(name);
            let grad = grads.get_mut(name.as_str()).expect("each weight was a leaf");
            if self.rounding.is_some() {
                of_quantized.insert(name.clone(), grad.shallow_clone());
            }
            let of_clip = match moved.get(&name) {
                Some(weight) => {
                    let (of_clip, of_weight) = clip.gradients_with_weight(weight, grad);
                    *grad = of_weight;
                    of_clip
                }
                None => clip.gradients(self.weights.get(&name), grad),
            };
            of_params.extend([of_clip.gamma, of_clip.beta]);
        }
        if !moved.is_empty() {
            // The function of the transformed tensors that has these gradients.
            let linear = tch::with_grad(|| {
                moved.iter().map(|(name, tensor)| (tensor * &grads[name.as_str()]).sum(Kind::Float)).sum::<Tensor>()
            });
            of_params.extend(Tensor::run_backward(&[linear], &values.tensors().collect::<Vec<_>>(), false, false));
        }
        let sum: Tensor = of_params.iter().map(|grad| grad.sum(Kind::Float)).sum();
        let is_finite = sum.double_value(&[]).is_finite();
        is_finite.then_some(Gradients { value, moved, of_quantized, of_params })
    }

    /// The leaves of the block's graph: quantized weights of all linears, and whatever else the transformation changed.
    fn cut(&self, moved: &BTreeMap<String, Tensor>) -> BTreeMap<String, Tensor> {
        let leaf = |tensor: Tensor| tensor.detach().set_requires_grad(true);
        let mut leaves: BTreeMap<String, Tensor> =
            moved.iter().map(|(name, tensor)| (name.clone(), leaf(tensor.shallow_clone()))).collect();
        for (&name, clip) in &self.clips {
            let name = weight_name(name);
            let weight = moved.get(&name).unwrap_or_else(|| self.weights.get(&name));
            leaves.insert(name, leaf(clip.fake_quantize_as(self.compute.kind(), weight)));
        }
        leaves
    }

    /// The block with what was learned in it.
    pub(crate) fn merge(&self) -> Result<Merged, (LinearName, LwcError)> {
        merge(self.weights, self.transform, &self.values, self.clips.keys().copied(), |name, weight| {
            self.clips[&name].quantize(weight)
        })
    }
}

/// What a step goes by.
struct Gradients {
    /// The loss.
    value: f64,
    /// The tensors that were transformed.
    moved: BTreeMap<String, Tensor>,
    /// Gradients of quantized weights, where rounding is learned.
    of_quantized: BTreeMap<String, Tensor>,
    /// Gradients of the strengths of each linear, then of scales and shifts.
    of_params: Vec<Tensor>,
}

/// Applies a transformation, and makes the codes of what it gives.
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
        let moved = params.remove(&weight_name(name));
        let packed = quantize(name, moved.as_ref().unwrap_or_else(|| weights.weight(name)));
        codes.insert(name, packed.map_err(|error| (name, error))?);
    }
    Ok(Merged { codes, params })
}

pub(crate) fn weight_name(linear: LinearName) -> String {
    format!("{}.weight", linear.0)
}

/// Gradients of a loss with respect to the leaves, in their order. `shared`: whether what is before attention may also be read after.
pub(crate) fn backward(loss: Tensor, leaves: Vec<&Tensor>, mixed: Option<CutAttention>, shared: bool) -> Vec<Tensor> {
    let Some(mixed) = mixed else {
        return Tensor::run_backward(&[loss], &leaves, false, false);
    };
    let mut inputs = leaves;
    inputs.push(&mixed.leaf);
    let mut after = Tensor::run_backward(&[&loss], &inputs, shared, false);
    drop(loss);
    let of_heads = mixed.mixed.grads(&after.pop().expect("one for each input"));
    // The function of queries, keys and values that has these gradients.
    let linear: Tensor =
        tch::with_grad(|| mixed.heads.iter().zip(&of_heads).map(|(x, grad)| (x * grad).sum(Kind::Float)).sum());
    inputs.pop();
    let before = Tensor::run_backward(&[linear], &inputs, false, false);
    // A leaf that one of the graphs does not reach has no gradient there.
    let sum = |(after, before): (Tensor, Tensor)| match (after.defined(), before.defined()) {
        (true, true) => after + before,
        (true, false) => after,
        (false, _) => before,
    };
    after.into_iter().zip(before).map(sum).collect()
}

/// Attention that stands outside of autograd.
pub(crate) struct CutAttention {
    /// Queries, keys and values, with their graph.
    heads: [Tensor; 3],
    mixed: Mixed,
    /// What it gave, where the graph goes on.
    leaf: Tensor,
}

/// Multiplies with the leaves.
pub(crate) struct StudentOps<'a> {
    weights: &'a BlockWeights,
    leaves: &'a BTreeMap<String, Tensor>,
    act: ActSpec,
    compute: Compute,
    /// The block's attention, where it is our own.
    mixed: RefCell<Option<CutAttention>>,
}

impl<'a> StudentOps<'a> {
    /// Takes tensors from `leaves`, linears' weights as products need them, and what is not there from `weights`.
    pub(crate) fn new(
        weights: &'a BlockWeights,
        leaves: &'a BTreeMap<String, Tensor>,
        act: ActSpec,
        compute: Compute,
    ) -> Self {
        Self { weights, leaves, act, compute, mixed: RefCell::new(None) }
    }

    /// Where the block's graph was cut, for [`backward`].
    pub(crate) fn cut(self) -> Option<CutAttention> {
        self.mixed.into_inner()
    }

    fn find(&self, name: &str) -> Option<&Tensor> {
        self.leaves.get(name).or_else(|| self.weights.find(name))
    }
}

impl BlockOps for StudentOps<'_> {
    fn linear(&self, name: LinearName, x: &Tensor) -> Tensor {
        multiply(x, &self.leaves[&weight_name(name)], self.find(&format!("{}.bias", name.0)))
    }

    fn act(&self, point: ActPoint, x: Tensor) -> Tensor {
        self.compute.cast(quantize_act(self.act, self.weights.turn(point, x)))
    }

    fn attention(&self, q: &Tensor, k: &Tensor, v: &Tensor, scores: &Scores<'_>) -> Tensor {
        let heads = [q, k, v];
        let learns = heads.iter().all(|x| x.requires_grad());
        let Some(mixed) = learns.then(|| tch::no_grad(|| Mixed::new(q, k, v, scores))).flatten() else {
            return attention(q, k, v, scores);
        };
        let leaf = mixed.out.set_requires_grad(true);
        let cut = CutAttention { heads: heads.map(Tensor::shallow_clone), leaf: leaf.shallow_clone(), mixed };
        *self.mixed.borrow_mut() = Some(cut);
        leaf
    }

    fn param(&self, name: &str) -> Tensor {
        self.find(name).unwrap_or_else(|| self.weights.get(name)).shallow_clone()
    }
}

#[cfg(test)]
mod tests;
