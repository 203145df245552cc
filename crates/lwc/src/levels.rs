//! What a grid is made of, whichever way it is computed.

use oq_quant_core::{E2M1_MAX, Ideal, Storage, Symmetry, WeightSpec, global_scale, round_stored};
use tch::{Kind, Tensor};

/// The numbers of the grids of a matrix.
#[derive(Clone, Copy, Debug)]
pub struct Levels {
    /// Largest code, `Q`.
    pub max_code: f64,
    /// Number of steps that a range is divided into.
    pub steps: f64,
    /// What lies at a grid's zero.
    pub zero: Zero,
    /// Whether codes are e2m1 numbers, whose distance grows with their size.
    pub has_float_codes: bool,
    spec: WeightSpec,
    each_group_alone: bool,
    /// Divisor of all scales.
    global: f32,
}

/// Where a grid has its zero.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Zero {
    /// At a code, which depends on the range.
    Code,
    /// At this code; both sides are alike.
    Centre(f64),
    /// At this code; the larger end is code 0.
    FullRange(f64),
    /// Anywhere: code 0 is the smallest value.
    Minimum,
}

impl Levels {
    /// Of a weight that is quantized like this.
    pub fn new(spec: WeightSpec, weight: &Tensor) -> Self {
        let (max_code, centre) = (f64::from(spec.bits.max_code()), f64::from(spec.bits.centre()));
        let (steps, zero) = match (spec.symmetry, spec.storage) {
            (Symmetry::Asymmetric, Storage::Half) => (max_code, Zero::Code),
            (Symmetry::Asymmetric, _) => (max_code, Zero::Minimum),
            (Symmetry::Symmetric, _) => (centre - 1.0, Zero::Centre(centre)),
            (Symmetry::FullRange, _) => (centre, Zero::FullRange(centre)),
        };
        let global = match spec.storage {
            Storage::E4m3 if weight.numel() > 0 => {
                global_scale(weight.abs().max().to_kind(Kind::Float).double_value(&[]) as f32)
            }
            _ => 1.0,
        };
        if spec.storage.has_float_codes() {
            let steps = f64::from(E2M1_MAX);
            let (max_code, zero) = (2.0 * steps, Zero::Centre(steps));
            return Self { max_code, steps, zero, has_float_codes: true, spec, each_group_alone: false, global };
        }
        Self { max_code, steps, zero, has_float_codes: false, spec, each_group_alone: false, global }
    }

    /// Groups whose scales are rounded together.
    pub fn groups_of_unit(self) -> usize {
        self.spec.groups_of_unit()
    }

    /// Whether learning sees scales as they are stored: not for f16 numbers, which are close enough.
    pub fn rounds_scales(self) -> bool {
        self.spec.storage.has_coarse_scales() && !self.each_group_alone
    }

    /// The same, without the rounding that ties the groups of a super-block together: to choose the clipping of each group by itself.
    pub fn of_groups_alone(self) -> Self {
        Self { each_group_alone: !self.has_float_codes, ..self }
    }

    /// Whether the search ends with least squares, which place both ends of a range between the fractions that were tried. Grids with integer
    /// zero points have no use for it, and scales that are powers of two neither.
    pub fn has_least_squares(self) -> bool {
        matches!(self.zero, Zero::Minimum | Zero::FullRange(_))
    }

    /// Rounds the scales and minima of the groups of a unit to what is stored.
    pub fn round(self, unit: &mut [Ideal]) {
        round_stored(self.spec, self.global, unit);
    }
}

/// Rounds of least squares, each on the codes of the one before.
pub const ROUNDS: usize = 5;
/// The fractions that least squares may find: what a strength can express.
pub const FRACTIONS: [f64; 2] = [0.02, 0.9999];

/// Fractions of a group's maximum and minimum at which it is clipped, each `[out, groups]`.
pub struct ClipTensors {
    pub hi: Tensor,
    pub lo: Tensor,
}
