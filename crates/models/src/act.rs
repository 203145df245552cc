//! Dynamic per-token quantization of activations (OmniQuant, section 4.1).

use oq_quant_core::{ActSpec, Bits, SCALE_MAX, SCALE_MIN};
use tch::{Kind, Tensor, no_grad, with_grad};

/// A point of the forward pass where activations may be quantized.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ActPoint {
    /// The input of one or more linears, `[b, t, in]`.
    LinearInput,
    /// The input of the MLP's last linear, `[b, t, intermediate]`.
    Inner,
    /// Queries or keys, after the rotary embedding: `[b, heads, t, d]`.
    QueryKey,
    /// Values: `[b, heads, t, d]`.
    Value,
}

/// Fake-quantizes an activation at `point` as `spec` says; the shape stays. [`ActSpec::Float`] returns `x`, and
/// [`ActSpec::PerTokenSymmetric`], which is for products of integers, leaves queries, keys and values as they are.
pub fn quantize_act(spec: ActSpec, point: ActPoint, x: Tensor) -> Tensor {
    match (spec, point) {
        (ActSpec::Float, _) | (ActSpec::PerTokenSymmetric(_), ActPoint::QueryKey | ActPoint::Value) => x,
        (ActSpec::PerToken(bits), _) => fake_quantize_tokens(&x, bits),
        (ActSpec::PerTokenSymmetric(bits), ActPoint::LinearInput | ActPoint::Inner) => {
            fake_quantize_tokens_symmetric(&x, bits)
        }
    }
}

/// Quantizes and dequantizes each token around zero: `x [.., n]` -> `[.., n]`, with codes from `-(2^(bits-1) - 1)` to `2^(bits-1) - 1`.
/// Types narrower than f32 are converted to f32 first.
///
/// ```text
/// s = clamp(max |x| / (2^(bits-1) - 1), ..)     x' = round(x / s) s
/// ```
///
/// Differentiable like [`fake_quantize_tokens`]. No level is clamped, because the largest number is the end of the grid.
pub fn fake_quantize_tokens_symmetric(x: &Tensor, bits: Bits) -> Tensor {
    let x = if x.kind() == Kind::Double { x.shallow_clone() } else { x.to_kind(Kind::Float) };
    let steps = f64::from(bits.centre() - 1);
    let largest = if x.requires_grad() { x.abs().max_dim(-1, true).0 } else { x.abs().amax([-1], true) };
    let scale = (largest / steps).clamp(f64::from(SCALE_MIN), f64::from(SCALE_MAX));
    let place = &x / &scale;
    let level = &place + (place.round().clamp(-steps, steps) - &place).detach();
    level * scale
}

/// Quantizes and dequantizes each token: `x [.., n]` -> `[.., n]`. Each row of `n` has its own grid, from its minimum to its maximum, 0
/// included. Types narrower than f32 are converted to f32 first.
///
/// ```text
/// s = clamp((max - min) / Q, ..)     z = round(-min / s)     l = clamp(round(x / s), -z, Q - z)     x' = l s
/// ```
///
/// It is differentiable. Rounding of `x / s` uses the straight-through estimator. Through `s`, gradients reach a row's minimum and maximum
/// (the first one, if several are equal). For autograd, `x'` is the linear function `k x + r s` of `x` and `s`, with `k = 1` where a level
/// was not clamped and `r = l - k x / s`. This has the same value and the same gradients, with few operations.
pub fn fake_quantize_tokens(x: &Tensor, bits: Bits) -> Tensor {
    let x = if x.kind() == Kind::Double { x.shallow_clone() } else { x.to_kind(Kind::Float) };
    let max_code = f64::from(bits.max_code());
    let needs_grad = x.requires_grad();
    let (high, low) = if needs_grad {
        // The gradient of `max_dim` is a scatter of one number per row. That of `amax` is a mask over all of `x`, which takes twice as
        // long.
        (x.max_dim(-1, true).0, x.min_dim(-1, true).0)
    } else {
        (x.amax([-1], true), x.amin([-1], true))
    };
    let (high, low) = (high.clamp_min(0.0), low.clamp_max(0.0)); // [.., 1]
    let scale = ((high - &low) / max_code).clamp(f64::from(SCALE_MIN), f64::from(SCALE_MAX));
    no_grad(|| {
        let zero_point = (-&low / &scale).round();
        let steps = &x / &scale;
        let rounded = steps.round();
        let level = rounded.maximum(&-&zero_point).minimum(&(max_code - zero_point));
        if !needs_grad {
            return level * &scale;
        }
        let kept = rounded.eq_tensor(&level).to_kind(x.kind());
        let rest = level - steps * &kept;
        with_grad(|| (&x * kept).addcmul(&rest, &scale))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Device;

    /// The same function, written out operation by operation for autograd.
    fn by_definition(x: &Tensor, bits: Bits) -> Tensor {
        let max_code = f64::from(bits.max_code());
        let (high, low) = (x.amax([-1], true).clamp_min(0.0), x.amin([-1], true).clamp_max(0.0));
        let scale = ((high - &low) / max_code).clamp(f64::from(SCALE_MIN), f64::from(SCALE_MAX));
        let zero_point = (-low / &scale).round().detach();
        let steps = x / &scale;
        let rounded = &steps + (steps.round() - &steps).detach();
        ((rounded + &zero_point).clamp(0.0, max_code) - zero_point) * scale
    }

    #[test]
    fn values_and_gradients_match_the_definition() {
        // Both divide and multiply the same f32 numbers, but sum gradients in a different order.
        const TOLERANCE: f64 = 1e-5;
        tch::manual_seed(1);
        for bits in [2, 4, 6, 8].map(|bits| Bits::new(bits).expect("in range")) {
            let x = (Tensor::randn([2, 3, 5, 64], (Kind::Float, Device::Cpu)) * 3.0).set_requires_grad(true);
            let weight = Tensor::randn_like(&x.detach());
            let grad =
                |y: &Tensor| Tensor::run_backward(&[(y * &weight).sum(Kind::Float)], &[&x], false, false).remove(0);
            let (ours, theirs) = (fake_quantize_tokens(&x, bits), by_definition(&x, bits));
            let difference = |a: &Tensor, b: &Tensor| (a - b).abs().max().double_value(&[]);
            assert!(difference(&ours, &theirs) <= TOLERANCE, "{bits:?}");
            let (ours, theirs) = (grad(&ours), grad(&theirs));
            assert!(difference(&ours, &theirs) <= TOLERANCE * theirs.abs().max().double_value(&[]), "{bits:?}");
        }
    }

    #[test]
    fn symmetric_levels_are_integers_up_to_the_largest_number() {
        tch::manual_seed(2);
        let bits = Bits::new(8).expect("in range");
        let x = Tensor::randn([4, 64], (Kind::Float, Device::Cpu)) * 3.0;
        let y = fake_quantize_tokens_symmetric(&x, bits);
        let scale = x.abs().amax([-1], true) / 127.0;
        let levels = &y / &scale;
        // A level is a product and a quotient away from its integer; 127 has 7 of 24 digits.
        assert!((&levels - levels.round()).abs().max().double_value(&[]) < 1e-4);
        // Half a step, and f32's rounding of places up to 127.
        assert!(((x - y) / scale).abs().max().double_value(&[]) < 0.5 + 1e-4);
        let of = |point, x: &Tensor| quantize_act(ActSpec::PerTokenSymmetric(bits), point, x.shallow_clone());
        let x = Tensor::from_slice(&[0.3f32, -1.0, 0.5]);
        assert_eq!(of(ActPoint::Value, &x), x);
        assert_ne!(of(ActPoint::Inner, &x), x);
    }

    #[test]
    fn rows_with_one_value_or_one_sign_are_exact() {
        let x = Tensor::from_slice(&[0.0f32, 0.0, 0.0, 3.0, 3.0, 3.0, -6.0, -4.0, -2.0]).view([3, 3]);
        let y = fake_quantize_tokens(&x, Bits::new(2).expect("in range"));
        assert_eq!(Vec::<f32>::try_from(y.view(-1)).expect("f32"), [0.0, 0.0, 0.0, 3.0, 3.0, 3.0, -6.0, -4.0, -2.0]);
    }
}
