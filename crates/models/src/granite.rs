//! Granite 3, dense and with experts.
//!
//! Embeddings, scores, what layers add to the residual stream, and logits have factors. The experts of a layer are stored as one tensor.

use serde_json::Value;

use crate::config::Config;
use crate::decoder::{Family, Logits};
use crate::error::ModelError;
use crate::llama_like::keys::{Common, Defaults};
use crate::llama_like::{Experts, GateUp, GatedMlp, Gating, LayerKind, LlamaLike, Mlp, Routing};
use crate::rope;
use crate::structure::{Dims, Fused, LinearName, intern};

/// The entry in [`crate::FAMILIES`].
pub const FAMILY: Family = Family { model_types: &["granite", "granitemoe"], read: |json| Ok(Box::new(read(json)?)) };

fn read(json: &Value) -> Result<LlamaLike, ModelError> {
    let config = Config::new(json);
    let common = Common::read(&config, &Defaults::LLAMA)?;
    let rope = rope::read(&config, &rope::Defaults::of(&common.dims), None)?;
    let mut layer = LayerKind::plain(&common, &rope);
    layer.attention.set_bias(config.flag_or("attention_bias", false)?);
    layer.attention.shape.scale = Some(config.number_or("attention_multiplier", 1.0)?);
    if config.text("model_type")? == Some("granitemoe") {
        set_experts(&config, &common, &mut layer)?;
    } else if let Mlp::Gated(mlp) = &mut layer.mlp {
        mlp.bias = config.flag_or("mlp_bias", false)?;
    }
    Ok(LlamaLike {
        embed_scale: config.number_or("embedding_multiplier", 1.0)?,
        residual_scale: config.number_or("residual_multiplier", 1.0)?,
        logits: Logits { scale: config.number_or("logits_scaling", 1.0)?.recip(), softcap: None },
        ..LlamaLike::uniform(&common, layer)
    })
}

fn set_experts(config: &Config<'_>, common: &Common, layer: &mut LayerKind) -> Result<(), ModelError> {
    let name = |which: &str, expert: usize| LinearName(intern(&format!("block_sparse_moe.{which}.{expert}")));
    let (n, chosen) = Experts::counts(config, (8, 2))?;
    let of_expert = |expert| GatedMlp {
        gate_up: GateUp::Halves(name("input_linear", expert)),
        down: name("output_linear", expert),
        width: common.dims.intermediate,
        bias: false,
        gating: Gating::Plain(common.activation),
    };
    let router = "block_sparse_moe.router.layer";
    layer.mlp = Mlp::Experts(Experts::new(router, (n, chosen), Routing::SoftmaxOfChosen, of_expert));
    let Dims { hidden, intermediate, .. } = common.dims;
    for (which, shape) in [("input_linear", [2 * intermediate, hidden]), ("output_linear", [hidden, intermediate])] {
        let stored = intern(&format!("block_sparse_moe.{which}.weight"));
        let parts = (0..n).map(|expert| intern(&name(which, expert).weight())).collect();
        layer.fused.push(Fused { name: stored, parts, shape: shape.to_vec(), transposed: false });
    }
    Ok(())
}
