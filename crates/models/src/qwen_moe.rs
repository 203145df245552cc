//! Qwen 2 and Qwen 3 with experts (arXiv 2407.10671, 2505.09388). Some layers may have a plain MLP. Qwen 2 has an MLP that sees every
//! token beside the chosen ones, and Qwen 3 normalizes the queries and keys of each head.

use serde_json::Value;

use crate::config::Config;
use crate::decoder::Family;
use crate::error::ModelError;
use crate::llama_like::keys::{Common, Defaults, sliding_layers};
use crate::llama_like::{Experts, HeadNorms, LayerKind, LlamaLike, Mlp, Routing, Shared};
use crate::rope;
use crate::structure::LinearName;

/// The entry in [`crate::FAMILIES`].
pub const FAMILY: Family = Family { model_types: &["qwen2_moe", "qwen3_moe"], read: |json| Ok(Box::new(read(json)?)) };

fn read(json: &Value) -> Result<LlamaLike, ModelError> {
    let config = Config::new(json);
    let is_3 = config.text("model_type")? == Some("qwen3_moe");
    let kv_heads = Some(if is_3 { 4 } else { 16 });
    let common = Common::read(&config, &Defaults { kv_heads, positions: 32_768, ..Defaults::LLAMA })?;
    let n_layers = common.dims.n_layers;
    let rope = rope::read(&config, &rope::Defaults::of(&common.dims), None)?;
    let mut dense = LayerKind::plain(&common, &rope);
    if is_3 {
        dense.attention.set_bias(config.flag_or("attention_bias", false)?);
        dense.attention.norms = HeadNorms::OfEach;
    } else {
        dense.attention.qkv_bias = config.flag_or("qkv_bias", true)?;
    }
    let mut sparse = dense.clone();
    let experts = experts_of(&config, &common, is_3)?;
    sparse.fused = experts.in_two_tensors("mlp.experts.", common.dims.hidden);
    sparse.mlp = Mlp::Experts(experts);

    let window = match (config.flag_or("use_sliding_window", false)?, config.is_written("sliding_window")) {
        (false, _) => None,
        (true, false) => Some(4096),
        (true, true) => config.size_or_none("sliding_window")?,
    };
    let last = config.count_or("max_window_layers", 28)?;
    let slides = match is_3 {
        true => vec![true; n_layers],
        false => sliding_layers(&config, n_layers, |layer| layer.is_multiple_of(2) && layer < last)?,
    };
    let layers = sparse_layers(&config, n_layers)?.into_iter().zip(slides);
    Ok(LlamaLike::of_layers(&common, layers, |&(is_sparse, slides)| {
        let layer = if is_sparse { &sparse } else { &dense };
        layer.with_window(window.filter(|_| slides))
    }))
}

fn experts_of(config: &Config<'_>, common: &Common, is_3: bool) -> Result<Experts, ModelError> {
    let counts = Experts::counts(config, if is_3 { (128, 8) } else { (60, 4) })?;
    let width = config.size_or("moe_intermediate_size", if is_3 { 768 } else { 1408 })?;
    let routing = Routing::SoftmaxOfAll { normalized: config.flag_or("norm_topk_prob", false)? };
    let of_expert = |expert| common.mlp(&format!("mlp.experts.{expert}."), width);
    let experts = Experts::new("mlp.gate", counts, routing, of_expert);
    let shared = match is_3 {
        true => None,
        false => {
            let width = config.size_or("shared_expert_intermediate_size", 5632)?;
            let gate = Some(LinearName("mlp.shared_expert_gate"));
            Some(Shared { mlp: common.mlp("mlp.shared_expert.", width), gate })
        }
    };
    Ok(Experts { shared, ..experts })
}

/// Which layers have experts.
fn sparse_layers(config: &Config<'_>, n_layers: usize) -> Result<Vec<bool>, ModelError> {
    const KEY: &str = "mlp_only_layers";
    let step = config.size_or("decoder_sparse_step", 1)?;
    let dense = match config.get(KEY) {
        None => Vec::new(),
        Some(list) => {
            let layers = list.as_array().and_then(|layers| layers.iter().map(Value::as_u64).collect());
            layers.ok_or_else(|| config.wrong(KEY, "must be a list of layers"))?
        }
    };
    Ok((0..n_layers).map(|layer| !dense.contains(&(layer as u64)) && (layer + 1).is_multiple_of(step)).collect())
}
