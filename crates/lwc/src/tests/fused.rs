//! The fused loops against the composed operations, on the same grids.

use oq_quant_core::{Bits, GroupSize, QuantSpec, Symmetry, WeightSpec};
use tch::{Device, Kind, Tensor};

use super::{NAMED, noise};
use crate::levels::Levels;
use crate::operations::usual;
use crate::usual::{LARGEST, Usual};
use crate::{Lwc, START, composed};

/// Sums of some hundred f32 terms in another order, as a fraction of their sizes.
const ORDER_OF_SUM_F32: f64 = 2e-6;
/// The same in f64.
const ORDER_OF_SUM_F64: f64 = 2e-15;
/// With offsets a weight may be this many times as far from the value of its code as half a step.
const OFFSETS: f64 = 4.0;

const OUT: i64 = 12;

/// Rows of all sorts: both signs, positive, negative, constant, zeros, and sizes that clamp the scale from below and above.
fn rows(in_features: i64, kind: Kind) -> Tensor {
    let weight = noise(1, [OUT, in_features], kind);
    let row = |i| weight.get(i);
    let _ = row(1).abs_();
    let _ = row(2).abs_().neg_();
    let _ = row(3).fill_(0.25);
    let _ = row(4).fill_(-0.25);
    let _ = row(5).zero_();
    let _ = row(6).g_mul_scalar_(1e-6);
    let _ = row(7).g_mul_scalar_(1e7);
    // Multiples of a step, so that maxima and minima occur more than once and symmetric ends are equal.
    let _ = row(8).clamp_(-1.0, 1.0).g_mul_scalar_(2.0).round_();
    let _ = row(9).relu_();
    let _ = row(10).slice(0, 0, 1, 1).g_mul_scalar_(100.0);
    weight
}

fn lwc(spec: WeightSpec, in_features: i64, kind: Kind) -> Lwc {
    let mut lwc = Lwc::new(OUT as usize, in_features as usize, spec, Device::Cpu).unwrap();
    let moved = |seed| noise(seed, [OUT, lwc.gamma.size()[1]], kind) * 2.0 + START;
    (lwc.gamma, lwc.beta) = (moved(3), moved(4));
    // Equal fractions of equal ends.
    lwc.beta.get(8).copy_(&lwc.gamma.get(8));
    lwc
}

/// Largest difference, as a fraction of `size`.
fn difference(actual: &Tensor, expected: &Tensor, size: &Tensor) -> f64 {
    ((actual - expected).abs() / size.clamp_min(1e-30)).max().double_value(&[])
}

/// What the terms of the sum behind `dL/dgamma` could come to: the sum itself may cancel.
fn strength_size(weight: &Tensor, grad: &Tensor, fraction: &Tensor) -> Tensor {
    let groups = |t: &Tensor| t.abs().reshape([OUT, fraction.size()[1], -1]);
    let sum = groups(grad).sum_dim_intlist(-1, false, weight.kind());
    sum * groups(weight).amax(-1, false) * fraction * (1.0 - fraction)
}

/// Written and read in bf16, numbers are those of a pass that converts: equal to the last bit.
#[track_caller]
fn check_bf16(lwc: &Lwc, weight: &Tensor, grad: &Tensor) {
    let narrow = Kind::BFloat16;
    assert_eq!(lwc.fake_quantize_as(narrow, weight), lwc.fake_quantize(weight).to_kind(narrow));
    let grad = grad.to_kind(narrow);
    let (ours, converted) = (lwc.gradients(weight, &grad), lwc.gradients(weight, &grad.to_kind(Kind::Float)));
    assert_eq!((&ours.gamma, &ours.beta), (&converted.gamma, &converted.beta));
    let (_, ours) = lwc.gradients_with_weight(weight, &grad);
    assert_eq!(ours, lwc.gradients_with_weight(weight, &grad.to_kind(Kind::Float)).1);
}

#[track_caller]
fn check(spec: WeightSpec, in_features: i64, kind: Kind, tolerance: f64, offsets: Option<Tensor>) {
    let mut lwc = lwc(spec, in_features, kind);
    lwc.offsets = offsets;
    let offsets = lwc.offsets.as_ref().map(Tensor::copy);
    let offsets = offsets.as_ref();
    let (weight, grad) = (rows(in_features, kind), noise(2, [OUT, in_features], kind));
    let (levels, clip) = (Levels::new(spec, &weight), lwc.clip());

    // The same operations on the same numbers, element by element: equal to the last bit.
    assert_eq!(
        lwc.fake_quantize(&weight),
        composed::fake_quantize(levels, &weight, offsets, &clip),
        "{spec:?} {kind:?}"
    );

    let fused = lwc.gradients(&weight, &grad);
    let (with_weight, d_weight) = lwc.gradients_with_weight(&weight, &grad);
    assert_eq!((&fused.gamma, &fused.beta), (&with_weight.gamma, &with_weight.beta));

    if kind == Kind::Float {
        check_bf16(&lwc, &weight, &grad);
    }

    let composed = composed::gradients(levels, &weight, offsets, &grad, &clip);
    let (composed_with_weight, composed_d_weight) =
        composed::gradients_with_weight(levels, &weight, offsets, &grad, &clip);
    assert_eq!((&composed.gamma, &composed.beta), (&composed_with_weight.gamma, &composed_with_weight.beta));

    let size = |fraction| strength_size(&weight, &grad, fraction);
    let d_weight_size = composed_d_weight.abs().amax(-1, true);
    for (name, fused, composed, size) in [
        ("gamma", &fused.gamma, &composed.gamma, size(&clip.hi)),
        ("beta", &fused.beta, &composed.beta, size(&clip.lo)),
        ("weight", &d_weight, &composed_d_weight, d_weight_size),
    ] {
        let error = difference(fused, composed, &size);
        assert!(error <= tolerance, "{name} of {spec:?} {kind:?}: {error}");
    }

    // One number is added to another, or not: equal to the last bit.
    let from = offsets.map_or_else(|| weight.zeros_like(), Tensor::copy);
    lwc.move_offsets(&weight, &grad, 0.125);
    let moved = lwc.offsets.expect("they were moved");
    let usual = usual(&weight, &grad);
    assert_eq!(
        moved,
        composed::moved_offsets(levels, &weight, &from, (&grad, &usual), &clip, 0.125),
        "{spec:?} {kind:?}"
    );
    let ways = (&moved - &from).abs();
    assert!(ways.max().double_value(&[]) <= 0.2501 && ways.sum(kind).double_value(&[]) > 0.0);
}

#[test]
fn fused_is_composed() {
    for bits in Bits::ALL {
        for symmetry in [Symmetry::Asymmetric, Symmetry::Symmetric, Symmetry::FullRange] {
            // Whole lanes, part of them, and more than a block of the sum.
            for (group, in_features) in [(Some(64), 192), (Some(20), 60), (Some(3), 12), (None, 50), (None, 2100)] {
                let group = group.map_or(GroupSize::PerChannel, |n| GroupSize::channels(n).unwrap());
                let spec = WeightSpec::integer(bits, group, symmetry);
                let offsets = |kind| Some(noise(5, [OUT, in_features], kind));
                check(spec, in_features, Kind::Float, ORDER_OF_SUM_F32, None);
                check(spec, in_features, Kind::Float, OFFSETS * ORDER_OF_SUM_F32, offsets(Kind::Float));
                check(spec, in_features, Kind::Double, ORDER_OF_SUM_F64, None);
                check(spec, in_features, Kind::Double, OFFSETS * ORDER_OF_SUM_F64, offsets(Kind::Double));
            }
        }
    }
}

#[test]
fn fused_is_composed_for_types_with_a_name() {
    for spec in NAMED.map(|name| WeightSpec::named(name).unwrap()) {
        let offsets = |kind| Some(noise(5, [OUT, 512], kind));
        check(spec, 512, Kind::Float, ORDER_OF_SUM_F32, None);
        check(spec, 512, Kind::Float, OFFSETS * ORDER_OF_SUM_F32, offsets(Kind::Float));
        check(spec, 512, Kind::Double, ORDER_OF_SUM_F64, None);
        check(spec, 512, Kind::Double, OFFSETS * ORDER_OF_SUM_F64, offsets(Kind::Double));
    }
}

#[test]
fn what_is_not_a_number_is_not_hidden() {
    let spec = WeightSpec::integer(Bits::new(4).unwrap(), GroupSize::channels(32).unwrap(), Symmetry::Asymmetric);
    let lwc = Lwc::new(2, 64, spec, Device::Cpu).unwrap();
    let (weight, grad) = (noise(1, [2, 64], Kind::Float), Tensor::ones([2, 64], (Kind::Float, Device::Cpu)));
    let groups = |t: &Tensor| Vec::<Vec<bool>>::try_from(t.isnan()).unwrap();
    let second_group = vec![vec![false, true], vec![false, false]];

    let _ = grad.get(0).get(40).fill_(f64::NAN);
    let grads = lwc.gradients(&weight, &grad);
    assert_eq!(groups(&grads.gamma), second_group);
    assert_eq!(groups(&grads.beta), second_group);

    let _ = lwc.gamma.get(0).get(1).fill_(f64::NAN);
    let whole = |t: Tensor| groups(&t.reshape([2, 2, 32]).sum_dim_intlist(-1, false, Kind::Float));
    assert_eq!(whole(lwc.fake_quantize(&weight)), second_group);
    assert_eq!(whole(lwc.fake_quantize_as(Kind::BFloat16, &weight)), second_group);
    assert_eq!(groups(&lwc.gradients(&weight, &grad.nan_to_num(0.0, 0.0, 0.0)).beta), second_group);

    let _ = weight.get(1).get(0).fill_(f64::NAN);
    assert!(lwc.fake_quantize(&weight).get(1).get(0).double_value(&[]).is_nan());
}

/// Sums of as many squares in another order, in rows of whole lanes and not, and in more rows than are summed together.
#[test]
fn what_is_usual_takes_one_pass() {
    for (kind, stored, tolerance) in [
        (Kind::Double, Kind::Double, ORDER_OF_SUM_F64),
        (Kind::Float, Kind::Float, ORDER_OF_SUM_F32),
        (Kind::Float, Kind::BFloat16, ORDER_OF_SUM_F32),
    ] {
        for shape in [[1, 1], [3, 20], [200, 64], [65, 2100]] {
            let grad = (noise(3, shape, kind) * noise(4, [shape[0], 1], kind)).to_kind(stored);
            let _ = grad.get(0).fill_(0.0);
            let (ours, theirs) = (usual(&grad.to_kind(kind), &grad), Usual::of(&grad, kind));
            for (ours, theirs) in [(ours.rows, theirs.rows), (ours.columns, theirs.columns)] {
                let error = difference(&ours, &theirs, &theirs.abs().clamp_min(f64::MIN_POSITIVE));
                assert!(ours.kind() == kind && error <= tolerance, "{shape:?} {stored:?}: {error}");
            }
        }
    }
}

/// Steps are gradients over the root mean squares of their rows and columns.
#[test]
fn gradients_are_divided_by_what_is_usual() {
    let grad = noise(3, [OUT, 20], Kind::Double) * noise(4, [OUT, 1], Kind::Double) * noise(5, [1, 20], Kind::Double);
    let _ = grad.get(2).fill_(0.0);
    let mean = |axes: &[i64]| grad.square().mean_dim(axes, true, Kind::Double);
    let expected = &grad / (mean(&[1]) * mean(&[0]) / mean(&[0, 1])).sqrt();
    let expected = expected.nan_to_num(0.0, 0.0, 0.0);
    let usual = Usual::of(&grad, Kind::Double);
    let steps = &grad * usual.rows.unsqueeze(1) * &usual.columns;
    assert!((&steps - &expected).abs().max().double_value(&[]) < 1e-12);
    assert_eq!(steps.get(2), expected.get(2).zeros_like());

    let spec = WeightSpec::integer(Bits::new(8).unwrap(), GroupSize::channels(20).unwrap(), Symmetry::Asymmetric);
    let (weight, rate) = (noise(6, [OUT, 20], Kind::Double), 1e-3);
    let mut lwc = lwc(spec, 20, Kind::Double);
    lwc.move_offsets(&weight, &grad, rate);
    let moved = lwc.offsets.expect("they were moved") / -rate;
    // The codes at both ends may be clamped, and do not move.
    let off = (&moved - expected.clamp(-LARGEST, LARGEST)).abs().where_self(&moved.ne(0.0), &moved.zeros_like());
    assert!(off.max().double_value(&[]) < 1e-9 && moved.count_nonzero(None).int64_value(&[]) > OUT * 15);
}

/// An offset is moved so that the value moves against the gradient, whatever the sign of the scale.
#[test]
fn values_move_against_their_gradients() {
    for name in ["w3a16g32", "w3a16g32sym", "w3a16g32full", "q3_k_pure", "q4_k_pure", "nvfp4"] {
        let spec = name.parse::<QuantSpec>().unwrap().weight;
        let (weight, grad) = (noise(1, [OUT, 256], Kind::Float), noise(2, [OUT, 256], Kind::Float));
        let mut lwc = Lwc::new(OUT as usize, 256, spec, Device::Cpu).unwrap();
        let before = lwc.fake_quantize(&weight);
        lwc.move_offsets(&weight, &grad, 0.6);
        let moved = (lwc.fake_quantize(&weight) - before) * &grad;
        assert!(moved.max().double_value(&[]) <= 0.0, "{name}");
        assert!(moved.lt(0.0).sum(Kind::Int64).int64_value(&[]) > OUT * 256 / 4, "{name}");
    }
}

#[test]
fn offsets_that_share_memory_with_what_is_read_are_moved_all_the_same() {
    let spec = WeightSpec::integer(Bits::new(3).unwrap(), GroupSize::channels(8).unwrap(), Symmetry::Asymmetric);
    for kind in [Kind::Float, Kind::Double] {
        let weight = noise(1, [OUT, 32], kind);
        let moved = |grad: &dyn Fn(&Tensor) -> Tensor| {
            let mut lwc = lwc(spec, 32, kind);
            let offsets = noise(2, [OUT, 32], kind) * 0.2;
            let grad = grad(&offsets);
            lwc.offsets = Some(offsets);
            lwc.move_offsets(&weight, &grad, 0.01);
            lwc.offsets.expect("they were moved")
        };
        let (apart, shared) = (moved(&Tensor::copy), moved(&Tensor::shallow_clone));
        assert_eq!(apart, shared);
        assert_ne!(apart, noise(2, [OUT, 32], kind) * 0.2);
    }
}
