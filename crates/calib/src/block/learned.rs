//! What a block learned, in few numbers for the record.

use std::collections::BTreeMap;

use oq_let::Values;
use oq_lwc::Lwc;
use oq_models::LinearName;
use oq_recipe::{CLIP_BINS, QUANTILES, Quantiles};
use tch::{Kind, Tensor};

/// What a block learned.
pub(crate) struct Learned {
    /// Scales and shifts.
    pub(crate) values: Values,
    /// Clipping and rounding of each linear.
    pub(crate) clips: BTreeMap<LinearName, Clipped>,
}

/// Clipping and rounding of a linear.
pub(crate) struct Clipped {
    /// Groups by the share of their maximum that is kept.
    pub(crate) max: [u64; CLIP_BINS],
    /// The same for their minimum.
    pub(crate) min: [u64; CLIP_BINS],
    /// Share of the codes that are not the nearest ones; none if rounding is to nearest.
    pub(crate) moved: Option<f64>,
}

impl Clipped {
    /// What was learned for a transformed weight.
    pub(crate) fn of(mut clip: Lwc, weight: &Tensor) -> Self {
        let moved = clip.offsets.is_some().then(|| {
            let rounded = clip.fake_quantize(weight);
            clip.offsets = None;
            rounded
                .not_equal_tensor(&clip.fake_quantize(weight))
                .to_kind(Kind::Float)
                .mean(Kind::Float)
                .double_value(&[])
        });
        Self { max: histogram(&clip.gamma.sigmoid()), min: histogram(&clip.beta.sigmoid()), moved }
    }
}

/// Numbers of values in bins from 0 to 1; what lies outside is in the first or the last one.
fn histogram(shares: &Tensor) -> [u64; CLIP_BINS] {
    let mut bins = [0; CLIP_BINS];
    for share in numbers(shares) {
        bins[((share * CLIP_BINS as f32) as usize).min(CLIP_BINS - 1)] += 1;
    }
    bins
}

fn numbers(x: &Tensor) -> Vec<f32> {
    Vec::try_from(x.to_kind(Kind::Float).contiguous().view(-1)).expect("a vector of f32")
}

/// The values at [`QUANTILES`]; none if there are no values, or if some are not finite.
pub(crate) fn quantiles(x: &Tensor) -> Option<Quantiles> {
    let mut sorted = numbers(x);
    if sorted.is_empty() || sorted.iter().any(|value| !value.is_finite()) {
        return None;
    }
    sorted.sort_by(f32::total_cmp);
    Some(QUANTILES.map(|at| f64::from(sorted[(at * (sorted.len() - 1) as f64).round() as usize])))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::noise;
    use oq_quant_core::QuantSpec;
    use tch::Device;

    #[test]
    fn quantiles_and_bins_by_hand() {
        let x = Tensor::from_slice(&(0..=100).rev().map(|i| i as f32).collect::<Vec<_>>());
        assert_eq!(quantiles(&x), Some([0.0, 1.0, 10.0, 50.0, 90.0, 99.0, 100.0]));
        assert_eq!(quantiles(&Tensor::from_slice(&[1.0f32, f32::NAN])), None);
        assert_eq!(quantiles(&Tensor::from_slice::<f32>(&[])), None);
        let bins = histogram(&Tensor::from_slice(&[0.0f32, 0.049, 0.05, 0.5, 0.999, 1.0, 1.2]));
        let mut expected = [0; CLIP_BINS];
        (expected[0], expected[1], expected[10], expected[19]) = (2, 1, 1, 3);
        assert_eq!(bins, expected);
    }

    #[test]
    fn moved_codes_are_counted() {
        let spec: QuantSpec = "w3a16g16".parse().unwrap();
        let weight = noise(1, &[4, 32]);
        let clip = |offsets: Option<Tensor>| {
            let mut clip = Lwc::new(4, 32, spec.weight, Device::Cpu).unwrap();
            clip.offsets = offsets;
            Clipped::of(clip, &weight)
        };
        assert_eq!(clip(None).moved, None);
        assert_eq!(clip(Some(weight.zeros_like())).moved, Some(0.0));
        // A whole code up for one row of four, where the code is not the highest one already.
        let up = weight.zeros_like();
        let _ = up.get(0).fill_(1.0);
        let moved = clip(Some(up)).moved.unwrap();
        assert!((0.15..=0.25).contains(&moved), "{moved}");
        // sigmoid(4) is in the last bin.
        assert_eq!(clip(None).max[CLIP_BINS - 1], 8);
    }
}
