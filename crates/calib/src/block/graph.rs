//! The autograd graph of a block whose tensors are leaves, and its backward pass.
//!
//! Autograd does not know our own attention ([`Mixed`]). Where that is used, the graph is cut there: one part goes from the loss down
//! to attention's output, the other from queries, keys and values down to the leaves.

use std::cell::RefCell;
use std::collections::BTreeMap;

use oq_models::{
    ActPoint, BlockOps, BlockWeights, Compute, LinearName, Mixed, Scores, attention, multiply, quantize_act,
};
use oq_quant_core::ActSpec;
use tch::{Kind, Tensor};

/// Gradients of a loss with respect to the leaves, in their order. They are zeros for a leaf that the loss does not depend on, such as
/// the weight of an expert that no token was routed to. `shared`: whether tensors computed before attention may also be read after it,
/// so that the graph has to be kept.
pub(crate) fn backward(loss: Tensor, leaves: Vec<&Tensor>, mixed: Option<CutAttention>, shared: bool) -> Vec<Tensor> {
    let grads = match mixed {
        None => Tensor::run_backward(&[loss], &leaves, false, false),
        Some(mixed) => backward_across(loss, &leaves, &mixed, shared),
    };
    let or_zeros = |(leaf, grad): (&Tensor, Tensor)| if grad.defined() { grad } else { leaf.zeros_like() };
    leaves.into_iter().zip(grads).map(or_zeros).collect()
}

/// [`backward`] across an attention that autograd does not differentiate. Gradients of leaves that are not reached are undefined.
fn backward_across(loss: Tensor, leaves: &[&Tensor], mixed: &CutAttention, shared: bool) -> Vec<Tensor> {
    let mut inputs = leaves.to_vec();
    inputs.push(&mixed.leaf);
    let mut after = Tensor::run_backward(&[&loss], &inputs, shared, false);
    drop(loss);
    let of_heads = mixed.mixed.grads(&after.pop().expect("one for each input"));
    // The linear function of queries, keys and values that has these gradients.
    let linear: Tensor =
        tch::with_grad(|| mixed.heads.iter().zip(&of_heads).map(|(x, grad)| (x * grad).sum(Kind::Float)).sum());
    let before = Tensor::run_backward(&[linear], leaves, false, false);
    let sum = |(after, before): (Tensor, Tensor)| match (after.defined(), before.defined()) {
        (true, true) => after + before,
        (true, false) => after,
        (false, _) => before,
    };
    after.into_iter().zip(before).map(sum).collect()
}

/// An attention that autograd does not differentiate.
pub(crate) struct CutAttention {
    /// Queries, keys and values, with their graph.
    heads: [Tensor; 3],
    mixed: Mixed,
    /// Its output, as a leaf of the graph after it.
    leaf: Tensor,
}

/// Computes a block with the leaves.
pub(crate) struct StudentOps<'a> {
    weights: &'a BlockWeights,
    leaves: &'a BTreeMap<String, Tensor>,
    act: ActSpec,
    compute: Compute,
    /// The block's attention, if it is our own.
    mixed: RefCell<Option<CutAttention>>,
}

impl<'a> StudentOps<'a> {
    /// Takes tensors from `leaves` (quantized weights in the type of the products), and all others from `weights`.
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
        // Linears in full precision are no leaves, or leaves in f32.
        multiply(x, &self.compute.cast(self.param(&name.weight())), self.find(&name.bias()))
    }

    fn act(&self, point: ActPoint, x: Tensor) -> Tensor {
        self.compute.cast(quantize_act(self.act, point, self.weights.rotate_online(point, x)))
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
