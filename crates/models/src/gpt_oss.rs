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
use crate::structure::{Dims, Fused, LinearName, intern};

/// The entry in [`crate::FAMILIES`].
pub const FAMILY: Family = Family { model_types: &["gpt_oss"], read: |json| Ok(Box::new(read(json)?)) };

fn read(json: &Value) -> Result<LlamaLike, ModelError> {
    let config = Config::new(json);
    let defaults = Defaults { kv_heads: Some(8), positions: 131_072, head_dim: Some(64), eps: 1e-5, ..Defaults::LLAMA };
    let common = Common::read(&config, &defaults)?;
    let mut full = LayerKind::plain(&common, &rope_of(&config, &common)?);
    full.attention.set_bias(config.flag_or("attention_bias", true)?);
    full.attention.shape.sinks = true;
    set_experts(&config, &common, &mut full)?;
    let window = full.with_window(Some(config.size_or("sliding_window", 128)?));
    let slides = sliding_layers(&config, common.dims.n_layers, |layer| layer.is_multiple_of(2))?;
    Ok(LlamaLike::with_windows(&common, slides, &window, &full))
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
    let (n, chosen) = Experts::counts(config, (128, 4))?;
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
    let experts = Experts::new("mlp.router", (n, chosen), Routing::SoftmaxOfChosen, of_expert);
    let Dims { hidden, intermediate, .. } = common.dims;
    for (which, [rows, columns]) in
        [("gate_up_proj", [2 * intermediate, hidden]), ("down_proj", [hidden, intermediate])]
    {
        let of_all = |end: &str, part: &str, shape: &[usize], transposed| Fused {
            name: intern(&format!("mlp.experts.{which}{end}")),
            parts: (0..n).map(|expert| intern(&format!("{}.{part}", name(which, expert).0))).collect(),
            shape: shape.to_vec(),
            transposed,
        };
        layer.fused.extend([
            of_all("", "weight", &[columns, rows], true),
            of_all("_bias", "bias", &[rows], false),
            // As published: 4-bit codes, two to a byte, and a scale for each group of 32.
            of_all("_blocks", "weight_packed", &[rows, columns / 2], false),
            of_all("_scales", "weight_scale", &[rows, columns.div_ceil(32)], false),
        ]);
    }
    layer.mlp = Mlp::Experts(Experts { router_bias: true, ..experts });
    Ok(())
}
