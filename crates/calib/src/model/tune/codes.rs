//! Codes that tuning moves, by one step of the grid at most: the few whose gradients ask for it again and again, over many steps on new
//! text. Each code has a place between -1 and 1 that follows its gradients, and moves when the place is half a step away.

use std::collections::BTreeMap;

use oq_lwc::Usual;
use oq_models::LinearName;
use oq_quant_core::QuantizedTensor;
use oq_random::SplitMix64;
use tch::{Device, Kind, Tensor};

use crate::merged::Merged;

/// Units of a place per step of the grid. A place fits a byte, which is all that a weight takes in memory.
const UNITS: f64 = 100.0;
/// The rate is no larger than this, so that no single text moves a code.
const LARGEST_RATE: f64 = 0.05;

/// The rate of the first step, such that all usual steps together move a place by `reach`, while rates fall to 0.
pub(super) fn first_rate(reach: f64, steps: usize) -> f64 {
    (2.0 * reach / (steps + 1) as f64).min(LARGEST_RATE)
}

/// Places of a block's codes, `[out * in]` of each linear, in [`UNITS`].
#[derive(Default)]
pub(super) struct Places(BTreeMap<LinearName, Vec<i8>>);

impl Places {
    /// All at 0. Float codes have steps of different sizes, and stay.
    pub(super) fn new(block: &Merged) -> Self {
        let integers = block.codes.iter().filter(|(_, packed)| !packed.grid(0, 0).has_float_codes);
        Self(integers.map(|(&name, packed)| (name, vec![0; packed.shape().iter().product()])).collect())
    }

    /// The codes where they are now.
    pub(super) fn of(&self, name: LinearName, packed: QuantizedTensor) -> QuantizedTensor {
        match self.0.get(&name) {
            Some(places) if places.iter().any(|&place| step_of(place) != 0) => {
                packed.stepped(&places.iter().map(|&place| step_of(place)).collect::<Vec<_>>())
            }
            _ => packed,
        }
    }

    /// Moves places against the gradient of the dequantized weight, `[out, in]`. `seed` differs from step to step.
    pub(super) fn follow(
        &mut self,
        name: LinearName,
        packed: &QuantizedTensor,
        grad: &Tensor,
        (rate, seed): (f64, u64),
    ) {
        let Some(places) = self.0.get_mut(&name) else { return };
        let steps = (Usual::of(grad, Kind::Float).steps(grad) * (rate * UNITS)).to_device(Device::Cpu);
        let steps = Vec::<f32>::try_from(steps.to_kind(Kind::Float).contiguous().view(-1)).expect("a vector of f32");
        let ([_, cols], groups) = (packed.shape(), packed.groups());
        let len = cols / groups;
        for (at, (places, steps)) in places.chunks_mut(len).zip(steps.chunks(len)).enumerate() {
            let up = packed.grid(at / groups, at % groups).scale > 0.0;
            // Up or down at random, so that small steps add up to what they are.
            let mut dither = SplitMix64::new(seed.wrapping_add((at as u64) << 32));
            for (place, step) in places.iter_mut().zip(steps) {
                let step = (step + dither.unit() as f32).floor() as i8;
                *place = if up { place.saturating_sub(step) } else { place.saturating_add(step) };
            }
        }
    }

    /// The places of each linear, to be saved.
    pub(super) fn parts(&self) -> impl Iterator<Item = (LinearName, &[i8])> {
        self.0.iter().map(|(&name, places)| (name, places.as_slice()))
    }

    /// [`Self::parts`], to restore them.
    pub(super) fn parts_mut(&mut self) -> impl Iterator<Item = (LinearName, &mut [i8])> {
        self.0.iter_mut().map(|(&name, places)| (name, places.as_mut_slice()))
    }
}

/// Steps of the grid at a place.
fn step_of(place: i8) -> i8 {
    (f64::from(place) / UNITS).round() as i8
}
