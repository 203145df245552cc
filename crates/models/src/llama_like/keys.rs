//! Keys of `config.json` that most families share.

use serde_json::Value;

use super::mlp::{GateUp, GatedMlp, Gating};
use crate::config::{Config, MAX};
use crate::error::ModelError;
use crate::layers::Activation;
use crate::structure::{Dims, LinearName, intern};

/// What a family's config class in transformers takes for missing keys.
#[derive(Clone, Copy)]
pub(crate) struct Defaults {
    /// Number of key/value heads. `None` means as many as query heads.
    pub(crate) kv_heads: Option<usize>,
    /// Number of positions.
    pub(crate) positions: usize,
    /// Channels of a head. `None` means `hidden_size / num_attention_heads`.
    pub(crate) head_dim: Option<usize>,
    /// The key of the MLP's activation, and its value.
    pub(crate) activation: (&'static str, Activation),
    pub(crate) eps: f64,
    pub(crate) tied: bool,
}

impl Defaults {
    pub(crate) const LLAMA: Self = Self {
        kv_heads: None,
        positions: 2048,
        head_dim: None,
        activation: ("hidden_act", Activation::Silu),
        eps: 1e-6,
        tied: false,
    };
}

/// The sizes of a model, and its common settings.
pub(crate) struct Common {
    pub(crate) dims: Dims,
    pub(crate) activation: Activation,
    pub(crate) eps: f64,
    pub(crate) tied: bool,
}

impl Common {
    pub(crate) fn read(config: &Config<'_>, defaults: &Defaults) -> Result<Self, ModelError> {
        let hidden = config.size("hidden_size")?;
        let n_heads = config.size("num_attention_heads")?;
        // A key with the value null differs from a missing key.
        let kv_heads = defaults.kv_heads.filter(|_| !config.is_written("num_key_value_heads")).unwrap_or(n_heads);
        let n_kv_heads = config.size_or("num_key_value_heads", kv_heads)?;
        if !n_heads.is_multiple_of(n_kv_heads) {
            return Err(config.wrong("num_key_value_heads", format!("must divide num_attention_heads = {n_heads}")));
        }
        let head_dim = match config.size_or_none("head_dim")?.or(defaults.head_dim) {
            Some(head_dim) => head_dim,
            None if hidden.is_multiple_of(n_heads) => hidden / n_heads,
            None => {
                let expected = format!("must divide hidden_size = {hidden} when there is no head_dim");
                return Err(config.wrong("num_attention_heads", expected));
            }
        };
        if !head_dim.is_multiple_of(2) {
            return Err(config.wrong("head_dim", "must be even for a rotary embedding"));
        }
        // There are at most as many key/value heads.
        let width = n_heads.saturating_mul(head_dim);
        if width > MAX {
            let expected = format!("heads of {head_dim} channels are {width} channels: no model has more than {MAX}");
            return Err(config.wrong("num_attention_heads", expected));
        }
        let (activation_key, activation) = defaults.activation;
        Ok(Self {
            dims: Dims {
                n_layers: config.layers("num_hidden_layers")?,
                hidden,
                intermediate: config.size("intermediate_size")?,
                n_heads,
                n_kv_heads,
                head_dim,
                vocab: config.size("vocab_size")?,
                max_positions: config.size_or("max_position_embeddings", defaults.positions)?,
            },
            activation: Activation::read(config, activation_key, activation)?,
            eps: config.number_or("rms_norm_eps", defaults.eps)?,
            tied: config.flag_or("tie_word_embeddings", defaults.tied)?,
        })
    }
}

impl Common {
    /// A gated MLP whose linears are called `gate_proj`, `up_proj` and `down_proj` behind a prefix.
    pub(crate) fn mlp(&self, prefix: &str, width: usize) -> GatedMlp {
        let name = |which: &str| LinearName(intern(&format!("{prefix}{which}_proj")));
        GatedMlp {
            gate_up: GateUp::Two([name("gate"), name("up")]),
            down: name("down"),
            width,
            bias: false,
            gating: Gating::Plain(self.activation),
        }
    }
}

/// Which layers have a sliding window, from `layer_types`, or else `default`.
pub(crate) fn sliding_layers(
    config: &Config<'_>,
    n_layers: usize,
    default: impl Fn(usize) -> bool,
) -> Result<Vec<bool>, ModelError> {
    const KEY: &str = "layer_types";
    let Some(types) = config.get(KEY) else { return Ok((0..n_layers).map(default).collect()) };
    let of_layer = |kind: &Value| match kind.as_str() {
        Some("sliding_attention") => Ok(true),
        Some("full_attention") => Ok(false),
        _ => Err(config.wrong(KEY, "must be a list of full_attention and sliding_attention")),
    };
    match types.as_array() {
        // As in transformers, further entries are ignored.
        Some(types) if types.len() >= n_layers => types[..n_layers].iter().map(of_layer).collect(),
        _ => Err(config.wrong(KEY, format!("must be a list with an entry for each of {n_layers} layers"))),
    }
}

/// Kinds without repetitions, and the kind of each layer.
pub(crate) fn distinct<T: PartialEq>(layers: impl IntoIterator<Item = T>) -> (Vec<T>, Vec<usize>) {
    let mut kinds = Vec::new();
    let of_layer = layers.into_iter().map(|layer| {
        kinds.iter().position(|kind| *kind == layer).unwrap_or_else(|| {
            kinds.push(layer);
            kinds.len() - 1
        })
    });
    let layers = of_layer.collect();
    (kinds, layers)
}
