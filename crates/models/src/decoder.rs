//! What every family says of itself.

use std::ops::Range;

use oq_let::Site;
use oq_quant_core::SiteKind;
use serde_json::Value;
use tch::Tensor;

use crate::block::BlockOps;
use crate::error::ModelError;
use crate::rope::Rotary;
use crate::structure::{Attention, Dims, Layer, LayerResidual, Param, Residual};

/// What a head of its own is called in all families.
pub(crate) const LM_HEAD: &str = "lm_head.weight";

/// What depends on the positions only and is shared by all layers of a kind.
#[derive(Debug, Default)]
pub struct LayerContext {
    /// Rotary embedding of queries and keys, where there is one.
    pub rotary: Option<Rotary>,
    /// Added to scaled attention scores in place of the plain causal mask, `[n_heads or 1, t, all positions up to the last]`.
    pub mask: Option<Tensor>,
}

impl LayerContext {
    /// Queries or keys `[b, heads, t, d]` turned by their positions, or as they are where nothing turns.
    pub fn turn(&self, x: &Tensor) -> Tensor {
        self.rotary.as_ref().map_or_else(|| x.shallow_clone(), |rotary| rotary.turn(x))
    }
}

/// What depends on the positions only, made once for each kind of layer that a model has. Kinds are the family's own numbers.
#[derive(Debug)]
pub struct Context {
    kinds: Vec<LayerContext>,
}

impl Context {
    /// Of kinds 0, 1, ..
    pub fn of_kinds(kinds: Vec<LayerContext>) -> Self {
        Self { kinds }
    }

    /// Of layers that are all of kind 0.
    pub fn uniform(rotary: Option<Rotary>, mask: Option<Tensor>) -> Self {
        Self { kinds: vec![LayerContext { rotary, mask }] }
    }

    /// What layers of a kind share.
    ///
    /// # Panics
    /// When there is no such kind.
    pub fn of(&self, kind: usize) -> &LayerContext {
        &self.kinds[kind]
    }
}

/// What becomes of the products of last hidden states and the head before they are logits: `softcap * tanh(scale * x / softcap)`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Logits {
    /// What they are multiplied by.
    pub scale: f64,
    /// Their bound, where there is one.
    pub softcap: Option<f64>,
}

impl Default for Logits {
    /// They are the logits.
    fn default() -> Self {
        Self { scale: 1.0, softcap: None }
    }
}

impl Logits {
    /// Logits of products, in their shape.
    pub fn apply(&self, products: Tensor) -> Tensor {
        let scaled = if self.scale == 1.0 { products } else { products * self.scale };
        match self.softcap {
            None => scaled,
            Some(cap) => (scaled / cap).tanh() * cap,
        }
    }

    /// Derivative of logits with respect to the products that they come from, in their shape; none where it is 1.
    pub fn slope(&self, logits: &Tensor) -> Option<Tensor> {
        match self.softcap {
            None if self.scale == 1.0 => None,
            None => Some(logits.ones_like() * self.scale),
            Some(cap) => Some((1.0 - (logits / cap).square()) * self.scale),
        }
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
    /// What a layer is made of.
    fn layer(&self, layer: usize) -> Layer;
    /// Where channels of a layer may be rescaled, with their ties, or why there is no such place.
    fn sites(&self, layer: usize, kind: SiteKind) -> Result<Vec<Site>, &'static str>;
    /// What stands on the residual stream, or why it cannot be rotated.
    fn residual(&self) -> Result<Residual, &'static str>;
    /// What of a layer stands on it, where the model can be rotated.
    fn residual_of(&self, layer: usize) -> LayerResidual;
    /// The tensors outside the blocks: embedding first, then last norm, head.
    fn outer_params(&self) -> Vec<Param>;
    /// Name of the matrix that makes logits, `[vocab, width]`; the embedding's where the two are tied.
    fn head(&self) -> &'static str;
    /// What the positions of a sequence, or of a part of it that follows others, share over all layers of a kind. Without a mask, each
    /// position sees all before it.
    fn context_at(&self, positions: Range<usize>, device: tch::Device) -> Context;
    /// What `t` positions from 0 share.
    fn context(&self, t: usize, device: tch::Device) -> Context {
        self.context_at(0..t, device)
    }
    /// Heads of the mask that [`Self::context`] holds of `t` positions for a layer; 0 where there is none.
    fn mask_heads(&self, _layer: usize, _t: usize) -> usize {
        0
    }
    /// Whether a layer's scores over `t` positions are causal and nothing else, as our own attention has them.
    fn has_plain_scores(&self, layer: usize, t: usize) -> bool {
        let Attention { scale, softcap, .. } = self.layer(layer).attention;
        self.mask_heads(layer, t) == 0 && scale.is_none() && softcap.is_none()
    }
    /// What becomes of the products with the head.
    fn logits(&self) -> Logits {
        Logits::default()
    }
    /// Ids at the positions from `first` on: `ids [b, t]` -> `[b, t, hidden]`.
    fn embed_at(&self, outer: &dyn OuterOps, ids: &Tensor, first: usize) -> Result<Tensor, ModelError>;
    /// `ids [b, t]` -> `[b, t, hidden]`.
    fn embed(&self, outer: &dyn OuterOps, ids: &Tensor) -> Result<Tensor, ModelError> {
        self.embed_at(outer, ids, 0)
    }
    /// One layer: `x [b, t, hidden]` -> `[b, t, hidden]`.
    fn block(&self, layer: usize, ops: &dyn BlockOps, ctx: &Context, x: &Tensor) -> Tensor;
    /// What stands between the last block and the head: `[.., hidden]` -> `[.., width of the head]`.
    fn finish(&self, outer: &dyn OuterOps, x: &Tensor) -> Result<Tensor, ModelError>;
}

/// An entry of [`crate::FAMILIES`].
pub struct Family {
    /// Values of `model_type` it reads.
    pub model_types: &'static [&'static str],
    /// Reads a `config.json`.
    pub read: fn(&Value) -> Result<Box<dyn Decoder>, ModelError>,
}
