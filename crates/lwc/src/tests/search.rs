//! The start by search: no clipping of the choices has less error, and both ways of searching find as good a one.

use oq_quant_core::{QuantSpec, WeightSpec};
use tch::{Device, Kind, Tensor};

use super::noise;
use crate::levels::{ClipTensors, Levels};
use crate::strengths::choices;
use crate::{Lwc, composed};

const SIZE: [i64; 2] = [12, 96];

fn spec(text: &str) -> WeightSpec {
    text.parse::<QuantSpec>().unwrap().weight
}

/// Error of each group, `[out, groups]`, weighed by `importance`.
fn errors(spec: WeightSpec, weight: &Tensor, importance: &Tensor, clip: &ClipTensors) -> Tensor {
    let off = composed::fake_quantize(Levels::new(spec, weight), weight, None, clip) - weight;
    let [rows, groups] = clip.hi.size()[..] else { panic!("[out, groups]") };
    (off.square() * importance).reshape([rows, groups, -1]).sum_dim_intlist(-1, false, None::<Kind>)
}

#[test]
fn finds_the_least_error() {
    for text in ["w2a16g32", "w3a16g96", "w3a16g48sym", "w3a16g48full", "w4a16", "q4_1_pure", "mxfp4"] {
        let spec = spec(text);
        let weight = noise(1, SIZE, Kind::Double).pow_tensor_scalar(3); // long tails, so that clipping pays
        let importance = noise(2, [1, SIZE[1]], Kind::Double).square().view(-1);
        let lwc = || {
            let mut lwc = Lwc::new(SIZE[0] as usize, SIZE[1] as usize, spec, Device::Cpu).unwrap();
            (lwc.gamma, lwc.beta) = (lwc.gamma.to_kind(Kind::Double), lwc.beta.to_kind(Kind::Double));
            lwc
        };
        let before = errors(spec, &weight, &importance, &lwc().clip());
        let mut searched = lwc();
        searched.start_from_search(&weight, &importance);
        let found = errors(spec, &weight, &importance, &searched.clip());
        // Scales that are powers of two gain little.
        let gain = if spec.storage.has_float_codes() { 1.0 } else { 0.9 };
        assert!(
            found.sum(Kind::Double).double_value(&[]) < gain * before.sum(Kind::Double).double_value(&[]),
            "{text}"
        );

        let composed = composed::search(Levels::new(spec, &weight), &weight, &importance, &choices(), &lwc().clip());
        let composed = errors(spec, &weight, &importance, &composed);
        // Sums in another order, and fractions that went through a logarithm and back, to f64's digits.
        let difference = ((&found - composed) / &before).abs().max().double_value(&[]);
        assert!(difference < 1e-9, "{text}: {difference}");

        let fraction = |fraction: f64| searched.gamma.full_like(fraction);
        for choice in choices() {
            let both = errors(spec, &weight, &importance, &ClipTensors { hi: fraction(choice), lo: fraction(choice) });
            let worse = (&found - both).max().double_value(&[]);
            assert!(worse < 1e-9, "{text}: both ends at {choice} would be better by {worse}");
        }
    }
}

#[test]
fn f32_groups_of_any_width_and_learned_offsets_change_nothing() {
    // Of groups of 12, no sixteen weights are whole.
    let spec = spec("w3a16g12");
    let weight = noise(3, SIZE, Kind::Float).pow_tensor_scalar(3);
    let importance = noise(4, [1, SIZE[1]], Kind::Float).square().view(-1);
    let mut lwc = Lwc::new(SIZE[0] as usize, SIZE[1] as usize, spec, Device::Cpu).unwrap();
    let composed = composed::search(Levels::new(spec, &weight), &weight, &importance, &choices(), &lwc.clip());
    let composed = errors(spec, &weight, &importance, &composed);
    for _ in 0..2 {
        lwc.start_from_search(&weight, &importance);
        let found = errors(spec, &weight, &importance, &lwc.clip());
        // Of two choices that are equal to f32's digits either may be taken.
        let difference = ((&found - &composed) / &composed).abs().max().double_value(&[]);
        assert!(difference < 1e-4, "{difference}");
        lwc.move_offsets(&weight, &noise(5, SIZE, Kind::Float), 0.4);
    }
}

#[test]
#[should_panic(expected = "mean squares of the inputs")]
fn importance_is_one_number_for_each_input() {
    let mut lwc = Lwc::new(2, 64, spec("w4a16g32"), Device::Cpu).unwrap();
    lwc.start_from_search(
        &Tensor::ones([2, 64], (Kind::Float, Device::Cpu)),
        &Tensor::ones([2], (Kind::Float, Device::Cpu)),
    );
}
