//! Gemma, Gemma 2, and the text models of Gemma 3 (arXiv 2403.08295, 2408.00118, 2503.19786).
//!
//! Norms are stored as their distance from 1, and embeddings are multiplied by the square root of their width. Since Gemma 2 there are
//! norms behind attention and MLP too, and layers with sliding windows between those without. Gemma 2 bounds scores and logits. Gemma 3
//! normalizes queries and keys instead, and its windows have a rotary embedding of their own.

use serde_json::Value;

use crate::config::Config;
use crate::decoder::{Family, Logits};
use crate::error::ModelError;
use crate::layers::Activation;
use crate::llama_like::keys::{Common, Defaults, sliding_layers};
use crate::llama_like::{HeadNorms, LayerKind, LlamaLike, Norms};
use crate::rope::{self, Rope};

/// The entry in [`crate::FAMILIES`].
pub const FAMILY: Family =
    Family { model_types: &["gemma", "gemma2", "gemma3_text"], read: |json| Ok(Box::new(read(json)?)) };

const NORMS: Norms = Norms {
    before_attention: Some("input_layernorm.weight"),
    after_attention: Some("post_attention_layernorm.weight"),
    before_mlp: Some("pre_feedforward_layernorm.weight"),
    after_mlp: Some("post_feedforward_layernorm.weight"),
};

/// What the config classes have in common.
const DEFAULTS: Defaults = Defaults {
    positions: 8192,
    head_dim: Some(256),
    activation: ("hidden_activation", Activation::GeluTanh),
    tied: true,
    ..Defaults::LLAMA
};

fn read(json: &Value) -> Result<LlamaLike, ModelError> {
    let config = Config::new(json);
    let gemma = match config.text("model_type")? {
        Some("gemma2") => read_2(&config)?,
        Some("gemma3_text") => read_3(&config)?,
        _ => read_1(&config)?,
    };
    let embed_scale = f64::from((gemma.dims.hidden as f32).sqrt());
    Ok(LlamaLike { norm_base: 1.0, embed_scale, ..gemma })
}

fn read_1(config: &Config<'_>) -> Result<LlamaLike, ModelError> {
    let defaults = Defaults { kv_heads: Some(16), activation: ("hidden_act", Activation::GeluTanh), ..DEFAULTS };
    let mut common = Common::read(config, &defaults)?;
    if common.activation == Activation::Gelu {
        // As in transformers: models were published with the wrong name.
        common.activation = Activation::GeluTanh;
    }
    let rope = rope::read(config, &rope::Defaults::of(&common.dims), None)?;
    let layer = layer_of(config, &common, &rope)?;
    Ok(LlamaLike::uniform(&common, layer))
}

fn read_2(config: &Config<'_>) -> Result<LlamaLike, ModelError> {
    let common = Common::read(config, &Defaults { kv_heads: Some(4), ..DEFAULTS })?;
    let rope = rope::read(config, &rope::Defaults::of(&common.dims), None)?;
    let mut full = LayerKind { norms: NORMS, ..layer_of(config, &common, &rope)? };
    full.attention.shape.scale = Some(score_scale(config)?);
    full.attention.shape.softcap = number_or_null(config, "attn_logit_softcapping", Some(50.0))?;
    let softcap = number_or_null(config, "final_logit_softcapping", Some(30.0))?;
    let windowed = full.with_window(Some(config.size_or("sliding_window", 4096)?));
    let slides = sliding_layers(config, common.dims.n_layers, |layer| layer.is_multiple_of(2))?;
    Ok(LlamaLike {
        logits: Logits { scale: 1.0, softcap },
        ..LlamaLike::with_windows(&common, slides, &windowed, &full)
    })
}

fn read_3(config: &Config<'_>) -> Result<LlamaLike, ModelError> {
    const PATTERN: &str = "sliding_window_pattern";
    if config.flag_or("use_bidirectional_attention", false)? {
        return Err(config.wrong("use_bidirectional_attention", "must be false: this is an embedding model"));
    }
    let defaults = Defaults { kv_heads: Some(4), positions: 131_072, ..DEFAULTS };
    let common = Common::read(config, &defaults)?;
    let of_dims = rope::Defaults::of(&common.dims);
    let (global, local) = if rope::is_by_layer_type(config)? {
        let of = |theta, layer_type| rope::read(config, &rope::Defaults { theta, ..of_dims }, Some(layer_type));
        (of(1e6, "full_attention")?, of(1e4, "sliding_attention")?)
    } else {
        // Extensions of the context are for layers without a window.
        let global = rope::read(config, &rope::Defaults { theta: 1e6, ..of_dims }, None)?;
        (global, rope::plain(&of_dims, config.number_or("rope_local_base_freq", 1e4)?))
    };
    let mut full = LayerKind { norms: NORMS, ..layer_of(config, &common, &global)? };
    full.attention.norms = HeadNorms::OfEach;
    full.attention.shape.scale = Some(score_scale(config)?);
    let mut windowed = full.with_window(Some(config.size_or("sliding_window", 4096)?));
    windowed.attention.rope = Some(local);
    let pattern = config.size_or(PATTERN, 6)?;
    let slides = sliding_layers(config, common.dims.n_layers, |layer| !(layer + 1).is_multiple_of(pattern))?;
    let softcap = number_or_null(config, "final_logit_softcapping", None)?;
    Ok(LlamaLike {
        logits: Logits { scale: 1.0, softcap },
        ..LlamaLike::with_windows(&common, slides, &windowed, &full)
    })
}

/// A layer with the norms of LLaMA.
fn layer_of(config: &Config<'_>, common: &Common, rope: &Rope) -> Result<LayerKind, ModelError> {
    let mut layer = LayerKind::plain(common, rope);
    layer.attention.set_bias(config.flag_or("attention_bias", false)?);
    Ok(layer)
}

/// Factor of attention's scores.
fn score_scale(config: &Config<'_>) -> Result<f64, ModelError> {
    Ok(config.number_or("query_pre_attn_scalar", 256.0)?.powf(-0.5))
}

/// A number that may be turned off by `null`.
fn number_or_null(config: &Config<'_>, key: &str, default: Option<f64>) -> Result<Option<f64>, ModelError> {
    if config.is_written(key) { config.number(key) } else { Ok(default) }
}
