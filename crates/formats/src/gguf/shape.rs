//! The shape of a model: what a GGUF file's metadata and a Hugging Face `config.json` both say.

use super::architecture::Architecture;

/// The shape of a model.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Shape {
    pub(super) architecture: Architecture,
    pub(super) hidden: usize,
    pub(super) intermediate: usize,
    pub(super) layers: usize,
    pub(super) heads: usize,
    pub(super) kv_heads: usize,
    pub(super) head_dim: usize,
    /// Rows of the embedding.
    pub(super) vocab: usize,
    /// Context length that the model was trained with.
    pub(super) context: usize,
    pub(super) norm_eps: f64,
    pub(super) rope: Rope,
    /// Whether the head is the embedding.
    pub(super) tied: bool,
    /// Whether queries, keys and values have a bias.
    pub(super) attention_bias: bool,
    /// Whether the attention's output has a bias.
    pub(super) output_bias: bool,
    /// Whether the MLP's linears have a bias.
    pub(super) mlp_bias: bool,
    /// Falcon only: whether attention and MLP have a norm each.
    pub(super) two_norms: bool,
    /// Instead of one MLP.
    pub(super) experts: Option<Experts>,
    /// Which blocks attend to a part of the positions.
    pub(super) window: Option<Window>,
    /// Bounds of the attention's scores and of the logits: `c tanh(x / c)`.
    pub(super) caps: [Option<f64>; 2],
    /// Granite only.
    pub(super) multipliers: Option<Multipliers>,
    /// Ministral 3 only: queries are multiplied by `1 + temperature ln(1 + floor(position / original))`, where `original` is YaRN's.
    pub(super) temperature: Option<f64>,
}

impl Shape {
    /// Gemma 2 and 3 only: scores are divided by the square root of this number, which llama.cpp tells from the number of layers.
    pub(super) fn query_scalar(&self) -> usize {
        let is_27b = match self.architecture {
            Architecture::Gemma2 => self.layers == 46,
            _ => self.layers == 62,
        };
        if is_27b { self.hidden / self.heads } else { self.head_dim }
    }
}

/// Experts in every block.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Experts {
    pub(super) count: usize,
    /// How many of them a token passes through.
    pub(super) used: usize,
    /// Width inside each.
    pub(super) width: usize,
    /// Width of one that all tokens pass through.
    pub(super) shared: Option<usize>,
}

/// Sliding windows.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Window {
    /// A query sees itself and what comes before, these many positions in all.
    pub(super) positions: usize,
    /// For each block whether it has the window.
    pub(super) slides: Vec<bool>,
}

impl Window {
    /// A window in all blocks but every `period`-th, as llama.cpp describes it; 0 for all.
    pub(super) fn with_period(positions: usize, period: usize, layers: usize) -> Self {
        let slides = |layer: usize| period == 0 || !(layer + 1).is_multiple_of(period);
        Self { positions, slides: (0..layers).map(slides).collect() }
    }

    /// The period; none for another order.
    pub(super) fn period(&self) -> Option<usize> {
        let period = self.slides.iter().position(|slides| !slides).map_or(0, |first| first + 1);
        (Self::with_period(self.positions, period, self.slides.len()) == *self).then_some(period)
    }
}

/// Factors of hidden states.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Multipliers {
    /// Of the embedding.
    pub(super) embedding: f64,
    /// Of what a block adds.
    pub(super) residual: f64,
    /// Of the attention's scores.
    pub(super) attention: f64,
    /// Logits are divided by it.
    pub(super) logits: f64,
}

/// Rotary embedding.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Rope {
    pub(super) theta: f64,
    /// The same in blocks with a window (Gemma 3).
    pub(super) local_theta: Option<f64>,
    /// How many of a head's values are rotated.
    pub(super) rotated: usize,
    pub(super) scaling: RopeScaling,
}

impl Rope {
    /// Whether its factors are tensors of their own.
    pub(super) fn is_long(&self) -> bool {
        matches!(self.scaling, RopeScaling::Long { .. })
    }
}

/// How rotations are changed for longer contexts.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum RopeScaling {
    /// Not at all.
    None,
    /// All frequencies are divided by `factor`.
    Linear { factor: f64 },
    /// Slow rotations are stretched by the rule of Llama 3.1.
    Llama3 { factor: f64, rule: Llama3Rule },
    /// YaRN (arXiv 2309.00071).
    Yarn {
        factor: f64,
        /// The context of pre-training.
        original: usize,
        beta_fast: f64,
        beta_slow: f64,
        /// Factor of cosines and sines.
        attention: f64,
        /// Whether the ends of the ramp are whole rotations. In llama.cpp they are.
        truncate: bool,
    },
    /// LongRoPE (arXiv 2402.13753): a factor for the period of each rotation.
    Long {
        /// The context of pre-training.
        original: usize,
        /// For contexts up to it.
        short: Vec<f64>,
        /// For longer ones.
        long: Vec<f64>,
        /// Factor of cosines and sines.
        attention: f64,
    },
}

/// Llama 3.1's rule: which rotations are stretched.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Llama3Rule {
    /// Rotations with fewer periods than this in `context` are stretched by the whole factor.
    pub(super) low: f64,
    /// Rotations with more periods than this stay as they are.
    pub(super) high: f64,
    /// The context of pre-training.
    pub(super) context: f64,
}

impl Llama3Rule {
    /// The constants of all published models.
    pub(super) const PUBLISHED: Self = Self { low: 1.0, high: 4.0, context: 8192.0 };

    /// The divisor of the frequency of rotation `i`.
    pub(super) fn divisor(self, i: usize, head_dim: usize, theta: f64, factor: f64) -> f64 {
        let period = std::f64::consts::TAU * theta.powf(2.0 * i as f64 / head_dim as f64);
        let periods = self.context / period;
        if periods > self.high {
            return 1.0;
        }
        let blend = ((periods - self.low) / (self.high - self.low)).max(0.0);
        1.0 / ((1.0 - blend) / factor + blend)
    }
}

/// LongRoPE's own factor of cosines and sines, for a context that is stretched from `original`.
pub(super) fn long_attention(context: usize, original: usize) -> f64 {
    let scale = context as f64 / original as f64;
    if scale <= 1.0 { 1.0 } else { (1.0 + scale.ln() / (original as f64).ln()).sqrt() }
}

/// YaRN's own factor of cosines and sines.
pub(super) fn yarn_attention(factor: f64, mscale: f64) -> f64 {
    if factor <= 1.0 { 1.0 } else { 0.1 * mscale * factor.ln() + 1.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_have_a_period_or_none() {
        let period = |slides: &[bool]| Window { positions: 8, slides: slides.to_vec() }.period();
        assert_eq!(period(&[true, false, true, false]), Some(2));
        assert_eq!(period(&[true, true, true]), Some(0));
        assert_eq!(period(&[false, false]), Some(1));
        assert_eq!(period(&[true, true, false, true]), Some(3));
        assert_eq!(period(&[false, true]), None);
        assert_eq!(period(&[true, true, false, true, false, true]), None);
    }

    #[test]
    fn llama3_rule_keeps_fast_rotations_and_stretches_slow_ones() {
        // Head 128, theta 5e5, factor 8, as in Llama 3.1 8B. Rotation 0 turns once in 6.3 tokens, rotation 63 once in 2.6 million.
        let divisor = |i| Llama3Rule::PUBLISHED.divisor(i, 128, 5e5, 8.0);
        assert_eq!(divisor(0), 1.0);
        assert_eq!(divisor(63), 8.0);
        let blended: Vec<_> = (0..64).filter(|&i| divisor(i) > 1.0 && divisor(i) < 8.0).collect();
        assert_eq!(blended, [29, 30, 31, 32, 33, 34], "periods between 2048 and 8192 tokens");
    }
}
