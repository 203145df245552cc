//! Rotary position embedding (Su et al. 2021, arXiv 2104.09864) and its context extensions.
//!
//! Channel pair `i` of a head with `d` channels is rotated by the angle `position * inv_freq[i]`. Without an extension,
//! `inv_freq[i] = theta^(-2i/d)`. The pairs are `(i, i + d/2)`, as in Hugging Face's layout, or neighbours. If only `d` of a head's channels
//! are rotated, the others pass unchanged.

use std::f64::consts::PI;
use std::ops::Range;

use serde_json::Value;
use tch::{Device, Kind, Tensor};

use crate::config::Config;
use crate::decode;
use crate::error::ModelError;
use crate::structure::Dims;

/// The parameters of a model's rotary embedding.
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    /// Number of rotated channels of a head, the first ones; even.
    pub dim: usize,
    /// Whether pairs are neighbours, `(2i, 2i + 1)`, instead of `(i, i + dim/2)`.
    pub interleaved: bool,
    /// Base of the frequencies.
    pub theta: f64,
    /// How the context is extended.
    pub scaling: Scaling,
}

/// Methods to extend the context beyond that of pre-training.
#[derive(Clone, Debug, PartialEq)]
pub enum Scaling {
    /// None.
    Default,
    /// Positions are divided by a factor (Chen et al. 2023).
    Linear {
        /// The divisor.
        factor: f64,
    },
    /// Theta grows with the sequence length beyond the context (dynamic NTK).
    Dynamic {
        /// How fast theta grows.
        factor: f64,
        /// The context of pre-training.
        max_positions: usize,
    },
    /// Low frequencies are divided by a factor, high ones are kept, those in between are interpolated (LLaMA 3.1).
    Llama3 {
        /// The divisor of low frequencies.
        factor: f64,
        /// A channel pair with fewer rotations in the original context is divided.
        low_freq_factor: f64,
        /// A channel pair with more rotations in the original context is kept.
        high_freq_factor: f64,
        /// The context of pre-training.
        original_max_positions: f64,
    },
    /// YaRN: NTK-by-parts with a linear ramp over channels, and a temperature on attention (Peng et al. 2023, arXiv 2309.00071).
    Yarn {
        /// The divisor of low frequencies.
        factor: f64,
        /// A channel pair with more rotations in the original context is kept.
        beta_fast: f64,
        /// A channel pair with fewer rotations in the original context is divided.
        beta_slow: f64,
        /// The context of pre-training.
        original_max_positions: f64,
        /// Factor of cosines and sines.
        attention_factor: f64,
        /// Whether the ends of the ramp are rounded to whole channels.
        truncate: bool,
    },
    /// Each frequency has a divisor of its own, and others beyond the context of pre-training (Ding et al. 2024, arXiv 2402.13753).
    Long {
        /// Divisors within the context of pre-training, one for each channel pair.
        short: Vec<f64>,
        /// Divisors for longer sequences.
        long: Vec<f64>,
        /// The context of pre-training.
        original_max_positions: usize,
        /// Factor of cosines and sines.
        attention_factor: f64,
    },
}

/// What a model has where its config says nothing.
#[derive(Clone, Copy)]
pub(crate) struct Defaults {
    pub(crate) head_dim: usize,
    /// Value of `max_position_embeddings`.
    pub(crate) positions: usize,
    /// Value of `original_max_position_embeddings`, if the config class has one.
    pub(crate) original: Option<usize>,
    pub(crate) theta: f64,
    /// Fraction of a head's channels that are rotated. `None` means all, whatever the config says: another fraction is refused.
    pub(crate) partial: Option<f64>,
}

impl Defaults {
    /// Those of LLaMA for a model of these sizes.
    pub(crate) fn of(dims: &Dims) -> Self {
        let Dims { head_dim, max_positions, .. } = *dims;
        Self { head_dim, positions: max_positions, original: None, theta: 10_000.0, partial: None }
    }
}

/// Reads `rope_parameters` (transformers 5) or `rope_theta` and `rope_scaling` (transformers 4). As in that library, a `rope_scaling` that
/// is not empty replaces all of `rope_parameters`. If layers differ, these have an entry for each of `layer_types`.
pub(crate) fn read(config: &Config<'_>, defaults: &Defaults, layer_type: Option<&str>) -> Result<Rope, ModelError> {
    let nothing = Value::Null;
    let section = section(config)?.unwrap_or_else(|| Config::new(&nothing));
    let section = match layer_type {
        Some(layer_type) => section.object(layer_type)?.unwrap_or(section),
        None => section,
    };
    of_section(config, &section, defaults)
}

/// Whether rotary embeddings are given for each of `layer_types`.
pub(crate) fn is_by_layer_type(config: &Config<'_>) -> Result<bool, ModelError> {
    Ok(section(config)?.is_some_and(|section| {
        ["full_attention", "sliding_attention"].iter().any(|kind| section.get(kind).is_some_and(Value::is_object))
    }))
}

/// Without an extension of the context, and with this base.
pub(crate) fn plain(defaults: &Defaults, theta: f64) -> Rope {
    Rope { dim: defaults.head_dim, interleaved: false, theta, scaling: Scaling::Default }
}

fn section<'a>(config: &Config<'a>) -> Result<Option<Config<'a>>, ModelError> {
    match config.object("rope_scaling")?.filter(|section| !section.is_empty()) {
        Some(section) => Ok(Some(section)),
        None => config.object("rope_parameters"),
    }
}

fn of_section(config: &Config<'_>, section: &Config<'_>, defaults: &Defaults) -> Result<Rope, ModelError> {
    let max_positions = defaults.positions;
    let either = |key: &str, default: f64| match section.number(key)? {
        Some(value) => Ok(value),
        None => config.number_or(key, default),
    };
    let theta = either("rope_theta", defaults.theta)?;
    let partial = either("partial_rotary_factor", defaults.partial.unwrap_or(1.0))?;
    if defaults.partial.is_none() && partial != 1.0 {
        return Err(config.wrong("partial_rotary_factor", "must be 1 for this model_type"));
    }
    let dim = (defaults.head_dim as f64 * partial) as usize;
    if dim == 0 || dim > defaults.head_dim || !dim.is_multiple_of(2) {
        let expected = format!("must leave an even number of a head's {} channels to rotate", defaults.head_dim);
        return Err(config.wrong("partial_rotary_factor", expected));
    }
    // The key at the top level has precedence over the one in the section.
    let original = match config.size_or_none("original_max_position_embeddings")?.or(defaults.original) {
        Some(original) => original,
        None => section.size_or("original_max_position_embeddings", max_positions)?,
    };
    let needed = |key: &str| {
        section.number(key)?.ok_or_else(|| section.wrong(key, "a positive number is needed for this rope_type"))
    };
    let kind = match section.text("rope_type")? {
        Some(kind) => Some(kind),
        None => section.text("type")?,
    };
    let scaling = match kind.unwrap_or("default") {
        "default" => Scaling::Default,
        "linear" => Scaling::Linear { factor: needed("factor")? },
        "dynamic" => Scaling::Dynamic { factor: needed("factor")?, max_positions },
        "llama3" => Scaling::Llama3 {
            factor: needed("factor")?,
            low_freq_factor: needed("low_freq_factor")?,
            high_freq_factor: needed("high_freq_factor")?,
            original_max_positions: original as f64,
        },
        "yarn" => {
            let factor = section.number_or("factor", max_positions as f64 / original as f64)?;
            Scaling::Yarn {
                factor,
                beta_fast: section.number_unless_zero("beta_fast")?.unwrap_or(32.0),
                beta_slow: section.number_unless_zero("beta_slow")?.unwrap_or(1.0),
                original_max_positions: original as f64,
                attention_factor: match section.number("attention_factor")? {
                    Some(attention_factor) => attention_factor,
                    None => yarn_attention(
                        factor,
                        section.number_unless_zero("mscale")?,
                        section.number_unless_zero("mscale_all_dim")?,
                    ),
                },
                truncate: section.flag_or("truncate", true)?,
            }
        }
        "longrope" | "su" => {
            let factor = section.number_or("factor", max_positions as f64 / original as f64)?;
            let of_factor = if factor <= 1.0 { 1.0 } else { (1.0 + factor.ln() / (original as f64).ln()).sqrt() };
            Scaling::Long {
                short: section.numbers("short_factor", dim / 2)?,
                long: section.numbers("long_factor", dim / 2)?,
                original_max_positions: original,
                attention_factor: section.number_or("attention_factor", of_factor)?,
            }
        }
        _ => return Err(section.wrong("rope_type", "must be default, linear, dynamic, llama3, yarn or longrope")),
    };
    Ok(Rope { dim, interleaved: false, theta, scaling })
}

/// YaRN's factor of cosines and sines, `0.1 * m * ln(factor) + 1` with `m = 1`, or a ratio of two such terms if both weights are given.
fn yarn_attention(factor: f64, mscale: Option<f64>, mscale_all_dim: Option<f64>) -> f64 {
    let temperature = |mscale: f64| if factor <= 1.0 { 1.0 } else { 0.1 * mscale * factor.ln() + 1.0 };
    match (mscale, mscale_all_dim) {
        (Some(mscale), Some(all_dim)) => temperature(mscale) / temperature(all_dim),
        _ => temperature(1.0),
    }
}

impl Rope {
    /// Index of a channel's pair among those of a head. Channels that are not rotated follow, each as a pair of its own.
    pub(crate) fn pair_of(&self, channel: usize) -> usize {
        let half = self.dim / 2;
        match (channel < self.dim, self.interleaved) {
            (true, true) => channel / 2,
            (true, false) => channel % half,
            (false, _) => channel - half,
        }
    }

    /// Length of the extended context, given `max_position_embeddings` of the config.
    pub(crate) fn positions(&self, max_positions: usize) -> usize {
        match self.scaling {
            // Some configs give the length of pre-training only.
            Scaling::Yarn { factor, original_max_positions, .. } => {
                max_positions.max((factor * original_max_positions) as usize)
            }
            _ => max_positions,
        }
    }

    /// The frequencies of the channel pairs for a sequence of `t` tokens, `[dim / 2]`, and the factor of cosines and sines.
    pub fn frequencies(&self, t: usize) -> (Vec<f64>, f64) {
        let d = self.dim as f64;
        let plain = |theta: f64| (0..self.dim / 2).map(move |i| theta.powf(-2.0 * i as f64 / d));
        match &self.scaling {
            Scaling::Default => (plain(self.theta).collect(), 1.0),
            Scaling::Linear { factor } => (plain(self.theta).map(|f| f / factor).collect(), 1.0),
            &Scaling::Dynamic { factor, max_positions } => {
                let stretch = factor * t.max(max_positions) as f64 / max_positions as f64 - (factor - 1.0);
                (plain(self.theta * stretch.powf(d / (d - 2.0))).collect(), 1.0)
            }
            &Scaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_positions } => {
                let blend = |f: f64| {
                    let rotations = original_max_positions * f / (2.0 * PI);
                    if rotations < low_freq_factor {
                        f / factor
                    } else if rotations > high_freq_factor {
                        f
                    } else {
                        let keep = (rotations - low_freq_factor) / (high_freq_factor - low_freq_factor);
                        (1.0 - keep) * f / factor + keep * f
                    }
                };
                (plain(self.theta).map(blend).collect(), 1.0)
            }
            &Scaling::Yarn { factor, beta_fast, beta_slow, original_max_positions, attention_factor, truncate } => {
                // The channel pair with that many rotations in the original context.
                let channel = |rotations: f64| {
                    d * (original_max_positions / (rotations * 2.0 * PI)).ln() / (2.0 * self.theta.ln())
                };
                let (mut low, mut high) = (channel(beta_fast), channel(beta_slow));
                if truncate {
                    (low, high) = (low.floor(), high.ceil());
                }
                (low, high) = (low.max(0.0), high.min(d - 1.0));
                if low == high {
                    high += 0.001; // A ramp of width 0 would divide by zero.
                }
                let blend = |(i, f): (usize, f64)| {
                    let divide = ((i as f64 - low) / (high - low)).clamp(0.0, 1.0);
                    f / factor * divide + f * (1.0 - divide)
                };
                (plain(self.theta).enumerate().map(blend).collect(), attention_factor)
            }
            Scaling::Long { short, long, original_max_positions, attention_factor } => {
                let divisors = if t > *original_max_positions { long } else { short };
                (plain(self.theta).zip(divisors).map(|(f, by)| f / by).collect(), *attention_factor)
            }
        }
    }

    /// Cosines and sines for the last positions of a sequence, which ends at `positions.end`.
    pub fn tables(&self, positions: Range<usize>, device: Device) -> Rotary {
        let (frequencies, factor) = self.frequencies(positions.end);
        let frequencies: Vec<f32> = frequencies.iter().map(|&f| f as f32).collect();
        // In f32, as in training.
        let positions = Tensor::arange_start(positions.start as i64, positions.end as i64, (Kind::Float, device));
        let angles = positions.outer(&Tensor::from_slice(&frequencies).to_device(device)); // [t, dim/2]
        let angles = match self.interleaved {
            true => angles.repeat_interleave_self_int(2, 1, None),
            false => Tensor::cat(&[&angles, &angles], 1),
        };
        Rotary { cos: angles.cos() * factor, sin: angles.sin() * factor, interleaved: self.interleaved }
    }
}

/// Cosines and sines for a sequence's positions, each `[t, dim]` f32, with those of a pair at both of its channels.
#[derive(Debug)]
pub struct Rotary {
    /// Cosines.
    pub cos: Tensor,
    /// Sines.
    pub sin: Tensor,
    /// Whether pairs are neighbours, `(2i, 2i + 1)`, instead of `(i, i + dim/2)`.
    pub interleaved: bool,
}

impl Rotary {
    /// Rotates each pair of the first `dim` channels by its position's angle: `x [b, heads, t, d]` -> `[b, heads, t, d]`.
    pub fn rotate(&self, x: &Tensor) -> Tensor {
        let (dim, all) = (self.cos.size()[1], x.size()[3]);
        if dim < all {
            let rest = x.narrow(3, dim, all - dim);
            return Tensor::cat(&[self.rotate_all(&x.narrow(3, 0, dim)), rest], 3);
        }
        self.rotate_all(x)
    }

    fn rotate_all(&self, x: &Tensor) -> Tensor {
        if self.interleaved {
            let [first, second] = [0, 1].map(|from| x.slice(3, from, None, 2));
            let turned = Tensor::stack(&[-second, first], -1).flatten(-2, -1);
            return x * &self.cos + turned * &self.sin;
        }
        if let Some(rotated) = decode::rotate(&self.cos, &self.sin, x) {
            return rotated;
        }
        let half = x.size()[3] / 2;
        let (first, second) = (x.narrow(3, 0, half), x.narrow(3, half, half));
        x * &self.cos + Tensor::cat(&[-second, first], 3) * &self.sin
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_position_gives_the_same_result_as_many() {
        // For a few operations in f32.
        const TOLERANCE: f64 = 1e-6;
        tch::manual_seed(2);
        let heads = Tensor::randn([1, 3, 9, 16], (Kind::Float, Device::Cpu));
        let angles = Tensor::rand([9, 16], (Kind::Float, Device::Cpu)) * 6.0;
        let rotary = Rotary { cos: angles.cos(), sin: angles.sin(), interleaved: false };
        let many = rotary.rotate(&heads);
        for i in 0..9 {
            let [cos, sin] = [&rotary.cos, &rotary.sin].map(|x| x.narrow(0, i, 1));
            let one = decode::rotate(&cos, &sin, &heads.narrow(2, i, 1).contiguous()).unwrap();
            let many = many.narrow(2, i, 1);
            assert_eq!(one.size(), many.size());
            let error = (one - &many).abs().max().double_value(&[]);
            assert!(error <= TOLERANCE * many.abs().max().double_value(&[]), "{error}");
        }
    }
}
