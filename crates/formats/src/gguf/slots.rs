//! The norms and linears of a block, by architecture.

use oq_quant_core::Role;

use super::architecture::Architecture;
use super::row_order::RowOrder;
use super::shape::{Experts, Shape};

/// A norm or linear of a block: its weight, and its bias if it has one.
pub(super) struct Slot {
    pub(super) gguf: &'static str,
    /// With `*` for the number of an expert.
    pub(super) hf: &'static str,
    pub(super) role: Option<Role>,
    pub(super) shape: Vec<usize>,
    pub(super) order: RowOrder,
    pub(super) bias: bool,
    /// How many there are of it; 0 if it belongs to no expert.
    pub(super) experts: usize,
    /// The tensor that has those of all experts in Hugging Face.
    pub(super) fused: Option<Fused>,
    /// Whether its name in Hugging Face has no `.weight`.
    pub(super) bare: bool,
    /// What GGUF adds to its values.
    pub(super) plus: f32,
}

/// A tensor of Hugging Face that has the matrices of all experts.
#[derive(Clone, Copy)]
pub(super) struct Fused {
    /// Its name. That of the biases ends in `_bias`.
    pub(super) name: &'static str,
    /// Whether the matrices are `[in, out]`.
    pub(super) transposed: bool,
}

impl Slot {
    pub(super) fn norm(gguf: &'static str, hf: &'static str, len: usize) -> Self {
        let (shape, order) = (vec![len], RowOrder::Plain);
        Self { gguf, hf, role: None, shape, order, bias: false, experts: 0, fused: None, bare: false, plus: 0.0 }
    }

    pub(super) fn linear(gguf: &'static str, hf: &'static str, role: Role, shape: [usize; 2]) -> Self {
        Self { role: Some(role), shape: shape.to_vec(), ..Self::norm(gguf, hf, 0) }
    }

    /// A matrix that is never quantized.
    fn router(gguf: &'static str, hf: &'static str, shape: [usize; 2]) -> Self {
        Self { shape: shape.to_vec(), ..Self::norm(gguf, hf, 0) }
    }

    pub(super) fn bias(self, bias: bool) -> Self {
        Self { bias, ..self }
    }

    fn ordered(self, order: RowOrder) -> Self {
        Self { order, ..self }
    }

    fn experts(self, experts: usize) -> Self {
        Self { experts, ..self }
    }

    fn fused(self, name: &'static str, transposed: bool) -> Self {
        Self { fused: Some(Fused { name, transposed }), ..self }
    }

    /// A norm's values in GGUF.
    pub(super) fn plus(self, architecture: Architecture) -> Self {
        Self { plus: if architecture.is_gemma() { 1.0 } else { 0.0 }, ..self }
    }
}

/// All of a block, in the order of the forward pass.
pub(super) fn of_block(shape: &Shape) -> Vec<Slot> {
    if shape.architecture == Architecture::Falcon {
        return falcon(shape);
    }
    let mut slots = attention(shape);
    match shape.experts {
        Some(experts) => slots.extend(mixture(shape, experts)),
        None => slots.extend(mlp(shape)),
    }
    slots.extend(norms(shape).into_iter().map(|norm| norm.plus(shape.architecture)));
    slots
}

fn norms(shape: &Shape) -> Vec<Slot> {
    let Shape { hidden, head_dim, heads, kv_heads, .. } = *shape;
    let norm = |(gguf, hf)| Slot::norm(gguf, hf, hidden);
    let first = ("attn_norm", "input_layernorm");
    let mut slots: Vec<Slot> = match shape.architecture {
        Architecture::Gemma2 | Architecture::Gemma3 => vec![
            norm(first),
            norm(("post_attention_norm", "post_attention_layernorm")),
            norm(("ffn_norm", "pre_feedforward_layernorm")),
            norm(("post_ffw_norm", "post_feedforward_layernorm")),
        ],
        Architecture::Olmo2 | Architecture::Olmo3 => vec![
            norm(("post_attention_norm", "post_attention_layernorm")),
            norm(("post_ffw_norm", "post_feedforward_layernorm")),
        ],
        Architecture::Glm4 => vec![
            norm(first),
            norm(("post_attention_norm", "post_self_attn_layernorm")),
            norm(("ffn_norm", "post_attention_layernorm")),
            norm(("post_ffw_norm", "post_mlp_layernorm")),
        ],
        Architecture::SeedOss | Architecture::GptOss => {
            vec![norm(first), norm(("post_attention_norm", "post_attention_layernorm"))]
        }
        _ => vec![norm(first), norm(("ffn_norm", "post_attention_layernorm"))],
    };
    let of_heads = match shape.architecture {
        Architecture::Qwen3 | Architecture::Qwen3Moe | Architecture::Gemma3 => Some([head_dim; 2]),
        // Over all heads at once.
        Architecture::Olmo2 | Architecture::Olmo3 | Architecture::Olmoe => {
            Some([heads, kv_heads].map(|n| n * head_dim))
        }
        _ => None,
    };
    if let Some([queries, keys]) = of_heads {
        slots.push(Slot::norm("attn_q_norm", "self_attn.q_norm", queries));
        slots.push(Slot::norm("attn_k_norm", "self_attn.k_norm", keys));
    }
    slots
}

fn attention(shape: &Shape) -> Vec<Slot> {
    let Shape { hidden, head_dim, .. } = *shape;
    let (queries, keys) = (shape.heads * head_dim, shape.kv_heads * head_dim);
    let interleaved = shape.architecture.is_interleaved();
    let rotated = if interleaved { RowOrder::Interleaved { head_dim } } else { RowOrder::Plain };
    let bias = shape.attention_bias;
    let output = Slot::linear("attn_output", "self_attn.o_proj", Role::AttentionOutput, [hidden, queries])
        .bias(shape.output_bias);
    if shape.architecture == Architecture::Phi3 {
        let fused = [queries + 2 * keys, hidden];
        return vec![Slot::linear("attn_qkv", "self_attn.qkv_proj", Role::QueryKeyValue, fused), output];
    }
    let mut slots = vec![
        Slot::linear("attn_q", "self_attn.q_proj", Role::Query, [queries, hidden]).ordered(rotated).bias(bias),
        Slot::linear("attn_k", "self_attn.k_proj", Role::Key, [keys, hidden]).ordered(rotated).bias(bias),
        Slot::linear("attn_v", "self_attn.v_proj", Role::Value, [keys, hidden]).bias(bias),
        output,
    ];
    if shape.architecture == Architecture::GptOss {
        slots.push(Slot { bare: true, ..Slot::norm("attn_sinks", "self_attn.sinks", shape.heads) });
    }
    slots
}

fn mlp(shape: &Shape) -> Vec<Slot> {
    let Shape { hidden, intermediate: ffn, mlp_bias: bias, .. } = *shape;
    let down = Slot::linear("ffn_down", "mlp.down_proj", Role::Down, [hidden, ffn]).bias(bias);
    if matches!(shape.architecture, Architecture::Phi3 | Architecture::Glm4) {
        return vec![Slot::linear("ffn_up", "mlp.gate_up_proj", Role::Up, [2 * ffn, hidden]), down];
    }
    vec![
        Slot::linear("ffn_gate", "mlp.gate_proj", Role::Gate, [ffn, hidden]).bias(bias),
        Slot::linear("ffn_up", "mlp.up_proj", Role::Up, [ffn, hidden]).bias(bias),
        down,
    ]
}

fn mixture(shape: &Shape, experts: Experts) -> Vec<Slot> {
    let hidden = shape.hidden;
    let Experts { count, width, .. } = experts;
    match shape.architecture {
        Architecture::GraniteMoe => return granite(hidden, experts),
        Architecture::GptOss => return gpt_oss(hidden, experts),
        _ => {}
    }
    let [router, gate, up, down] = if shape.architecture == Architecture::Mixtral {
        [
            "block_sparse_moe.gate",
            "block_sparse_moe.experts.*.w1",
            "block_sparse_moe.experts.*.w3",
            "block_sparse_moe.experts.*.w2",
        ]
    } else {
        ["mlp.gate", "mlp.experts.*.gate_proj", "mlp.experts.*.up_proj", "mlp.experts.*.down_proj"]
    };
    let mut slots = vec![
        Slot::router("ffn_gate_inp", router, [count, hidden]),
        Slot::linear("ffn_gate_exps", gate, Role::Gate, [width, hidden]).experts(count),
        Slot::linear("ffn_up_exps", up, Role::Up, [width, hidden]).experts(count),
        Slot::linear("ffn_down_exps", down, Role::Down, [hidden, width]).experts(count),
    ];
    if let Some(width) = experts.shared {
        slots.extend([
            Slot::router("ffn_gate_inp_shexp", "mlp.shared_expert_gate", [1, hidden]),
            Slot::linear("ffn_gate_shexp", "mlp.shared_expert.gate_proj", Role::Gate, [width, hidden]),
            Slot::linear("ffn_up_shexp", "mlp.shared_expert.up_proj", Role::Up, [width, hidden]),
            Slot::linear("ffn_down_shexp", "mlp.shared_expert.down_proj", Role::Down, [hidden, width]),
        ]);
    }
    slots
}

/// Gates lie before ups.
fn granite(hidden: usize, Experts { count, width, .. }: Experts) -> Vec<Slot> {
    let input = |gguf, role, first| {
        Slot::linear(gguf, "block_sparse_moe.input_linear.*", role, [width, hidden])
            .experts(count)
            .fused("block_sparse_moe.input_linear.weight", false)
            .ordered(RowOrder::Among { first, step: 1, all: 2 * width })
    };
    vec![
        Slot::router("ffn_gate_inp", "block_sparse_moe.router.layer", [count, hidden]),
        input("ffn_gate_exps", Role::Gate, 0),
        input("ffn_up_exps", Role::Up, width),
        Slot::linear("ffn_down_exps", "block_sparse_moe.output_linear.*", Role::Down, [hidden, width])
            .experts(count)
            .fused("block_sparse_moe.output_linear.weight", false),
    ]
}

/// Gates and ups lie in turns, and all have biases.
fn gpt_oss(hidden: usize, Experts { count, width, .. }: Experts) -> Vec<Slot> {
    let input = |gguf, role, first| {
        Slot::linear(gguf, "mlp.experts.*.gate_up_proj", role, [width, hidden])
            .experts(count)
            .fused("mlp.experts.gate_up_proj", true)
            .ordered(RowOrder::Among { first, step: 2, all: 2 * width })
    };
    let slots = [
        Slot::router("ffn_gate_inp", "mlp.router", [count, hidden]),
        input("ffn_gate_exps", Role::Gate, 0),
        input("ffn_up_exps", Role::Up, 1),
        Slot::linear("ffn_down_exps", "mlp.experts.*.down_proj", Role::Down, [hidden, width])
            .experts(count)
            .fused("mlp.experts.down_proj", true),
    ];
    slots.map(|slot| slot.bias(true)).into()
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
