//! Clipping composed of libtorch operations, for any device and any kind of number.
//!
//! Groups are the middle axis: weights are `[out, groups, len]`, and values per group are `[out, groups, 1]`.

use oq_quant_core::{Ideal, SCALE_MAX, SCALE_MIN};
use tch::{Device, Kind, Tensor};

use crate::levels::{ClipTensors, FRACTIONS, Levels, ROUNDS, Zero};
use crate::strengths::LwcGrads;
use crate::usual::Usual;

/// Grids of all groups, each part `[out, groups, 1]`.
struct Grids {
    /// Maximum, at least 0.
    max: Tensor,
    /// Minimum, at most 0.
    min: Tensor,
    /// Ends of the clipped range.
    hi: Tensor,
    lo: Tensor,
    scale: Tensor,
    /// Value of code 0 of grids with a minimum, else 0.
    base: Tensor,
    /// 1 where the scale was not clamped.
    live: Tensor,
    /// Codes of the two ends, minus the zero point.
    lowest: Tensor,
    highest: Tensor,
}

/// Differentiable with respect to `weight` and `clip`, except for the zero point. Gradients pass through the rounding of scales and minima.
fn grids(levels: Levels, weight: &Tensor, clip: &ClipTensors) -> Grids {
    let max = weight.amax(-1, true).clamp_min(0.0);
    let min = weight.amin(-1, true).clamp_max(0.0);
    let hi = &max * clip.hi.unsqueeze(-1);
    let lo = &min * clip.lo.unsqueeze(-1);
    let width = match levels.zero {
        Zero::Code | Zero::Minimum => &hi - &lo,
        Zero::Centre(_) => hi.maximum(&-&lo),
        // The end that is larger before it is clipped: learning must not turn the codes of a group.
        Zero::FullRange(_) => hi.where_self(&max.ge_tensor(&-&min), &-&lo),
    };
    let free = width / levels.steps;
    let size = free.clamp(f64::from(SCALE_MIN), f64::from(SCALE_MAX));
    let live = free.eq_tensor(&size);
    let scale = match levels.zero {
        Zero::FullRange(_) => (-&size).where_self(&max.ge_tensor(&-&min), &size),
        _ => size,
    };
    let base = if levels.zero == Zero::Minimum { lo.shallow_clone() } else { lo.zeros_like() };
    let (scale, base) = if levels.rounds_scales() { stored(levels, &scale, &base) } else { (scale, base) };
    let zero_point = match levels.zero {
        Zero::Code => (-&lo / &scale).detach().round().clamp(0.0, levels.max_code),
        Zero::Minimum => scale.detach().zeros_like(),
        Zero::Centre(centre) | Zero::FullRange(centre) => scale.detach().full_like(centre),
    };
    let (lowest, highest) = (0.0 - &zero_point, levels.max_code - &zero_point);
    Grids { max, min, hi, lo, scale, base, live, lowest, highest }
}

/// Scales and minima, `[out, groups, 1]`, as they are stored; computed on the CPU. Gradients pass through.
fn stored(levels: Levels, scale: &Tensor, base: &Tensor) -> (Tensor, Tensor) {
    let values = |part: &Tensor| {
        let part = part.detach().to_device(Device::Cpu).to_kind(Kind::Float).contiguous().view(-1);
        Vec::<f32>::try_from(part).expect("a vector of f32")
    };
    let pairs = values(scale).into_iter().zip(values(base));
    let mut ideals: Vec<Ideal> = pairs.map(|(scale, base)| Ideal { scale, depth: -base }).collect();
    ideals.chunks_mut(levels.groups_of_unit()).for_each(|unit| levels.round(unit));
    let rounded = |of: &dyn Fn(&Ideal) -> f32, like: &Tensor| {
        let rounded = Tensor::from_slice(&ideals.iter().map(of).collect::<Vec<f32>>());
        let rounded = rounded.view_as(like).to_device(like.device()).to_kind(like.kind());
        like + (rounded - like).detach()
    };
    (rounded(&|ideal| ideal.scale, scale), rounded(&|ideal| -ideal.depth, base))
}

/// The nearest integers or e2m1 numbers; ties to the even one. Beyond 6 to even numbers.
pub fn nearest(has_float_codes: bool, places: &Tensor) -> Tensor {
    if !has_float_codes {
        return places.round();
    }
    let size = places.abs();
    let (coarse, middle) = (size.ge(4.0), size.ge(2.0));
    let step = size.full_like(0.5).masked_fill(&middle, 1.0).masked_fill(&coarse, 2.0);
    (places / &step).round() * step
}

/// For each group: the scale, the value of code 0, and the codes of both ends minus the zero point, `[out, groups]`.
pub fn grids_of(levels: Levels, weight: &Tensor, clip: &ClipTensors) -> [Tensor; 4] {
    let Grids { scale, base, lowest, highest, .. } = grids(levels, &in_groups(weight, clip), clip);
    [scale, base, lowest, highest].map(|part| part.squeeze_dim(-1))
}

/// `[out, in]` -> `[out, groups, len]`.
fn in_groups(weight: &Tensor, clip: &ClipTensors) -> Tensor {
    let strengths = clip.hi.size();
    weight.reshape([strengths[0], strengths[1], -1])
}

/// Scaled weights, `[out, groups, len]`, plus their offsets, `[out, in]`.
fn shifted(places: Tensor, offsets: Option<&Tensor>, clip: &ClipTensors) -> Tensor {
    offsets.map_or_else(|| places.shallow_clone(), |offsets| &places + in_groups(offsets, clip))
}

/// `w [out, in]` -> `w' [out, in]`.
pub fn fake_quantize(levels: Levels, weight: &Tensor, offsets: Option<&Tensor>, clip: &ClipTensors) -> Tensor {
    let groups = in_groups(weight, clip);
    let grids = grids(levels, &groups, clip);
    let places = shifted((&groups - &grids.base) / &grids.scale, offsets, clip);
    let mut codes = nearest(levels.has_float_codes, &places).clamp_tensor_(Some(&grids.lowest), Some(&grids.highest));
    codes.g_mul_(&grids.scale).g_add_(&grids.base).view_as(weight)
}

/// `w [out, in]` -> `w' [out, in]`, with a gradient through the rounding of codes but not through their clamp.
pub fn fake_quantize_autograd(levels: Levels, weight: &Tensor, offsets: Option<&Tensor>, clip: &ClipTensors) -> Tensor {
    let groups = in_groups(weight, clip);
    let grids = grids(levels, &groups, clip);
    let place = shifted((&groups - &grids.base) / &grids.scale, offsets, clip);
    // The residual is at most one half (of a float code, one) and exact, so the sum is the rounded number itself.
    let rounded = &place + (nearest(levels.has_float_codes, &place) - &place).detach();
    let codes = rounded.clamp_tensor(Some(&grids.lowest), Some(&grids.highest));
    (codes * &grids.scale + &grids.base).view_as(weight)
}

/// `w [out, in]`, `dL/dw' [out, in]` -> strengths' gradients `[out, groups]`.
pub fn gradients(
    levels: Levels,
    weight: &Tensor,
    offsets: Option<&Tensor>,
    grad: &Tensor,
    clip: &ClipTensors,
) -> LwcGrads {
    let (weight, grad) = (in_groups(weight, clip), in_groups(grad, clip));
    let grids = grids(levels, &weight, clip);
    let (residual, inside) = residuals(levels, &grids, &weight, offsets, clip);
    strength_gradients(&grids, clip, &end_gradients(levels, &grids, (&residual, &inside), &grad))
}

/// Like [`gradients`], with `dL/dw [out, in]`.
pub fn gradients_with_weight(
    levels: Levels,
    weight: &Tensor,
    offsets: Option<&Tensor>,
    grad: &Tensor,
    clip: &ClipTensors,
) -> (LwcGrads, Tensor) {
    let (groups, grad) = (in_groups(weight, clip), in_groups(grad, clip));
    let grids = grids(levels, &groups, clip);
    let (residual, inside) = residuals(levels, &grids, &groups, offsets, clip);
    let ends = end_gradients(levels, &grids, (&residual, &inside), &grad);
    let mut d_weight = grad * inside;
    for (extreme, fraction, d_end) in [(&grids.max, &clip.hi, &ends.hi), (&grids.min, &clip.lo, &ends.lo)] {
        let here = groups.eq_tensor(extreme);
        // There are none in a group of one sign, whose range was widened to contain 0.
        let count = here.sum_dim_intlist(-1, true, groups.kind()).clamp_min(1.0);
        d_weight += here * (d_end * fraction.unsqueeze(-1) / count);
    }
    (strength_gradients(&grids, clip, &ends), d_weight.view_as(weight))
}

/// `dw'/ds` of each weight, `(q - z) - k (w - base) / s`, and `k`: whether its code was not clamped.
fn residuals(
    levels: Levels,
    grids: &Grids,
    weight: &Tensor,
    offsets: Option<&Tensor>,
    clip: &ClipTensors,
) -> (Tensor, Tensor) {
    let place = (weight - &grids.base) / &grids.scale;
    let rounded = nearest(levels.has_float_codes, &shifted(place.shallow_clone(), offsets, clip));
    let code = rounded.clamp_tensor(Some(&grids.lowest), Some(&grids.highest));
    let inside = code.eq_tensor(&rounded);
    ((&code - place).where_self(&inside, &code), inside)
}

/// `dL/dhi` and `dL/dlo`, each `[out, groups, 1]`.
fn end_gradients(levels: Levels, grids: &Grids, (residual, inside): (&Tensor, &Tensor), grad: &Tensor) -> ClipTensors {
    let sum = |terms: Tensor| terms.sum_dim_intlist(-1, true, None::<Kind>);
    let d_scale = sum(grad * residual) * &grids.live / levels.steps;
    match levels.zero {
        Zero::Code => ClipTensors { lo: -&d_scale, hi: d_scale },
        // A clamped weight moves with the minimum.
        Zero::Minimum => ClipTensors { lo: sum(grad * inside.logical_not()) - &d_scale, hi: d_scale },
        Zero::Centre(_) => {
            // 1, 1/2 or 0, as the upper end is larger than, equal to or smaller than the lower end.
            let hi_part = ((&grids.hi + &grids.lo).sign() + 1.0) / 2.0;
            let hi = &d_scale * hi_part;
            ClipTensors { lo: &hi - d_scale, hi }
        }
        Zero::FullRange(_) => {
            let upwards = grids.max.ge_tensor(&-&grids.min).to_kind(d_scale.kind());
            let hi = -&d_scale * &upwards;
            ClipTensors { lo: (&upwards - 1.0) * d_scale, hi }
        }
    }
}

fn strength_gradients(grids: &Grids, clip: &ClipTensors, ends: &ClipTensors) -> LwcGrads {
    let strength = |d_end: &Tensor, extreme: &Tensor, fraction: &Tensor| {
        (d_end * extreme).squeeze_dim(-1) * fraction * (1.0 - fraction)
    };
    LwcGrads { gamma: strength(&ends.hi, &grids.max, &clip.hi), beta: strength(&ends.lo, &grids.min, &clip.lo) }
}

/// The offsets `[out, in]`, moved such that values move against `grad = dL/dw'`: see [`Lwc::move_offsets`](crate::Lwc::move_offsets).
pub fn moved_offsets(
    levels: Levels,
    weight: &Tensor,
    offsets: &Tensor,
    (grad, usual): (&Tensor, &Usual),
    clip: &ClipTensors,
    rate: f64,
) -> Tensor {
    let groups = in_groups(weight, clip);
    let grids = grids(levels, &groups, clip);
    let (_, inside) = residuals(levels, &grids, &groups, Some(offsets), clip);
    // An offset moves a value by its product with the scale, which may be negative.
    let ways = inside.to_kind(grad.kind()) * grids.scale.sign();
    offsets - usual.steps(grad) * ways.view_as(weight) * rate
}

/// The fractions out of `choices` with the least `sum importance (w - w')²` of each group: first for both ends together, then for each end.
/// `w [out, in]`, `importance [in]`; the current fractions, `[out, groups]`, give the shape of the groups.
pub fn search(
    levels: Levels,
    weight: &Tensor,
    importance: &Tensor,
    choices: &[f64],
    shape: &ClipTensors,
) -> ClipTensors {
    let levels = levels.of_groups_alone();
    let error = |clip: &ClipTensors| {
        let off = (fake_quantize(levels, weight, None, clip) - weight).square() * importance;
        in_groups(&off, clip).sum_dim_intlist(-1, false, None::<Kind>)
    };
    let least = |start: &Tensor, of: &dyn Fn(&Tensor) -> ClipTensors| {
        let mut best = (start.shallow_clone(), error(&of(start)));
        for &fraction in choices {
            let fraction = start.full_like(fraction);
            let error = error(&of(&fraction));
            let better = error.lt_tensor(&best.1);
            best = (fraction.where_self(&better, &best.0), error.minimum(&best.1));
        }
        best.0
    };
    let copy = Tensor::shallow_clone;
    let both =
        least(&shape.hi.full_like(choices[0]), &|fraction| ClipTensors { hi: copy(fraction), lo: copy(fraction) });
    let hi = least(&both, &|fraction| ClipTensors { hi: copy(fraction), lo: copy(&both) });
    let lo = least(&both, &|fraction| ClipTensors { hi: copy(&hi), lo: copy(fraction) });
    let mut found = ClipTensors { hi, lo };
    if !levels.has_least_squares() {
        return found;
    }
    let mut found_error = error(&found);
    for _ in 0..ROUNDS {
        let next = least_squares(levels, weight, importance, &found);
        let next_error = error(&next);
        let better = next_error.lt_tensor(&found_error);
        found = ClipTensors { hi: next.hi.where_self(&better, &found.hi), lo: next.lo.where_self(&better, &found.lo) };
        found_error = next_error.minimum(&found_error);
    }
    found
}

/// The fractions at which scale and minimum of each group have the least `sum importance (w - w')²` with the codes that it has now.
fn least_squares(levels: Levels, weight: &Tensor, importance: &Tensor, clip: &ClipTensors) -> ClipTensors {
    let groups = in_groups(weight, clip);
    let grids = grids(levels, &groups, clip);
    let h = in_groups(&importance.expand_as(weight), clip);
    let places = (&groups - &grids.base) / &grids.scale;
    let codes = nearest(levels.has_float_codes, &places).clamp_tensor(Some(&grids.lowest), Some(&grids.highest));
    let sum = |terms: &Tensor| terms.sum_dim_intlist(-1, true, None::<Kind>);
    let (hq, n) = (&h * &codes, sum(&h));
    let (q, qq, x, qx) = (sum(&hq), sum(&(&hq * &codes)), sum(&(&h * &groups)), sum(&(&hq * &groups)));
    let alone = &qx / &qq;
    let fraction = |end: &Tensor, extreme: &Tensor| (end / extreme).clamp(FRACTIONS[0], FRACTIONS[1]).squeeze_dim(-1);
    if levels.zero != Zero::Minimum {
        let end = -&alone * levels.steps;
        return ClipTensors { hi: fraction(&end, &grids.max), lo: fraction(&end, &grids.min) };
    }
    let scale = (&n * &qx - &q * &x) / (&n * &qq - &q * &q);
    let base = (&x - &scale * &q) / &n;
    let is_below = base.lt(0.0);
    let (scale, base) = (scale.where_self(&is_below, &alone), base.where_self(&is_below, &base.zeros_like()));
    ClipTensors { hi: fraction(&(scale * levels.steps + &base), &grids.max), lo: fraction(&base, &grids.min) }
}
