//! What layers are made of, as data.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

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
    /// Linears that read one input and are asked for at once ([`crate::BlockOps::linears`]).
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

/// What of a model stands on its residual stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Residual {
    /// Whether norms subtract the mean.
    pub centred: bool,
    /// Tables outside the blocks whose rows sum up to the first hidden state.
    pub tables: &'static [&'static str],
    /// The norm, as a module, that stands between the last block and the head.
    pub last_norm: Option<&'static str>,
}

/// What of a layer stands on the residual stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerResidual {
    /// Norms, as modules, with the linears that read them.
    pub readers: Vec<(&'static str, Vec<LinearName>)>,
    /// Linears whose outputs are added to the stream.
    pub writers: Vec<LinearName>,
    /// The linear that reads what the MLP makes inside.
    pub inner: LinearName,
}
