//! The largest activation of a block. The packed model asks for float16, and some models' activations exceed its largest number.

use std::cell::RefCell;

use oq_models::BlockOps;
use tch::{Kind, Tensor};

use crate::block::watch::Watched;

/// The largest f16 number.
pub(crate) const F16_MAX: f64 = 65504.0;

/// The largest magnitude seen, on the device of what was seen: reading it would wait for the device each time.
#[derive(Default)]
pub(crate) struct Peak(RefCell<Option<Tensor>>);

impl Peak {
    /// Takes all elements into account.
    pub(crate) fn see(&self, x: &Tensor) {
        let (least, most) = x.detach().aminmax(None::<i64>, false);
        let largest = most.maximum(&-least).to_kind(Kind::Float);
        let mut seen = self.0.borrow_mut();
        *seen = Some(seen.take().map_or_else(|| largest.shallow_clone(), |before| before.fmax(&largest)));
    }

    /// Runs a block and takes the inputs and outputs of its linears into account.
    pub(crate) fn watch<'a>(&'a self, ops: &'a dyn BlockOps) -> impl BlockOps + 'a {
        Watched {
            ops,
            see: |_, x: &Tensor, y: &Tensor| {
                self.see(x);
                self.see(y);
            },
        }
    }

    /// The largest magnitude, if it exceeds f16. Infinity, which JSON cannot express, becomes the largest f32.
    pub(crate) fn beyond_f16(&self) -> Option<f64> {
        let largest = self.0.borrow().as_ref().map_or(0.0, |largest| largest.double_value(&[]));
        let largest = largest.min(f64::from(f32::MAX));
        (largest > F16_MAX).then_some(largest)
    }
}

#[cfg(test)]
mod tests {
    use oq_models::{BlockWeights, DenseOps, LinearName};
    use tch::Device;

    use super::*;

    #[test]
    fn magnitudes_beyond_f16_are_kept() {
        let weights = BlockWeights::new([("a.weight".to_owned(), Tensor::from_slice2(&[[-2.0f32]]))].into());
        let dense = DenseOps::new(&weights);
        let seen = |inputs: &[f32]| {
            let peak = Peak::default();
            let ops = peak.watch(&dense);
            for &x in inputs {
                let _ = ops.linear(LinearName("a"), &Tensor::full([1, 1], f64::from(x), (Kind::Float, Device::Cpu)));
            }
            peak.beyond_f16()
        };
        assert_eq!(seen(&[]), None);
        assert_eq!(seen(&[1.0, 32752.0]), None);
        // The largest of the outputs, and of all.
        assert_eq!(seen(&[40000.0, -50000.0, 3.0]), Some(1e5));
        assert_eq!(seen(&[f32::INFINITY]), Some(f64::from(f32::MAX)));
    }
}
