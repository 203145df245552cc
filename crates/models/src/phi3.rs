//! Phi 3, Phi 3.5 and Phi 4 (arXiv 2404.14219, 2412.08905).
//!
//! One linear computes queries, keys and values, and one both parts of the gated MLP. Some models rotate a part of each head's channels,
//! and extend their context by a divisor for each frequency.

use serde_json::Value;

use crate::config::Config;
use crate::decoder::Family;
use crate::error::ModelError;
use crate::llama_like::keys::{Common, Defaults};
use crate::llama_like::{LayerKind, LlamaLike};
use crate::rope;

/// The entry in [`crate::FAMILIES`].
pub const FAMILY: Family = Family { model_types: &["phi3"], read: |json| Ok(Box::new(read(json)?)) };

fn read(json: &Value) -> Result<LlamaLike, ModelError> {
    let config = Config::new(json);
    let common = Common::read(&config, &Defaults { positions: 4096, eps: 1e-5, ..Defaults::LLAMA })?;
    let of_dims = rope::Defaults::of(&common.dims);
    let rope = rope::read(&config, &rope::Defaults { original: Some(4096), partial: Some(1.0), ..of_dims }, None)?;
    let mut layer = LayerKind::plain(&common, &rope).with_window(config.size_or_none("sliding_window")?);
    layer.attention.is_fused = true;
    layer.fuse_gate_up();
    Ok(LlamaLike::uniform(&common, layer))
}
