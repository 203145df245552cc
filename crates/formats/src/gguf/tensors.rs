//! What the tensors of a model are called in GGUF and in a Hugging Face checkpoint, and how their rows are ordered.

use oq_quant_core::Role;

use super::architecture::Architecture;
use super::shape::Shape;

/// Factors for the periods of the rotations, which Llama 3.1 and later have instead of metadata.
pub(super) const ROPE_FACTORS: &str = "rope_freqs.weight";

/// A tensor of a model.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Place {
    /// Its name in GGUF.
    pub(super) gguf: String,
    /// Its name in a Hugging Face checkpoint.
    pub(super) hf: String,
    pub(super) shape: Vec<usize>,
    /// What a matrix does; none for a norm or a bias.
    pub(super) role: Option<Role>,
    /// The layer; 0 outside of the blocks.
    pub(super) layer: usize,
    pub(super) order: RowOrder,
}

/// The order of rows in a GGUF tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RowOrder {
    /// Same as in Hugging Face.
    Plain,
    /// Within each head, rows i and i + head_dim / 2 are adjacent. llama.cpp rotates neighbouring values of LLaMA's heads (RoPE on pairs
    /// 2i, 2i + 1), Hugging Face the two halves. For other architectures both rotate the halves.
    Interleaved {
        /// Rows per head.
        head_dim: usize,
    },
    /// Falcon's fused linear: all queries, then all keys, then all values. In Hugging Face each key/value head follows its query heads.
    Grouped {
        /// Query heads.
        heads: usize,
        /// Key/value heads.
        kv_heads: usize,
        /// Rows per head.
        head_dim: usize,
    },
}

impl RowOrder {
    /// The row of the GGUF tensor that holds row `row` of the Hugging Face tensor.
    pub(super) fn in_gguf(self, row: usize) -> usize {
        match self {
            Self::Plain => row,
            Self::Interleaved { head_dim } => {
                let (head, within) = (row / head_dim, row % head_dim);
                let (half, i) = (within / (head_dim / 2), within % (head_dim / 2));
                head * head_dim + 2 * i + half
            }
            Self::Grouped { heads, kv_heads, head_dim } => {
                let queries = heads / kv_heads;
                let (head, channel) = (row / head_dim, row % head_dim);
                let (group, slot) = (head / (queries + 2), head % (queries + 2));
                let head = match slot.checked_sub(queries) {
                    None => group * queries + slot,
                    Some(key_or_value) => heads + key_or_value * kv_heads + group,
                };
                head * head_dim + channel
            }
        }
    }

    /// The row of the Hugging Face tensor that row `row` of the GGUF tensor holds.
    pub(super) fn in_hf(self, row: usize) -> usize {
        match self {
            Self::Plain => row,
            Self::Interleaved { head_dim } => {
                let (head, within) = (row / head_dim, row % head_dim);
                head * head_dim + within % 2 * (head_dim / 2) + within / 2
            }
            Self::Grouped { heads, kv_heads, head_dim } => {
                let queries = heads / kv_heads;
                let (head, channel) = (row / head_dim, row % head_dim);
                let (group, slot) = match head.checked_sub(heads) {
                    None => (head / queries, head % queries),
                    Some(rest) => (rest % kv_heads, queries + rest / kv_heads),
                };
                (group * (queries + 2) + slot) * head_dim + channel
            }
        }
    }
}

/// All tensors of a model except [`ROPE_FACTORS`], in the order of the forward pass.
pub(super) fn places(shape: &Shape) -> Vec<Place> {
    let is_falcon = shape.architecture == Architecture::Falcon;
    let (outer, blocks) = if is_falcon { ("transformer", "transformer.h") } else { ("model", "model.layers") };
    let (embedding, last_norm) = if is_falcon { ("word_embeddings", "ln_f") } else { ("embed_tokens", "norm") };
    let hf = |name: &str| format!("{outer}.{name}");

    let mut all = Vec::new();
    all.extend(Slot::linear("", "", Role::Embedding, [shape.vocab, shape.hidden]).at("token_embd", &hf(embedding), 0));
    for layer in 0..shape.layers {
        for slot in if is_falcon { falcon(shape) } else { llama(shape) } {
            let (gguf, hf) = (format!("blk.{layer}.{}", slot.gguf), format!("{blocks}.{layer}.{}", slot.hf));
            all.extend(slot.at(&gguf, &hf, layer));
        }
    }
    all.extend(Slot::norm("", "", shape.hidden).bias(is_falcon).at("output_norm", &hf(last_norm), 0));
    if !shape.tied {
        all.extend(Slot::linear("", "", Role::Head, [shape.vocab, shape.hidden]).at("output", "lm_head", 0));
    }
    all
}

/// A norm or linear of a block: its weight, and its bias if it has one.
struct Slot {
    gguf: &'static str,
    hf: &'static str,
    role: Option<Role>,
    shape: Vec<usize>,
    order: RowOrder,
    bias: bool,
}

impl Slot {
    fn norm(gguf: &'static str, hf: &'static str, len: usize) -> Self {
        Self { gguf, hf, role: None, shape: vec![len], order: RowOrder::Plain, bias: false }
    }

    fn linear(gguf: &'static str, hf: &'static str, role: Role, shape: [usize; 2]) -> Self {
        Self { gguf, hf, role: Some(role), shape: shape.to_vec(), order: RowOrder::Plain, bias: false }
    }

    fn bias(self, bias: bool) -> Self {
        Self { bias, ..self }
    }

    fn ordered(self, order: RowOrder) -> Self {
        Self { order, ..self }
    }

    fn at(self, gguf: &str, hf: &str, layer: usize) -> impl Iterator<Item = Place> + use<> {
        let place = |part: &str, shape: Vec<usize>, role| Place {
            gguf: format!("{gguf}.{part}"),
            hf: format!("{hf}.{part}"),
            shape,
            role,
            layer,
            order: self.order,
        };
        let bias = self.bias.then(|| place("bias", self.shape[..1].to_vec(), None));
        [place("weight", self.shape.clone(), self.role)].into_iter().chain(bias)
    }
}

fn llama(shape: &Shape) -> Vec<Slot> {
    let is_llama = shape.architecture == Architecture::Llama;
    let (hidden, ffn, head_dim) = (shape.hidden, shape.intermediate, shape.head_dim);
    let (queries, keys) = (shape.heads * head_dim, shape.kv_heads * head_dim);
    let rotated = if is_llama { RowOrder::Interleaved { head_dim } } else { RowOrder::Plain };
    let (qkv_bias, mlp_bias) = (shape.attention_bias, shape.mlp_bias);
    let mut slots = vec![
        Slot::norm("attn_norm", "input_layernorm", hidden),
        Slot::linear("attn_q", "self_attn.q_proj", Role::Query, [queries, hidden]).ordered(rotated).bias(qkv_bias),
        Slot::linear("attn_k", "self_attn.k_proj", Role::Key, [keys, hidden]).ordered(rotated).bias(qkv_bias),
        Slot::linear("attn_v", "self_attn.v_proj", Role::Value, [keys, hidden]).bias(qkv_bias),
        Slot::linear("attn_output", "self_attn.o_proj", Role::AttentionOutput, [hidden, queries])
            .bias(qkv_bias && is_llama),
        Slot::norm("ffn_norm", "post_attention_layernorm", hidden),
        Slot::linear("ffn_gate", "mlp.gate_proj", Role::Gate, [ffn, hidden]).bias(mlp_bias),
        Slot::linear("ffn_up", "mlp.up_proj", Role::Up, [ffn, hidden]).bias(mlp_bias),
        Slot::linear("ffn_down", "mlp.down_proj", Role::Down, [hidden, ffn]).bias(mlp_bias),
    ];
    if shape.architecture == Architecture::Qwen3 {
        slots.push(Slot::norm("attn_q_norm", "self_attn.q_norm", head_dim));
        slots.push(Slot::norm("attn_k_norm", "self_attn.k_norm", head_dim));
    }
    slots
}

fn falcon(shape: &Shape) -> Vec<Slot> {
    let Shape { hidden, intermediate: ffn, heads, kv_heads, head_dim, .. } = *shape;
    let fused = [(heads + 2 * kv_heads) * head_dim, hidden];
    let grouped = RowOrder::Grouped { heads, kv_heads, head_dim };
    let mut slots = if shape.two_norms {
        vec![Slot::norm("attn_norm", "ln_mlp", hidden), Slot::norm("attn_norm_2", "ln_attn", hidden)]
    } else {
        vec![Slot::norm("attn_norm", "input_layernorm", hidden)]
    };
    slots = slots.into_iter().map(|norm| norm.bias(true)).collect();
    slots.extend([
        Slot::linear("attn_qkv", "self_attention.query_key_value", Role::QueryKeyValue, fused).ordered(grouped),
        Slot::linear("attn_output", "self_attention.dense", Role::AttentionOutput, [hidden, heads * head_dim]),
        Slot::linear("ffn_up", "mlp.dense_h_to_4h", Role::Up, [ffn, hidden]),
        Slot::linear("ffn_down", "mlp.dense_4h_to_h", Role::Down, [hidden, ffn]),
    ]);
    slots
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interleaved_rows_come_back_as_halves() {
        let order = RowOrder::Interleaved { head_dim: 6 };
        let sources: Vec<_> = (0..12).map(|row| order.in_gguf(row)).collect();
        assert_eq!(sources, [0, 2, 4, 1, 3, 5, 6, 8, 10, 7, 9, 11]);
        assert!((0..12).all(|row| order.in_hf(order.in_gguf(row)) == row));
    }

    #[test]
    fn queries_keys_and_values_are_gathered() {
        // Two groups of two queries, a key and a value; one row per head.
        let order = RowOrder::Grouped { heads: 4, kv_heads: 2, head_dim: 1 };
        let sources: Vec<_> = (0..8).map(|row| order.in_gguf(row)).collect();
        assert_eq!(sources, [0, 1, 4, 6, 2, 3, 5, 7]);
        let order = RowOrder::Grouped { heads: 6, kv_heads: 3, head_dim: 4 };
        assert!((0..48).all(|row| order.in_hf(order.in_gguf(row)) == row));
    }
}
