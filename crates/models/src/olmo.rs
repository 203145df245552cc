//! OLMo 2 and 3 (arXiv 2501.00656), and OLMoE (arXiv 2409.02060), which has experts.
//!
//! Queries and keys are normalized over all heads together. OLMo 2 and 3 have their norms behind attention and MLP instead of before them;
//! OLMo 3 has sliding windows in three of four layers.

use serde_json::Value;

use crate::config::Config;
use crate::decoder::Family;
use crate::error::ModelError;
use crate::llama_like::keys::{Common, Defaults, sliding_layers};
use crate::llama_like::{Experts, HeadNorms, LayerKind, LlamaLike, Mlp, Norms, Routing};
use crate::rope;

/// The entry in [`crate::FAMILIES`].
pub const FAMILY: Family = Family { model_types: &["olmo2", "olmo3", "olmoe"], read: |json| Ok(Box::new(read(json)?)) };

const NORMS: Norms = Norms {
    before_attention: None,
    after_attention: Some("post_attention_layernorm.weight"),
    before_mlp: None,
    after_mlp: Some("post_feedforward_layernorm.weight"),
};

const DEFAULTS: Defaults = Defaults { eps: 1e-5, ..Defaults::LLAMA };

fn read(json: &Value) -> Result<LlamaLike, ModelError> {
    let config = Config::new(json);
    match config.text("model_type")? {
        Some("olmo3") => read_3(&config),
        Some("olmoe") => read_experts(&config),
        _ => {
            let common = Common::read(&config, &DEFAULTS)?;
            let rope = rope::read(&config, &rope::Defaults::of(&common.dims), None)?;
            let layer = LayerKind { norms: NORMS, ..layer_of(&config, LayerKind::plain(&common, &rope))? };
            Ok(LlamaLike::uniform(&common, layer))
        }
    }
}

fn read_3(config: &Config<'_>) -> Result<LlamaLike, ModelError> {
    let common = Common::read(config, &DEFAULTS)?;
    let of_dims = rope::Defaults { theta: 500_000.0, ..rope::Defaults::of(&common.dims) };
    let (global, local) = if rope::is_by_layer_type(config)? {
        let of = |layer_type| rope::read(config, &of_dims, Some(layer_type));
        (of("full_attention")?, of("sliding_attention")?)
    } else if config.get("rope_scaling").is_none() && config.get("rope_parameters").is_some() {
        // As in transformers, which reads them by layer type only.
        (rope::plain(&of_dims, of_dims.theta), rope::plain(&of_dims, of_dims.theta))
    } else {
        (rope::read(config, &of_dims, None)?, rope::plain(&of_dims, of_dims.theta))
    };
    let full = LayerKind { norms: NORMS, ..layer_of(config, LayerKind::plain(&common, &global))? };
    let mut windowed = full.with_window(Some(config.size_or("sliding_window", 4096)?));
    windowed.attention.rope = Some(local);
    let slides = sliding_layers(config, common.dims.n_layers, |layer| !(layer + 1).is_multiple_of(4))?;
    Ok(LlamaLike::with_windows(&common, slides, &windowed, &full))
}

fn read_experts(config: &Config<'_>) -> Result<LlamaLike, ModelError> {
    let common = Common::read(config, &Defaults { positions: 4096, ..DEFAULTS })?;
    let rope = rope::read(config, &rope::Defaults::of(&common.dims), None)?;
    let mut layer = layer_of(config, LayerKind::plain(&common, &rope))?;
    layer.attention.clip = config.number("clip_qkv")?;
    let routing = Routing::SoftmaxOfAll { normalized: config.flag_or("norm_topk_prob", false)? };
    let counts = Experts::counts(config, (64, 8))?;
    let experts = Experts::new("mlp.gate", counts, routing, |expert| {
        common.mlp(&format!("mlp.experts.{expert}."), common.dims.intermediate)
    });
    layer.fused = experts.in_two_tensors("mlp.experts.", common.dims.hidden);
    layer.mlp = Mlp::Experts(experts);
    Ok(LlamaLike::uniform(&common, layer))
}

fn layer_of(config: &Config<'_>, mut layer: LayerKind) -> Result<LayerKind, ModelError> {
    layer.attention.set_bias(config.flag_or("attention_bias", false)?);
    layer.attention.norms = HeadNorms::OfAll;
    Ok(layer)
}
