//! The pieces that families share: norms, activations, causal attention.

use tch::{Kind, Tensor};

/// Root-mean-square norm over the last dimension, `x / sqrt(mean(x²) + eps) * weight`, in f32.
///
/// `x [.., n]`, `weight [n]` -> `[.., n]`.
pub fn rms_norm(x: &Tensor, weight: &Tensor, eps: f64) -> Tensor {
    x.rms_norm([weight.size()[0]], Some(weight), eps)
}

/// Cuts heads out of a projection: `[b, t, n_heads * head_dim]` -> `[b, n_heads, t, head_dim]`.
pub fn split_heads(x: &Tensor, head_dim: usize) -> Tensor {
    let (b, t, width) = x.size3().expect("a projection is [b, t, width]");
    x.view([b, t, width / head_dim as i64, head_dim as i64]).transpose(1, 2)
}

/// Causal attention over whole sequences; query head `i` reads key/value head `i / (n_heads / n_kv_heads)`.
///
/// `q [b, n_heads, t, d]`, `k`, `v` `[b, n_kv_heads, t, d]` -> `[b, t, n_heads * d]`.
pub fn causal_attention(q: &Tensor, k: &Tensor, v: &Tensor) -> Tensor {
    let (b, n_heads, t, d) = q.size4().expect("queries are [b, n_heads, t, d]");
    let share = n_heads / k.size()[1];
    let (k, v) = (repeat_heads(k, share), repeat_heads(v, share));
    let mixed = Tensor::scaled_dot_product_attention(q, &k, &v, None::<&Tensor>, 0.0, true, None, false);
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
    /// By the name that `config.json` uses.
    pub fn from_name(name: &str) -> Option<Self> {
        match name {
            "silu" | "swish" => Some(Self::Silu),
            "gelu" => Some(Self::Gelu),
            "gelu_new" | "gelu_pytorch_tanh" | "gelu_fast" => Some(Self::GeluTanh),
            "relu" => Some(Self::Relu),
            _ => None,
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
