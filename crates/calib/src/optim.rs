//! The optimizer and its schedule.
//!
//! AdamW without weight decay (Loshchilov & Hutter 2019, arXiv 1711.05101), on plain tensors.
//!
//! libtorch's optimizers need parameters that require gradients. Our gradients come from a closed form, so the update is written out
//! here.

use tch::Tensor;

const BETA1: f64 = 0.9;
const BETA2: f64 = 0.999;
const EPS: f64 = 1e-8;

/// First and second moments of a list of parameters.
pub struct AdamW {
    step: i32,
    moments: Vec<Moments>,
}

struct Moments {
    lr: f64,
    first: Tensor,
    second: Tensor,
}

impl AdamW {
    /// Zero moments for the given parameters, each with its learning rate.
    pub fn new<'a>(params: impl IntoIterator<Item = (&'a Tensor, f64)>) -> Self {
        let moments =
            |(param, lr): (&Tensor, f64)| Moments { lr, first: param.zeros_like(), second: param.zeros_like() };
        Self { step: 0, moments: params.into_iter().map(moments).collect() }
    }

    /// Moves each parameter along its gradient, in place. The order is that of [`Self::new`].
    pub fn step<'a>(&mut self, params: impl IntoIterator<Item = (&'a mut Tensor, Tensor)>) {
        self.step_at(1.0, params);
    }

    /// [`Self::step`], with the learning rates multiplied by `fraction`.
    pub fn step_at<'a>(&mut self, fraction: f64, params: impl IntoIterator<Item = (&'a mut Tensor, Tensor)>) {
        self.step += 1;
        let correction1 = 1.0 - BETA1.powi(self.step);
        let correction2 = 1.0 - BETA2.powi(self.step);
        for ((param, grad), Moments { lr, first: m, second: v }) in params.into_iter().zip(&mut self.moments) {
            let _ = m.g_mul_scalar_(BETA1).g_add_(&(&grad * (1.0 - BETA1)));
            let _ = v.g_mul_scalar_(BETA2).g_add_(&(grad.square() * (1.0 - BETA2)));
            let update = &*m / ((&*v / correction2).sqrt() + EPS) * (fraction * *lr / correction1);
            let _ = param.g_sub_(&update);
        }
    }

    /// First and second moments, in the order of [`Self::new`].
    pub fn moments(&self) -> impl Iterator<Item = [&Tensor; 2]> {
        self.moments.iter().map(|Moments { first, second, .. }| [first, second])
    }

    /// [`Self::moments`], to restore another optimizer's state together with [`Self::set_steps`].
    pub fn moments_mut(&mut self) -> impl Iterator<Item = [&mut Tensor; 2]> {
        self.moments.iter_mut().map(|Moments { first, second, .. }| [first, second])
    }

    /// Sets the number of steps made so far.
    pub fn set_steps(&mut self, steps: usize) {
        self.step = i32::try_from(steps).unwrap_or(i32::MAX);
    }
}

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

    /// Skips this many values.
    pub(crate) fn skip(&mut self, steps: usize) {
        self.left = self.left.saturating_sub(steps);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::nn::{self, OptimizerConfig};
    use tch::{Device, Kind};

    /// Both sides compute in f32, with operations in a different order: a few units in the last place of a number near 1.
    const TOLERANCE: f64 = 1e-5;

    #[test]
    fn follows_libtorch() {
        let target = Tensor::from_slice(&[0.3f32, -2.0, 1e-3, 5.0]);
        let store = nn::VarStore::new(Device::Cpu);
        let reference = store.root().var("p", &[4], nn::Init::Const(1.0));
        let mut theirs = nn::AdamW { wd: 0.0, ..Default::default() }.build(&store, 1e-2).expect("AdamW is built in");

        let mut param = Tensor::ones([4], (Kind::Float, Device::Cpu));
        let mut ours = AdamW::new([(&param, 1e-2)]);
        for _ in 0..50 {
            theirs.backward_step(&(&reference - &target).square().sum(Kind::Float));
            let grad = (&param - &target) * 2.0;
            ours.step([(&mut param, grad)]);
            let difference = (&param - &reference.detach()).abs().max().double_value(&[]);
            assert!(difference < TOLERANCE, "{difference}");
        }
    }
}
