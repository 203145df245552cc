//! Rotary position embedding (Su et al. 2021, arXiv 2104.09864) and the ways in which checkpoints stretch its context.
//!
//! Channel pair `i` of a head of `d` channels turns by `position * inv_freq[i]`, where the plain embedding has
//! `inv_freq[i] = theta^(-2i/d)`. The pairs are `(i, i + d/2)`, as in Hugging Face's layout.

use std::f64::consts::PI;
use std::ops::Range;

use tch::{Device, Kind, Tensor};

use crate::config::Config;
use crate::decode;
use crate::error::ModelError;

/// A model's rotary embedding: how it turns and how it is stretched.
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    /// Channels of a head that turn; even.
    pub dim: usize,
    /// Base of the frequencies.
    pub theta: f64,
    /// How the context is stretched.
    pub scaling: Scaling,
}

/// Ways to reach beyond the context of pre-training.
#[derive(Clone, Debug, PartialEq)]
pub enum Scaling {
    /// None.
    Default,
    /// All positions divided by a factor (Chen et al. 2023).
    Linear {
        /// The divisor.
        factor: f64,
    },
    /// Theta grows with the sequence once it is longer than the context (dynamic NTK).
    Dynamic {
        /// How strongly it grows.
        factor: f64,
        /// The context of pre-training.
        max_positions: usize,
    },
    /// Long wavelengths divided by a factor, short ones kept, those between blended (LLaMA 3.1).
    Llama3 {
        /// The divisor of long wavelengths.
        factor: f64,
        /// Turns within the original context below which a channel is divided.
        low_freq_factor: f64,
        /// Turns within the original context above which a channel is kept.
        high_freq_factor: f64,
        /// The context of pre-training.
        original_max_positions: f64,
    },
    /// NTK by parts with a ramp over channels, and a temperature on attention (Peng et al. 2023, arXiv 2309.00071).
    Yarn {
        /// The divisor of long wavelengths.
        factor: f64,
        /// Turns within the original context above which a channel is kept.
        beta_fast: f64,
        /// Turns within the original context below which a channel is divided.
        beta_slow: f64,
        /// The context of pre-training.
        original_max_positions: f64,
        /// Multiplies cosines and sines.
        attention_factor: f64,
        /// Whether the ramp's ends are whole channels.
        truncate: bool,
    },
}

/// Reads `rope_parameters` (transformers 5) or `rope_theta` and `rope_scaling` (transformers 4), with that library's
/// precedence: a `rope_scaling` that says something replaces `rope_parameters` as a whole.
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
        return Err(config.wrong("partial_rotary_factor", "must be 1: heads are turned as a whole"));
    }
    // The key outside the section wins over the one within.
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

/// YaRN's temperature, `0.1 * m * ln(factor) + 1`, or a ratio of two where both weights are given.
fn yarn_attention(factor: f64, mscale: Option<f64>, mscale_all_dim: Option<f64>) -> f64 {
    let temperature = |mscale: f64| if factor <= 1.0 { 1.0 } else { 0.1 * mscale * factor.ln() + 1.0 };
    match (mscale, mscale_all_dim) {
        (Some(mscale), Some(all_dim)) => temperature(mscale) / temperature(all_dim),
        _ => temperature(1.0),
    }
}

impl Rope {
    /// Positions that it is made for, of a model that names so many.
    pub(crate) fn positions(&self, named: usize) -> usize {
        match self.scaling {
            // Some configs name those of pre-training alone.
            Scaling::Yarn { factor, original_max_positions, .. } => {
                named.max((factor * original_max_positions) as usize)
            }
            _ => named,
        }
    }

    /// Frequencies of the channel pairs for a sequence of `t` tokens, and the factor of cosines and sines.
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
                    let turns = original_max_positions * f / (2.0 * PI);
                    if turns < low_freq_factor {
                        f / factor
                    } else if turns > high_freq_factor {
                        f
                    } else {
                        let keep = (turns - low_freq_factor) / (high_freq_factor - low_freq_factor);
                        (1.0 - keep) * f / factor + keep * f
                    }
                };
                (plain(self.theta).map(blend).collect(), 1.0)
            }
            Scaling::Yarn { factor, beta_fast, beta_slow, original_max_positions, attention_factor, truncate } => {
                // The channel that makes `turns` turns within the original context.
                let channel =
                    |turns: f64| d * (original_max_positions / (turns * 2.0 * PI)).ln() / (2.0 * self.theta.ln());
                let (mut low, mut high) = (channel(beta_fast), channel(beta_slow));
                if truncate {
                    (low, high) = (low.floor(), high.ceil());
                }
                (low, high) = (low.max(0.0), high.min(d - 1.0));
                if low == high {
                    high += 0.001; // a ramp of no width would divide by zero
                }
                let blend = |(i, f): (usize, f64)| {
                    let divide = ((i as f64 - low) / (high - low)).clamp(0.0, 1.0);
                    f / factor * divide + f * (1.0 - divide)
                };
                (plain(self.theta).enumerate().map(blend).collect(), attention_factor)
            }
        }
    }

    /// The turns of some positions of a sequence that ends with them.
    pub fn tables(&self, positions: Range<usize>, device: Device) -> Rotary {
        let (frequencies, factor) = self.frequencies(positions.end);
        let frequencies: Vec<f32> = frequencies.iter().map(|&f| f as f32).collect();
        // In f32, as models are trained.
        let positions = Tensor::arange_start(positions.start as i64, positions.end as i64, (Kind::Float, device));
        let angles = positions.outer(&Tensor::from_slice(&frequencies).to_device(device)); // [t, dim/2]
        let angles = Tensor::cat(&[&angles, &angles], 1);
        Rotary { cos: angles.cos() * factor, sin: angles.sin() * factor }
    }
}

/// Turns of a sequence's positions, each `[t, dim]` f32: pair `i` fills channels `i` and `i + dim/2`.
#[derive(Debug)]
pub struct Rotary {
    /// Cosines.
    pub cos: Tensor,
    /// Sines.
    pub sin: Tensor,
}

impl Rotary {
    /// Turns every channel pair by its position: `x [b, heads, t, dim]` -> like `x`.
    pub fn turn(&self, x: &Tensor) -> Tensor {
        if let Some(turned) = decode::turn(&self.cos, &self.sin, x) {
            return turned;
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
    fn a_position_alone_is_a_position_among_many() {
        // Few operations on f32.
        const TOLERANCE: f64 = 1e-6;
        tch::manual_seed(2);
        let heads = Tensor::randn([1, 3, 9, 16], (Kind::Float, Device::Cpu));
        let angles = Tensor::rand([9, 16], (Kind::Float, Device::Cpu)) * 6.0;
        let rotary = Rotary { cos: angles.cos(), sin: angles.sin() };
        let many = rotary.turn(&heads);
        for i in 0..9 {
            let [cos, sin] = [&rotary.cos, &rotary.sin].map(|x| x.narrow(0, i, 1));
            let one = decode::turn(&cos, &sin, &heads.narrow(2, i, 1).contiguous()).unwrap();
            let many = many.narrow(2, i, 1);
            assert_eq!(one.size(), many.size());
            let error = (one - &many).abs().max().double_value(&[]);
            assert!(error <= TOLERANCE * many.abs().max().double_value(&[]), "{error}");
        }
    }
}
