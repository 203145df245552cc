//! How large a block's activations become. The packed model asks for float16, whose largest number some models' activations pass.

use std::cell::Cell;

use oq_models::{ActPoint, BlockOps, LinearName, Scores};
use tch::Tensor;

/// The largest number of f16.
pub(crate) const F16_MAX: f64 = 65504.0;

/// Runs a block and keeps the largest magnitude of what its linears are given and give.
pub(crate) struct PeakOps<'a> {
    ops: &'a dyn BlockOps,
    largest: Cell<f64>,
}

impl<'a> PeakOps<'a> {
    /// Nothing is seen yet.
    pub(crate) fn new(ops: &'a dyn BlockOps) -> Self {
        Self { ops, largest: Cell::new(0.0) }
    }

    /// Looks at what no linear is given, such as the hidden states after the block.
    pub(crate) fn see(&self, x: &Tensor) {
        let (least, most) = x.detach().aminmax(None::<i64>, false);
        let largest = most.double_value(&[]).max(-least.double_value(&[]));
        self.largest.set(self.largest.get().max(largest));
    }

    /// What was seen, where f16 does not hold it. Infinity, which records cannot say, is the largest f32 there.
    pub(crate) fn beyond_f16(&self) -> Option<f64> {
        let largest = self.largest.get().min(f64::from(f32::MAX));
        (largest > F16_MAX).then_some(largest)
    }
}

impl BlockOps for PeakOps<'_> {
    fn linear(&self, name: LinearName, x: &Tensor) -> Tensor {
        let y = self.ops.linear(name, x);
        self.see(x);
        self.see(&y);
        y
    }

    fn act(&self, point: ActPoint, x: Tensor) -> Tensor {
        self.ops.act(point, x)
    }

    fn attention(&self, q: &Tensor, k: &Tensor, v: &Tensor, scores: &Scores<'_>) -> Tensor {
        self.ops.attention(q, k, v, scores)
    }

    fn param(&self, name: &str) -> Tensor {
        self.ops.param(name)
    }
}

#[cfg(test)]
mod tests {
    use oq_models::{BlockWeights, DenseOps};
    use tch::{Device, Kind};

    use super::*;

    #[test]
    fn magnitudes_beyond_f16_are_kept() {
        let weights = BlockWeights::new([("a.weight".to_owned(), Tensor::from_slice2(&[[-2.0f32]]))].into());
        let dense = DenseOps::new(&weights);
        let seen = |inputs: &[f32]| {
            let ops = PeakOps::new(&dense);
            for &x in inputs {
                let _ = ops.linear(LinearName("a"), &Tensor::full([1, 1], f64::from(x), (Kind::Float, Device::Cpu)));
            }
            ops.beyond_f16()
        };
        assert_eq!(seen(&[]), None);
        assert_eq!(seen(&[1.0, 32752.0]), None);
        // Of what it gives, and the largest of all.
        assert_eq!(seen(&[40000.0, -50000.0, 3.0]), Some(1e5));
        assert_eq!(seen(&[f32::INFINITY]), Some(f64::from(f32::MAX)));
    }
}
