//! MinMax grids (OmniQuant, eq. 2): `q = clamp(round(w / s) + z, 0, Q)`, `w' = (q - z) * s`.
//!
//! A grid always holds 0 exactly: its range is widened to contain 0, so the zero point is a code. Its scale is an f16 number, because
//! packed files store f16. Codes computed with the rounded scale make the packed model identical to the evaluated one.
//!
//! Of the two f16 numbers around the exact scale, the grid takes the nearest with which the codes of both ends of the range span `0..=Q`;
//! the smaller one always does. So rounding a dequantized group to nearest finds the same grid and returns the same values, if its codes
//! reach both ends. They may not if they were learned, or if a symmetric range was clipped.

use half::f16;

use crate::small_floats::{E2M1_MAX, from_e2m1, to_e2m1};
use crate::spec::{Bits, Symmetry, WeightSpec};

/// Smallest scale, the f16 number nearest to 1e-5. It avoids a division by zero in groups of zeros, or nearly so (the paper's code clamps
/// alike).
pub const SCALE_MIN: f32 = 168.0 / (1 << 24) as f32;
/// Largest scale; below the largest f16.
pub const SCALE_MAX: f32 = 1e4;

/// Smallest and largest value of a group, widened to contain 0.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Range {
    /// At most 0.
    pub lo: f32,
    /// At least 0.
    pub hi: f32,
}

impl Range {
    /// Range of `group`, ignoring NaN.
    pub fn of(group: &[f32]) -> Self {
        let (lo, hi) = group.iter().fold((0.0f32, 0.0f32), |(lo, hi), &w| (lo.min(w), hi.max(w)));
        Self { lo, hi }
    }

    /// The range of which both ends are these fractions. With [`Symmetry::FullRange`] only the larger end is left: which one that is says
    /// which way the codes run, and clipping must not turn them.
    pub fn clipped(self, hi: f32, lo: f32, symmetry: Symmetry) -> Self {
        let Self { lo: least, hi: most } = self;
        match symmetry {
            Symmetry::FullRange if most >= -least => Self { lo: 0.0, hi: most * hi },
            // Not 0, even where the product is too small for a number: of that, nobody could tell which end it was.
            Symmetry::FullRange => Self { lo: (least * lo).min(-f32::MIN_POSITIVE), hi: 0.0 },
            Symmetry::Asymmetric | Symmetry::Symmetric => Self { lo: least * lo, hi: most * hi },
        }
    }
}

/// The values that the codes of one group stand for: `scale * (code - zero_point) + base`, or `scale * e2m1(code)`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Grid {
    /// Difference between consecutive values. It is negative if the smallest code is the largest value.
    pub scale: f32,
    /// Code that stands for `base`.
    pub zero_point: u8,
    /// Largest code.
    pub max_code: u8,
    /// 0, or at most 0 for grids with a minimum.
    pub base: f32,
    /// Whether codes are e2m1 numbers.
    pub has_float_codes: bool,
}

impl Grid {
    /// The MinMax grid of a range, with a scale that is an f16 number.
    ///
    /// Symmetric grids have `2^(bits-1) - 1` codes on either side of the centre code `2^(bits-1)`; full-range ones have one more on the side
    /// of the larger end.
    pub fn new(range: Range, bits: Bits, symmetry: Symmetry) -> Self {
        let max_code = bits.max_code();
        let ideal = Ideal::of_integers(range, bits, symmetry);
        // At most 128 steps, so rounding the scale moves the end of a range around zero by at most half a step.
        let nearest = f16::from_f32(ideal.scale);
        match symmetry {
            Symmetry::Asymmetric => {
                let rounded = Self::asymmetric(range, nearest, max_code);
                if rounded.encode(range.hi) == max_code {
                    return rounded;
                }
                Self::asymmetric(range, f16_toward_zero(ideal.scale), max_code)
            }
            Symmetry::Symmetric | Symmetry::FullRange => Self::integer(nearest.to_f32(), bits.centre(), max_code),
        }
    }

    /// A grid of integer codes with `base` 0.
    pub(crate) fn integer(scale: f32, zero_point: u8, max_code: u8) -> Self {
        Self { scale, zero_point, max_code, base: 0.0, has_float_codes: false }
    }

    fn asymmetric(range: Range, scale: f16, max_code: u8) -> Self {
        // At most Q by construction, except for the rounding of the scale.
        let zero_point = (-range.lo / scale.to_f32()).round().min(f32::from(max_code)) as u8;
        Self::integer(scale.to_f32(), zero_point, max_code)
    }

    /// Nearest code of one weight; ties between integers are rounded away from zero.
    #[inline]
    pub fn encode(&self, weight: f32) -> u8 {
        self.encode_with(weight, 0.0)
    }

    #[inline]
    fn encode_with(&self, weight: f32, offset: f32) -> u8 {
        let place = (weight - self.base) / self.scale + offset;
        if self.has_float_codes {
            return to_e2m1(place);
        }
        let code = place.round() + f32::from(self.zero_point);
        code.clamp(0.0, f32::from(self.max_code)) as u8
    }

    /// Value of a code.
    #[inline]
    pub fn decode(&self, code: u8) -> f32 {
        let number = if self.has_float_codes { from_e2m1(code) } else { f32::from(code) - f32::from(self.zero_point) };
        number * self.scale + self.base
    }

    /// Codes of a whole group.
    ///
    /// # Panics
    /// When `codes` and `group` differ in length.
    pub fn encode_all(&self, group: &[f32], codes: &mut [u8]) {
        assert_eq!(codes.len(), group.len(), "encode_all: codes and weights");
        for (code, &weight) in codes.iter_mut().zip(group) {
            *code = self.encode_with(weight, 0.0);
        }
    }

    /// Codes of a whole group; `offsets`, in units of the scale, are added to the scaled weights before they are rounded.
    ///
    /// # Panics
    /// When `codes`, `offsets` and `group` differ in length.
    pub fn encode_shifted(&self, group: &[f32], offsets: &[f32], codes: &mut [u8]) {
        assert_eq!(codes.len(), group.len(), "encode_shifted: codes and weights");
        assert_eq!(offsets.len(), group.len(), "encode_shifted: offsets and weights");
        for ((code, &weight), &offset) in codes.iter_mut().zip(group).zip(offsets) {
            *code = self.encode_with(weight, offset);
        }
    }

    /// Dequantized values of a whole group.
    ///
    /// # Panics
    /// When `codes` and `group` differ in length.
    pub fn decode_all(&self, codes: &[u8], group: &mut [f32]) {
        assert_eq!(codes.len(), group.len(), "decode_all: codes and weights");
        for (weight, &code) in group.iter_mut().zip(codes) {
            *weight = self.decode(code);
        }
    }
}

/// The numbers of a grid: before they are rounded to what is stored, or after.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Ideal {
    /// Its size is within `[SCALE_MIN, SCALE_MAX]` before it is rounded.
    pub scale: f32,
    /// Distance of the smallest value from zero, at least 0; 0 unless the grid is asymmetric.
    pub depth: f32,
}

impl Ideal {
    /// The grid of a range, of a type of any kind.
    pub(crate) fn of(range: Range, spec: WeightSpec) -> Self {
        if spec.storage.has_float_codes() {
            let scale = range.hi.max(-range.lo) / E2M1_MAX;
            return Self { scale: scale.clamp(SCALE_MIN, SCALE_MAX), depth: 0.0 };
        }
        Self::of_integers(range, spec.bits, spec.symmetry)
    }

    fn of_integers(range: Range, bits: Bits, symmetry: Symmetry) -> Self {
        let Range { lo, hi } = range;
        let centre = bits.centre();
        match symmetry {
            Symmetry::Asymmetric => Self { scale: scale(hi - lo, bits.max_code()), depth: -lo },
            Symmetry::Symmetric => Self { scale: scale(hi.max(-lo), centre - 1), depth: 0.0 },
            Symmetry::FullRange => {
                let size = scale(hi.max(-lo), centre);
                Self { scale: if hi >= -lo { -size } else { size }, depth: 0.0 }
            }
        }
    }
}

/// `width / steps`, clamped to `[SCALE_MIN, SCALE_MAX]`.
fn scale(width: f32, steps: u8) -> f32 {
    (width / f32::from(steps)).clamp(SCALE_MIN, SCALE_MAX)
}

/// The f16 number next to `value` in the direction of zero; `value` must be positive and below the largest f16.
pub fn f16_toward_zero(value: f32) -> f16 {
    let nearest = f16::from_f32(value);
    if nearest.to_f32() > value { f16::from_bits(nearest.to_bits() - 1) } else { nearest }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(lo: f32, hi: f32, symmetry: Symmetry, scale: f32, zero_point: u8) {
        let grid = Grid::new(Range { lo, hi }, Bits::new(4).unwrap(), symmetry);
        assert_eq!(grid, Grid::integer(f16::from_f32(scale).to_f32(), zero_point, 15));
    }

    #[test]
    fn grids_of_ranges() {
        check(-0.5, 1.375, Symmetry::Asymmetric, 0.125, 4);
        check(0.0, 1.875, Symmetry::Asymmetric, 0.125, 0);
        check(-1.875, 0.0, Symmetry::Asymmetric, 0.125, 15);
        check(-0.5, 0.875, Symmetry::Symmetric, 0.125, 8);
        check(-0.875, 0.5, Symmetry::Symmetric, 0.125, 8);
        // Nothing but zeros: the smallest scale.
        check(0.0, 0.0, Symmetry::Asymmetric, SCALE_MIN, 0);
        check(0.0, 0.0, Symmetry::Symmetric, SCALE_MIN, 8);
        check(-f32::MAX, f32::MAX, Symmetry::Asymmetric, SCALE_MAX, 15);
        check(-f32::MAX, f32::MAX, Symmetry::Symmetric, SCALE_MAX, 8);
        // The larger end is code 0, whichever it is.
        check(-0.5, 1.0, Symmetry::FullRange, -0.125, 8);
        check(-1.0, 0.5, Symmetry::FullRange, 0.125, 8);
        check(0.0, 0.0, Symmetry::FullRange, -SCALE_MIN, 8);
    }

    #[test]
    fn larger_end_of_a_symmetric_grid_stays_within_it() {
        // 127 * 167.9 of the smallest f16: rounded down to 167 of it, the end would lie 128 steps from zero.
        let end = 127.0 * 167.9 / 16_777_216.0;
        let grid = Grid::new(Range { lo: -end, hi: 0.0 }, Bits::new(8).unwrap(), Symmetry::Symmetric);
        assert_eq!(grid.encode(-end), 1);
    }

    #[test]
    fn asymmetric_scales_are_nearest_where_the_codes_of_the_ends_allow() {
        // Steps between f16 numbers about 1: 1/1024. Three quarters of one lie nearer to the number above.
        let (below, above) = (1.0, 1.0 + 1.0 / 1024.0);
        let exact: f32 = 1.0 + 0.75 / 1024.0;
        let scale = |lo, hi| {
            Grid::new(Range { lo: lo * exact, hi: hi * exact }, Bits::new(4).unwrap(), Symmetry::Asymmetric).scale
        };
        assert_eq!(scale(-5.0, 10.0), above);
        // Ends half way between codes: on the larger scale both would be rounded inwards, and a code would be lost.
        assert_eq!(scale(-5.5, 9.5), below);
    }

    #[test]
    fn ranges_hold_zero() {
        assert_eq!(Range::of(&[1.0, 2.0]), Range { lo: 0.0, hi: 2.0 });
        assert_eq!(Range::of(&[-1.0, -2.0]), Range { lo: -2.0, hi: 0.0 });
        assert_eq!(Range::of(&[]), Range { lo: 0.0, hi: 0.0 });
    }

    #[test]
    fn codes_stop_at_the_ends() {
        let grid = Grid::new(Range { lo: -0.5, hi: 1.375 }, Bits::new(4).unwrap(), Symmetry::Asymmetric);
        let weights = [-9.0, -0.5, -0.07, -0.0625, 0.0, 0.0625, 1.375, 9.0];
        let mut codes = [0; 8];
        grid.encode_all(&weights, &mut codes);
        assert_eq!(codes, [0, 0, 3, 3, 4, 5, 15, 15]);
        let mut values = [0.0; 8];
        grid.decode_all(&codes, &mut values);
        assert_eq!(values, [-0.5, -0.5, -0.125, -0.125, 0.0, 0.125, 1.375, 1.375]);
    }
}
