//! Clipping as loops over slices, on the CPU: one pass over the weights forward, and one over their gradient backward.
//!
//! A group is read from memory once and is still in the cache when it is read again. The inner loops have no branches and sum in
//! independent lanes, so that the compiler vectorizes them.

use std::ops::{Add, Div, Mul, Sub};

use half::bf16;
use oq_quant_core::{Ideal, SCALE_MAX, SCALE_MIN, from_bf16, to_bf16};
use oq_slices::Number;
use rayon::prelude::*;

use crate::levels::{FRACTIONS, Levels, ROUNDS, Zero};
use crate::usual::LARGEST;

/// Independent sums; as many as fill the vector registers of common machines.
const LANES: usize = 16;
/// Rows whose columns are summed together.
const ROWS: usize = 64;
/// Terms that are summed in their own kind before they are added to an f64.
const BLOCK: usize = 1024;

/// f32, and f64 for the tests.
pub trait Real:
    Number + Send + Sync + PartialOrd + Add<Output = Self> + Sub<Output = Self> + Mul<Output = Self> + Div<Output = Self>
{
    /// 0.
    const ZERO: Self;
    /// 1.5 * 2^(digits - 1): adding it leaves no digits for a fraction, so the sum is rounded with ties to even.
    const ROUNDER: Self;

    /// The nearest number.
    fn of(value: f64) -> Self;
    /// The same number.
    fn to_f64(self) -> f64;
    /// NaN stays NaN.
    fn clamped(self, min: Self, max: Self) -> Self;
}

macro_rules! real {
    ($real:ty) => {
        impl Real for $real {
            const ZERO: Self = 0.0;
            const ROUNDER: Self = 1.5 * (1u64 << (<$real>::MANTISSA_DIGITS - 1)) as $real;

            fn of(value: f64) -> Self {
                value as $real
            }

            fn to_f64(self) -> f64 {
                f64::from(self)
            }

            // Written so that each comparison is one instruction.
            #[inline(always)]
            fn clamped(self, min: Self, max: Self) -> Self {
                let raised = if self < min { min } else { self };
                if raised > max { max } else { raised }
            }
        }
    };
}

real!(f32);
real!(f64);

/// How quantized weights and their gradients are stored: as computed, or in bf16.
pub trait Stored<T>: Number + Send + Sync {
    /// The nearest; ties to even.
    fn from_real(value: T) -> Self;
    /// The same number.
    fn to_real(self) -> T;
}

impl<T: Real> Stored<T> for T {
    fn from_real(value: T) -> Self {
        value
    }

    fn to_real(self) -> T {
        self
    }
}

impl Stored<f32> for bf16 {
    #[inline(always)]
    fn from_real(value: f32) -> Self {
        to_bf16(value)
    }

    #[inline(always)]
    fn to_real(self) -> f32 {
        from_bf16(self)
    }
}

/// A weight divided into groups. Rows are whole groups, so the groups simply follow one another.
pub struct Groups<'a, T> {
    /// `[out, in]`.
    pub weight: &'a [T],
    /// Offsets in units of the scale, added before rounding, `[out, in]`; or those of one group for all groups, `[len]`.
    pub offsets: &'a [T],
    /// Weights of a group.
    pub len: usize,
    pub levels: Levels,
    /// Fraction of the maximum, `[out, groups]`.
    pub clip_hi: &'a [T],
    /// Fraction of the minimum, `[out, groups]`.
    pub clip_lo: &'a [T],
    /// Scales and minima as they are stored, `[out, groups]`; empty if learning does not see them rounded.
    pub stored: &'a [Ideal],
}

impl<'a, T: Real> Groups<'a, T> {
    /// Each group with its grid.
    fn par_iter(&self) -> impl IndexedParallelIterator<Item = (Group<'a, T>, Grid<T>)> {
        let Self { levels, offsets, len, stored, .. } = *self;
        let clips = self.clip_hi.par_iter().zip(self.clip_lo);
        self.weight.par_chunks(len).zip(clips).enumerate().map(move |(idx, (weight, (&a, &b)))| {
            let offsets = if offsets.len() == len { offsets } else { &offsets[idx * len..][..len] };
            let grid = Grid::new(levels, extremes(weight), a, b);
            let grid = match stored.get(idx) {
                Some(stored) => grid.with(levels, stored),
                None => grid,
            };
            (Group { weight, offsets }, grid)
        })
    }

    /// Scales and minima of all groups as they are stored: what [`Self::stored`] should be. A pass over the weights.
    pub fn rounded(&self) -> Vec<Ideal> {
        if !self.levels.rounds_scales() {
            return Vec::new();
        }
        let unit = self.levels.groups_of_unit();
        let mut stored = vec![Ideal::default(); self.clip_hi.len()];
        let clips = self.clip_hi.par_chunks(unit).zip(self.clip_lo.par_chunks(unit));
        let units = self.weight.par_chunks(unit * self.len).zip(clips);
        stored.par_chunks_mut(unit).zip(units).for_each(|(stored, (weight, (a, b)))| {
            let clips = a.iter().zip(b);
            for ((stored, weight), (&a, &b)) in stored.iter_mut().zip(weight.chunks(self.len)).zip(clips) {
                *stored = Grid::new(self.levels, extremes(weight), a, b).ideal();
            }
            self.levels.round(stored);
        });
        stored
    }
}

/// One group's weights, and the offsets of their codes.
#[derive(Clone, Copy)]
struct Group<'a, T> {
    weight: &'a [T],
    offsets: &'a [T],
}

/// One group's grid.
struct Grid<T> {
    /// Maximum, at least 0, and minimum, at most 0.
    max: T,
    min: T,
    /// The fractions of them at which the group is clipped.
    a: T,
    b: T,
    scale: T,
    /// Value of code 0 of a grid with a minimum, at most 0; else 0.
    base: T,
    /// Codes of the two ends, minus the zero point.
    lowest: T,
    highest: T,
    has_float_codes: bool,
    /// Just beyond the ends: far enough to detect clamping, close enough to be rounded by [`Real::ROUNDER`].
    below: T,
    above: T,
    /// `ds/dhi` and `-ds/dlo`.
    hi_slope: T,
    lo_slope: T,
    /// `-dbase/d(-lo)`: 1 for a grid with a minimum.
    base_slope: T,
}

impl<T: Real> Grid<T> {
    /// The grid of a group with this maximum and minimum.
    fn new(levels: Levels, (max, min): (T, T), a: T, b: T) -> Self {
        let (hi, depth) = (a * max, T::ZERO - b * min);
        let one = T::of(1.0);
        // Not of the clipped ends: learning must not turn the codes of a group.
        let upwards = max >= T::ZERO - min;
        let (width, hi_part) = match levels.zero {
            Zero::Code | Zero::Minimum => (hi + depth, one),
            Zero::FullRange(_) if upwards => (hi, one),
            Zero::Centre(_) if hi > depth => (hi, one),
            Zero::Centre(_) if hi == depth => (hi, T::of(0.5)),
            Zero::Centre(_) | Zero::FullRange(_) => (depth, T::ZERO),
        };
        let (steps, max_code) = (T::of(levels.steps), T::of(levels.max_code));
        let free = width / steps;
        let size = free.clamped(T::of(f64::from(SCALE_MIN)), T::of(f64::from(SCALE_MAX)));
        let slope = if free == size { one / steps } else { T::ZERO };
        // Code 0 lies below the zero point, so a scale is negative if the larger end is positive.
        let (scale, hi_sign) = match levels.zero {
            Zero::FullRange(_) if upwards => (T::ZERO - size, T::of(-1.0)),
            _ => (size, one),
        };
        let (zero_point, lo_part) = match levels.zero {
            Zero::Code => (round((depth / scale).clamped(T::ZERO, max_code)), one),
            Zero::Minimum => (T::ZERO, one),
            Zero::Centre(centre) | Zero::FullRange(centre) => (T::of(centre), one - hi_part),
        };
        let (lowest, highest) = (T::ZERO - zero_point, max_code - zero_point);
        let has_minimum = levels.zero == Zero::Minimum;
        // The next float codes beyond the ends would be two further.
        let beyond = T::of(if levels.has_float_codes { 2.0 } else { 1.0 });
        let grid = Self {
            max,
            min,
            a,
            b,
            scale,
            base: if has_minimum { T::ZERO - depth } else { T::ZERO },
            lowest,
            highest,
            has_float_codes: levels.has_float_codes,
            below: lowest - beyond,
            above: highest + beyond,
            hi_slope: slope * hi_part * hi_sign,
            lo_slope: slope * lo_part,
            base_slope: if has_minimum { one } else { T::ZERO },
        };
        // Float codes have scales that are far from the exact ones, each rounded by itself.
        if levels.has_float_codes {
            let mut unit = [grid.ideal()];
            levels.round(&mut unit);
            return grid.with(levels, &unit[0]);
        }
        grid
    }

    /// The fractions at which the scale and the minimum have the least `sum importance (w - w')²` with the codes of this grid.
    fn least_squares(&self, levels: Levels, weight: &[T], importance: &[T]) -> (T, T) {
        let [mut n, mut q, mut qq, mut x, mut qx] = [T::ZERO; 5];
        for (&w, &h) in weight.iter().zip(importance) {
            let (_, code, _) = self.encode(w, T::ZERO);
            let hq = h * code;
            (n, q, qq, x, qx) = (n + h, q + hq, qq + hq * code, x + h * w, qx + hq * w);
        }
        let alone = qx / qq;
        let (scale, base) = match levels.zero {
            Zero::Minimum => {
                let scale = (n * qx - q * x) / (n * qq - q * q);
                let base = (x - scale * q) / n;
                // A minimum above zero cannot be stored. (Nor one that is not a number, of a group whose codes are all the same.)
                if base < T::ZERO { (scale, base) } else { (alone, T::ZERO) }
            }
            _ => (alone, T::ZERO),
        };
        let [least, most] = FRACTIONS.map(T::of);
        let steps = T::of(levels.steps);
        let fraction = |end: T, extreme: T| (end / extreme).clamped(least, most);
        match levels.zero {
            Zero::Minimum => (fraction(scale * steps + base, self.max), fraction(base, self.min)),
            // Code 0 is the larger end.
            _ => (fraction(T::ZERO - scale * steps, self.max), fraction(T::ZERO - scale * steps, self.min)),
        }
    }

    /// The scale and the minimum.
    fn ideal(&self) -> Ideal {
        let of = |value: T| value.to_f64() as f32;
        Ideal { scale: of(self.scale), depth: of(T::ZERO - self.base) }
    }

    /// The same grid with a scale and a minimum as they are stored. Gradients pass through their rounding.
    fn with(self, levels: Levels, stored: &Ideal) -> Self {
        let scale = T::of(f64::from(stored.scale));
        let base = T::ZERO - T::of(f64::from(stored.depth));
        let base = if levels.zero == Zero::Minimum { base } else { self.base };
        Self { scale, base, ..self }
    }

    /// `(w - base) / s`, the code of `w` minus the zero point, and whether that code was not clamped.
    #[inline(always)]
    fn encode(&self, weight: T, offset: T) -> (T, T, bool) {
        let place = (weight - self.base) / self.scale;
        let near = (place + offset).clamped(self.below, self.above);
        let rounded = if self.has_float_codes { round_e2m1(near) } else { round(near) };
        let code = rounded.clamped(self.lowest, self.highest);
        (place, code, code == rounded)
    }

    /// `dw'/ds` of a weight: `(q - z) - k (w - base) / s`.
    #[inline(always)]
    fn residual(&self, weight: T, offset: T) -> T {
        let (place, code, inside) = self.encode(weight, offset);
        code - if inside { place } else { T::ZERO }
    }

    /// `dL/dhi` and `-dL/dlo` of a group.
    fn end_gradients<S: Stored<T>>(&self, group: Group<'_, T>, grad: &[S]) -> (T, T) {
        let sum = T::of(sum_of(group, grad, |w, v, g| g * self.residual(w, v)));
        if self.base_slope == T::ZERO {
            return (sum * self.hi_slope, sum * self.lo_slope);
        }
        // A clamped weight moves with the minimum: dw'/dbase = 1 - k.
        let clamped = sum_of(group, grad, |w, v, g| if self.encode(w, v).2 { T::ZERO } else { g });
        (sum * self.hi_slope, sum * self.lo_slope - T::of(clamped) * self.base_slope)
    }

    /// `dL/dgamma` and `dL/dbeta`.
    fn strength_gradients(&self, (d_hi, d_depth): (T, T)) -> (T, T) {
        let one = T::of(1.0);
        (d_hi * self.max * self.a * (one - self.a), T::ZERO - d_depth * self.min * self.b * (one - self.b))
    }
}

/// Writes `w'` `[out, in]`.
pub fn fake_quantize<T: Real, S: Stored<T>>(groups: &Groups<'_, T>, out: &mut [S]) {
    groups.par_iter().zip(out.par_chunks_mut(groups.len)).for_each(|((group, grid), out)| {
        for ((out, &w), &v) in out.iter_mut().zip(group.weight).zip(group.offsets) {
            let (_, code, _) = grid.encode(w, v);
            *out = S::from_real(code * grid.scale + grid.base);
        }
    });
}

/// Writes the strengths' gradients `[out, groups]` from `grad = dL/dw'` `[out, in]`.
pub fn gradients<T: Real, S: Stored<T>>(groups: &Groups<'_, T>, grad: &[S], gamma: &mut [T], beta: &mut [T]) {
    let strengths = gamma.par_iter_mut().zip(beta);
    groups.par_iter().zip(grad.par_chunks(groups.len)).zip(strengths).for_each(
        |(((group, grid), grad), (gamma, beta))| {
            (*gamma, *beta) = grid.strength_gradients(grid.end_gradients(group, grad));
        },
    );
}

/// Like [`gradients`], and also writes `dL/dw` `[out, in]`.
pub fn gradients_with_weight<T: Real, S: Stored<T>>(
    groups: &Groups<'_, T>,
    grad: &[S],
    gamma: &mut [T],
    beta: &mut [T],
    d_weight: &mut [T],
) {
    let strengths = gamma.par_iter_mut().zip(beta);
    groups
        .par_iter()
        .zip(grad.par_chunks(groups.len))
        .zip(strengths)
        .zip(d_weight.par_chunks_mut(groups.len))
        .for_each(|((((group, grid), grad), (gamma, beta)), d_weight)| {
            let (d_hi, d_depth) = grid.end_gradients(group, grad);
            (*gamma, *beta) = grid.strength_gradients((d_hi, d_depth));
            // Weights that are tied for an extreme share its gradient.
            let pull_max = d_hi * grid.a / T::of(count(group.weight, grid.max));
            let pull_min = d_depth * grid.b / T::of(count(group.weight, grid.min));
            for (((d_weight, &w), &v), &g) in d_weight.iter_mut().zip(group.weight).zip(group.offsets).zip(grad) {
                let (_, _, inside) = grid.encode(w, v);
                let straight = if inside { g.to_real() } else { T::ZERO };
                let max = if w == grid.max { pull_max } else { T::ZERO };
                let min = if w == grid.min { pull_min } else { T::ZERO };
                *d_weight = straight + max - min;
            }
        });
}

/// Moves `offsets` `[out, in]` such that values move against `grad = dL/dw'` `[out, in]`; those of clamped codes do not move. A step is `rate`
/// times the gradient and the factors `[out]` of its row and `[in]` of its column. The offsets of `groups` are not read.
pub fn move_offsets<T: Real, S: Stored<T>>(
    groups: &Groups<'_, T>,
    grad: &[S],
    (rows, columns): (&[T], &[T]),
    rate: T,
    offsets: &mut [T],
) {
    let (len, largest) = (groups.len, T::of(LARGEST));
    let in_row = columns.len() / len;
    groups.par_iter().zip(grad.par_chunks(len)).zip(offsets.par_chunks_mut(len)).enumerate().for_each(
        |(idx, (((group, grid), grad), offsets))| {
            // An offset moves a value by its product with the scale, which may be negative.
            let rate = if grid.scale < T::ZERO { T::ZERO - rate } else { rate };
            let (row, columns) = (rows[idx / in_row], &columns[idx % in_row * len..][..len]);
            for (((v, &w), &g), &column) in offsets.iter_mut().zip(group.weight).zip(grad).zip(columns) {
                let (_, _, inside) = grid.encode(w, *v);
                let step = (g.to_real() * row * column).clamped(T::ZERO - largest, largest);
                *v = *v - if inside { step * rate } else { T::ZERO };
            }
        },
    );
}

/// Norms of the rows and of the columns of gradients `[rows, cols]`.
pub fn norms<T: Real, S: Stored<T>>(grad: &[S], rows: &mut [T], cols: &mut [T]) {
    let width = cols.len();
    // Sums of columns follow the order of the rows, for the same bytes with any number of threads.
    let parts: Vec<Vec<T>> = rows
        .par_chunks_mut(ROWS)
        .zip(grad.par_chunks(ROWS * width))
        .map(|(rows, grad)| {
            let mut of_cols = vec![T::ZERO; width];
            for (norm, grad) in rows.iter_mut().zip(grad.chunks_exact(width)) {
                let mut lanes = [T::ZERO; LANES];
                for (cols, grad) in of_cols.chunks_mut(LANES).zip(grad.chunks(LANES)) {
                    for ((lane, col), &g) in lanes.iter_mut().zip(cols).zip(grad) {
                        let square = g.to_real() * g.to_real();
                        *lane = *lane + square;
                        *col = *col + square;
                    }
                }
                *norm = T::of(folded(lanes, |a, b| a + b).to_f64().sqrt());
            }
            of_cols
        })
        .collect();
    for (col, norm) in cols.iter_mut().enumerate() {
        *norm = T::of(parts.iter().map(|part| part[col].to_f64()).sum::<f64>().sqrt());
    }
}

/// Writes the fractions out of `choices` that minimize `sum importance (w - w')²` of each group: first the best for both ends together,
/// then for the maximum, then for the minimum. `importance [in]`, `hi` and `lo` `[out, groups]`.
pub fn search<T: Real>(groups: &Groups<'_, T>, importance: &[T], choices: &[T], hi: &mut [T], lo: &mut [T]) {
    let n_groups = importance.len() / groups.len;
    let fractions = hi.par_iter_mut().zip(lo).enumerate();
    groups.weight.par_chunks(groups.len).zip(fractions).for_each(|(group, (idx, (hi, lo)))| {
        let importance = &importance[idx % n_groups * groups.len..][..groups.len];
        let (ends, group) = (extremes(group), Group { weight: group, offsets: groups.offsets });
        let error = |a: T, b: T| {
            let grid = Grid::new(groups.levels, ends, a, b);
            let squared = |w, _, importance: T| {
                let (_, code, _) = grid.encode(w, T::ZERO);
                let off = w - (code * grid.scale + grid.base);
                importance * off * off
            };
            sum_of(group, importance, squared)
        };
        let least = |of: &dyn Fn(T) -> f64, start: T| {
            choices.iter().fold((start, of(start)), |best, &fraction| {
                let error = of(fraction);
                if error < best.1 { (fraction, error) } else { best }
            })
        };
        let (both, _) = least(&|fraction| error(fraction, fraction), choices[0]);
        (*hi, _) = least(&|fraction| error(fraction, both), both);
        let mut found;
        (*lo, found) = least(&|fraction| error(*hi, fraction), both);
        if !groups.levels.has_least_squares() {
            return;
        }
        for _ in 0..ROUNDS {
            let grid = Grid::new(groups.levels, ends, *hi, *lo);
            let (a, b) = grid.least_squares(groups.levels, group.weight, importance);
            let error = error(a, b);
            if error.is_nan() || error >= found {
                break;
            }
            (*hi, *lo, found) = (a, b, error);
        }
    });
}

/// Rounds to nearest, ties to even; `x` is at most a few hundred.
#[inline(always)]
fn round<T: Real>(x: T) -> T {
    (x + T::ROUNDER) - T::ROUNDER
}

/// Rounds to the nearest e2m1 number, ties to the even one; beyond 6 to even numbers.
#[inline(always)]
fn round_e2m1<T: Real>(x: T) -> T {
    let size = if x < T::ZERO { T::ZERO - x } else { x };
    let step = T::of(if size < T::of(2.0) {
        0.5
    } else if size < T::of(4.0) {
        1.0
    } else {
        2.0
    });
    round(x / step) * step
}

/// Maximum and minimum, widened to contain 0.
fn extremes<T: Real>(group: &[T]) -> (T, T) {
    let larger = |a: T, b: T| if b > a { b } else { a };
    let smaller = |a: T, b: T| if b < a { b } else { a };
    let mut max = [T::ZERO; LANES];
    let mut min = [T::ZERO; LANES];
    let (chunks, rest) = group.as_chunks::<LANES>();
    for chunk in chunks {
        for ((max, min), &w) in max.iter_mut().zip(&mut min).zip(chunk) {
            *max = larger(*max, w);
            *min = smaller(*min, w);
        }
    }
    for &w in rest {
        max[0] = larger(max[0], w);
        min[0] = smaller(min[0], w);
    }
    (folded(max, larger), folded(min, smaller))
}

/// Sum of `term(w, v, g)`: a weight, its offset and its gradient.
#[inline(always)]
fn sum_of<T: Real, S: Stored<T>>(group: Group<'_, T>, grad: &[S], term: impl Fn(T, T, T) -> T) -> f64 {
    let mut total = 0.0;
    let blocks = group.weight.chunks(BLOCK).zip(group.offsets.chunks(BLOCK)).zip(grad.chunks(BLOCK));
    for ((weight, offsets), grad) in blocks {
        let mut lanes = [T::ZERO; LANES];
        let (weights, weight_rest) = weight.as_chunks::<LANES>();
        let (offsets, offset_rest) = offsets.as_chunks::<LANES>();
        let (grads, grad_rest) = grad.as_chunks::<LANES>();
        for ((weight, offset), grad) in weights.iter().zip(offsets).zip(grads) {
            for (((lane, &w), &v), &g) in lanes.iter_mut().zip(weight).zip(offset).zip(grad) {
                *lane = *lane + term(w, v, g.to_real());
            }
        }
        for (((lane, &w), &v), &g) in lanes.iter_mut().zip(weight_rest).zip(offset_rest).zip(grad_rest) {
            *lane = *lane + term(w, v, g.to_real());
        }
        total += folded(lanes, T::add).to_f64();
    }
    total
}

/// Adds the lanes up, one half onto the other.
#[inline(always)]
fn folded<T: Real>(mut lanes: [T; LANES], join: impl Fn(T, T) -> T) -> T {
    let mut half = LANES / 2;
    while half > 0 {
        let (low, high) = lanes.split_at_mut(half);
        for (low, &high) in low.iter_mut().zip(&*high) {
            *low = join(*low, high);
        }
        half /= 2;
    }
    lanes[0]
}

/// How many weights equal `value`; at least 1.
fn count<T: Real>(group: &[T], value: T) -> f64 {
    (group.iter().filter(|&&w| w == value).count() as f64).max(1.0)
}
