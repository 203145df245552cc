//! The interface that every family implements.

use std::ops::Range;

use oq_let::Site;
use oq_quant_core::SiteKind;
use serde_json::Value;
use tch::Tensor;

use crate::block::BlockOps;
use crate::error::ModelError;
use crate::rope::Rotary;
use crate::structure::{Attention, Dims, Fused, Layer, LayerResidual, Param, Residual};

/// Name of an untied head's matrix, in all families.
pub(crate) const LM_HEAD: &str = "lm_head.weight";

/// Rotary tables and mask. They depend on positions only, and all layers of a kind share them.
#[derive(Debug, Default)]
pub struct LayerContext {
    /// Rotary embedding of queries and keys, if the layers have one.
    pub rotary: Option<Rotary>,
    /// Factor of queries by their position, `[t, 1]`, if there is one.
    pub query_scale: Option<Tensor>,
    /// Added to scaled attention scores in place of the causal mask, `[n_heads or 1, t, end]`, where `end` counts all positions so far.
    pub mask: Option<Tensor>,
}

impl LayerContext {
    /// Applies the rotary embedding, if there is one, to queries or keys `[b, heads, t, d]`.
    pub fn rotate(&self, x: &Tensor) -> Tensor {
        self.rotary.as_ref().map_or_else(|| x.shallow_clone(), |rotary| rotary.rotate(x))
    }
}

/// One [`LayerContext`] for each kind of layer. A family numbers its kinds from 0.
#[derive(Debug)]
pub struct Context {
    kinds: Vec<LayerContext>,
}

impl Context {
    /// For kinds 0, 1, ..
    pub fn of_kinds(kinds: Vec<LayerContext>) -> Self {
        Self { kinds }
    }

    /// For a model whose layers are all of kind 0.
    pub fn uniform(rotary: Option<Rotary>, mask: Option<Tensor>) -> Self {
        Self { kinds: vec![LayerContext { rotary, query_scale: None, mask }] }
    }

    /// The same for tokens at these positions, `[n]`, which may repeat, as where several sequences are computed as one. Masks stay those of
    /// all positions.
    #[must_use]
    pub fn at(&self, positions: &Tensor) -> Self {
        let rows = |table: &Tensor| table.index_select(0, positions);
        let kind = |kind: &LayerContext| LayerContext {
            rotary: kind.rotary.as_ref().map(|rotary| Rotary {
                cos: rows(&rotary.cos),
                sin: rows(&rotary.sin),
                interleaved: rotary.interleaved,
            }),
            query_scale: kind.query_scale.as_ref().map(rows),
            mask: kind.mask.as_ref().map(Tensor::shallow_clone),
        };
        Self { kinds: self.kinds.iter().map(kind).collect() }
    }

    /// For several sequences that are computed as one: positions of one after the other, and masks of `self`, all positions.
    #[must_use]
    pub fn joined(&self, sequences: &[Self]) -> Self {
        let join = |of: &dyn Fn(&LayerContext) -> Option<Tensor>, kind: usize| {
            let parts: Option<Vec<Tensor>> = sequences.iter().map(|context| of(&context.kinds[kind])).collect();
            parts.filter(|parts| !parts.is_empty()).map(|parts| Tensor::cat(&parts, 0))
        };
        let rotary = |of: &dyn Fn(&Rotary) -> &Tensor, kind: usize| {
            join(&|context| context.rotary.as_ref().map(|rotary| of(rotary).shallow_clone()), kind)
        };
        let kind = |(idx, kind): (usize, &LayerContext)| LayerContext {
            rotary: kind.rotary.as_ref().and_then(|whole| {
                let (cos, sin) = (rotary(&|rotary| &rotary.cos, idx)?, rotary(&|rotary| &rotary.sin, idx)?);
                Some(Rotary { cos, sin, interleaved: whole.interleaved })
            }),
            query_scale: join(&|context| context.query_scale.as_ref().map(Tensor::shallow_clone), idx),
            mask: kind.mask.as_ref().map(Tensor::shallow_clone),
        };
        Self { kinds: self.kinds.iter().enumerate().map(kind).collect() }
    }

    /// The context of a kind.
    ///
    /// # Panics
    /// When there is no such kind.
    pub fn of(&self, kind: usize) -> &LayerContext {
        &self.kinds[kind]
    }
}

/// How logits are computed from the products `x` of hidden states and head: `softcap * tanh(scale * x / softcap)`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Logits {
    /// Factor of the products.
    pub scale: f64,
    /// Bound of the logits; `None` applies the scale only.
    pub softcap: Option<f64>,
}

impl Default for Logits {
    /// Logits are the products themselves.
    fn default() -> Self {
        Self { scale: 1.0, softcap: None }
    }
}

impl Logits {
    /// Computes logits from products; the shape stays.
    pub fn apply(&self, products: Tensor) -> Tensor {
        let scaled = if self.scale == 1.0 { products } else { products * self.scale };
        match self.softcap {
            None => scaled,
            Some(cap) => (scaled / cap).tanh() * cap,
        }
    }

    /// Derivative of each logit with respect to its product, in the shape of `logits`. `None` if it is 1 everywhere.
    pub fn slope(&self, logits: &Tensor) -> Option<Tensor> {
        match self.softcap {
            None if self.scale == 1.0 => None,
            None => Some(logits.ones_like() * self.scale),
            Some(cap) => Some((1.0 - (logits / cap).square()) * self.scale),
        }
    }
}

/// Access to the tensors outside the blocks.
pub trait OuterOps {
    /// Looks up rows of a table: `ids [..]` (i64) -> `[.., width]` f32.
    fn rows(&self, table: &str, ids: &Tensor) -> Result<Tensor, ModelError>;
    /// A whole tensor in f32.
    fn param(&self, name: &str) -> Result<Tensor, ModelError>;
}

/// A model's architecture, read from its config: sizes, names and forward pass.
pub trait Decoder: Send + Sync {
    /// Its sizes.
    fn dims(&self) -> Dims;
    /// Prefix of a block's tensor names: `model.layers.3.`.
    fn block_prefix(&self, block_idx: usize) -> String;
    /// The structure of a layer.
    fn layer(&self, layer: usize) -> Layer;
    /// Tensors of a layer that hold several linears in some checkpoints.
    fn fused(&self, _layer: usize) -> Vec<Fused> {
        Vec::new()
    }
    /// The sites of a kind for the equivalent transformation of a layer, or the reason why it has none.
    fn sites(&self, layer: usize, kind: SiteKind) -> Result<Vec<Site>, &'static str>;
    /// The tensors outside the blocks that read or write the residual stream, or the reason why it cannot be rotated.
    fn residual(&self) -> Result<Residual, &'static str>;
    /// The tensors of a layer that read or write the residual stream. Called only if [`Self::residual`] gives no reason against rotation.
    fn residual_of(&self, layer: usize) -> LayerResidual;
    /// The tensors outside the blocks; the embedding comes first.
    fn outer_params(&self) -> Vec<Param>;
    /// Name of the head's matrix, `[vocab, width]`; the embedding's if the two are tied.
    fn head(&self) -> &'static str;
    /// Rotary tables and masks for positions of a sequence, which may follow earlier positions. A context without a mask means causal
    /// attention.
    fn context_at(&self, positions: Range<usize>, device: tch::Device) -> Context;
    /// [`Self::context_at`] for positions `0..t`.
    fn context(&self, t: usize, device: tch::Device) -> Context {
        self.context_at(0..t, device)
    }
    /// Number of heads in the mask that [`Self::context`] builds for `t` positions and a layer; 0 if there is no mask.
    fn mask_heads(&self, _layer: usize, _t: usize) -> usize {
        0
    }
    /// Whether a layer's attention over `t` positions has only the causal mask and the default scale, as `oq-attention` needs.
    fn has_plain_scores(&self, layer: usize, t: usize) -> bool {
        let Attention { scale, softcap, sinks, .. } = self.layer(layer).attention;
        self.mask_heads(layer, t) == 0 && scale.is_none() && softcap.is_none() && !sinks
    }
    /// How logits are computed from the products with the head.
    fn logits(&self) -> Logits {
        Logits::default()
    }
    /// Embeds token ids at the positions from `first` on: `ids [b, t]` -> `[b, t, hidden]`.
    fn embed_at(&self, outer: &dyn OuterOps, ids: &Tensor, first: usize) -> Result<Tensor, ModelError>;
    /// [`Self::embed_at`] from position 0: `ids [b, t]` -> `[b, t, hidden]`.
    fn embed(&self, outer: &dyn OuterOps, ids: &Tensor) -> Result<Tensor, ModelError> {
        self.embed_at(outer, ids, 0)
    }
    /// Forward pass of one layer: `x [b, t, hidden]` -> `[b, t, hidden]`.
    fn block(&self, layer: usize, ops: &dyn BlockOps, ctx: &Context, x: &Tensor) -> Tensor;
    /// Applies what comes between the last block and the head: `[.., hidden]` -> `[.., width of the head]`.
    fn finish(&self, outer: &dyn OuterOps, x: &Tensor) -> Result<Tensor, ModelError>;
}

/// An entry of [`crate::FAMILIES`].
pub struct Family {
    /// Values of `model_type` that it reads.
    pub model_types: &'static [&'static str],
    /// Reads a `config.json`.
    pub read: fn(&Value) -> Result<Box<dyn Decoder>, ModelError>,
}
