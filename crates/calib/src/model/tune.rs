//! Tuning of all blocks together: their scales, norms and biases, by the divergence of the quantized model's predictions from the
//! full-precision model's (end-to-end training of quantization parameters, EfficientQAT, Chen et al. 2024, arXiv 2407.11062, section
//! 3.3, with the original model as the teacher). Zero points stay fixed, and so do codes, unless they are told to follow ([`codes`]).
//!
//! Each step reads every block's shard once in the forward and once in the backward pass, so that one block is in memory at a time. The
//! learned values and their two moments stay in memory: three numbers per group, and a byte for each code that may move.

mod codes;
mod state;

use std::collections::BTreeMap;

use oq_models::{BlockWeights, Context, Model, Online, dequantized};
use oq_quant_core::ActSpec;
use oq_ranks::Ranks;
use oq_recipe::Tune;
use tch::{Kind, Tensor};

use self::codes::{Places, first_rate};
use crate::compute::Place;
use crate::disk::output::Output;
use crate::disk::states::Store;
use crate::merged::Merged;
use crate::model::chain::{Link, Predictions};
use crate::model::error::PassError;
use crate::optim::{AdamW, Descending};

/// The model being tuned.
#[derive(Clone, Copy)]
pub(crate) struct Subject<'a> {
    pub(crate) model: &'a Model,
    /// The learned blocks.
    pub(crate) blocks: &'a Output<'a>,
    pub(crate) ctx: &'a Context,
    pub(crate) act: ActSpec,
    pub(crate) place: Place,
    pub(crate) batches: usize,
    pub(crate) tune: &'a Tune,
    /// The processes that tune the model together, each on its part of every batch.
    pub(crate) ranks: &'a Ranks,
}

/// Tunes a model.
pub(crate) struct Tuner<'a> {
    subject: Subject<'a>,
    predictions: Predictions<'a>,
    online: Option<Online>,
    blocks: Vec<Changes>,
    /// Inputs of the blocks in the last step.
    inputs: Store<'a>,
    /// Mean divergence of each finished epoch, in nats.
    divergences: Vec<f64>,
    /// Progress of the current epoch.
    epoch: Progress,
    /// Learning rate of the first step.
    lr: f64,
    schedule: Descending,
}

/// Progress of an epoch.
#[derive(Clone, Copy, Default)]
pub(crate) struct Progress {
    /// Steps made.
    pub(crate) steps: usize,
    /// Segments processed in these steps.
    segments: usize,
    /// Sum of the segments' divergences, in nats.
    sum: f64,
}

/// Learned changes of a block, by tensor, zero at first: logarithms of the factors on scales `[out, scale groups]` and on norms, and
/// additions to biases in units of their root mean square.
struct Changes {
    tensors: BTreeMap<String, Tensor>,
    optimizer: AdamW,
    /// Where its codes are, if they move.
    places: Places,
}

impl Changes {
    fn new(block: &Merged, place: Place, lr: f64, codes_move: bool) -> Self {
        // Float codes have scales that take few values: these stay.
        let with_scales = block.codes.iter().filter(|(_, packed)| packed.scale_groups() > 0);
        let of_scales = with_scales.map(|(&name, packed)| {
            let [rows, groups] = [packed.shape()[0], packed.scale_groups()].map(|n| n as i64);
            (name.weight(), vec![rows, groups])
        });
        let of_params = block.params.iter().map(|(name, tensor)| (name.clone(), tensor.size()));
        let zeros = |(name, shape): (String, Vec<i64>)| (name, Tensor::zeros(shape, (Kind::Float, place.device)));
        let tensors: BTreeMap<_, _> = of_scales.chain(of_params).map(zeros).collect();
        let optimizer = AdamW::new(tensors.values().map(|change| (change, lr)));
        let places = if codes_move { Places::new(block) } else { Places::default() };
        Self { tensors, optimizer, places }
    }

    /// All of a block's tensors with the changes applied, with weights in the type of the products.
    fn applied(&self, packed: &Merged, place: Place) -> BTreeMap<String, Tensor> {
        let of_params = packed.params.iter().map(|(name, param)| (name.clone(), self.of_param(name, param)));
        let floats = packed.floats.iter();
        let floats = floats.map(|(name, weight)| (name.weight(), weight.to_kind(place.compute.kind())));
        let of_linears = packed.codes.iter().map(|(&name, codes)| {
            let (name, shape) = (name.weight(), codes.shape().map(|n| n as i64));
            let values = dequantized(codes, place.device);
            let weight = match self.tensors.get(&name) {
                Some(change) => values.view([shape[0], change.size()[1], -1]) * change.exp().unsqueeze(-1),
                None => values,
            };
            (name, weight.view(shape).to_kind(place.compute.kind()))
        });
        of_params.chain(floats).chain(of_linears).collect()
    }

    /// A norm or bias with its change applied.
    fn of_param(&self, name: &str, param: &Tensor) -> Tensor {
        let change = &self.tensors[name];
        if is_bias(name) { param + change * unit(param) } else { param * change.exp() }
    }

    /// Gradient of a change, from that of its tensor, whose present value is `applied`.
    fn gradient(&self, name: &str, packed: &Merged, applied: &Tensor, grad: &Tensor) -> Tensor {
        match packed.params.get(name) {
            Some(param) if is_bias(name) => grad * unit(param),
            Some(_) => grad * applied,
            None => {
                let shape = self.tensors[name].size();
                let products = (grad.to_kind(Kind::Float) * applied).view([shape[0], shape[1], -1]);
                products.sum_dim_intlist([-1i64].as_slice(), false, Kind::Float)
            }
        }
    }
}

fn is_bias(name: &str) -> bool {
    name.ends_with(".bias")
}

/// The unit in which a bias changes.
fn unit(bias: &Tensor) -> Tensor {
    bias.square().mean(Kind::Float).sqrt()
}

impl<'a> Tuner<'a> {
    /// No changes yet. `inputs` stores one batch's hidden states before each block.
    pub(crate) fn new(subject: Subject<'a>, inputs: Store<'a>) -> Result<Self, PassError> {
        let Subject { model, place, tune, .. } = subject;
        let predictions = Predictions::new(model, place.compute, place.device)?;
        let (blocks, divergences, schedule) = (Vec::new(), Vec::new(), Descending::new(1.0, tune.epochs));
        let (epoch, lr) = (Progress::default(), tune.lr);
        let online = model.online(place.device);
        let mut tuner = Self { subject, predictions, online, blocks, inputs, divergences, epoch, lr, schedule };
        tuner.start(tune.lr)?;
        Ok(tuner)
    }

    /// Mean divergence of each finished epoch, in nats.
    pub(crate) fn divergences(&self) -> &[f64] {
        &self.divergences
    }

    /// Learning rate of the first step.
    pub(crate) fn lr(&self) -> f64 {
        self.lr
    }

    /// Progress of the current epoch.
    pub(crate) fn epoch(&self) -> Progress {
        self.epoch
    }

    /// Ends an epoch, and returns the mean divergence of its segments.
    pub(crate) fn finish_epoch(&mut self) -> f64 {
        let Progress { sum, segments, .. } = std::mem::take(&mut self.epoch);
        let divergence = sum / segments as f64;
        self.divergences.push(divergence);
        divergence
    }

    /// Restarts at this learning rate.
    pub(crate) fn start(&mut self, lr: f64) -> Result<(), PassError> {
        let Subject { model, blocks, place, batches, tune, .. } = self.subject;
        let n_blocks = model.decoder().dims().n_layers;
        let codes_move = tune.codes > 0.0;
        let changes = |block| Ok(Changes::new(&blocks.read_block(block, place.device)?, place, lr, codes_move));
        self.blocks = (0..n_blocks).map(changes).collect::<Result<_, PassError>>()?;
        (self.divergences, self.epoch, self.lr) = (Vec::new(), Progress::default(), lr);
        self.schedule = Descending::new(1.0, tune.epochs * batches);
        Ok(())
    }

    /// One step on this rank's part `x` of a batch of `segments` embedded segments, whose last hidden states in full precision are `target`,
    /// both `[b, t, hidden]`. Returns the batch's divergence before the step, or NaN if a gradient was not finite.
    pub(crate) fn step(&mut self, x: Tensor, target: &Tensor, segments: usize) -> Result<f64, PassError> {
        let fraction = self.schedule.next();
        let share = x.size()[0] as f64 / segments as f64;
        // Places follow the schedule from their own rate.
        let Tune { epochs, codes, .. } = *self.subject.tune;
        let rate = fraction * (self.lr / self.subject.tune.lr) * first_rate(codes, epochs * self.subject.batches);
        let seed = self.divergences.len() * self.subject.batches + self.epoch.steps;
        let divergence =
            self.descend((x, share), target, (rate, seed as u64), |Changes { tensors, optimizer, .. }, grads| {
                optimizer.step_at(fraction, tensors.values_mut().zip(grads));
            })?;
        self.epoch.steps += 1;
        self.epoch.segments += segments;
        self.epoch.sum += segments as f64 * divergence;
        Ok(divergence)
    }

    /// Computes the gradients of each block's changes, the last block first.
    fn descend(
        &mut self,
        (x, share): (Tensor, f64),
        target: &Tensor,
        of_codes: (f64, u64),
        mut on_block: impl FnMut(&mut Changes, Vec<Tensor>),
    ) -> Result<f64, PassError> {
        let Subject { place, ranks, tune, .. } = self.subject;
        let mut x = x;
        for block in 0..self.blocks.len() {
            self.inputs.put(block, &x)?;
            let tensors = self.blocks[block].applied(&self.packed(block)?, place);
            x = self.link(block, &tensors, |link| link.forward(&x));
        }
        let (divergence, mut grad) = self.predictions.divergence(&x, target)?;
        if share < 1.0 {
            grad *= share;
        }
        for block in (0..self.blocks.len()).rev() {
            let packed = self.packed(block)?;
            let leaf = |(name, tensor): (String, Tensor)| (name, tensor.set_requires_grad(true));
            let leaves = self.blocks[block].applied(&packed, place).into_iter().map(leaf).collect();
            let x = self.inputs.get(block);
            let (of_x, mut of_leaves) = self.link(block, &leaves, |link| link.backward(&x, &grad));
            // Codes follow signs and sizes of whole gradients. All else is linear in them, and is summed over the ranks where it is smaller.
            let codes_move = tune.codes > 0.0;
            if codes_move {
                of_leaves = ranks.sum(of_leaves)?;
            }
            let changes = &mut self.blocks[block];
            for (&name, codes) in &packed.codes {
                let grad = leaves.keys().zip(&of_leaves).find(|(leaf, _)| **leaf == name.weight());
                changes.places.follow(name, codes, grad.expect("each weight was a leaf").1, of_codes);
            }
            // In the order of the changes: both are sorted by name.
            let of_changes = leaves.iter().zip(&of_leaves).filter(|((name, _), _)| changes.tensors.contains_key(*name));
            let mut of_changes: Vec<Tensor> =
                of_changes.map(|((name, leaf), grad)| changes.gradient(name, &packed, &leaf.detach(), grad)).collect();
            if !codes_move {
                of_changes = ranks.sum(of_changes)?;
            }
            on_block(changes, of_changes);
            grad = of_x;
        }
        // A gradient that is not finite in any block makes the first block's gradients not finite.
        let sum = ranks.total(grad.sum(Kind::Float).double_value(&[]))?;
        let divergence = ranks.total(if share < 1.0 { divergence * share } else { divergence })?;
        Ok(if sum.is_finite() { divergence } else { f64::NAN })
    }

    /// A learned block with its codes where they are now.
    fn packed(&self, block: usize) -> Result<Merged, PassError> {
        let Subject { blocks, place, .. } = self.subject;
        let mut packed = blocks.read_block(block, place.device)?;
        let places = &self.blocks[block].places;
        packed.codes = packed.codes.into_iter().map(|(name, codes)| (name, places.of(name, codes))).collect();
        Ok(packed)
    }

    fn link<T>(&self, layer: usize, tensors: &BTreeMap<String, Tensor>, run: impl FnOnce(&Link<'_>) -> T) -> T {
        let Subject { model, ctx, act, place, .. } = self.subject;
        let none = BlockWeights::new(BTreeMap::new()).with_online(self.online.clone());
        run(&Link { decoder: model.decoder(), layer, ctx, tensors, act, compute: place.compute, none })
    }

    /// A tuned block as it is stored.
    pub(crate) fn merged(&self, block: usize) -> Result<Merged, PassError> {
        let Merged { codes, floats, params } = self.packed(block)?;
        let changes = &self.blocks[block];
        let codes = codes.into_iter().map(|(name, packed)| {
            let Some(change) = changes.tensors.get(&name.weight()) else { return Ok((name, packed)) };
            let factors = Vec::<f32>::try_from(change.exp().view(-1)).expect("f32");
            let rescaled = packed.rescaled(&factors);
            Ok((name, rescaled.map_err(|error| PassError::of_linear(self.subject.model, block, name, error))?))
        });
        let params = params.iter().map(|(name, param)| (name.clone(), changes.of_param(name, param)));
        Ok(Merged { codes: codes.collect::<Result<_, PassError>>()?, floats, params: params.collect() })
    }
}

#[cfg(test)]
mod tests;
