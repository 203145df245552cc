//! The scales of a matrix as files store them: how they are made from the ranges of groups, and read back as grids.

use half::f16;

use crate::error::TensorError;
use crate::grid::{Grid, Ideal, Range, SCALE_MAX, SCALE_MIN};
use crate::small_floats::{E2M1_MAX, from_e4m3, from_e8m0, to_e4m3, to_e8m0};
use crate::spec::{Storage, Symmetry, WeightSpec};

/// Largest product of an e2m1 and an e4m3 number.
const E4M3_REACH: f32 = E2M1_MAX * 448.0;
/// Largest and smallest f32 number that scales all others of a matrix with [`Storage::E4m3`].
const GLOBAL_MAX: f32 = 1e10;

/// What a matrix stores beside its codes. Values per group are `[rows, groups]`, values per super-block `[rows, in_features / 256]`.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Stored {
    /// `w = scale (code - zero point)`.
    Half {
        /// Positive; with [`Symmetry::FullRange`], of either sign. Never zero.
        scales: Vec<f16>,
        /// Codes; all equal to the centre code unless quantization is asymmetric.
        zero_points: Vec<u8>,
    },
    /// `w = scale code + minimum`.
    HalfMin {
        /// Never zero.
        scales: Vec<f16>,
        /// Values of code 0.
        minima: Vec<f16>,
    },
    /// `w = (outer scale * scale) code - (outer minimum * minimum)` or, without minima, `(outer scale * scale) (code - centre)`.
    Super {
        /// Of 4 bits (2-bit codes) or 6 bits (4- and 5-bit codes), without sign; of 6 bits (3-bit codes) or 8 bits (6-bit codes), with sign.
        scales: Vec<i8>,
        /// Of as many bits as the scales; empty if quantization is not asymmetric.
        minima: Vec<u8>,
        /// Per super-block.
        outer_scales: Vec<f16>,
        /// Per super-block; empty if quantization is not asymmetric.
        outer_minima: Vec<f16>,
    },
    /// `w = 2^(exponent - 127) e2m1(code)`.
    E8m0 {
        /// Exponents with their bias, at most 254.
        exponents: Vec<u8>,
    },
    /// `w = (e4m3(scale) / global) e2m1(code)`.
    E4m3 {
        /// Positive e4m3 numbers.
        scales: Vec<u8>,
        /// Divisor of all scales.
        global: f32,
    },
}

/// Largest scale and minimum of few bits; negative scales reach one further.
pub(crate) fn inner_max(spec: WeightSpec) -> f32 {
    match spec.bits.get() {
        2 => 15.0,
        3 => 31.0,
        6 => 127.0,
        _ => 63.0,
    }
}

/// The divisor of all scales of a matrix with [`Storage::E4m3`] whose largest weight has the size `largest`: the largest scale becomes the
/// largest e4m3 number.
pub fn global_scale(largest: f32) -> f32 {
    (E4M3_REACH / largest).clamp(1.0 / GLOBAL_MAX, GLOBAL_MAX)
}

/// Rounds the grids of a group or, with [`Storage::Super`], of the groups of a super-block to what is stored. Grids with f16 scales are left
/// as they are. `global` is the divisor of all scales of the matrix ([`global_scale`]).
pub fn round_stored(spec: WeightSpec, global: f32, groups: &mut [Ideal]) {
    match spec.storage {
        Storage::Half | Storage::HalfMin => {}
        Storage::Super => {
            let block = SuperBlock::of(spec, groups);
            for (group, (scale, minimum)) in groups.iter_mut().zip(block.inner) {
                group.scale = block.outer_scale.to_f32() * f32::from(scale);
                group.depth = block.outer_minimum.to_f32() * f32::from(minimum);
            }
        }
        Storage::E8m0 => groups.iter_mut().for_each(|group| group.scale = from_e8m0(to_e8m0(group.scale))),
        Storage::E4m3 => {
            groups.iter_mut().for_each(|group| group.scale = from_e4m3(to_e4m3(group.scale * global)) / global);
        }
    }
}

impl Stored {
    /// That of no groups.
    pub(crate) fn empty(spec: WeightSpec, global: f32) -> Self {
        match spec.storage {
            Storage::Half => Self::Half { scales: Vec::new(), zero_points: Vec::new() },
            Storage::HalfMin => Self::HalfMin { scales: Vec::new(), minima: Vec::new() },
            Storage::Super => Self::Super {
                scales: Vec::new(),
                minima: Vec::new(),
                outer_scales: Vec::new(),
                outer_minima: Vec::new(),
            },
            Storage::E8m0 => Self::E8m0 { exponents: Vec::new() },
            Storage::E4m3 => Self::E4m3 { scales: Vec::new(), global },
        }
    }

    /// Appends groups with these ranges: a whole number of super-blocks, if there are any.
    pub(crate) fn extend(&mut self, spec: WeightSpec, ranges: &[Range]) {
        let ideal = |&range: &Range| Ideal::of(range, spec);
        match self {
            Self::Half { scales, zero_points } => {
                let grids = ranges.iter().map(|&range| Grid::new(range, spec.bits, spec.symmetry));
                for grid in grids {
                    scales.push(f16::from_f32(grid.scale));
                    zero_points.push(grid.zero_point);
                }
            }
            Self::HalfMin { scales, minima } => {
                for Ideal { scale, depth } in ranges.iter().map(ideal) {
                    scales.push(f16::from_f32(scale));
                    minima.push(f16::from_f32(-depth.min(most(spec))));
                }
            }
            Self::Super { scales, minima, outer_scales, outer_minima } => {
                for ranges in ranges.chunks(spec.groups_of_unit()) {
                    let ideals: Vec<Ideal> = ranges.iter().map(ideal).collect();
                    let block = SuperBlock::of(spec, &ideals);
                    let inner = &block.inner[..ideals.len()];
                    scales.extend(inner.iter().map(|(scale, _)| *scale));
                    outer_scales.push(block.outer_scale);
                    if spec.symmetry == Symmetry::Asymmetric {
                        minima.extend(inner.iter().map(|(_, minimum)| *minimum));
                        outer_minima.push(block.outer_minimum);
                    }
                }
            }
            Self::E8m0 { exponents } => exponents.extend(ranges.iter().map(ideal).map(|ideal| to_e8m0(ideal.scale))),
            Self::E4m3 { scales, global } => {
                scales.extend(ranges.iter().map(ideal).map(|ideal| to_e4m3(ideal.scale * *global)));
            }
        }
    }

    /// Appends the groups of another part of the same matrix.
    pub(crate) fn append(&mut self, other: Self) {
        match (self, other) {
            (Self::Half { scales, zero_points }, Self::Half { scales: more, zero_points: zeros }) => {
                scales.extend(more);
                zero_points.extend(zeros);
            }
            (Self::HalfMin { scales, minima }, Self::HalfMin { scales: more, minima: more_minima }) => {
                scales.extend(more);
                minima.extend(more_minima);
            }
            (
                Self::Super { scales, minima, outer_scales, outer_minima },
                Self::Super { scales: s, minima: m, outer_scales: outer_s, outer_minima: outer_m },
            ) => {
                scales.extend(s);
                minima.extend(m);
                outer_scales.extend(outer_s);
                outer_minima.extend(outer_m);
            }
            (Self::E8m0 { exponents }, Self::E8m0 { exponents: more }) => exponents.extend(more),
            (Self::E4m3 { scales, .. }, Self::E4m3 { scales: more, .. }) => scales.extend(more),
            _ => unreachable!("parts of one matrix have one spec"),
        }
    }

    /// The grid of a group, counted through all rows.
    pub(crate) fn grid(&self, spec: WeightSpec, at: usize) -> Grid {
        let (max_code, centre) = (spec.bits.max_code(), spec.bits.centre());
        match self {
            Self::Half { scales, zero_points } => Grid::integer(scales[at].to_f32(), zero_points[at], max_code),
            Self::HalfMin { scales, minima } => {
                Grid { base: minima[at].to_f32(), ..Grid::integer(scales[at].to_f32(), 0, max_code) }
            }
            Self::Super { scales, minima, outer_scales, outer_minima } => {
                let outer = at / spec.groups_of_unit();
                let scale = outer_scales[outer].to_f32() * f32::from(scales[at]);
                match minima.get(at) {
                    None => Grid::integer(scale, centre, max_code),
                    Some(&minimum) => {
                        let depth = outer_minima[outer].to_f32() * f32::from(minimum);
                        Grid { base: -depth, ..Grid::integer(scale, 0, max_code) }
                    }
                }
            }
            Self::E8m0 { exponents } => float_grid(from_e8m0(exponents[at])),
            Self::E4m3 { scales, global } => float_grid(from_e4m3(scales[at]) / global),
        }
    }

    /// Refuses numbers that are no scales, and parts of other lengths than a matrix `[rows, cols]` has.
    pub(crate) fn check(&self, spec: WeightSpec, [rows, cols]: [usize; 2]) -> Result<(), TensorError> {
        let groups = rows.saturating_mul(spec.group.count(cols));
        let supers = rows.saturating_mul(cols / Storage::SUPER);
        let length = |part, expected: usize, got: usize| {
            if expected == got { Ok(()) } else { Err(TensorError::Length { part, rows, cols, expected, got }) }
        };
        let bad_scale = |index, value| TensorError::BadScale { index, value };
        let no_number = |scales: &[f16]| {
            scales.iter().position(|s| !s.is_finite()).map_or(Ok(()), |at| Err(bad_scale(at, scales[at].to_f32())))
        };
        let minima_of = |n: usize| if spec.symmetry == Symmetry::Asymmetric { n } else { 0 };
        match (self, spec.storage) {
            (Self::Half { scales, zero_points }, Storage::Half) => {
                length("scales", groups, scales.len())?;
                length("zero points", groups, zero_points.len())?;
                check_half(spec, scales, zero_points)
            }
            (Self::HalfMin { scales, minima }, Storage::HalfMin) => {
                length("scales", groups, scales.len())?;
                length("minima", groups, minima.len())?;
                no_number(scales)?;
                no_number(minima)
            }
            (Self::Super { scales, minima, outer_scales, outer_minima }, Storage::Super) => {
                length("scales", groups, scales.len())?;
                length("minima", minima_of(groups), minima.len())?;
                length("outer scales", supers, outer_scales.len())?;
                length("outer minima", minima_of(supers), outer_minima.len())?;
                let most = inner_max(spec);
                let least = if spec.symmetry == Symmetry::Asymmetric { 0.0 } else { -most - 1.0 };
                let wrong = scales.iter().position(|&s| !(least..=most).contains(&f32::from(s)));
                let wrong = wrong.map(|at| (at, f32::from(scales[at])));
                let wrong_minimum = || minima.iter().position(|&m| f32::from(m) > most);
                if let Some((index, value)) = wrong.or_else(|| wrong_minimum().map(|at| (at, f32::from(minima[at])))) {
                    return Err(bad_scale(index, value));
                }
                no_number(outer_scales)?;
                no_number(outer_minima)
            }
            (Self::E8m0 { exponents }, Storage::E8m0) => {
                length("scales", groups, exponents.len())?;
                let wrong = exponents.iter().position(|&e| e == u8::MAX);
                wrong.map_or(Ok(()), |at| Err(bad_scale(at, f32::NAN)))
            }
            (Self::E4m3 { scales, global }, Storage::E4m3) => {
                length("scales", groups, scales.len())?;
                if !(global.is_finite() && *global > 0.0) {
                    return Err(bad_scale(0, *global));
                }
                let wrong = scales.iter().position(|&byte| byte > 0x7e);
                wrong.map_or(Ok(()), |at| Err(bad_scale(at, f32::from(scales[at]))))
            }
            _ => Err(TensorError::NoSuchGrid { spec }),
        }
    }

    /// The same with scales (and minima) multiplied by `factors`: one per group, or per super-block; none for float codes.
    pub(crate) fn rescaled(&self, factors: &[f32]) -> Result<Self, TensorError> {
        let by = |values: &[f16], limits: (f32, f32)| {
            let times = |(index, (scale, factor)): (usize, (&f16, &f32))| {
                let value = scale.to_f32() * factor;
                let size = value.abs().clamp(limits.0, limits.1);
                let scale = f16::from_f32(size.copysign(value));
                if value.is_nan() { Err(TensorError::BadScale { index, value }) } else { Ok(scale) }
            };
            values.iter().zip(factors).enumerate().map(times).collect::<Result<Vec<f16>, _>>()
        };
        let (whole, any) = ((SCALE_MIN, SCALE_MAX), (0.0, f16::MAX.to_f32()));
        Ok(match self {
            Self::Half { scales, zero_points } => {
                Self::Half { scales: by(scales, whole)?, zero_points: zero_points.clone() }
            }
            Self::HalfMin { scales, minima } => Self::HalfMin { scales: by(scales, whole)?, minima: by(minima, any)? },
            Self::Super { scales, minima, outer_scales, outer_minima } => Self::Super {
                scales: scales.clone(),
                minima: minima.clone(),
                outer_scales: by(outer_scales, any)?,
                outer_minima: by(outer_minima, any)?,
            },
            Self::E8m0 { .. } | Self::E4m3 { .. } => self.clone(),
        })
    }
}

fn check_half(spec: WeightSpec, scales: &[f16], zero_points: &[u8]) -> Result<(), TensorError> {
    let is_scale = |scale: f32| match spec.symmetry {
        Symmetry::FullRange => scale != 0.0,
        Symmetry::Asymmetric | Symmetry::Symmetric => scale > 0.0,
    };
    if let Some(index) = scales.iter().position(|s| !s.is_finite() || !is_scale(s.to_f32())) {
        return Err(TensorError::BadScale { index, value: scales[index].to_f32() });
    }
    let (max_code, centre) = (spec.bits.max_code(), spec.bits.centre());
    if let Some(index) = zero_points.iter().position(|&z| z > max_code) {
        return Err(TensorError::BadZeroPoint { index, value: zero_points[index], max_code });
    }
    if spec.symmetry != Symmetry::Asymmetric
        && let Some(index) = zero_points.iter().position(|&z| z != centre)
    {
        return Err(TensorError::OffCentre { index, value: zero_points[index], centre });
    }
    Ok(())
}

fn float_grid(scale: f32) -> Grid {
    Grid { scale, zero_point: 0, max_code: 15, base: 0.0, has_float_codes: true }
}

/// Largest distance of a minimum from zero.
fn most(spec: WeightSpec) -> f32 {
    SCALE_MAX * f32::from(spec.bits.max_code())
}

/// Most groups that a super-block has.
const GROUPS: usize = 16;
/// Outer scales that are tried: those with which the largest scale is stored as the largest number, or up to this much more or less.
const TRIES: [f32; 9] = [0.0, -0.2, -0.4, -0.6, -0.8, 0.1, 0.2, 0.3, 0.4];

/// The scales and minima of a super-block as they are stored.
struct SuperBlock {
    outer_scale: f16,
    outer_minimum: f16,
    /// Of each group, in units of these.
    inner: [(i8, u8); GROUPS],
}

impl SuperBlock {
    fn of(spec: WeightSpec, ideals: &[Ideal]) -> Self {
        let has_minima = spec.symmetry == Symmetry::Asymmetric;
        // Negative numbers reach one further, so the largest scale becomes one.
        let reach = if has_minima { inner_max(spec) } else { -inner_max(spec) - 1.0 };
        let scales = || ideals.iter().map(|ideal| ideal.scale);
        let outer_scale = least_error(scales, reach, |scale, outer| inner_scale(spec, scale, outer).into());
        let mut inner = [(0, 0); GROUPS];
        for ((scale, _), ideal) in inner.iter_mut().zip(ideals) {
            *scale = inner_scale(spec, ideal.scale, outer_scale);
        }
        // A scale that was rounded stretches its group: the minimum moves with it, so that the middle stays.
        let middle = f32::from(spec.bits.max_code()) / 2.0;
        let depth = |(ideal, (scale, _)): (&Ideal, &(i8, u8))| {
            let stretched = outer_scale.to_f32() * f32::from(*scale) - ideal.scale;
            (ideal.depth + middle * stretched).clamp(0.0, most(spec))
        };
        let mut depths = [0.0; GROUPS];
        if has_minima {
            depths.iter_mut().zip(ideals.iter().zip(&inner)).for_each(|(to, from)| *to = depth(from));
        }
        let all = || depths.iter().copied();
        let outer_minimum = least_error(all, inner_max(spec), |depth, outer| inner_minimum(spec, depth, outer).into());
        for ((_, minimum), depth) in inner.iter_mut().zip(depths) {
            *minimum = inner_minimum(spec, depth, outer_minimum);
        }
        Self { outer_scale, outer_minimum, inner }
    }
}

/// The f16 number in units of which values are stored with the least squared error: the largest becomes about `reach`. It is 0 only if all
/// values are: no scale is below [`SCALE_MIN`], which is 168 of the smallest f16 numbers.
fn least_error<I: Iterator<Item = f32>>(values: impl Fn() -> I, reach: f32, inner: impl Fn(f32, f16) -> f32) -> f16 {
    let largest = values().fold(0.0f32, |a, b| if b.abs() > a.abs() { b } else { a });
    let tried = TRIES.map(|more| f16::from_f32(largest / (reach + more * reach.signum())));
    let error =
        |outer: f16| -> f32 { values().map(|value| (value - outer.to_f32() * inner(value, outer)).powi(2)).sum() };
    let best = tried.into_iter().map(|outer| (error(outer), outer)).reduce(|a, b| if b.0 < a.0 { b } else { a });
    best.expect("some are tried").1
}

/// A scale in units of the outer one; not 0, by which weights could not be divided.
fn inner_scale(spec: WeightSpec, scale: f32, outer: f16) -> i8 {
    let most = inner_max(spec);
    let places = scale / outer.to_f32();
    let least = if spec.symmetry == Symmetry::Asymmetric { 1.0 } else { -most - 1.0 };
    let rounded = places.round().clamp(least, most);
    (if rounded == 0.0 { 1f32.copysign(places) } else { rounded }) as i8
}

/// A minimum in units of the outer one.
fn inner_minimum(spec: WeightSpec, depth: f32, outer: f16) -> u8 {
    let outer = outer.to_f32();
    let places = if outer > 0.0 { depth / outer } else { 0.0 };
    places.round().min(inner_max(spec)) as u8
}
