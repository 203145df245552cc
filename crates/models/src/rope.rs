//! Rotary position embedding (Su et al. 2021, arXiv 2104.09864) and its context extensions.
//!
//! Channel pair `i` of a head with `d` channels is rotated by the angle `position * inv_freq[i]`. Without an extension,
//! `inv_freq[i] = theta^(-2i/d)`. The pairs are `(i, i + d/2)`, as in Hugging Face's layout.

use std::f64::consts::PI;
use std::ops::Range;

use tch::{Device, Kind, Tensor};

use crate::config::Config;
use crate::decode;
use crate::error::ModelError;

/// The parameters of a model's rotary embedding.
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    /// Number of rotated channels of a head; even.
    pub dim: usize,
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
}

/// Reads `rope_parameters` (transformers 5) or `rope_theta` and `rope_scaling` (transformers 4). As in that library, a `rope_scaling` that
/// is not empty replaces all of `rope_parameters`.
pub(crate) fn read(config: &Config<'_>, head_dim: usize, max_positions: usize) -> Result<Rope, ModelError> {
    let nothing = serde_json::Value::Null;
    let section = match config.object("rope_scaling")?.filter(|section| !section.is_empty()) {
        Some(section) => section,
        None => config.object("rope_parameters")?.unwrap_or_else(|| Config::new(&nothing)),
    };
    let either = |key: &str, default: f64| match section.number(key)? {
        Some(value) => Ok(value),
        None => config.number_or(key, default),
    };
    let theta = either("rope_theta", 10_000.0)?;
    if either("partial_rotary_factor", 1.0)? != 1.0 {
        return Err(config.wrong("partial_rotary_factor", "must be 1: partial rotary embeddings are not supported"));
    }
    // The key at the top level has precedence over the one in the section.
    let original = match config.size_or_none("original_max_position_embeddings")? {
        Some(original) => original,
        None => section.size_or("original_max_position_embeddings", max_positions)?,
    } as f64;
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
            original_max_positions: original,
        },
        "yarn" => {
            let factor = section.number_or("factor", max_positions as f64 / original)?;
            Scaling::Yarn {
                factor,
                beta_fast: section.number_unless_zero("beta_fast")?.unwrap_or(32.0),
                beta_slow: section.number_unless_zero("beta_slow")?.unwrap_or(1.0),
                original_max_positions: original,
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
        _ => return Err(section.wrong("rope_type", "must be default, linear, dynamic, llama3 or yarn")),
    };
    Ok(Rope { dim: head_dim, theta, scaling })
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
        match self.scaling {
            Scaling::Default => (plain(self.theta).collect(), 1.0),
            Scaling::Linear { factor } => (plain(self.theta).map(|f| f / factor).collect(), 1.0),
            Scaling::Dynamic { factor, max_positions } => {
                let stretch = factor * t.max(max_positions) as f64 / max_positions as f64 - (factor - 1.0);
                (plain(self.theta * stretch.powf(d / (d - 2.0))).collect(), 1.0)
            }
            Scaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_positions } => {
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
            Scaling::Yarn { factor, beta_fast, beta_slow, original_max_positions, attention_factor, truncate } => {
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
        }
    }

    /// Cosines and sines for the last positions of a sequence, which ends at `positions.end`.
    pub fn tables(&self, positions: Range<usize>, device: Device) -> Rotary {
        let (frequencies, factor) = self.frequencies(positions.end);
        let frequencies: Vec<f32> = frequencies.iter().map(|&f| f as f32).collect();
        // In f32, as in training.
        let positions = Tensor::arange_start(positions.start as i64, positions.end as i64, (Kind::Float, device));
        let angles = positions.outer(&Tensor::from_slice(&frequencies).to_device(device)); // [t, dim/2]
        let angles = Tensor::cat(&[&angles, &angles], 1);
        Rotary { cos: angles.cos() * factor, sin: angles.sin() * factor }
    }
}

/// Cosines and sines for a sequence's positions, each `[t, dim]` f32. Channels `i` and `i + dim/2` hold those of pair `i`.
#[derive(Debug)]
pub struct Rotary {
    /// Cosines.
    pub cos: Tensor,
    /// Sines.
    pub sin: Tensor,
}

impl Rotary {
    /// Rotates each channel pair by its position's angle: `x [b, heads, t, dim]` -> `[b, heads, t, dim]`.
    pub fn rotate(&self, x: &Tensor) -> Tensor {
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
        let rotary = Rotary { cos: angles.cos(), sin: angles.sin() };
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
