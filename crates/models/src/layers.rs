//! The pieces that families share: norms, activations, attention.

use tch::{Kind, Tensor};

use crate::config::Config;
use crate::error::ModelError;

/// Root-mean-square norm over the last dimension, `x / sqrt(mean(x²) + eps) * weight`, in the kind of `weight`.
///
/// `x [.., n]`, `weight [n]` -> `[.., n]`.
pub fn rms_norm(x: &Tensor, weight: &Tensor, eps: f64) -> Tensor {
    x.to_kind(weight.kind()).rms_norm([weight.size()[0]], Some(weight), eps)
}

/// Layer norm over the last dimension, `(x - mean(x)) / sqrt(var(x) + eps) * weight + bias`, in f32.
///
/// `x [.., n]`, `weight`, `bias` `[n]` -> `[.., n]`.
pub fn layer_norm(x: &Tensor, weight: Option<&Tensor>, bias: Option<&Tensor>, eps: f64) -> Tensor {
    let width = *x.size().last().expect("hidden states have a last dimension");
    x.layer_norm([width], weight, bias, eps, false)
}

/// Cuts heads out of a projection: `[b, t, n_heads * head_dim]` -> `[b, n_heads, t, head_dim]`.
pub fn split_heads(x: &Tensor, head_dim: usize) -> Tensor {
    let (b, t, width) = x.size3().expect("a projection is [b, t, width]");
    x.view([b, t, width / head_dim as i64, head_dim as i64]).transpose(1, 2)
}

/// Attention over whole sequences; query head `i` reads key/value head `i / (n_heads / n_kv_heads)`.
///
/// Scores are multiplied by `d^-0.5`. Each position sees itself and those before, or what `mask` says, which is added to scores.
///
/// `q [b, n_heads, t, d]`, `k`, `v` `[b, n_kv_heads, t, d]`, `mask [n_heads or 1, t, t]` -> `[b, t, n_heads * d]`.
pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor, mask: Option<&Tensor>) -> Tensor {
    let (b, n_heads, t, d) = q.size4().expect("queries are [b, n_heads, t, d]");
    let share = n_heads / k.size()[1];
    let (k, v) = (repeat_heads(k, share), repeat_heads(v, share));
    let mask = mask.map(|mask| mask.unsqueeze(0).to_kind(q.kind()));
    let is_causal = mask.is_none();
    let mixed = Tensor::scaled_dot_product_attention(q, &k, &v, mask, 0.0, is_causal, None, false);
    mixed.transpose(1, 2).reshape([b, t, n_heads * d])
}

/// `[b, h, t, d]` -> `[b, h * share, t, d]`, each head `share` times in a row.
fn repeat_heads(x: &Tensor, share: i64) -> Tensor {
    if share == 1 {
        return x.shallow_clone();
    }
    let (b, h, t, d) = x.size4().expect("heads are [b, h, t, d]");
    x.unsqueeze(2).expand([b, h, share, t, d], false).reshape([b, h * share, t, d])
}

/// The nonlinearity inside an MLP.
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
    /// By the name that `config.json` gives.
    pub(crate) fn read(config: &Config<'_>, key: &str, default: Self) -> Result<Self, ModelError> {
        match config.text(key) {
            None => Ok(default),
            Some("silu" | "swish") => Ok(Self::Silu),
            Some("gelu") => Ok(Self::Gelu),
            Some("gelu_new" | "gelu_pytorch_tanh" | "gelu_fast") => Ok(Self::GeluTanh),
            Some("relu") => Ok(Self::Relu),
            Some(_) => Err(config.wrong(key, "must be silu, gelu, gelu_new, gelu_pytorch_tanh or relu")),
        }
    }

    /// Element by element.
    pub fn apply(self, x: &Tensor) -> Tensor {
        match self {
            Self::Silu => x.silu(),
            Self::Gelu => x.gelu("none"),
            Self::GeluTanh => x.gelu("tanh"),
            Self::Relu => x.relu(),
        }
    }
}

/// Negative log-likelihood of each next token, in f32: `logits [n, vocab]`, `targets [n]` -> `[n]`.
pub fn token_nll(logits: &Tensor, targets: &Tensor) -> Tensor {
    let picked = logits.gather(1, &targets.unsqueeze(1), false).squeeze_dim(1);
    logits.to_kind(Kind::Float).logsumexp([1], false) - picked
}
