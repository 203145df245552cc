//! LLaMA, LLaMA-2, LLaMA-3 and models with the same architecture, among them Mistral, Qwen 2 and Qwen 3.
//!
//! Touvron et al. 2023 (arXiv 2302.13971, 2307.09288). Names and shapes are those of Hugging Face's `modeling_llama.py`. Blocks have
//! RMSNorm before attention and MLP, rotary embedding on whole heads, grouped-query attention and a gated MLP. Mistral has sliding-window
//! attention, Qwen 2 has biases on queries, keys and values, and Qwen 3 normalizes the queries and keys of each head.

use std::ops::Range;

use oq_let::{Action, Port, Site};
use oq_quant_core::SiteKind;
use serde_json::Value;
use tch::{Device, Tensor};

use crate::act::ActPoint;
use crate::attention::Scores;
use crate::block::{BlockOps, linears};
use crate::config::{Config, MAX};
use crate::decoder::{Context, Decoder, Family, LM_HEAD, OuterOps};
use crate::error::ModelError;
use crate::layers::{Activation, rms_norm, split_heads};
use crate::mask;
use crate::rope::{self, Rope};
use crate::structure::{Attention, Dims, Layer, LayerResidual, Linear, LinearName, Param, Residual, module};

/// The entry in [`crate::FAMILIES`].
pub const FAMILY: Family =
    Family { model_types: &["llama", "mistral", "qwen2", "qwen3"], read: |json| Ok(Box::new(read(json)?)) };

const Q: LinearName = LinearName("self_attn.q_proj");
const K: LinearName = LinearName("self_attn.k_proj");
const V: LinearName = LinearName("self_attn.v_proj");
const O: LinearName = LinearName("self_attn.o_proj");
const GATE: LinearName = LinearName("mlp.gate_proj");
const UP: LinearName = LinearName("mlp.up_proj");
const DOWN: LinearName = LinearName("mlp.down_proj");
const QKV: &[LinearName; 3] = &[Q, K, V];
const GATE_UP: &[LinearName; 2] = &[GATE, UP];
const INPUT_NORM: &str = "input_layernorm.weight";
const POST_ATTENTION_NORM: &str = "post_attention_layernorm.weight";
const Q_NORM: &str = "self_attn.q_norm.weight";
const K_NORM: &str = "self_attn.k_norm.weight";
const EMBED: &str = "model.embed_tokens.weight";
const LAST_NORM: &str = "model.norm.weight";

struct Llama {
    dims: Dims,
    rms_norm_eps: f64,
    activation: Activation,
    qkv_bias: bool,
    out_bias: bool,
    mlp_bias: bool,
    head_norms: bool,
    /// Length of the sliding window, including the position itself. `None` means causal attention over all positions.
    window: Option<usize>,
    tied: bool,
    rope: Rope,
}

/// The config class of a model type in transformers: its defaults for missing keys, and the properties that no key sets.
struct ModelClass {
    model_type: &'static str,
    /// Number of key/value heads if `num_key_value_heads` is missing. `None` means as many as query heads.
    kv_heads: Option<usize>,
    /// Number of positions if `max_position_embeddings` is missing.
    positions: usize,
    /// Channels of a head if `head_dim` is missing. `None` means `hidden_size / num_attention_heads`.
    head_dim: Option<usize>,
    /// Whether queries, keys and values have a bias, and whether the output projection has one. `None` means that `attention_bias` decides.
    biases: Option<(bool, bool)>,
    /// Whether the queries and keys of each head are normalized.
    head_norms: bool,
    window: Window,
}

/// Sliding windows of a model type.
enum Window {
    /// No window.
    None,
    /// A window of `sliding_window` positions in all layers, or of this length if the key is missing.
    Sliding(usize),
    /// Some layers may have a window. That is not supported; without one, the model is read.
    OfSomeLayers,
}

const LLAMA: ModelClass = ModelClass {
    model_type: "llama",
    kv_heads: None,
    positions: 2048,
    head_dim: None,
    biases: None,
    head_norms: false,
    window: Window::None,
};

const CLASSES: [ModelClass; 4] = [
    LLAMA,
    ModelClass {
        model_type: "mistral",
        kv_heads: Some(8),
        positions: 131_072,
        biases: Some((false, false)),
        window: Window::Sliding(4096),
        ..LLAMA
    },
    ModelClass {
        model_type: "qwen2",
        kv_heads: Some(32),
        positions: 32_768,
        biases: Some((true, false)),
        window: Window::OfSomeLayers,
        ..LLAMA
    },
    ModelClass {
        model_type: "qwen3",
        kv_heads: Some(32),
        positions: 32_768,
        head_dim: Some(128),
        head_norms: true,
        window: Window::OfSomeLayers,
        ..LLAMA
    },
];

fn read(json: &Value) -> Result<Llama, ModelError> {
    let config = Config::new(json);
    let hidden = config.size("hidden_size")?;
    let n_heads = config.size("num_attention_heads")?;
    let model_type = config.text("model_type")?.unwrap_or(LLAMA.model_type);
    let class = CLASSES.iter().find(|class| class.model_type == model_type).unwrap_or(&LLAMA);
    // A key with the value null differs from a missing key.
    let kv_heads = class.kv_heads.filter(|_| !config.is_written("num_key_value_heads")).unwrap_or(n_heads);
    let n_kv_heads = config.size_or("num_key_value_heads", kv_heads)?;
    if !n_heads.is_multiple_of(n_kv_heads) {
        return Err(config.wrong("num_key_value_heads", format!("must divide num_attention_heads = {n_heads}")));
    }
    let head_dim = match config.size_or_none("head_dim")?.or(class.head_dim) {
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
    let bias = config.flag_or("attention_bias", false)?;
    let (qkv_bias, out_bias) = class.biases.unwrap_or((bias, bias));
    let window = match class.window {
        Window::None => None,
        Window::Sliding(window) if !config.is_written("sliding_window") => Some(window),
        Window::Sliding(_) => config.size_or_none("sliding_window")?,
        Window::OfSomeLayers if has_sliding_windows(&config)? => {
            return Err(
                config.wrong("use_sliding_window", "must be false: sliding windows in some blocks are not supported")
            );
        }
        Window::OfSomeLayers => None,
    };
    let activation = Activation::read(&config, "hidden_act", Activation::Silu)?;
    let max_positions = config.size_or("max_position_embeddings", class.positions)?;
    let rope = rope::read(&config, head_dim, max_positions)?;
    Ok(Llama {
        dims: Dims {
            n_layers: config.layers("num_hidden_layers")?,
            hidden,
            intermediate: config.size("intermediate_size")?,
            n_heads,
            n_kv_heads,
            head_dim,
            vocab: config.size("vocab_size")?,
            max_positions: rope.positions(max_positions),
        },
        rms_norm_eps: config.number_or("rms_norm_eps", 1e-6)?,
        activation,
        qkv_bias,
        out_bias,
        head_norms: class.head_norms,
        window,
        mlp_bias: config.flag_or("mlp_bias", false)?,
        tied: config.flag_or("tie_word_embeddings", false)?,
        rope,
    })
}

/// Whether some blocks of a Qwen model have a sliding window.
fn has_sliding_windows(config: &Config<'_>) -> Result<bool, ModelError> {
    if !config.flag_or("use_sliding_window", false)? {
        return Ok(false);
    }
    if let Some(types) = config.get("layer_types").and_then(Value::as_array) {
        return Ok(types.iter().any(|kind| kind == "sliding_attention"));
    }
    let has_window = !config.is_written("sliding_window") || config.get("sliding_window").is_some();
    // Blocks before this one have no window.
    let first = config.get("max_window_layers").map_or(Some(28), Value::as_u64);
    Ok(has_window && first.is_none_or(|first| first < config.size("num_hidden_layers").unwrap_or(usize::MAX) as u64))
}

impl Llama {
    /// The site between queries and keys. The two channels of a rotary pair share a scale, and so do all query heads of one key head.
    fn query_key(&self) -> Site {
        let Dims { n_heads, n_kv_heads, head_dim: d, .. } = self.dims;
        let heads_per_kv = n_heads / n_kv_heads;
        let pair = |channel: usize| channel % (d / 2);
        let scale = |kv_head: usize, channel: usize| kv_head * (d / 2) + pair(channel);
        let (n_scales, ports) = if self.head_norms {
            // All heads share one norm weight.
            let port = |module, action| Port::tied(module, action, d, pair);
            (d / 2, vec![port(module(Q_NORM), Action::DivideOutput), port(module(K_NORM), Action::MultiplyOutput)])
        } else {
            let queries = Port::tied(Q.0, Action::DivideOutput, n_heads * d, |c| scale(c / d / heads_per_kv, c));
            let keys = Port::tied(K.0, Action::MultiplyOutput, n_kv_heads * d, |c| scale(c / d, c));
            (n_kv_heads * d / 2, vec![queries, keys])
        };
        Site { kind: SiteKind::Qk, n_scales, ports, can_shift: false }
    }
}

impl Decoder for Llama {
    fn dims(&self) -> Dims {
        self.dims
    }

    fn block_prefix(&self, block_idx: usize) -> String {
        format!("model.layers.{block_idx}.")
    }

    fn layer(&self, _layer: usize) -> Layer {
        let Dims { hidden, intermediate, n_heads, n_kv_heads, head_dim, .. } = self.dims;
        let linear = |name, out_features, in_features, bias| Linear { name, out_features, in_features, bias };
        let norm = |name, width| Param { name, shape: vec![width] };
        let mut params = vec![norm(INPUT_NORM, hidden), norm(POST_ATTENTION_NORM, hidden)];
        if self.head_norms {
            params.extend([norm(Q_NORM, head_dim), norm(K_NORM, head_dim)]);
        }
        Layer {
            linears: vec![
                linear(Q, n_heads * head_dim, hidden, self.qkv_bias),
                linear(K, n_kv_heads * head_dim, hidden, self.qkv_bias),
                linear(V, n_kv_heads * head_dim, hidden, self.qkv_bias),
                linear(O, hidden, n_heads * head_dim, self.out_bias),
                linear(GATE, intermediate, hidden, self.mlp_bias),
                linear(UP, intermediate, hidden, self.mlp_bias),
                linear(DOWN, hidden, intermediate, self.mlp_bias),
            ],
            params,
            together: vec![QKV.to_vec(), GATE_UP.to_vec()],
            attention: Attention { n_heads, n_kv_heads, head_dim, scale: None, softcap: None },
            intermediate,
        }
    }

    fn sites(&self, _layer: usize, kind: SiteKind) -> Result<Vec<Site>, &'static str> {
        let Dims { hidden, intermediate, n_heads, n_kv_heads, head_dim: d, .. } = self.dims;
        Ok(match kind {
            SiteKind::Norm => vec![
                Site::free(kind, hidden, module(INPUT_NORM), [Q.0, K.0, V.0], false),
                Site::free(kind, hidden, module(POST_ATTENTION_NORM), [GATE.0, UP.0], false),
            ],
            SiteKind::Vo => {
                let heads_per_kv = n_heads / n_kv_heads;
                let values = Port::free(V.0, Action::DivideOutput, n_kv_heads * d);
                let out = Port::tied(O.0, Action::MultiplyInput, n_heads * d, |c| c / d / heads_per_kv * d + c % d);
                let can_shift = self.qkv_bias && self.out_bias;
                vec![Site { kind, n_scales: n_kv_heads * d, ports: vec![values, out], can_shift }]
            }
            SiteKind::Qk => vec![self.query_key()],
            // The gate is multiplied elementwise, so scales of `up` pass through.
            SiteKind::Updown => vec![Site::free(kind, intermediate, UP.0, [DOWN.0], false)],
        })
    }

    fn residual(&self) -> Result<Residual, &'static str> {
        Ok(Residual { centred: false, tables: &[EMBED], last_norm: Some(module(LAST_NORM)) })
    }

    fn residual_of(&self, _layer: usize) -> LayerResidual {
        LayerResidual {
            readers: vec![(module(INPUT_NORM), QKV.to_vec()), (module(POST_ATTENTION_NORM), GATE_UP.to_vec())],
            writers: vec![O, DOWN],
            inner: DOWN,
        }
    }

    fn outer_params(&self) -> Vec<Param> {
        let Dims { vocab, hidden, .. } = self.dims;
        let mut params =
            vec![Param { name: EMBED, shape: vec![vocab, hidden] }, Param { name: LAST_NORM, shape: vec![hidden] }];
        if !self.tied {
            params.push(Param { name: LM_HEAD, shape: vec![vocab, hidden] });
        }
        params
    }

    fn head(&self) -> &'static str {
        if self.tied { EMBED } else { LM_HEAD }
    }

    fn context_at(&self, positions: Range<usize>, device: Device) -> Context {
        let mask = match self.window {
            Some(window) if window < positions.end => Some(mask::window(window, positions.clone(), device)),
            _ => None,
        };
        Context::uniform(Some(self.rope.tables(positions, device)), mask)
    }

    fn mask_heads(&self, _layer: usize, t: usize) -> usize {
        usize::from(self.window.is_some_and(|window| window < t))
    }

    fn embed_at(&self, outer: &dyn OuterOps, ids: &Tensor, _first: usize) -> Result<Tensor, ModelError> {
        outer.rows(EMBED, ids)
    }

    fn block(&self, _layer: usize, ops: &dyn BlockOps, ctx: &Context, x: &Tensor) -> Tensor {
        let ctx = ctx.of(0);
        let head_dim = self.dims.head_dim;
        let h = ops.act(ActPoint::LinearInput, rms_norm(x, &ops.param(INPUT_NORM), self.rms_norm_eps));
        let [q, k, v] = linears(ops, QKV, &h).map(|x| split_heads(&x, head_dim));
        let rotate = |x, norm| {
            let x = if self.head_norms { rms_norm(&x, &ops.param(norm), self.rms_norm_eps) } else { x };
            ops.act(ActPoint::QueryKey, ctx.rotate(&x))
        };
        let q = rotate(q, Q_NORM); // [b, n_heads, t, d]
        let k = rotate(k, K_NORM); // [b, n_kv_heads, t, d]
        let v = ops.act(ActPoint::Value, v); // [b, n_kv_heads, t, d]
        let mixed = ops.act(ActPoint::LinearInput, ops.attention(&q, &k, &v, &Scores::masked(ctx.mask.as_ref())));
        let x = x + ops.linear(O, &mixed);

        let h = ops.act(ActPoint::LinearInput, rms_norm(&x, &ops.param(POST_ATTENTION_NORM), self.rms_norm_eps));
        let [gate, up] = linears(ops, GATE_UP, &h);
        let gated = self.activation.apply(&gate) * up; // [b, t, intermediate]
        x + ops.linear(DOWN, &ops.act(ActPoint::Inner, gated))
    }

    fn finish(&self, outer: &dyn OuterOps, x: &Tensor) -> Result<Tensor, ModelError> {
        Ok(rms_norm(x, &outer.param(LAST_NORM)?, self.rms_norm_eps))
    }
}
