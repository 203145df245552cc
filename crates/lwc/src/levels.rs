//! What a grid is made of, whichever way it is computed.

use oq_quant_core::{Symmetry, WeightSpec};
use tch::Tensor;

/// The numbers of a grid.
#[derive(Clone, Copy, Debug)]
pub struct Levels {
    /// Largest code, `Q`.
    pub max_code: f64,
    /// Number of steps that a range is divided into.
    pub steps: f64,
    /// Code of zero, if it is the same for all ranges.
    pub centre: Option<f64>,
}

impl Levels {
    /// Of a way to quantize.
    pub fn new(spec: WeightSpec) -> Self {
        let (max_code, centre) = (f64::from(spec.bits.max_code()), f64::from(spec.bits.centre()));
        match spec.symmetry {
            Symmetry::Asymmetric => Self { max_code, steps: max_code, centre: None },
            Symmetry::Symmetric => Self { max_code, steps: centre - 1.0, centre: Some(centre) },
        }
    }
}

/// Fractions of a group's maximum and minimum at which it is clipped, each `[out, groups]`.
pub struct ClipTensors {
    pub hi: Tensor,
    pub lo: Tensor,
}
