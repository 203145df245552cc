//! The structure of models and their layers, as data.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

use tch::Tensor;

/// Name of a block's linear in the checkpoint, without the block's prefix: `self_attn.q_proj`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LinearName(pub &'static str);

impl LinearName {
    /// Name of its weight tensor.
    pub fn weight(self) -> String {
        format!("{}.weight", self.0)
    }

    /// Name of its bias tensor.
    pub fn bias(self) -> String {
        format!("{}.bias", self.0)
    }
}

/// A linear's name and size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Linear {
    /// Its name.
    pub name: LinearName,
    /// Output features: rows of its weight.
    pub out_features: usize,
    /// Input features: columns of its weight.
    pub in_features: usize,
    /// Whether it has a bias.
    pub bias: bool,
}

/// A tensor that does not belong to a linear.
#[derive(Clone, Debug, PartialEq)]
pub struct Param {
    /// Name in the checkpoint, without the block's prefix for a tensor of a block.
    pub name: &'static str,
    /// Its shape.
    pub shape: Vec<usize>,
    /// What is added to the stored numbers: 1 for norms that are stored as their distance from 1, else 0.
    pub base: f64,
}

impl Param {
    /// A tensor that is stored as it is used.
    pub fn new(name: &'static str, shape: impl Into<Vec<usize>>) -> Self {
        Self { name, shape: shape.into(), base: 0.0 }
    }

    /// The tensor as it is used, from what is stored.
    pub fn value_of(&self, stored: Tensor) -> Tensor {
        if self.base == 0.0 { stored } else { stored + self.base }
    }

    /// What is stored of a tensor.
    pub fn stored_of(&self, value: &Tensor) -> Tensor {
        if self.base == 0.0 { value.shallow_clone() } else { value - self.base }
    }

    /// The same tensor, stored as the distance from `base`.
    pub fn above(self, base: f64) -> Self {
        Self { base, ..self }
    }
}

/// A tensor that holds parts of several linears in some checkpoints: `[n, ..]` for `n` parts. Experts are often stored so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fused {
    /// Its name, without the block's prefix.
    pub name: &'static str,
    /// The names of its parts, without the block's prefix: `experts.0.up_proj.weight`.
    pub parts: Vec<&'static str>,
    /// Whether the parts are matrices `[in, out]` instead of `[out, in]`.
    pub transposed: bool,
}

/// Parameters of a layer's attention.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Attention {
    /// Query heads.
    pub n_heads: usize,
    /// Key and value heads.
    pub n_kv_heads: usize,
    /// Channels of a head.
    pub head_dim: usize,
    /// Factor of the scores; `None` means `head_dim^-0.5`.
    pub scale: Option<f64>,
    /// Bound of the scores, which become `softcap * tanh(score / softcap)` before masks are added.
    pub softcap: Option<f64>,
    /// Whether each head has a sink: a score beside those of the keys, which takes its share of the softmax and adds nothing.
    pub sinks: bool,
}

/// The structure of a layer. Layers of one model may differ.
#[derive(Clone, Debug, PartialEq)]
pub struct Layer {
    /// The linears, in the order of the forward pass.
    pub linears: Vec<Linear>,
    /// All other tensors, such as norms.
    pub params: Vec<Param>,
    /// Groups of linears with the same input, which the forward pass computes with one call of [`crate::BlockOps::linears`].
    pub together: Vec<Vec<LinearName>>,
    /// The linears of each expert that a router chooses from; empty if there is no router. [`crate::BlockOps::tokens_of_expert`] counts
    /// experts as they are listed here.
    pub experts: Vec<Vec<LinearName>>,
    /// Its attention.
    pub attention: Attention,
    /// Width inside the MLP.
    pub intermediate: usize,
}

impl Layer {
    /// All linears, grouped as in `together`. A linear that is in no group is a group of its own.
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

/// Makes a name `'static` by leaking it, once per name. For names that are computed when a model is opened, such as those of experts.
pub fn intern(name: &str) -> &'static str {
    static NAMES: Mutex<BTreeSet<&'static str>> = Mutex::new(BTreeSet::new());
    // A panic of another thread leaves the set valid.
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

/// The module of a weight: `input_layernorm` for `input_layernorm.weight`.
pub(crate) fn module(weight: &'static str) -> &'static str {
    weight.strip_suffix(".weight").unwrap_or(weight)
}

/// Sizes of a decoder, from its config. If layers differ in heads or MLP width, use the sizes of each [`Layer`] instead.
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
    /// Size of the vocabulary.
    pub vocab: usize,
    /// Longest supported context in tokens.
    pub max_positions: usize,
}

/// A model's tensors outside the blocks that read or write the residual stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Residual {
    /// Whether norms subtract the mean, as LayerNorm does.
    pub centred: bool,
    /// Embedding tables, whose rows are added up to the first hidden state.
    pub tables: &'static [&'static str],
    /// Module of the norm between the last block and the head.
    pub last_norm: Option<&'static str>,
}

/// A layer's tensors that read or write the residual stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerResidual {
    /// Modules of the norms, each with the linears that read it.
    pub readers: Vec<(&'static str, Vec<LinearName>)>,
    /// Linears whose outputs are added to the stream.
    pub writers: Vec<LinearName>,
    /// The last linear of each MLP, whose input online rotation rotates.
    pub inner: Vec<LinearName>,
}
