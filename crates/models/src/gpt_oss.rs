//! GPT-OSS (arXiv 2508.10925): experts, sinks in attention, and a sliding window in every other layer.
//!
//! All linears have biases. Gate and up of an expert are one linear with rows in turns, and are clamped. The experts of a layer are stored
//! as one tensor, `[experts, in, out]`.

use serde_json::Value;

use crate::config::Config;
use crate::decoder::Family;
use crate::error::ModelError;
use crate::llama_like::keys::{Common, Defaults, sliding_layers};
use crate::llama_like::{Experts, GateUp, GatedMlp, Gating, LayerKind, LlamaLike, Mlp, Routing};
use crate::rope::{self, Rope, Scaling};
use crate::structure::{Fused, LinearName, intern};

/// The entry in [`crate::FAMILIES`].
pub const FAMILY: Family = Family { model_types: &["gpt_oss"], read: |json| Ok(Box::new(read(json)?)) };

fn read(json: &Value) -> Result<LlamaLike, ModelError> {
    let config = Config::new(json);
    let defaults = Defaults { kv_heads: Some(8), positions: 131_072, head_dim: Some(64), eps: 1e-5, ..Defaults::LLAMA };
    let common = Common::read(&config, &defaults)?;
    let mut full = LayerKind::plain(&common, &rope_of(&config, &common)?);
    let bias = config.flag_or("attention_bias", true)?;
    (full.attention.qkv_bias, full.attention.out_bias) = (bias, bias);
    full.attention.shape.sinks = true;
    set_experts(&config, &common, &mut full)?;
    let window = full.with_window(Some(config.size_or("sliding_window", 128)?));
    let slides = sliding_layers(&config, common.dims.n_layers, |layer| layer.is_multiple_of(2))?;
    let layers = slides.into_iter().map(|slides| if slides { window.clone() } else { full.clone() });
    Ok(LlamaLike::of_layers(&common, layers))
}

fn rope_of(config: &Config<'_>, common: &Common) -> Result<Rope, ModelError> {
    let defaults = rope::Defaults { theta: 150_000.0, ..rope::Defaults::of(&common.dims) };
    if ["rope_parameters", "rope_scaling"].iter().any(|key| config.get(key).is_some()) {
        return rope::read(config, &defaults, None);
    }
    let (factor, original_max_positions) = (32f64, 4096.0);
    Ok(Rope {
        scaling: Scaling::Yarn {
            factor,
            beta_fast: 32.0,
            beta_slow: 1.0,
            original_max_positions,
            attention_factor: 0.1 * factor.ln() + 1.0,
            truncate: false,
        },
        ..rope::plain(&defaults, config.number_or("rope_theta", defaults.theta)?)
    })
}

fn set_experts(config: &Config<'_>, common: &Common, layer: &mut LayerKind) -> Result<(), ModelError> {
    let n = config.size_or("num_local_experts", 128)?;
    let chosen = config.size_or("num_experts_per_tok", 4)?;
    let gating = Gating::Clamped {
        alpha: config.number_or("swiglu_alpha", 1.702)?,
        limit: config.number_or("swiglu_limit", 7.0)?,
    };
    let name = |which: &str, expert: usize| LinearName(intern(&format!("mlp.experts.{expert}.{which}")));
    let of_expert = |expert| GatedMlp {
        gate_up: GateUp::Interleaved(name("gate_up_proj", expert)),
        down: name("down_proj", expert),
        width: common.dims.intermediate,
        bias: true,
        gating,
    };
    let experts = Experts::separate(config, "mlp.router", (n, chosen), Routing::SoftmaxOfChosen, of_expert)?;
    for which in ["gate_up_proj", "down_proj"] {
        let parts = |of: &dyn Fn(LinearName) -> String| (0..n).map(|e| intern(&of(name(which, e)))).collect();
        let stored = |end: &str| intern(&format!("mlp.experts.{which}{end}"));
        layer.fused.push(Fused { name: stored(""), parts: parts(&LinearName::weight), transposed: true });
        layer.fused.push(Fused { name: stored("_bias"), parts: parts(&LinearName::bias), transposed: false });
    }
    layer.mlp = Mlp::Experts(Experts { router_bias: true, ..experts });
    Ok(())
}
