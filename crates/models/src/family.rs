//! What every family says of itself, as data, and the list of families.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use oq_let::Site;
use oq_quant_core::SiteKind;
use serde_json::Value;
use tch::Tensor;

use crate::block::BlockOps;
use crate::config::Config;
use crate::error::ModelError;
use crate::rope::Rotary;
use crate::rotate::{LayerResidual, Residual};
use crate::{falcon, llama, opt};

/// What a head of its own is called in all families.
pub(crate) const LM_HEAD: &str = "lm_head.weight";

/// A linear of a block, by its name in the checkpoint below the block's prefix: `self_attn.q_proj`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LinearName(pub &'static str);

impl LinearName {
    /// Name of its weight's tensor.
    pub fn weight(self) -> String {
        format!("{}.weight", self.0)
    }

    /// Name of its bias's tensor.
    pub fn bias(self) -> String {
        format!("{}.bias", self.0)
    }
}

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

/// How a layer attends.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Attention {
    /// Query heads.
    pub n_heads: usize,
    /// Key and value heads.
    pub n_kv_heads: usize,
    /// Channels of a head.
    pub head_dim: usize,
    /// What scores are multiplied by; `head_dim^-0.5` where there is none.
    pub scale: Option<f64>,
    /// Bound of scores: they become `softcap * tanh(score / softcap)` before masks are added.
    pub softcap: Option<f64>,
}

/// Everything a layer is made of. Layers of one model may differ.
#[derive(Clone, Debug, PartialEq)]
pub struct Layer {
    /// The linears, in the order of the forward.
    pub linears: Vec<Linear>,
    /// Norms and the like.
    pub params: Vec<Param>,
    /// Linears that read one input and are asked for at once ([`BlockOps::linears`]).
    pub together: Vec<Vec<LinearName>>,
    /// How it attends.
    pub attention: Attention,
    /// Width inside the MLP.
    pub intermediate: usize,
}

impl Layer {
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

/// A name that lives as long as the program, for names that are made while a model is opened: of experts, say. Each is kept once.
pub fn intern(name: &str) -> &'static str {
    static NAMES: Mutex<BTreeSet<&'static str>> = Mutex::new(BTreeSet::new());
    // A panic elsewhere leaves the set whole.
    let mut names = NAMES.lock().unwrap_or_else(PoisonError::into_inner);
    match names.get(name) {
        Some(known) => known,
        None => {
            let name: &'static str = Box::leak(name.to_owned().into_boxed_str());
            names.insert(name);
            name
        }
    }
}

/// The module that a weight belongs to: `input_layernorm` of `input_layernorm.weight`.
pub(crate) fn module(weight: &'static str) -> &'static str {
    weight.strip_suffix(".weight").unwrap_or(weight)
}

/// Sizes of a decoder, as its config names them. Heads and the width inside the MLP are those of its layers where these do not differ;
/// [`Layer`] has each layer's own.
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
