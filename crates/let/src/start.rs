//! The start of scales and shifts, from the channels' statistics (SmoothQuant, arXiv 2211.10438, eq. 4).

use tch::{Device, Kind, Tensor};

use crate::site::Site;
use crate::transform::{MIN_SCALE, Values};

/// Lower bound of a channel's weights or activations when a start is computed; keeps channels of zeros finite.
const MIN_RANGE: f32 = 1e-5;

/// Statistics of the channels of a module's input, over samples.
#[derive(Debug, Default)]
pub struct InputStats {
    state: Option<State>,
}

#[derive(Debug)]
struct State {
    /// `[n]`.
    min: Tensor,
    /// `[n]`.
    max: Tensor,
    /// Sum over samples of the midpoint between a sample's minimum and maximum, `[n]`.
    middles: Tensor,
    samples: i64,
}

impl InputStats {
    /// Adds samples: `x [b, t, n]`, each of the `b` one sample.
    pub fn add(&mut self, x: &Tensor) {
        let x = x.detach();
        let [low, high] = [x.amin([1], false), x.amax([1], false)].map(|end| end.to_kind(Kind::Float)); // [b, n]
        let middles = ((&low + &high) * 0.5).sum_dim_intlist([0].as_slice(), false, None::<Kind>);
        let (min, max, samples) = (low.amin([0], false), high.amax([0], false), x.size()[0]);
        self.state = Some(match self.state.take() {
            None => State { min, max, middles, samples },
            Some(before) => State {
                min: before.min.minimum(&min),
                max: before.max.maximum(&max),
                middles: before.middles + middles,
                samples: before.samples + samples,
            },
        });
    }

    /// Minimum, maximum and sum of midpoints of each of `n` channels, `[n]`, and the number of samples, `[1]`, all in f64 and on the CPU. If
    /// nothing was added, these change nothing when they are combined with those of other samples.
    pub fn parts(&self, n: i64) -> [Tensor; 4] {
        let of = |value: f64, n: i64| Tensor::full([n], value, (Kind::Double, Device::Cpu));
        match &self.state {
            None => [of(f64::INFINITY, n), of(f64::NEG_INFINITY, n), of(0.0, n), of(0.0, 1)],
            Some(State { min, max, middles, samples }) => {
                let [min, max, middles] =
                    [min, max, middles].map(|part| part.to_kind(Kind::Double).to_device(Device::Cpu));
                [min, max, middles, of(*samples as f64, 1)]
            }
        }
    }

    /// The statistics with these parts, which may be combined from those of several.
    pub fn of_parts([min, max, middles, samples]: [Tensor; 4]) -> Self {
        let samples = samples.double_value(&[0]) as i64;
        Self { state: (samples > 0).then_some(State { min, max, middles, samples }) }
    }
}

/// Looks up what a start is computed from, by module.
pub trait Source {
    /// Weight of a linear, `[out, in]`.
    fn weight(&self, module: &str) -> &Tensor;
    /// Statistics of a linear's input; none if nothing was added.
    fn inputs(&self, module: &str) -> Option<&InputStats>;
}

impl Values {
    /// Scales `max|X - d|^alpha / max|W|^(1 - alpha)` of each channel, with maxima over all readers of the site and over tied channels.
    /// Scales are 1 where no linear reads the channels (queries and keys). Shifts `d`, if requested and possible, are the mean over samples
    /// of the midpoint between a channel's extremes.
    ///
    /// Scales are 1 where no token reached the site's first reader.
    ///
    /// # Panics
    /// When statistics of the first reader of a site were not requested.
    pub fn smooth(sites: &[Site], shift: bool, alpha: f64, source: &dyn Source, device: Device) -> Self {
        let starts = sites.iter().map(|site| start(site, shift && site.can_shift, alpha, source, device));
        let (scales, shifts) = starts.unzip();
        Self { scales, shifts }
    }
}

/// Scale and shift of one site.
fn start(site: &Site, shift: bool, alpha: f64, source: &dyn Source, device: Device) -> (Tensor, Option<Tensor>) {
    let tensor = |numbers: &[f32]| Tensor::from_slice(numbers).to_device(device);
    let Some(first) = site.readers().next() else { return (tensor(&vec![1.0; site.n_scales]), None) };
    let stats = source.inputs(first.module);
    let stats = stats.unwrap_or_else(|| panic!("{} reads a site and its inputs were not taken in", first.module));
    let Some(stats) = &stats.state else {
        let shift = (shift && site.can_shift).then(|| tensor(&vec![0.0; site.n_scales]));
        return (tensor(&vec![1.0; site.n_scales]), shift);
    };

    let shifts = shift.then(|| {
        let mean_middles = numbers(&(&stats.middles / stats.samples as f64));
        let (mut sums, mut counts) = (vec![0.0; site.n_scales], vec![0.0; site.n_scales]);
        for (channel, scale) in first.pairs() {
            sums[scale] += mean_middles[channel];
            counts[scale] += 1.0;
        }
        sums.iter().zip(&counts).map(|(sum, count)| sum / count).collect::<Vec<f32>>()
    });
    let (min, max) = (numbers(&stats.min), numbers(&stats.max));
    let mut extents = vec![MIN_RANGE; site.n_scales];
    for (channel, scale) in first.pairs() {
        let middle = shifts.as_ref().map_or(0.0, |shifts| shifts[scale]);
        extents[scale] = extents[scale].max(max[channel] - middle).max(middle - min[channel]);
    }
    let mut columns = vec![MIN_RANGE; site.n_scales];
    for reader in site.readers() {
        let largest = numbers(&source.weight(reader.module).abs().amax([0], false));
        for (channel, scale) in reader.pairs() {
            columns[scale] = columns[scale].max(largest[channel]);
        }
    }
    let balanced = |(&extent, &column): (&f32, &f32)| {
        let scale = f64::from(extent).powf(alpha) / f64::from(column).powf(1.0 - alpha);
        scale.max(MIN_SCALE) as f32
    };
    let scales: Vec<f32> = extents.iter().zip(&columns).map(balanced).collect();
    (tensor(&scales), shifts.as_deref().map(tensor))
}

fn numbers(vector: &Tensor) -> Vec<f32> {
    Vec::try_from(vector.to_kind(Kind::Float)).expect("statistics are vectors")
}
