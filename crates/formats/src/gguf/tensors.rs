//! What the tensors of a model are called in GGUF and in a Hugging Face checkpoint, and how their rows are ordered.

use oq_quant_core::Role;

use super::architecture::Architecture;
use super::row_order::RowOrder;
use super::shape::Shape;
use super::slots::{Slot, of_block};

/// Factors for the periods of the rotations, which Llama 3.1 and later have instead of metadata.
pub(super) const ROPE_FACTORS: &str = "rope_freqs.weight";
/// The same for contexts up to and beyond that of pre-training (LongRoPE).
pub(super) const LONG_FACTORS: [&str; 2] = ["rope_factors_short.weight", "rope_factors_long.weight"];

/// A tensor of a model.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Place {
    /// Its name in GGUF.
    pub(super) gguf: String,
    /// Its name in a Hugging Face checkpoint.
    pub(super) hf: String,
    /// Its part of the GGUF tensor.
    pub(super) shape: Vec<usize>,
    /// What a matrix does; none for a norm, a bias or a router.
    pub(super) role: Option<Role>,
    /// The layer; 0 outside of the blocks.
    pub(super) layer: usize,
    pub(super) order: RowOrder,
    /// Which expert it belongs to, and how many there are. GGUF has the matrices of all in one tensor.
    pub(super) expert: Option<(usize, usize)>,
    /// What GGUF adds to every value.
    pub(super) plus: f32,
    /// The tensor that has those of all experts in a Hugging Face checkpoint. Packed models have each by its own name, [`Self::hf`].
    pub(super) fused: Option<Fused>,
}

/// A tensor of a Hugging Face checkpoint that has the matrices or biases of all experts.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Fused {
    pub(super) name: String,
    /// Whether the matrices are `[in, out]`.
    pub(super) transposed: bool,
}

impl Place {
    /// The shape of the GGUF tensor.
    pub(super) fn gguf_shape(&self) -> Vec<usize> {
        match self.expert {
            Some((_, count)) => [&[count], &self.shape[..]].concat(),
            None => self.shape.clone(),
        }
    }

    /// The shape of the Hugging Face tensor, `[out, in]`.
    pub(super) fn hf_shape(&self) -> Vec<usize> {
        [&[self.order.rows_in_hf(self.shape[0])], &self.shape[1..]].concat()
    }

    /// Number of its rows in the GGUF tensor, where a vector is one row.
    pub(super) fn rows(&self) -> usize {
        if self.shape.len() == 1 { 1 } else { self.shape[0] }
    }

    /// The first of them.
    pub(super) fn first_row(&self) -> usize {
        self.expert.map_or(0, |(index, _)| index * self.rows())
    }
}

/// All tensors of a model except [`ROPE_FACTORS`] and [`LONG_FACTORS`], in the order of the forward pass.
pub(super) fn places(shape: &Shape) -> Vec<Place> {
    let is_falcon = shape.architecture == Architecture::Falcon;
    let [embedding, blocks, last_norm] = match is_falcon {
        true => ["transformer.word_embeddings", "transformer.h", "transformer.ln_f"],
        false => ["model.embed_tokens", "model.layers", "model.norm"],
    };
    let matrix = |gguf, hf, role| Slot::linear(gguf, hf, role, [shape.vocab, shape.hidden]);

    let mut all = Vec::new();
    all.extend(at(&matrix("token_embd", embedding, Role::Embedding), ["", ""], 0));
    for layer in 0..shape.layers {
        let prefixes = [format!("blk.{layer}."), format!("{blocks}.{layer}.")];
        for slot in of_block(shape) {
            all.extend(at(&slot, prefixes.each_ref().map(String::as_str), layer));
        }
    }
    let norm = Slot::norm("output_norm", last_norm, shape.hidden).bias(is_falcon).plus(shape.architecture);
    all.extend(at(&norm, ["", ""], 0));
    if !shape.tied {
        all.extend(at(&matrix("output", "lm_head", Role::Head), ["", ""], 0));
    }
    all
}

/// The tensors of a norm or linear: its weight, and its bias if it has one; for experts, those of each. `prefixes` are those of names in
/// GGUF and in Hugging Face.
fn at(slot: &Slot, [gguf, hf]: [&str; 2], layer: usize) -> Vec<Place> {
    let place = |part: &str, expert: Option<(usize, usize)>| {
        let is_bias = part == "bias";
        let name = match expert {
            Some((index, _)) => slot.hf.replace('*', &index.to_string()),
            None => slot.hf.to_owned(),
        };
        Place {
            gguf: format!("{gguf}{}.{part}", slot.gguf),
            hf: if slot.bare { format!("{hf}{name}") } else { format!("{hf}{name}.{part}") },
            shape: if is_bias { slot.shape[..1].to_vec() } else { slot.shape.clone() },
            role: slot.role.filter(|_| !is_bias),
            layer,
            order: slot.order,
            expert,
            plus: slot.plus,
            fused: slot.fused.map(|fused| Fused {
                name: format!("{hf}{}{}", fused.name, if is_bias { "_bias" } else { "" }),
                transposed: fused.transposed && !is_bias,
            }),
        }
    };
    let parts = ["weight"].into_iter().chain(slot.bias.then_some("bias"));
    let of_part = |part| match slot.experts {
        0 => vec![place(part, None)],
        count => (0..count).map(|index| place(part, Some((index, count)))).collect(),
    };
    parts.flat_map(of_part).collect()
}
