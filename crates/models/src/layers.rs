//! Functions that families share: norms, splitting into heads, activation functions, loss.

use tch::{Kind, Tensor};

use crate::config::Config;
use crate::decode;
use crate::error::ModelError;

/// RMSNorm over the last dimension, `x / sqrt(mean(x²) + eps) * weight`, in the kind of `weight`.
///
/// `x [.., n]`, `weight [n]` -> `[.., n]`.
pub fn rms_norm(x: &Tensor, weight: &Tensor, eps: f64) -> Tensor {
    if let Some(y) = decode::rms_norm(x, weight, eps) {
        return y;
    }
    x.to_kind(weight.kind()).rms_norm([weight.size()[0]], Some(weight), eps)
}

/// Layer norm over the last dimension, `(x - mean(x)) / sqrt(var(x) + eps) * weight + bias`, in f32.
///
/// `x [.., n]`, `weight`, `bias` `[n]` -> `[.., n]`.
pub fn layer_norm(x: &Tensor, weight: Option<&Tensor>, bias: Option<&Tensor>, eps: f64) -> Tensor {
    let width = *x.size().last().expect("hidden states have a last dimension");
    x.layer_norm([width], weight, bias, eps, false)
}

/// Splits a projection into heads: `[b, t, n_heads * head_dim]` -> `[b, n_heads, t, head_dim]`.
pub fn split_heads(x: &Tensor, head_dim: usize) -> Tensor {
    let (b, t, width) = x.size3().expect("a projection is [b, t, width]");
    if t == 1 {
        return x.view([b, width / head_dim as i64, 1, head_dim as i64]);
    }
    x.view([b, t, width / head_dim as i64, head_dim as i64]).transpose(1, 2)
}

/// The activation function of an MLP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// `x * sigmoid(x)`.
    Silu,
    /// The exact Gaussian error linear unit.
    Gelu,
    /// Its tanh approximation.
    GeluTanh,
    /// `max(x, 0)`.
    Relu,
}

impl Activation {
    /// Reads the name that `config.json` has under `key`.
    pub(crate) fn read(config: &Config<'_>, key: &str, default: Self) -> Result<Self, ModelError> {
        match config.text(key)? {
            None => Ok(default),
            Some("silu" | "swish") => Ok(Self::Silu),
            Some("gelu") => Ok(Self::Gelu),
            Some("gelu_new" | "gelu_pytorch_tanh" | "gelu_fast") => Ok(Self::GeluTanh),
            Some("relu") => Ok(Self::Relu),
            Some(_) => Err(config.wrong(key, "must be silu, gelu, gelu_new, gelu_pytorch_tanh or relu")),
        }
    }

    /// Applies it to each element.
    pub fn apply(self, x: &Tensor) -> Tensor {
        match self {
            Self::Silu => x.silu(),
            Self::Gelu => x.gelu("none"),
            Self::GeluTanh => x.gelu("tanh"),
            Self::Relu => x.relu(),
        }
    }
}

/// Negative log-likelihood of each target token, in f32: `logits [n, vocab]`, `targets [n]` -> `[n]`.
pub fn token_nll(logits: &Tensor, targets: &Tensor) -> Tensor {
    let target_logits = logits.gather(1, &targets.unsqueeze(1), false).squeeze_dim(1);
    logits.to_kind(Kind::Float).logsumexp([1], false) - target_logits
}

#[cfg(test)]
mod tests {
    use tch::Device;

    use super::*;

    #[test]
    fn one_position_gives_the_same_result_as_many() {
        // For a few operations in f32.
        const TOLERANCE: f64 = 1e-6;
        tch::manual_seed(2);
        let (x, weight) =
            (Tensor::randn([1, 9, 80], (Kind::Float, Device::Cpu)), Tensor::rand([80], (Kind::Float, Device::Cpu)));
        let many = rms_norm(&x, &weight, 1e-5);
        for i in 0..9 {
            let one = decode::rms_norm(&x.narrow(1, i, 1), &weight, 1e-5).unwrap();
            let many = many.narrow(1, i, 1);
            assert_eq!(one.size(), many.size());
            let error = (one - &many).abs().max().double_value(&[]);
            assert!(error <= TOLERANCE * many.abs().max().double_value(&[]), "{error}");
        }
    }
}
