//! Quantized activations: asymmetric grids made anew for each token (OmniQuant, section 4.1).

use oq_quant_core::{ActSpec, Bits, SCALE_MAX, SCALE_MIN};
use tch::{Kind, Tensor, no_grad, with_grad};

/// Where activations may be quantized.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ActPoint {
    /// What one or more linears read, `[b, t, in]`.
    LinearInput,
    /// The same of the linear that reads what the MLP makes inside.
    Inner,
    /// Queries or keys, turned by their positions: `[b, heads, t, d]`.
    QueryKey,
    /// Values: `[b, heads, t, d]`.
    Value,
}

/// An activation as a product sees it under a setting: like `x`.
pub fn quantize_act(spec: ActSpec, x: Tensor) -> Tensor {
    match spec {
        ActSpec::Float => x,
        ActSpec::PerToken(bits) => fake_quantize_tokens(&x, bits),
    }
}

/// The values that codes of each token stand for: `x [.., n]` -> `[.., n]`, each row of `n` on a grid of its own that spans from its
/// minimum to its maximum, 0 included. What is narrower than f32 is widened first.
///
/// ```text
/// s = clamp((max - min) / Q, ..)     z = round(-min / s)     l = clamp(round(x / s), -z, Q - z)     x' = l s
/// ```
///
/// Differentiable: rounding of `x / s` passes gradients straight through, and they reach a row's extremes (of equal ones, the first)
/// through `s`. To autograd `x'` is the linear function `k x + r s` of `x` and `s`, with `k = 1` where a level was not clamped and
/// `r = l - k x / s`: the same value and the same gradients, out of few operations.
pub fn fake_quantize_tokens(x: &Tensor, bits: Bits) -> Tensor {
    let x = if x.kind() == Kind::Double { x.shallow_clone() } else { x.to_kind(Kind::Float) };
    let max_code = f64::from(bits.max_code());
    let learns = x.requires_grad();
    let (high, low) = if learns {
        // Their gradients are single numbers put in place; those of `amax` are masks over all of `x`, which takes twice as long.
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
        if !learns {
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
