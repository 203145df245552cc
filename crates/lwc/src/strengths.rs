//! The clipping strengths of one linear: what they are made for, and what they stand for.

use oq_quant_core::{TensorError, WeightSpec};
use tch::{Device, Kind, Tensor};

use crate::levels::ClipTensors;

/// Initial clipping strength: sigmoid(4) = 0.982, so that hardly anything is clipped (OmniQuant, section 3.2).
pub const START: f64 = 4.0;

/// The clipping strengths of one linear, for weights `[out, in]`.
///
/// Strengths are plain tensors on the device of the weights; they need no `requires_grad`. Weights of another kind are converted to the
/// kind of the strengths, which is f32 at first.
#[derive(Debug)]
pub struct Lwc {
    /// Strength of the maximum, `[out, groups]`.
    pub gamma: Tensor,
    /// Strength of the minimum, `[out, groups]`.
    pub beta: Tensor,
    /// Offsets added to scaled weights before they are rounded, in units of the scale, `[out, in]`; none if weights are rounded to nearest.
    pub offsets: Option<Tensor>,
    pub(crate) spec: WeightSpec,
    pub(crate) in_features: usize,
}

/// Gradients with respect to the strengths.
#[derive(Debug)]
#[non_exhaustive]
pub struct LwcGrads {
    /// `[out, groups]`.
    pub gamma: Tensor,
    /// `[out, groups]`.
    pub beta: Tensor,
}

/// Why weights were not clipped or not quantized.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LwcError {
    /// The weight has a different shape than the one that the strengths were made for.
    #[error("the clipping is for a weight {expected:?}, got {got:?}")]
    Shape {
        /// `[out, in]`.
        expected: [i64; 2],
        /// What was given.
        got: Vec<i64>,
    },
    /// Groups do not divide the row, or the weight, its clipping or its offsets are not valid numbers.
    #[error(transparent)]
    Quantize(#[from] TensorError),
}

impl Lwc {
    /// Strengths of [`START`] for a weight `[out_features, in_features]`. Fails if the group size does not divide `in_features`.
    pub fn new(out_features: usize, in_features: usize, spec: WeightSpec, device: Device) -> Result<Self, LwcError> {
        spec.check_row(in_features)?;
        let strength =
            || Tensor::full([out_features as i64, spec.group.count(in_features) as i64], START, (Kind::Float, device));
        Ok(Self { gamma: strength(), beta: strength(), offsets: None, spec, in_features })
    }

    /// Strengths that clip nothing: infinite ones, whose sigmoid is 1. They are for rounding to nearest; nothing can be learned from them.
    /// Fails if the group size does not divide `in_features`.
    pub fn whole_range(
        out_features: usize,
        in_features: usize,
        spec: WeightSpec,
        device: Device,
    ) -> Result<Self, LwcError> {
        let mut clip = Self::new(out_features, in_features, spec, device)?;
        for strength in [&mut clip.gamma, &mut clip.beta] {
            *strength = strength.full_like(f64::INFINITY);
        }
        Ok(clip)
    }

    /// How the weight is quantized.
    pub fn spec(&self) -> WeightSpec {
        self.spec
    }

    /// Sigmoids of the strengths, contiguous.
    pub(crate) fn clip(&self) -> ClipTensors {
        let fraction = |strength: &Tensor| strength.detach().sigmoid().contiguous();
        ClipTensors { hi: fraction(&self.gamma), lo: fraction(&self.beta) }
    }

    /// A weight, checked, contiguous and in the kind of the strengths.
    pub(crate) fn prepared(&self, weight: &Tensor) -> Tensor {
        self.checked(weight).to_kind(self.gamma.kind())
    }

    /// A weight or its gradient, checked and contiguous.
    pub(crate) fn checked(&self, weight: &Tensor) -> Tensor {
        self.check_shape(weight).unwrap_or_else(|error| panic!("{error}"));
        weight.detach().contiguous()
    }

    /// `[out, in]`.
    pub(crate) fn shape(&self) -> [i64; 2] {
        [self.gamma.size()[0], self.in_features as i64]
    }

    pub(crate) fn check_shape(&self, weight: &Tensor) -> Result<(), LwcError> {
        let (expected, got) = (self.shape(), weight.size());
        if got == expected { Ok(()) } else { Err(LwcError::Shape { expected, got }) }
    }
}

/// Fractions that the search tries, largest first.
pub(crate) fn choices() -> [f64; 16] {
    let largest = 1.0 / (1.0 + (-START).exp());
    std::array::from_fn(|idx| largest - idx as f64 * (largest - 0.25) / 15.0)
}
