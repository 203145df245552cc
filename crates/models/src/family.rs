//! What every family says of itself, as data, and the list of families.

use std::ops::Range;

use oq_let::Site;
use oq_quant_core::SiteKind;
use serde_json::Value;
use tch::Tensor;

use crate::block::BlockOps;
use crate::config::Config;
use crate::error::ModelError;
use crate::rope::Rotary;
use crate::rotate::Residual;
use crate::{falcon, llama, opt};

/// What a head of its own is called in all families.
pub(crate) const LM_HEAD: &str = "lm_head.weight";

/// A linear of a block, by its name in the checkpoint below the block's prefix: `self_attn.q_proj`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LinearName(pub &'static str);

/// A linear's place and size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Linear {
    /// Its name.
    pub name: LinearName,
    /// Rows of its weight.
    pub out_features: usize,
    /// Columns of its weight.
    pub in_features: usize,
    /// Whether it has a bias.
    pub bias: bool,
}

/// A tensor that is not a linear's, with its shape.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Param {
    /// Name in the checkpoint (below the block's prefix, for a block's).
    pub name: &'static str,
    /// Its shape.
    pub shape: Vec<usize>,
}

/// Everything a block is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockLayout {
    /// The linears, in the order of the forward.
    pub linears: Vec<Linear>,
    /// Norms and the like.
    pub params: Vec<Param>,
    /// Linears that read one input and are asked for at once ([`BlockOps::linears`]).
    pub together: &'static [&'static [LinearName]],
}

impl BlockLayout {
    /// All linears, those that are asked for at once side by side.
    pub fn groups(&self) -> Vec<Vec<Linear>> {
        let mut groups: Vec<Vec<Linear>> = Vec::new();
        for &linear in &self.linears {
            let together = self.together.iter().find(|names| names.contains(&linear.name));
            let is_of = |group: &&mut Vec<Linear>| together.is_some_and(|names| names.contains(&group[0].name));
            match groups.iter_mut().find(is_of) {
                Some(group) => group.push(linear),
                None => groups.push(vec![linear]),
            }
        }
        groups
    }
}

/// The module that a weight belongs to: `input_layernorm` of `input_layernorm.weight`.
pub(crate) fn module(weight: &'static str) -> &'static str {
    weight.strip_suffix(".weight").unwrap_or(weight)
}

/// Sizes of a decoder.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Dims {
    /// Number of blocks.
    pub n_layers: usize,
    /// Width of the hidden state.
    pub hidden: usize,
    /// Width inside the MLP.
    pub intermediate: usize,
    /// Query heads.
    pub n_heads: usize,
    /// Key and value heads.
    pub n_kv_heads: usize,
    /// Channels of a head.
    pub head_dim: usize,
    /// Entries of the vocabulary.
    pub vocab: usize,
    /// Longest context it was trained for.
    pub max_positions: usize,
}

/// What depends on the positions only and is shared by all blocks.
#[derive(Debug, Default)]
pub struct Context {
    /// Rotary embedding of queries and keys, where the family has one.
    pub rotary: Option<Rotary>,
    /// Added to scaled attention scores in place of the plain causal mask, `[n_heads or 1, t, all positions up to the last]`.
    pub mask: Option<Tensor>,
}

impl Context {
    /// Queries or keys `[b, heads, t, d]` turned by their positions, or as they are where nothing turns.
    pub fn turn(&self, x: &Tensor) -> Tensor {
        self.rotary.as_ref().map_or_else(|| x.shallow_clone(), |rotary| rotary.turn(x))
    }
}

/// The tensors outside the blocks, as a forward needs them.
pub trait OuterOps {
    /// Rows of a table: `ids [..]` (i64) -> `[.., width]` f32.
    fn rows(&self, table: &str, ids: &Tensor) -> Result<Tensor, ModelError>;
    /// A whole tensor, f32.
    fn param(&self, name: &str) -> Result<Tensor, ModelError>;
}

/// A family with its config read: sizes, names and forward.
pub trait Decoder: Send + Sync {
    /// Its sizes.
    fn dims(&self) -> Dims;
    /// What block tensors' names begin with: `model.layers.3.`.
    fn block_prefix(&self, block_idx: usize) -> String;
    /// What each block is made of.
    fn block_layout(&self) -> BlockLayout;
    /// Where channels of a block may be rescaled, with their ties, or why there is no such place.
    fn sites(&self, kind: SiteKind) -> Result<Vec<Site>, &'static str>;
    /// What stands on the residual stream, or why it cannot be rotated.
    fn residual(&self) -> Result<Residual, &'static str>;
    /// The tensors outside the blocks: embedding first, then last norm, head.
    fn outer_params(&self) -> Vec<Param>;
    /// Name of the matrix that makes logits, `[vocab, width]`; the embedding's where the two are tied.
    fn head(&self) -> &'static str;
    /// What the positions of a sequence, or of a part of it that follows others, share over all blocks. Without a mask, each
    /// position sees all before it.
    fn context_at(&self, positions: Range<usize>, device: tch::Device) -> Context;
    /// What `t` positions from 0 share over all blocks.
    fn context(&self, t: usize, device: tch::Device) -> Context {
        self.context_at(0..t, device)
    }
    /// Heads of the mask that [`Self::context`] holds for `t` positions; 0 where there is none.
    fn mask_heads(&self, _t: usize) -> usize {
        0
    }
    /// Ids at the positions from `first` on: `ids [b, t]` -> `[b, t, hidden]`.
    fn embed_at(&self, outer: &dyn OuterOps, ids: &Tensor, first: usize) -> Result<Tensor, ModelError>;
    /// `ids [b, t]` -> `[b, t, hidden]`.
    fn embed(&self, outer: &dyn OuterOps, ids: &Tensor) -> Result<Tensor, ModelError> {
        self.embed_at(outer, ids, 0)
    }
    /// One block: `x [b, t, hidden]` -> `[b, t, hidden]`.
    fn block(&self, ops: &dyn BlockOps, ctx: &Context, x: &Tensor) -> Tensor;
    /// What stands between the last block and the head: `[.., hidden]` -> `[.., width of the head]`.
    fn finish(&self, outer: &dyn OuterOps, x: &Tensor) -> Result<Tensor, ModelError>;
}

/// An entry of [`FAMILIES`].
pub struct Family {
    /// Values of `model_type` it reads.
    pub model_types: &'static [&'static str],
    /// Reads a `config.json`.
    pub read: fn(&Value) -> Result<Box<dyn Decoder>, ModelError>,
}

/// All families.
pub static FAMILIES: &[Family] = &[llama::FAMILY, opt::FAMILY, falcon::FAMILY];

/// Reads a `config.json` by its `model_type`.
pub fn decoder_of(json: &Value) -> Result<Box<dyn Decoder>, ModelError> {
    let config = Config::new(json);
    let model_type = config.text("model_type")?.ok_or_else(|| config.wrong("model_type", "a name is needed"))?;
    match FAMILIES.iter().find(|family| family.model_types.contains(&model_type)) {
        Some(family) => (family.read)(json),
        None => {
            let known: Vec<&str> = FAMILIES.iter().flat_map(|family| family.model_types).copied().collect();
            Err(ModelError::UnknownArchitecture { model_type: model_type.to_owned(), known: known.join(", ") })
        }
    }
}
