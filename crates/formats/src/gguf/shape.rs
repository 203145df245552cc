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
    /// Whether queries, keys and values, and in LLaMA the attention's output too, have a bias.
    pub(super) attention_bias: bool,
    /// Whether the MLP's linears have a bias.
    pub(super) mlp_bias: bool,
    /// Falcon only: whether attention and MLP have a norm each.
    pub(super) two_norms: bool,
}

/// Rotary embedding.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Rope {
    pub(super) theta: f64,
    pub(super) scaling: RopeScaling,
}

/// How rotations are changed for longer contexts.
#[derive(Clone, Copy, Debug, PartialEq)]
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

/// YaRN's own factor of cosines and sines.
pub(super) fn yarn_attention(factor: f64, mscale: f64) -> f64 {
    if factor <= 1.0 { 1.0 } else { 0.1 * mscale * factor.ln() + 1.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

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
