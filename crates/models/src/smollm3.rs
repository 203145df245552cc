//! SmolLM3: LLaMA with layers that have no rotary embedding.

use serde_json::Value;

use crate::config::Config;
use crate::decoder::Family;
use crate::error::ModelError;
use crate::llama_like::keys::{Common, Defaults, sliding_layers};
use crate::llama_like::{LayerKind, LlamaLike, Mlp};
use crate::rope;

/// The entry in [`crate::FAMILIES`].
pub const FAMILY: Family = Family { model_types: &["smollm3"], read: |json| Ok(Box::new(read(json)?)) };

fn read(json: &Value) -> Result<LlamaLike, ModelError> {
    let config = Config::new(json);
    let common =
        Common::read(&config, &Defaults { kv_heads: Some(4), positions: 32_768, tied: true, ..Defaults::LLAMA })?;
    let n_layers = common.dims.n_layers;
    let theta = 2e6;
    let rope = rope::read(&config, &rope::Defaults { theta, ..rope::Defaults::of(&common.dims) }, None)?;
    let mut plain = LayerKind::plain(&common, &rope);
    plain.attention.set_bias(config.flag_or("attention_bias", false)?);
    if let Mlp::Gated(mlp) = &mut plain.mlp {
        mlp.bias = config.flag_or("mlp_bias", false)?;
    }
    let rotates = rotating_layers(&config, n_layers)?;
    let window = config.flag_or("use_sliding_window", false)?.then(|| config.size_or_none("sliding_window"));
    let window = window.transpose()?.flatten();
    let slides = sliding_layers(&config, n_layers, |layer| window.is_some() && !rotates[layer])?;
    let window = window.or(config.size_or_none("sliding_window")?);
    Ok(LlamaLike::of_layers(&common, rotates.into_iter().zip(slides), |&(rotates, slides)| {
        let mut layer = plain.with_window(window.filter(|_| slides));
        layer.attention.rope = layer.attention.rope.filter(|_| rotates);
        layer
    }))
}

/// Which layers have a rotary embedding. The key's name says the opposite of its values.
fn rotating_layers(config: &Config<'_>, n_layers: usize) -> Result<Vec<bool>, ModelError> {
    const KEY: &str = "no_rope_layers";
    let Some(value) = config.get(KEY) else {
        let interval = config.size_or("no_rope_layer_interval", 4)?;
        return Ok((0..n_layers).map(|layer| !(layer + 1).is_multiple_of(interval)).collect());
    };
    let flags = value.as_array().filter(|flags| flags.len() >= n_layers);
    let flags = flags.and_then(|flags| flags[..n_layers].iter().map(|flag| Some(flag.as_u64()? != 0)).collect());
    flags.ok_or_else(|| config.wrong(KEY, format!("must be a list of {n_layers} zeros and ones")))
}
