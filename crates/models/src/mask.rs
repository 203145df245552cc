//! What attention sees, as masks that are added to its scaled scores.

use tch::{Device, Kind, Tensor};

/// ALiBi (Press et al. 2021, arXiv 2108.12409) and causality: `[n_heads, t, t]`.
///
/// Scores `q·k + slope · position of k` are multiplied by `scale` as a whole, as Falcon does, and products are rounded to bf16, in which its
/// models were trained.
pub(crate) fn alibi(n_heads: usize, scale: f64, t: usize, device: Device) -> Tensor {
    let bf16 = |x: &Tensor| x.to_kind(Kind::BFloat16);
    let slopes = Tensor::from_slice(&slopes(n_heads)).to_device(device).view([-1, 1, 1]);
    let positions = Tensor::arange(t as i64, (Kind::Int64, device));
    let bias = (bf16(&slopes) * positions).to_kind(Kind::Float) * scale; // [n_heads, 1, t]
    bias + causal(t, device)
}

/// Each position sees `window` positions, itself and those right before: `[1, t, t]`.
pub(crate) fn window(window: usize, t: usize, device: Device) -> Tensor {
    let shape = [t as i64, t as i64];
    let too_early = Tensor::full(shape, f64::NEG_INFINITY, (Kind::Float, device)).tril(-(window as i64));
    (causal(t, device) + too_early).unsqueeze(0)
}

/// Each position sees itself and those before: `[t, t]`.
fn causal(t: usize, device: Device) -> Tensor {
    let t = t as i64;
    Tensor::full([t, t], f64::NEG_INFINITY, (Kind::Float, device)).triu(1)
}

/// Slopes fall from head to head by one factor, down to 2^-8. For a number of heads that is no power of two, those of the next smaller power
/// are followed by every other slope of the next larger one.
fn slopes(n_heads: usize) -> Vec<f32> {
    let geometric = |n: usize| (1..=n).map(move |i| (-8.0 * i as f64 / n as f64).exp2() as f32);
    let power = 1 << n_heads.ilog2();
    geometric(power).chain(geometric(2 * power).step_by(2).take(n_heads - power)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slopes_are_those_of_the_paper() {
        assert_eq!(slopes(8), [0.5, 0.25, 0.125, 0.0625, 0.03125, 0.015625, 0.0078125, 0.00390625]);
        assert_eq!(slopes(3), [0.0625, 0.00390625, 0.25]);
        assert_eq!(slopes(1), [0.00390625]);
    }

    #[test]
    fn a_window_ends_at_its_position() {
        const NO: f32 = f32::NEG_INFINITY;
        let row: Vec<f32> = Vec::try_from(window(2, 4, Device::Cpu).get(0).get(2)).unwrap();
        assert_eq!(row, [NO, 0.0, 0.0, NO]);
    }

    #[test]
    fn the_nearest_keys_weigh_most_and_later_ones_nothing() {
        let mask = alibi(2, 0.5, 3, Device::Cpu);
        let row: Vec<f32> = Vec::try_from(mask.get(0).get(1)).unwrap();
        assert_eq!(row, [0.0, 0.03125, f32::NEG_INFINITY]);
    }
}
