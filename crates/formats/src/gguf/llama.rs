//! LLaMA in a GGUF file: its metadata as a Hugging Face `config.json`, its tensors under Hugging Face names.
//!
//! llama.cpp rotates neighbouring values of a head (RoPE on pairs 2i, 2i + 1), Hugging Face the two halves (i, i + head_dim / 2). So the
//! conversion to GGUF reorders the rows of the query and key projections; [`RowOrder::Interleaved`] reverses it.

use std::collections::BTreeSet;
use std::f64::consts::TAU;

use serde_json::{Map, Value as Json, json};

use super::metadata::required;
use super::{Gguf, GgufError, Tensor};

/// The shape of a tensor, given the model.
type ShapeOf = fn(&Llama) -> Vec<usize>;
/// Names of a block's tensors, in GGUF and in Hugging Face, and the shape of each.
const BLOCK: [(&str, &str, ShapeOf); 9] = [
    ("attn_norm", "input_layernorm", |c| vec![c.hidden]),
    ("attn_q", "self_attn.q_proj", |c| vec![c.heads * c.head_dim, c.hidden]),
    ("attn_k", "self_attn.k_proj", |c| vec![c.kv_heads * c.head_dim, c.hidden]),
    ("attn_v", "self_attn.v_proj", |c| vec![c.kv_heads * c.head_dim, c.hidden]),
    ("attn_output", "self_attn.o_proj", |c| vec![c.hidden, c.heads * c.head_dim]),
    ("ffn_norm", "post_attention_layernorm", |c| vec![c.hidden]),
    ("ffn_gate", "mlp.gate_proj", |c| vec![c.intermediate, c.hidden]),
    ("ffn_up", "mlp.up_proj", |c| vec![c.intermediate, c.hidden]),
    ("ffn_down", "mlp.down_proj", |c| vec![c.hidden, c.intermediate]),
];
/// Factors for the periods of the rotations, which Llama 3.1 and later store instead of metadata.
const ROPE_FACTORS: &str = "rope_freqs.weight";
/// Constants of the rule in all published models: periods above 8192 / 1 tokens are stretched, below 8192 / 4 unchanged.
const LLAMA3_ROPE: Llama3Rope = Llama3Rope { low: 1.0, high: 4.0, context: 8192.0 };
/// Relative tolerance. The factors were computed in f32, and their rounding error passes through one subtraction: 1e-6, with a margin.
const ROPE_TOLERANCE: f64 = 1e-4;

/// The shape of a LLaMA model, from metadata.
#[derive(Clone, Debug)]
pub(super) struct Llama {
    hidden: usize,
    intermediate: usize,
    layers: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    vocab: usize,
    context: usize,
    rope_theta: f64,
    rope_scaling: Option<Json>,
    norm_eps: f64,
    tied: bool,
}

/// A tensor to convert.
pub(super) struct Placed<'a> {
    /// Its Hugging Face name.
    pub(super) name: String,
    pub(super) tensor: Tensor<'a>,
    pub(super) order: RowOrder,
}

/// The order of rows in a GGUF tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RowOrder {
    /// Same as in Hugging Face.
    Plain,
    /// Within each head, rows i and i + head_dim / 2 are adjacent.
    Interleaved {
        /// Rows per head.
        head_dim: usize,
    },
}

impl RowOrder {
    /// The row of the GGUF tensor that holds row `row` of the Hugging Face tensor.
    pub(super) fn source(self, row: usize) -> usize {
        match self {
            Self::Plain => row,
            Self::Interleaved { head_dim } => {
                let (head, within) = (row / head_dim, row % head_dim);
                let (half, i) = (within / (head_dim / 2), within % (head_dim / 2));
                head * head_dim + 2 * i + half
            }
        }
    }
}

impl Llama {
    /// Reads the model's shape and refuses what a plain LLaMA cannot express.
    pub(super) fn read(file: &Gguf) -> Result<Self, GgufError> {
        let metadata = file.metadata();
        let architecture = required("general.architecture", metadata.text("general.architecture")?)?;
        if architecture != "llama" {
            return Err(GgufError::wrong("general.architecture", architecture, "llama, the one that is converted"));
        }
        let size = |key: &str| required(key, dimension(file, key)?);
        if let Some(experts) = metadata.unsigned("llama.expert_count")?.filter(|&n| n > 0) {
            return Err(GgufError::wrong("llama.expert_count", experts, "0: mixtures of experts are not converted"));
        }
        let hidden = size("llama.embedding_length")?;
        let heads = size("llama.attention.head_count")?;
        let kv_heads = dimension(file, "llama.attention.head_count_kv")?.unwrap_or(heads);
        if !heads.is_multiple_of(kv_heads) {
            return Err(GgufError::wrong(
                "llama.attention.head_count_kv",
                kv_heads,
                format!("a divisor of the {heads} heads"),
            ));
        }
        let head_dim = head_dim(file, hidden, heads)?;
        let embedding = file.tensor("token_embd.weight").ok_or_else(|| missing("token_embd.weight"))?;
        // 10,000 is LLaMA's own value, from a time when files did not contain it.
        let rope_theta = positive(file, "llama.rope.freq_base")?.unwrap_or(10_000.0);
        let eps_key = "llama.attention.layer_norm_rms_epsilon";
        Ok(Self {
            hidden,
            intermediate: size("llama.feed_forward_length")?,
            layers: size("llama.block_count")?,
            heads,
            kv_heads,
            head_dim,
            vocab: embedding.rows(),
            context: size("llama.context_length")?,
            rope_theta,
            rope_scaling: rope_scaling(file, head_dim, rope_theta)?,
            norm_eps: required(eps_key, positive(file, eps_key)?)?,
            tied: file.tensor("output.weight").is_none(),
        })
    }

    /// Vocabulary size: rows of the embedding.
    pub(super) fn vocab(&self) -> usize {
        self.vocab
    }

    /// Context length that the model was trained with.
    pub(super) fn context(&self) -> usize {
        self.context
    }

    /// All tensors of the model under their Hugging Face names, in the order of the forward pass. Fails if a tensor is missing or there is
    /// an extra one.
    pub(super) fn place<'a>(&self, file: &'a Gguf) -> Result<Vec<Placed<'a>>, GgufError> {
        let mut placed =
            vec![find(file, "token_embd.weight", "model.embed_tokens", &[self.vocab, self.hidden], RowOrder::Plain)?];
        for layer in 0..self.layers {
            for (from, to, shape) in BLOCK {
                let order = match from {
                    "attn_q" | "attn_k" => RowOrder::Interleaved { head_dim: self.head_dim },
                    _ => RowOrder::Plain,
                };
                let (from, to) = (format!("blk.{layer}.{from}.weight"), format!("model.layers.{layer}.{to}"));
                placed.push(find(file, &from, &to, &shape(self), order)?);
            }
        }
        placed.push(find(file, "output_norm.weight", "model.norm", &[self.hidden], RowOrder::Plain)?);
        if !self.tied {
            placed.push(find(file, "output.weight", "lm_head", &[self.vocab, self.hidden], RowOrder::Plain)?);
        }
        let used: BTreeSet<_> = placed.iter().map(|placed| placed.tensor.name()).chain([ROPE_FACTORS]).collect();
        match file.tensors().find(|tensor| !used.contains(tensor.name())) {
            Some(extra) => Err(GgufError::ExtraTensor { tensor: extra.name().to_owned() }),
            None => Ok(placed),
        }
    }

    /// `config.json`, in the form of transformers 4, which versions 4 and 5 read. `ids` are the ids of special tokens.
    pub(super) fn config(&self, ids: &Map<String, Json>) -> Json {
        let mut config = json!({
            "architectures": ["LlamaForCausalLM"],
            "attention_bias": false,
            "attention_dropout": 0.0,
            "head_dim": self.head_dim,
            "hidden_act": "silu",
            "hidden_size": self.hidden,
            "initializer_range": 0.02,
            "intermediate_size": self.intermediate,
            "max_position_embeddings": self.context,
            "mlp_bias": false,
            "model_type": "llama",
            "num_attention_heads": self.heads,
            "num_hidden_layers": self.layers,
            "num_key_value_heads": self.kv_heads,
            "rms_norm_eps": self.norm_eps,
            "rope_scaling": self.rope_scaling,
            "rope_theta": self.rope_theta,
            "tie_word_embeddings": self.tied,
            "torch_dtype": "float16",
            "use_cache": true,
            "vocab_size": self.vocab,
        });
        config.as_object_mut().expect("json! made an object").extend(ids.clone());
        config
    }
}

fn missing(tensor: &str) -> GgufError {
    GgufError::MissingTensor { tensor: tensor.to_owned() }
}

fn find<'a>(file: &'a Gguf, from: &str, to: &str, shape: &[usize], order: RowOrder) -> Result<Placed<'a>, GgufError> {
    let tensor = file.tensor(from).ok_or_else(|| missing(from))?;
    if tensor.shape() != shape {
        return Err(GgufError::Shape {
            tensor: from.to_owned(),
            got: tensor.shape().to_vec(),
            expected: shape.to_vec(),
        });
    }
    Ok(Placed { name: format!("{to}.weight"), tensor, order })
}

/// A dimension of the model: at least one, and small enough that two can be multiplied.
fn dimension(file: &Gguf, key: &str) -> Result<Option<usize>, GgufError> {
    let value = file.metadata().unsigned(key)?;
    let expected = || format!("a number from 1 to {}", u32::MAX / 2);
    value
        .map(|n| match n {
            1..=0x7fff_ffff => Ok(n as usize),
            _ => Err(GgufError::wrong(key, n, expected())),
        })
        .transpose()
}

/// Channels of a head. Queries, keys and values must have the same number, and rotations must cover the whole head.
fn head_dim(file: &Gguf, hidden: usize, heads: usize) -> Result<usize, GgufError> {
    let key_length = "llama.attention.key_length";
    let head_dim = match dimension(file, key_length)? {
        Some(head_dim) => head_dim,
        None if hidden.is_multiple_of(heads) => hidden / heads,
        None => {
            return Err(GgufError::wrong(
                "llama.attention.head_count",
                heads,
                format!("a divisor of hidden size {hidden}"),
            ));
        }
    };
    for key in ["llama.attention.value_length", "llama.rope.dimension_count"] {
        if let Some(other) = dimension(file, key)?.filter(|&other| other != head_dim) {
            return Err(GgufError::wrong(key, other, format!("{head_dim}, the values of a head")));
        }
    }
    if !head_dim.is_multiple_of(2) {
        return Err(GgufError::wrong(key_length, head_dim, "an even number, so that rotations have pairs"));
    }
    Ok(head_dim)
}

/// A finite positive float, as its shortest decimal.
fn positive(file: &Gguf, key: &str) -> Result<Option<f64>, GgufError> {
    match file.metadata().float(key)?.map(shortest) {
        Some(value) if !(value > 0.0 && value.is_finite()) => Err(GgufError::wrong(key, value, "a positive number")),
        value => Ok(value),
    }
}

/// The shortest decimal that rounds to this f32, as f64: 1e-5 rather than 9.999999747378752e-6.
fn shortest(value: f64) -> f64 {
    (value as f32).to_string().parse().expect("what Display writes of a float parses as one")
}

/// The `rope_scaling` of config.json.
fn rope_scaling(file: &Gguf, head_dim: usize, theta: f64) -> Result<Option<Json>, GgufError> {
    if let Some(factors) = file.tensor(ROPE_FACTORS) {
        return llama3_scaling(&factors, head_dim, theta).map(Some);
    }
    let linear = |factor: f64| Some(json!({ "rope_type": "linear", "factor": factor }));
    let (type_key, factor_key) = ("llama.rope.scaling.type", "llama.rope.scaling.factor");
    match file.metadata().text(type_key)? {
        // scale_linear: used by files before the type was introduced.
        None => Ok(positive(file, "llama.rope.scale_linear")?.filter(|&factor| factor != 1.0).and_then(linear)),
        Some("none") => Ok(None),
        Some("linear") => Ok(linear(required(factor_key, positive(file, factor_key)?)?)),
        Some(other) => Err(GgufError::wrong(type_key, other, "none or linear")),
    }
}

/// Llama 3.1's rule for stretching slow rotations.
#[derive(Clone, Copy)]
struct Llama3Rope {
    low: f64,
    high: f64,
    context: f64,
}

impl Llama3Rope {
    /// The divisor of the frequency of rotation `i`.
    fn divisor(self, i: usize, head_dim: usize, theta: f64, factor: f64) -> f64 {
        let period = TAU * theta.powf(2.0 * i as f64 / head_dim as f64);
        let periods = self.context / period;
        if periods > self.high {
            return 1.0;
        }
        let blend = ((periods - self.low) / (self.high - self.low)).max(0.0);
        1.0 / ((1.0 - blend) / factor + blend)
    }
}

/// Recognizes the factors of Llama 3.1's rule; the constants of the rule are not in the file.
fn llama3_scaling(factors: &Tensor<'_>, head_dim: usize, theta: f64) -> Result<Json, GgufError> {
    let expected = [head_dim / 2];
    if factors.shape() != expected {
        return Err(GgufError::Shape {
            tensor: ROPE_FACTORS.to_owned(),
            got: factors.shape().to_vec(),
            expected: expected.to_vec(),
        });
    }
    let factors = factors.dequantize();
    let factor = factors.iter().fold(1.0f32, |max, &value| max.max(value)).into();
    for (i, &got) in factors.iter().enumerate() {
        let rule = LLAMA3_ROPE.divisor(i, head_dim, theta, factor);
        let error = (f64::from(got) / rule - 1.0).abs();
        if error.is_nan() || error > ROPE_TOLERANCE {
            return Err(GgufError::wrong(ROPE_FACTORS, format!("{got} at {i}"), format!("{rule}, as in Llama 3.1")));
        }
    }
    Ok(json!({
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": LLAMA3_ROPE.low,
        "high_freq_factor": LLAMA3_ROPE.high,
        "original_max_position_embeddings": LLAMA3_ROPE.context as u64,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interleaved_rows_come_back_as_halves() {
        let order = RowOrder::Interleaved { head_dim: 6 };
        let sources: Vec<_> = (0..12).map(|row| order.source(row)).collect();
        assert_eq!(sources, [0, 2, 4, 1, 3, 5, 6, 8, 10, 7, 9, 11]);
    }

    #[test]
    fn floats_are_written_as_people_write_them() {
        assert_eq!(shortest(f64::from(1e-5f32)), 1e-5);
        assert_eq!(shortest(f64::from(500_000.0f32)), 500_000.0);
    }

    #[test]
    fn llama3_rule_keeps_fast_rotations_and_stretches_slow_ones() {
        // Head 128, theta 5e5, factor 8, as in Llama 3.1 8B. Rotation 0 turns once in 6.3 tokens, rotation 63 once in 2.6 million.
        let divisor = |i| LLAMA3_ROPE.divisor(i, 128, 5e5, 8.0);
        assert_eq!(divisor(0), 1.0);
        assert_eq!(divisor(63), 8.0);
        let blended: Vec<_> = (0..64).filter(|&i| divisor(i) > 1.0 && divisor(i) < 8.0).collect();
        assert_eq!(blended, [29, 30, 31, 32, 33, 34], "periods between 2048 and 8192 tokens");
    }
}
