//! GLM-4-0414: norms before and behind attention and MLP, and a rotary embedding of neighbouring channels in half of each head.

use serde_json::Value;

use crate::config::Config;
use crate::decoder::Family;
use crate::error::ModelError;
use crate::llama_like::keys::{Common, Defaults};
use crate::llama_like::{LayerKind, LlamaLike, Norms};
use crate::rope::{self, Rope};

/// The entry in [`crate::FAMILIES`].
pub const FAMILY: Family = Family { model_types: &["glm4"], read: |json| Ok(Box::new(read(json)?)) };

const NORMS: Norms = Norms {
    before_attention: Some("input_layernorm.weight"),
    after_attention: Some("post_self_attn_layernorm.weight"),
    before_mlp: Some("post_attention_layernorm.weight"),
    after_mlp: Some("post_mlp_layernorm.weight"),
};

fn read(json: &Value) -> Result<LlamaLike, ModelError> {
    let config = Config::new(json);
    let common = Common::read(
        &config,
        &Defaults {
            kv_heads: Some(2),
            positions: 131_072,
            head_dim: Some(128),
            eps: 0.000_000_156_25,
            ..Defaults::LLAMA
        },
    )?;
    let of_dims = rope::Defaults::of(&common.dims);
    let rope = rope::read(&config, &rope::Defaults { partial: Some(0.5), ..of_dims }, None)?;
    let mut layer = LayerKind { norms: NORMS, ..LayerKind::plain(&common, &Rope { interleaved: true, ..rope }) };
    layer.attention.qkv_bias = config.flag_or("attention_bias", true)?;
    layer.fuse_gate_up();
    Ok(LlamaLike::uniform(&common, layer))
}
