//! Final codes against what learning saw, and what is refused.

use oq_quant_core::{Bits, GroupSize, QuantSpec, SCALE_MAX, Storage, Symmetry, TensorError, WeightSpec};
use proptest::collection::vec;
use proptest::prelude::*;
use tch::{Device, Kind, Tensor};

use super::{NAMED, noise};
use crate::{Lwc, LwcError, START};

/// An f16 is within this fraction of what was rounded to it, above [`F16_NORMAL`].
const F16_ROUNDING: f32 = 1.0 / 1024.0;
/// Smallest f16 that is not subnormal, and the distance of those below it.
const F16_NORMAL: f32 = 6.104e-5;
const F16_SMALLEST: f32 = 5.97e-8;
/// f32's rounding of a place on the grid, in steps: at most 255 * 2^-24 each for division and product.
const F32_STEPS: f32 = 5e-5;

fn spec(text: &str) -> WeightSpec {
    text.parse::<QuantSpec>().expect("a valid setting").weight
}

fn tensor(values: &[f32], rows: usize) -> Tensor {
    Tensor::from_slice(values).reshape([rows as i64, -1])
}

fn values(tensor: &Tensor) -> Vec<f32> {
    Vec::try_from(tensor.reshape([-1])).expect("f32 values")
}

#[derive(Clone, Debug)]
struct Matrix {
    spec: WeightSpec,
    rows: usize,
    cols: usize,
    weight: Vec<f32>,
    gamma: Vec<f32>,
    beta: Vec<f32>,
    offsets: Option<Vec<f32>>,
}

impl Matrix {
    fn lwc(&self) -> Lwc {
        let mut lwc = Lwc::new(self.rows, self.cols, self.spec, Device::Cpu).expect("the group divides");
        (lwc.gamma, lwc.beta) = (tensor(&self.gamma, self.rows), tensor(&self.beta, self.rows));
        lwc.offsets = self.offsets.as_ref().map(|offsets| tensor(offsets, self.rows));
        lwc
    }
}

fn weight_spec() -> impl Strategy<Value = (WeightSpec, usize)> {
    let group = proptest::sample::select(vec![Some(8usize), Some(20), Some(64), None]);
    let bits = proptest::sample::select(Bits::ALL.to_vec());
    let symmetry = proptest::sample::select(vec![Symmetry::Asymmetric, Symmetry::Symmetric, Symmetry::FullRange]);
    (bits, group, 1usize..4, symmetry).prop_map(|(bits, group, n, symmetry)| match group {
        Some(len) => (WeightSpec::integer(bits, GroupSize::channels(len).expect("not 0"), symmetry), n * len),
        None => (WeightSpec::integer(bits, GroupSize::PerChannel, symmetry), n * 33),
    })
}

fn matrix() -> impl Strategy<Value = Matrix> {
    (weight_spec(), 1usize..4, -5.0f32..3.0).prop_flat_map(|((spec, cols), rows, exponent)| {
        let groups = rows * spec.group.count(cols);
        let strengths = || vec(-2.0f32..8.0, groups);
        let offsets = proptest::option::of(vec(-2.0f32..2.0, rows * cols));
        (vec(-1.0f32..1.0, rows * cols), strengths(), strengths(), offsets).prop_map(
            move |(mut weight, gamma, beta, offsets)| {
                weight.iter_mut().for_each(|w| *w *= 10f32.powf(exponent));
                Matrix { spec, rows, cols, weight, gamma, beta, offsets }
            },
        )
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() })]

    /// Learning saw a scale that was not yet an f16 number: the ends of the grid move by that rounding, and a code or the
    /// zero point that was near half a step moves by one step.
    #[test]
    fn codes_are_what_learning_saw(matrix in matrix()) {
        let lwc = matrix.lwc();
        let weight = tensor(&matrix.weight, matrix.rows);
        let learned = values(&lwc.fake_quantize(&weight));
        let packed = lwc.quantize(&weight).unwrap();
        let (final_values, len) = (packed.dequantize(), matrix.cols / packed.groups());
        let max_code = f32::from(matrix.spec.bits.max_code());
        for (i, (learned, last)) in learned.chunks(len).zip(final_values.chunks(len)).enumerate() {
            let scale = packed.half().unwrap().0[i].to_f32().abs();
            let rounding = if scale < F16_NORMAL { F16_SMALLEST } else { scale * F16_ROUNDING };
            let bound = (1.0 + F32_STEPS) * (scale + rounding) + max_code * rounding;
            for (a, b) in learned.iter().zip(last) {
                prop_assert!((a - b).abs() <= bound, "{a} in learning, {b} packed, scale {scale}");
            }
        }
    }

    /// Where the learned scale is an f16 number, nothing moves but for ties.
    #[test]
    fn codes_are_what_learning_saw_to_the_bit((spec, cols) in weight_spec(), scale in 0x0400u16..0x7000, seed in vec(0.0f32..1.0, 3 * 64)) {
        let scale = half_to_f32(scale);
        prop_assume!(scale < SCALE_MAX);
        let len = spec.group.len(cols);
        let (max_code, centre) = (f32::from(spec.bits.max_code()), f32::from(spec.bits.centre()));
        let (least, steps) = match spec.symmetry {
            Symmetry::Asymmetric => (-(seed[0] * max_code).round(), max_code),
            Symmetry::Symmetric => (1.0 - centre, 2.0 * (centre - 1.0)),
            // The larger end is negative, so the scale is positive.
            Symmetry::FullRange => (-centre, max_code),
        };
        let mut weight: Vec<f32> = (0..cols).map(|i| (least + seed[i % seed.len()] * steps) * scale).collect();
        // Halfway between two codes, learning takes the even one and the grid the larger one.
        weight.iter_mut().filter(|w| (**w / scale).fract().abs() == 0.5).for_each(|w| *w += 0.25 * scale);
        for group in weight.chunks_mut(len) {
            (group[0], group[1]) = (least * scale, (least + steps) * scale);
        }
        // sigmoid(40) is 1 in f32.
        let groups = vec![40.0; cols / len];
        let lwc = Matrix { spec, rows: 1, cols, weight: vec![], gamma: groups.clone(), beta: groups, offsets: None }.lwc();
        let weight = tensor(&weight, 1);
        let packed = lwc.quantize(&weight).unwrap();
        prop_assert!(packed.half().unwrap().0.iter().all(|s| s.to_f32() == scale));
        prop_assert_eq!(packed.dequantize(), values(&lwc.fake_quantize(&weight)));
    }
}

/// Types whose scales are rounded in learning as they are stored: nothing moves but for ties and the digits of a division.
#[test]
fn codes_of_types_with_a_name_are_what_learning_saw() {
    for spec in NAMED.map(|name| WeightSpec::named(name).unwrap()) {
        let weight = noise(21, [6, 512], Kind::Float);
        let mut lwc = Lwc::new(6, 512, spec, Device::Cpu).unwrap();
        let strengths = |seed| noise(seed, [6, lwc.gamma.size()[1]], Kind::Float) * 1.5 + 2.0;
        (lwc.gamma, lwc.beta) = (strengths(22), strengths(23));
        let (learned, packed) = (values(&lwc.fake_quantize(&weight)), lwc.quantize(&weight).unwrap());
        let moved = learned.iter().zip(packed.dequantize()).filter(|(a, b)| (*a - b).abs() > 1e-6 * (1.0 + b.abs()));
        // Scales of Q4_1 and Q5_1 are rounded to f16 at the end, by up to 2^-11 of them: that moves all values, and as large a part of a
        // step between codes at the far end of the grid as it has codes.
        let steps_moved = f32::from(spec.bits.max_code()) / 2048.0 * learned.len() as f32;
        let far = learned.iter().zip(packed.dequantize()).filter(|(a, b)| (*a - b).abs() > 4e-3 * (1.0 + b.abs()));
        let (moved, far) = (moved.count(), far.count());
        let (found, bound) = if spec.storage == Storage::HalfMin { (far, steps_moved as usize) } else { (moved, 6) };
        assert!(found <= bound, "{spec}: {found} of {} values", learned.len());
    }
}

/// The value of a positive f16 that is not subnormal.
fn half_to_f32(bits: u16) -> f32 {
    let (exponent, fraction) = (i32::from(bits >> 10) - 15, f32::from(bits & 0x3ff));
    (1.0 + fraction / 1024.0) * 2f32.powi(exponent)
}

#[test]
fn clipping_starts_near_the_whole_range() {
    let lwc = Lwc::new(2, 64, spec("w8a16g32"), Device::Cpu).unwrap();
    assert_eq!(lwc.gamma.size(), [2, 2]);
    assert_eq!(values(&lwc.gamma), [START as f32; 4]);
    assert_eq!(values(&lwc.beta), [START as f32; 4]);
    assert!(!lwc.gamma.requires_grad());
    // The largest weight is clipped to 0.982 of itself, within half a step of 1.964 / 255.
    let weight: Vec<f32> = (0..64).map(|i| (i % 32) as f32 / 15.5 - 1.0).collect();
    let quantized = values(&lwc.fake_quantize(&tensor(&weight.repeat(2), 2)));
    assert!((quantized[31] - 0.982).abs() < 0.004, "{}", quantized[31]);
    assert!((quantized[0] + 0.982).abs() < 0.004, "{}", quantized[0]);
}

#[test]
fn results_are_detached_and_of_the_strengths_kind() {
    let lwc = Lwc::new(4, 32, spec("w4a16g16"), Device::Cpu).unwrap();
    let weight = noise(1, [32, 4], Kind::BFloat16).set_requires_grad(true).transpose(0, 1);
    let grad = noise(2, [4, 32], Kind::Float);
    let quantized = lwc.fake_quantize(&weight);
    assert_eq!((quantized.kind(), quantized.requires_grad()), (Kind::Float, false));
    assert_eq!(quantized, lwc.fake_quantize(&weight.detach().to_kind(Kind::Float).contiguous()));
    let (grads, d_weight) = lwc.gradients_with_weight(&weight, &grad);
    assert_eq!((grads.gamma.size(), grads.beta.size(), d_weight.size()), (vec![4, 2], vec![4, 2], vec![4, 32]));
    assert!(!grads.gamma.requires_grad() && !grads.beta.requires_grad() && !d_weight.requires_grad());
    let packed = lwc.quantize(&weight).unwrap();
    assert_eq!((packed.shape(), packed.spec()), ([4, 32], lwc.spec()));
}

#[test]
fn refuses_what_does_not_fit() {
    let error = Lwc::new(4, 1000, spec("w4a16g96"), Device::Cpu).unwrap_err();
    let expected = TensorError::GroupDoesNotDivide { group: 96, in_features: 1000 };
    assert!(matches!(&error, LwcError::Quantize(error) if *error == expected));
    assert_eq!(error.to_string(), "group 96 does not divide in_features 1000; take one that does, such as g8");

    let mut lwc = Lwc::new(4, 32, spec("w4a16"), Device::Cpu).unwrap();
    let weight = Tensor::ones([4, 32], (Kind::Float, Device::Cpu));
    let error = lwc.quantize(&weight.reshape([32, 4])).unwrap_err();
    assert_eq!(error.to_string(), "the clipping is for a weight [4, 32], got [32, 4]");

    let _ = weight.get(2).get(5).fill_(f64::INFINITY);
    let error = lwc.quantize(&weight).unwrap_err();
    assert!(matches!(error, LwcError::Quantize(TensorError::NotFinite { row: 2, col: 5, .. })));

    lwc.gamma = lwc.gamma.full_like(f64::NAN);
    let error = lwc.quantize(&weight.ones_like()).unwrap_err();
    assert!(matches!(error, LwcError::Quantize(TensorError::BadClip { part: "clip.hi", index: 0, .. })));
}

#[test]
#[should_panic(expected = "the clipping is for a weight [4, 32], got [4, 31]")]
fn panics_on_a_weight_of_another_shape() {
    let lwc = Lwc::new(4, 32, spec("w4a16"), Device::Cpu).unwrap();
    let _ = lwc.fake_quantize(&Tensor::ones([4, 31], (Kind::Float, Device::Cpu)));
}
