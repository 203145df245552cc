//! Additive attention masks.

use std::ops::Range;

use tch::{Device, Kind, Tensor};

/// ALiBi (Press et al. 2021, arXiv 2108.12409) with the causal mask: `[n_heads, t, end]`.
///
/// As in Falcon, `scale` multiplies the whole score `q·k + slope · position of k`, and the product of slope and position is rounded to
/// bf16, in which its models were trained.
pub(crate) fn alibi(n_heads: usize, scale: f64, positions: Range<usize>, device: Device) -> Tensor {
    let bf16 = |x: &Tensor| x.to_kind(Kind::BFloat16);
    let slopes = Tensor::from_slice(&slopes(n_heads)).to_device(device).view([-1, 1, 1]);
    let keys = Tensor::arange(positions.end as i64, (Kind::Int64, device));
    let bias = (bf16(&slopes) * keys).to_kind(Kind::Float) * scale; // [n_heads, 1, end]
    bias + causal(positions, device)
}

/// Sliding window: each position attends to the last `window` positions, including itself. `[1, t, end]`.
pub(crate) fn window(window: usize, positions: Range<usize>, device: Device) -> Tensor {
    let too_early = all_masked(&positions, device).tril(positions.start as i64 - window as i64);
    (causal(positions, device) + too_early).unsqueeze(0)
}

/// Causal mask: each position attends to itself and all earlier ones. `[t, end]`.
pub(crate) fn causal(positions: Range<usize>, device: Device) -> Tensor {
    all_masked(&positions, device).triu(positions.start as i64 + 1)
}

/// -inf everywhere: `[t, end]`.
fn all_masked(positions: &Range<usize>, device: Device) -> Tensor {
    Tensor::full([positions.len() as i64, positions.end as i64], f64::NEG_INFINITY, (Kind::Float, device))
}

/// Slopes are a geometric sequence over heads, down to 2^-8. If the number of heads is not a power of two, the slopes for the next smaller
/// power of two are followed by every other slope for the next larger one.
fn slopes(n_heads: usize) -> Vec<f32> {
    let geometric = |n: usize| (1..=n).map(move |i| (-8.0 * i as f64 / n as f64).exp2() as f32);
    let power = 1 << n_heads.ilog2();
    geometric(power).chain(geometric(2 * power).step_by(2).take(n_heads - power)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slopes_match_the_paper() {
        assert_eq!(slopes(8), [0.5, 0.25, 0.125, 0.0625, 0.03125, 0.015625, 0.0078125, 0.00390625]);
        assert_eq!(slopes(3), [0.0625, 0.00390625, 0.25]);
        assert_eq!(slopes(1), [0.00390625]);
    }

    #[test]
    fn a_window_ends_at_the_current_position() {
        const NO: f32 = f32::NEG_INFINITY;
        let row = |mask: Tensor, row| Vec::<f32>::try_from(mask.get(0).get(row)).unwrap();
        assert_eq!(row(window(2, 0..4, Device::Cpu), 2), [NO, 0.0, 0.0, NO]);
        assert_eq!(row(window(2, 2..4, Device::Cpu), 0), [NO, 0.0, 0.0, NO]);
        assert_eq!(row(window(2, 2..4, Device::Cpu), 1), [NO, NO, 0.0, 0.0]);
    }

    #[test]
    fn later_positions_attend_to_all_earlier_ones() {
        const NO: f32 = f32::NEG_INFINITY;
        let mask: Vec<f32> = Vec::try_from(causal(2..4, Device::Cpu).view(-1)).unwrap();
        assert_eq!(mask, [0.0, 0.0, 0.0, NO, 0.0, 0.0, 0.0, 0.0]);
    }

    #[test]
    fn alibi_favours_near_keys_and_masks_later_ones() {
        let mask = alibi(2, 0.5, 0..3, Device::Cpu);
        let row: Vec<f32> = Vec::try_from(mask.get(0).get(1)).unwrap();
        assert_eq!(row, [0.0, 0.03125, f32::NEG_INFINITY]);
    }
}
