//! Backpropagation through the whole model, one block at a time: from the divergence of its predictions to its last hidden states, and
//! through blocks that are loaded again for it.

use std::cell::RefCell;
use std::collections::BTreeMap;

use oq_models::{BlockWeights, Compute, Context, Decoder, LinearName, Model, ModelError, OuterOps};
use oq_quant_core::ActSpec;
use tch::{Device, Kind, Tensor};

use crate::block::graph::{StudentOps, backward};
use crate::block::watch::Watched;

/// Positions whose predictions are in memory at once. For a vocabulary of 128 000, a tensor of 128 positions takes 63 MiB, and there
/// are a few.
pub(crate) const POSITIONS: i64 = 128;

/// Turns the last hidden states into predictions: the final norm and the head.
pub(crate) struct Predictions<'a> {
    model: &'a Model,
    /// `[vocab, width]`, in the type of the products.
    head: Tensor,
    compute: Compute,
    device: Device,
}

impl<'a> Predictions<'a> {
    pub(crate) fn new(model: &'a Model, compute: Compute, device: Device) -> Result<Self, ModelError> {
        let head = compute.cast(model.outer(device).param(model.decoder().head())?);
        Ok(Self { model, head, compute, device })
    }

    /// Kullback-Leibler divergence of the predictions from `x` relative to those from `target`, both `[b, t, hidden]`: the mean over
    /// positions in nats, and its gradient with respect to `x`.
    pub(crate) fn divergence(&self, x: &Tensor, target: &Tensor) -> Result<(f64, Tensor), ModelError> {
        let target = self.model.decoder().finish(&self.model.outer(self.device), target)?.flatten(0, -2);
        let n = target.size()[0] as f64;
        let mut targets = target.split(POSITIONS, 0).into_iter();
        // On the device: reading it would wait for each part.
        let mut sum = Tensor::zeros([], (Kind::Double, self.device));
        let grad = self.gradient(x, |mut ours| {
            let target = targets.next().expect("as many positions as the target has");
            // In place where possible: these are the largest tensors of all.
            let mut theirs = self.log_probabilities(&target);
            let p = theirs.exp();
            let _ = sum.g_add_(&theirs.g_sub_(&ours).g_mul_(&p).sum(Kind::Double));
            drop(theirs);
            ours.exp_().g_sub_(&p).g_div_scalar_(n)
        })?;
        Ok((sum.double_value(&[]) / n, grad))
    }

    /// Gradient with respect to `x [b, t, hidden]` of the log-likelihood of one token after each position. The tokens are drawn from
    /// the predictions themselves, with uniform numbers in `0..1`.
    pub(crate) fn of_drawn(&self, x: &Tensor, mut uniform: impl FnMut() -> f64) -> Result<Tensor, ModelError> {
        self.gradient(x, |mut ours| {
            let p = ours.exp_(); // [n, vocab]
            let n = p.size()[0];
            let draws: Vec<f32> = (0..n).map(|_| uniform() as f32).collect();
            let cumulative = p.cumsum(-1, Kind::Float);
            // Relative to the rounded sum, so that every draw lies below the last entry.
            let draws = Tensor::from_slice(&draws).to_device(self.device).unsqueeze(-1) * cumulative.narrow(-1, -1, 1);
            let drawn = cumulative.le_tensor(&draws).sum_dim_intlist([-1i64].as_slice(), true, Kind::Int64);
            let drawn = drawn.clamp_max(p.size()[1] - 1);
            let ones = Tensor::ones([n, 1], (Kind::Float, self.device));
            p.neg().scatter_add(-1, &drawn, &ones)
        })
    }

    /// Gradient with respect to `x [b, t, hidden]`, computed for some positions at a time. `of_logits` turns log-probabilities `[n,
    /// vocab]` into the gradient with respect to logits.
    fn gradient(&self, x: &Tensor, mut of_logits: impl FnMut(Tensor) -> Tensor) -> Result<Tensor, ModelError> {
        let (decoder, outer) = (self.model.decoder(), self.model.outer(self.device));
        let leaf = x.detach().set_requires_grad(true);
        let finished = tch::with_grad(|| decoder.finish(&outer, &leaf))?; // [b, t, width]
        let finished_flat = finished.detach().flatten(0, -2);
        // Allocated before the loop: tensors kept from each iteration would fragment the memory that the next one needs in one piece.
        let grad = finished_flat.zeros_like();
        for (x, mut grad) in finished_flat.split(POSITIONS, 0).into_iter().zip(grad.split(POSITIONS, 0)) {
            let logits = self.logits(&x);
            // Computed before the log-probabilities overwrite the logits.
            let slope = self.model.decoder().logits().slope(&logits);
            let of_logits = of_logits(logits.log_softmax(-1, Kind::Float));
            let of_products = slope.map_or(of_logits.shallow_clone(), |slope| of_logits * slope);
            grad.copy_(&self.compute.cast(of_products).matmul(&self.head));
        }
        let grad = grad.view_as(&finished);
        // The linear function of the finished states that has this gradient.
        let linear = tch::with_grad(|| (&finished * grad).sum(Kind::Float));
        Ok(Tensor::run_backward(&[linear], &[&leaf], false, false).remove(0))
    }

    /// `[n, width]` -> `[n, vocab]`.
    fn log_probabilities(&self, x: &Tensor) -> Tensor {
        self.logits(x).log_softmax(-1, Kind::Float)
    }

    /// `[n, width]` -> `[n, vocab]`.
    fn logits(&self, x: &Tensor) -> Tensor {
        let products = self.compute.cast(x.shallow_clone()).linear(&self.head, None::<&Tensor>);
        self.model.decoder().logits().apply(products)
    }
}

/// A block prepared for a backward pass.
pub(crate) struct Link<'a> {
    pub(crate) decoder: &'a dyn Decoder,
    pub(crate) layer: usize,
    pub(crate) ctx: &'a Context,
    /// All of its tensors, with linears' weights in the type of the products. They are leaves if their gradients are requested.
    pub(crate) tensors: &'a BTreeMap<String, Tensor>,
    pub(crate) act: ActSpec,
    pub(crate) compute: Compute,
    /// Always empty: `tensors` has everything.
    pub(crate) none: BlockWeights,
}

impl Link<'_> {
    fn ops(&self) -> StudentOps<'_> {
        StudentOps::new(&self.none, self.tensors, self.act, self.compute)
    }

    /// `x [b, t, hidden]` -> `[b, t, hidden]`, without a graph.
    pub(crate) fn forward(&self, x: &Tensor) -> Tensor {
        tch::no_grad(|| self.decoder.block(self.layer, &self.ops(), self.ctx, x))
    }

    /// Gradients of the input `x` and of the tensors, in their order, from the gradient of the output.
    pub(crate) fn backward(&self, x: &Tensor, d_out: &Tensor) -> (Tensor, Vec<Tensor>) {
        let x = x.detach().set_requires_grad(true);
        let ops = self.ops();
        // The linear function of the output that has this gradient.
        let linear = tch::with_grad(|| (self.decoder.block(self.layer, &ops, self.ctx, &x) * d_out).sum(Kind::Float));
        let wanted = std::iter::once(&x).chain(self.tensors.values()).collect();
        let mut grads = backward(linear, wanted, ops.cut(), true);
        (grads.remove(0), grads)
    }

    /// Gradient of the input `x`, and for each linear its input with the gradient of its output, from the gradient of the block's
    /// output.
    pub(crate) fn backward_to_linears(&self, x: &Tensor, d_out: &Tensor) -> (Tensor, BTreeMap<LinearName, Tap>) {
        let x = x.detach().set_requires_grad(true);
        let (ops, calls) = (self.ops(), RefCell::new(Vec::new()));
        let see = |name, x: &Tensor, y: &Tensor| calls.borrow_mut().push((name, x.shallow_clone(), y.shallow_clone()));
        let tapped = Watched { ops: &ops, see };
        let linear =
            tch::with_grad(|| (self.decoder.block(self.layer, &tapped, self.ctx, &x) * d_out).sum(Kind::Float));
        let calls: Vec<(LinearName, Tensor, Tensor)> = calls.into_inner();
        let wanted = std::iter::once(&x).chain(calls.iter().map(|(_, _, y)| y)).collect();
        let mut grads = backward(linear, wanted, ops.cut(), true);
        let of_x = grads.remove(0);
        let taps = calls.iter().zip(grads).map(|((name, x, _), grad)| (*name, Tap { x: x.detach(), grad }));
        (of_x, taps.collect())
    }
}

/// A linear's input `[b, t, in]`, and the gradient of its output, `[b, t, out]`.
pub(crate) struct Tap {
    pub(crate) x: Tensor,
    pub(crate) grad: Tensor,
}
