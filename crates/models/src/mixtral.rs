//! Mixtral (arXiv 2401.04088): Mistral with experts.

use serde_json::Value;

use crate::config::Config;
use crate::decoder::Family;
use crate::error::ModelError;
use crate::llama_like::keys::{Common, Defaults};
use crate::llama_like::{Experts, GateUp, GatedMlp, Gating, LayerKind, LlamaLike, Mlp, Routing};
use crate::rope;
use crate::structure::{LinearName, intern};

/// The entry in [`crate::FAMILIES`].
pub const FAMILY: Family = Family { model_types: &["mixtral"], read: |json| Ok(Box::new(read(json)?)) };

fn read(json: &Value) -> Result<LlamaLike, ModelError> {
    let config = Config::new(json);
    let defaults = Defaults { kv_heads: Some(8), positions: 131_072, eps: 1e-5, ..Defaults::LLAMA };
    let common = Common::read(&config, &defaults)?;
    let rope = rope::read(&config, &rope::Defaults { theta: 1e6, ..rope::Defaults::of(&common.dims) }, None)?;
    let mut layer = LayerKind::plain(&common, &rope).with_window(config.size_or_none("sliding_window")?);
    let counts = Experts::counts(&config, (8, 2))?;
    let routing = Routing::SoftmaxOfAll { normalized: true };
    layer.mlp = Mlp::Experts(Experts::new("block_sparse_moe.gate", counts, routing, |expert| {
        let name = |which| LinearName(intern(&format!("block_sparse_moe.experts.{expert}.{which}")));
        GatedMlp {
            gate_up: GateUp::Two([name("w1"), name("w3")]),
            down: name("w2"),
            width: common.dims.intermediate,
            bias: false,
            gating: Gating::Plain(common.activation),
        }
    }));
    Ok(LlamaLike::uniform(&common, layer))
}
