//! The closed-form gradient, in f64: against autograd of the definition, and against finite differences of what the
//! straight-through estimator differentiates.

use oq_quant_core::{Bits, GroupSize, SCALE_MAX, SCALE_MIN, Storage, Symmetry, WeightSpec};
use tch::{Device, Kind, Tensor};

use super::{NAMED, noise};
use crate::{Lwc, LwcGrads};

/// Roundings of f64 in a sum of at most some hundred terms, as a fraction of what the terms come to.
const ROUNDINGS: f64 = 1e-12;
/// Central differences with [`STEP`]: its square for the third derivative, f64's rounding over it for the difference.
const DIFFERENCES: f64 = 1e-7;
const STEP: f64 = 1e-5;

/// A weight, its gradient and clipping in f64.
struct Case {
    lwc: Lwc,
    weight: Tensor,
    grad: Tensor,
}

impl Case {
    /// `weight [out, in]` with strengths spread about their start, so that codes of both ends are clamped.
    fn new(spec: WeightSpec, weight: Tensor) -> Self {
        let [out, cols] = weight.size()[..] else { unreachable!("weights are matrices") };
        let mut lwc = Lwc::new(out as usize, cols as usize, spec, Device::Cpu).expect("the group divides");
        let spread = |seed| noise(seed, [out, lwc.gamma.size()[1]], Kind::Double) * 1.5 + 2.0;
        (lwc.gamma, lwc.beta) = (spread(11), spread(12));
        let grad = noise(13, [out, cols], Kind::Double);
        Self { lwc, weight, grad }
    }

    /// By autograd of the definition, with respect to gamma, beta and the weight.
    fn autograd(&self) -> (LwcGrads, Tensor) {
        let leaf = |tensor: &Tensor| tensor.detach().copy().set_requires_grad(true);
        let spec = self.lwc.spec();
        let (out, cols) = self.weight.size2().expect("weights are matrices");
        let mut lwc = Lwc::new(out as usize, cols as usize, spec, Device::Cpu).expect("the group divides");
        (lwc.gamma, lwc.beta) = (leaf(&self.lwc.gamma), leaf(&self.lwc.beta));
        lwc.offsets = self.lwc.offsets.as_ref().map(Tensor::copy);
        let weight = leaf(&self.weight);
        let loss = (lwc.fake_quantize_autograd(&weight) * &self.grad).sum(Kind::Double);
        let mut grads = Tensor::run_backward(&[loss], &[&lwc.gamma, &lwc.beta, &weight], false, false).into_iter();
        let mut next = || grads.next().expect("one gradient for each input");
        (LwcGrads { gamma: next(), beta: next() }, next())
    }

    /// What the terms behind each group's gradient come to, were each weight off by all its codes: `[out, groups]`.
    fn sizes(&self) -> Tensor {
        let strengths = self.lwc.gamma.size();
        let groups = |t: &Tensor| t.abs().reshape([strengths[0], strengths[1], -1]);
        groups(&self.grad).sum_dim_intlist(-1, false, Kind::Double) * groups(&self.weight).amax(-1, false)
    }
}

#[track_caller]
fn check_close(name: &str, actual: &Tensor, expected: &Tensor, size: &Tensor, tolerance: f64) {
    let error = ((actual - expected).abs() / size.clamp_min(1e-30)).max().double_value(&[]);
    assert!(error <= tolerance, "{name}: off by {error} of its size");
}

#[track_caller]
fn check_autograd(case: &Case) {
    let name = |part: &str| format!("{part} of {:?}", case.lwc.spec());
    assert_eq!(case.lwc.fake_quantize(&case.weight), case.lwc.fake_quantize_autograd(&case.weight), "{}", name("w'"));
    let (expected, expected_weight) = case.autograd();
    let (grads, d_weight) = case.lwc.gradients_with_weight(&case.weight, &case.grad);
    let sizes = case.sizes();
    check_close(&name("gamma"), &grads.gamma, &expected.gamma, &sizes, ROUNDINGS);
    check_close(&name("beta"), &grads.beta, &expected.beta, &sizes, ROUNDINGS);
    let row_sizes = expected_weight.abs().amax(-1, true);
    check_close(&name("weight"), &d_weight, &expected_weight, &row_sizes, ROUNDINGS);
    let alone = case.lwc.gradients(&case.weight, &case.grad);
    assert_eq!((alone.gamma, alone.beta), (grads.gamma, grads.beta));
}

/// [`for_specs`], and the types that have a name.
fn for_all_types(mut check: impl FnMut(WeightSpec, i64)) {
    for_specs(&mut check);
    for name in NAMED {
        check(WeightSpec::named(name).expect("a type"), 512);
    }
}

/// All bits and symmetries, in groups of 32, of 5 and of a whole row.
fn for_specs(mut check: impl FnMut(WeightSpec, i64)) {
    for bits in Bits::ALL {
        for symmetry in [Symmetry::Asymmetric, Symmetry::Symmetric, Symmetry::FullRange] {
            for (group, cols) in [(Some(32), 96), (Some(5), 20), (None, 120)] {
                let group = group.map_or(GroupSize::PerChannel, |n| GroupSize::channels(n).expect("not 0"));
                check(WeightSpec::integer(bits, group, symmetry), cols);
            }
        }
    }
}

#[test]
fn closed_form_is_autograd() {
    for_all_types(|spec, cols| check_autograd(&Case::new(spec, noise(14, [8, cols], Kind::Double))));
}

#[test]
fn closed_form_is_autograd_where_codes_have_offsets() {
    for_all_types(|spec, cols| {
        let mut case = Case::new(spec, noise(14, [8, cols], Kind::Double));
        case.lwc.offsets = Some(noise(15, [8, cols], Kind::Double));
        check_autograd(&case);
    });
}

#[test]
fn closed_form_is_autograd_in_groups_of_one_sign() {
    for_all_types(|spec, cols| {
        let weight = noise(14, [8, cols], Kind::Double).abs();
        check_autograd(&Case::new(spec, -&weight));
        // With a zero among them: the extreme that the range is widened to.
        let _ = weight.slice(1, 0, cols, 3).zero_();
        check_autograd(&Case::new(spec, -&weight));
        check_autograd(&Case::new(spec, weight));
    });
}

#[test]
fn closed_form_is_autograd_in_constant_and_zero_groups() {
    for_all_types(|spec, cols| {
        for value in [0.75, -0.75, 0.0] {
            check_autograd(&Case::new(spec, Tensor::full([2, cols], value, (Kind::Double, Device::Cpu))));
        }
    });
}

#[test]
fn closed_form_is_autograd_where_extremes_are_shared() {
    for_all_types(|spec, cols| {
        // Maximum and minimum are 1 and -1, several times each; with equal fractions the ends of a symmetric grid are tied.
        let weight = noise(14, [8, cols], Kind::Double).clamp(-1.0, 1.0);
        let mut case = Case::new(spec, weight);
        check_autograd(&case);
        case.lwc.beta = case.lwc.gamma.copy();
        check_autograd(&case);
    });
}

#[test]
fn closed_form_is_autograd_where_the_scale_is_clamped() {
    for_specs(|spec, cols| {
        let weight = noise(14, [8, cols], Kind::Double);
        let (small, large) = (&weight * 1e-7, &weight * 1e8);
        let zeros = |case: &Case| {
            let grads = case.lwc.gradients(&case.weight, &case.grad);
            (grads.gamma.abs() + grads.beta.abs()).max().double_value(&[]) == 0.0
        };
        for weight in [small, large] {
            let case = Case::new(spec, weight);
            check_autograd(&case);
            assert!(zeros(&case), "a clamped scale has no gradient");
        }
    });
}

/// One group as the straight-through estimator sees it at a point: the residual of each rounding, which codes are clamped and
/// whether the scale is, all held fixed while the strengths and weights move.
struct Surrogate {
    spec: WeightSpec,
    /// Whether the larger end was the positive one.
    upwards: bool,
    steps: f64,
    /// The scale, where it was clamped.
    clamped_scale: Option<f64>,
    /// `round(x) - x` where a code was not clamped, else the clamped code less the zero point.
    codes: Vec<Result<f64, f64>>,
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

impl Surrogate {
    fn at(spec: WeightSpec, weight: &[f64], gamma: f64, beta: f64) -> Self {
        let (max_code, centre) = (f64::from(spec.bits.max_code()), f64::from(spec.bits.centre()));
        let steps = match spec.symmetry {
            Symmetry::Asymmetric => max_code,
            Symmetry::Symmetric => centre - 1.0,
            Symmetry::FullRange => centre,
        };
        let lo = sigmoid(beta) * weight.iter().copied().fold(0.0, f64::min);
        let raw = (weight.iter().copied().fold(0.0, f64::max), weight.iter().copied().fold(0.0, f64::min));
        let mut surrogate = Self { spec, upwards: raw.0 >= -raw.1, steps, clamped_scale: None, codes: Vec::new() };
        let free = surrogate.scale(weight, gamma, beta);
        let scale = free.abs().clamp(f64::from(SCALE_MIN), f64::from(SCALE_MAX)).copysign(free);
        surrogate.clamped_scale = (scale != free).then_some(scale);
        let base = surrogate.base(weight, beta);
        let zero = match spec.symmetry {
            Symmetry::Asymmetric if spec.storage == Storage::HalfMin => 0.0,
            Symmetry::Asymmetric => (-lo / scale).round_ties_even().min(max_code),
            Symmetry::Symmetric | Symmetry::FullRange => centre,
        };
        let code = |w: &f64| {
            let place = (w - base) / scale;
            let rounded = place.round_ties_even();
            let code = (rounded + zero).clamp(0.0, max_code);
            if code == rounded + zero { Ok(rounded - place) } else { Err(code - zero) }
        };
        surrogate.codes = weight.iter().map(code).collect();
        surrogate
    }

    fn scale(&self, weight: &[f64], gamma: f64, beta: f64) -> f64 {
        let hi = sigmoid(gamma) * weight.iter().copied().fold(0.0, f64::max);
        let lo = sigmoid(beta) * weight.iter().copied().fold(0.0, f64::min);
        let free = match self.spec.symmetry {
            Symmetry::Asymmetric => hi - lo,
            Symmetry::Symmetric => hi.max(-lo),
            Symmetry::FullRange if self.upwards => -hi,
            Symmetry::FullRange => -lo,
        };
        self.clamped_scale.unwrap_or(free / self.steps)
    }

    /// The value of code 0 of a grid with a minimum.
    fn base(&self, weight: &[f64], beta: f64) -> f64 {
        let lo = sigmoid(beta) * weight.iter().copied().fold(0.0, f64::min);
        if self.spec.storage == Storage::HalfMin { lo } else { 0.0 }
    }

    fn loss(&self, weight: &[f64], grad: &[f64], gamma: f64, beta: f64) -> f64 {
        let scale = self.scale(weight, gamma, beta);
        let base = self.base(weight, beta);
        let value = |(w, code): (&f64, &Result<f64, f64>)| match code {
            Ok(residual) => ((w - base) / scale + residual) * scale + base,
            Err(code) => code * scale + base,
        };
        weight.iter().zip(&self.codes).map(value).zip(grad).map(|(value, g)| value * g).sum()
    }
}

fn slope(at: f64, loss: impl Fn(f64) -> f64, step: f64) -> f64 {
    (loss(at + step) - loss(at - step)) / (2.0 * step)
}

fn check_differences(spec: WeightSpec, case: &Case) {
    let values = |t: &Tensor| Vec::<f64>::try_from(t.reshape([-1])).expect("f64 values");
    let (grads, d_weight) = case.lwc.gradients_with_weight(&case.weight, &case.grad);
    let (weight, grad, d_weight) = (values(&case.weight), values(&case.grad), values(&d_weight));
    let (gamma, beta) = (values(&case.lwc.gamma), values(&case.lwc.beta));
    let (d_gamma, d_beta) = (values(&grads.gamma), values(&grads.beta));
    let len = weight.len() / gamma.len();
    for (i, (weight, grad)) in weight.chunks(len).zip(grad.chunks(len)).enumerate() {
        let (gamma, beta) = (gamma[i], beta[i]);
        let surrogate = Surrogate::at(spec, weight, gamma, beta);
        let largest = weight.iter().fold(0.0, |m: f64, w| m.max(w.abs()));
        let size = grad.iter().map(|g| g.abs()).sum::<f64>();
        let close = |actual: f64, expected: f64, size: f64| {
            assert!((actual - expected).abs() <= DIFFERENCES * size, "{spec:?}: {actual}, by differences {expected}");
        };
        close(d_gamma[i], slope(gamma, |gamma| surrogate.loss(weight, grad, gamma, beta), STEP), size * largest);
        close(d_beta[i], slope(beta, |beta| surrogate.loss(weight, grad, gamma, beta), STEP), size * largest);
        for j in 0..len {
            let moved = |w| {
                let mut weight = weight.to_vec();
                weight[j] = w;
                surrogate.loss(&weight, grad, gamma, beta)
            };
            close(d_weight[i * len + j], slope(weight[j], moved, STEP * largest), size);
        }
    }
}

#[test]
fn closed_form_is_the_slope_of_the_straight_through_surrogate() {
    let with_minimum = ["q4_1", "q5_1"].map(|name| WeightSpec::named(name).expect("a type"));
    let mut check = |spec, cols| {
        let weight = noise(14, [4, cols], Kind::Double);
        for weight in [weight.abs() + 0.1, -weight.abs() - 0.1, &weight * 1e-8, &weight * 1e9, weight] {
            check_differences(spec, &Case::new(spec, weight));
        }
    };
    for_specs(&mut check);
    with_minimum.into_iter().for_each(|spec| check(spec, 96));
}
