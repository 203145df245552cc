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
    /// In a Hugging Face checkpoint.
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
}

impl Place {
    /// The shape of the GGUF tensor.
    pub(super) fn gguf_shape(&self) -> Vec<usize> {
        match self.expert {
            Some((_, count)) => [&[count], &self.shape[..]].concat(),
            None => self.shape.clone(),
        }
    }

    /// The row of the GGUF tensor that holds row `row` of the Hugging Face tensor.
    pub(super) fn row_in_gguf(&self, row: usize) -> usize {
        let first = self.expert.map_or(0, |(index, _)| index * self.shape[0]);
        first + self.order.in_gguf(row)
    }

    /// Number of values.
    pub(super) fn values(&self) -> usize {
        self.shape.iter().product()
    }
}

/// All tensors of a model except [`ROPE_FACTORS`] and [`LONG_FACTORS`], in the order of the forward pass.
pub(super) fn places(shape: &Shape) -> Vec<Place> {
    let is_falcon = shape.architecture == Architecture::Falcon;
    let (outer, blocks) = if is_falcon { ("transformer", "transformer.h") } else { ("model", "model.layers") };
    let (embedding, last_norm) = if is_falcon { ("word_embeddings", "ln_f") } else { ("embed_tokens", "norm") };
    let hf = |name: &str| format!("{outer}.{name}");
    let matrix = |role| Slot::linear("", "", role, [shape.vocab, shape.hidden]);

    let mut all = Vec::new();
    all.extend(at(matrix(Role::Embedding), "token_embd", &hf(embedding), 0));
    for layer in 0..shape.layers {
        for slot in of_block(shape) {
            let (gguf, hf) = (format!("blk.{layer}.{}", slot.gguf), format!("{blocks}.{layer}.{}", slot.hf));
            all.extend(at(slot, &gguf, &hf, layer));
        }
    }
    let norm = Slot::norm("", "", shape.hidden).bias(is_falcon).plus(shape.architecture);
    all.extend(at(norm, "output_norm", &hf(last_norm), 0));
    if !shape.tied {
        all.extend(at(matrix(Role::Head), "output", "lm_head", 0));
    }
    all
}

/// The tensors of a norm or linear: its weight, and its bias if it has one; for experts, the weight of each.
fn at(slot: Slot, gguf: &str, hf: &str, layer: usize) -> Vec<Place> {
    let place = |part: &str, hf: String, shape: &[usize], role, expert| Place {
        gguf: format!("{gguf}.{part}"),
        hf: format!("{hf}.{part}"),
        shape: shape.to_vec(),
        role,
        layer,
        order: slot.order,
        expert,
        plus: slot.plus,
    };
    let count = slot.experts;
    if count > 0 {
        let of = |i: usize| place("weight", hf.replace('*', &i.to_string()), &slot.shape, slot.role, Some((i, count)));
        return (0..count).map(of).collect();
    }
    let bias = slot.bias.then(|| place("bias", hf.to_owned(), &slot.shape[..1], None, None));
    [place("weight", hf.to_owned(), &slot.shape, slot.role, None)].into_iter().chain(bias).collect()
}
