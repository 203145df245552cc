//! Quantized activations: asymmetric grids made anew for each token (OmniQuant, section 4.1).

use oq_quant_core::{ActSpec, Bits, SCALE_MAX, SCALE_MIN};
use tch::Tensor;

/// An activation as a product sees it under a setting: like `x`.
pub fn quantize_act(spec: ActSpec, x: Tensor) -> Tensor {
    match spec {
        ActSpec::Float => x,
        ActSpec::PerToken(bits) => fake_quantize_tokens(&x, bits),
    }
}

/// The values that codes of each token stand for: `x [.., n]` -> `[.., n]`, each row of `n` on a grid of its own that spans from its
/// minimum to its maximum, 0 included.
///
/// ```text
/// s = clamp((max - min) / Q, ..)     z = round(-min / s)     q = clamp(round(x / s) + z, 0, Q)     x' = (q - z) s
/// ```
///
/// Differentiable: rounding of `x / s` passes gradients straight through, and they reach the extremes of a row through `s`.
pub fn fake_quantize_tokens(x: &Tensor, bits: Bits) -> Tensor {
    let n = *x.size().last().expect("tokens are vectors");
    let max_code = i64::from(bits.max_code());
    let rows = x.reshape([-1, n]); // [tokens, n]
    let high = rows.amax([1], false).clamp_min(0.0);
    let low = rows.amin([1], false).clamp_max(0.0);
    let scale = ((high - &low) / max_code as f64).clamp(f64::from(SCALE_MIN), f64::from(SCALE_MAX)); // [tokens]
    let zero_point = (-low.detach() / scale.detach()).round();
    // libtorch's own kernel for grids that are learned; the factor multiplies gradients of scales.
    rows.internal_fake_quantize_learnable_per_channel_affine(&scale, &zero_point, 0, 0, max_code, 1.0).view_as(x)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::{Device, Kind};

    /// The same, out of single operations.
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
    fn equals_its_definition_and_so_do_gradients() {
        // Both divide and multiply the same f32 numbers; sums of gradients are in other orders.
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
    fn rows_of_one_value_or_one_sign() {
        let x = Tensor::from_slice(&[0.0f32, 0.0, 0.0, 3.0, 3.0, 3.0, -6.0, -4.0, -2.0]).view([3, 3]);
        let y = fake_quantize_tokens(&x, Bits::new(2).expect("in range"));
        assert_eq!(Vec::<f32>::try_from(y.view(-1)).expect("f32"), [0.0, 0.0, 0.0, 3.0, 3.0, 3.0, -6.0, -4.0, -2.0]);
    }
}
