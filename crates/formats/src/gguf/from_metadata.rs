//! A GGUF file's metadata as the [`Shape`] of a model, and its tensors by their places.

use std::collections::BTreeSet;

use super::architecture::Architecture;
use super::metadata::required;
use super::shape::{Llama3Rule, Rope, RopeScaling, Shape, yarn_attention};
use super::tensors::{Place, ROPE_FACTORS, places};
use super::{Gguf, GgufError, Tensor};

/// Relative tolerance. The factors were computed in f32, and their rounding error passes through one subtraction: 1e-6, with a margin.
const ROPE_TOLERANCE: f64 = 1e-4;

/// A file's keys under the prefix of its architecture.
struct Keys<'a> {
    file: &'a Gguf,
    architecture: Architecture,
}

impl Keys<'_> {
    fn key(&self, name: &str) -> String {
        format!("{}.{name}", self.architecture.name())
    }

    /// A dimension of the model: at least one, and small enough that two can be multiplied.
    fn dimension(&self, name: &str) -> Result<Option<usize>, GgufError> {
        let key = self.key(name);
        let in_range = |n| match n {
            1..=0x7fff_ffff => Ok(n as usize),
            _ => Err(GgufError::wrong(&key, n, format!("a number from 1 to {}", u32::MAX / 2))),
        };
        self.file.metadata().unsigned(&key)?.map(in_range).transpose()
    }

    fn size(&self, name: &str) -> Result<usize, GgufError> {
        required(&self.key(name), self.dimension(name)?)
    }

    /// A finite positive float, as its shortest decimal.
    fn positive(&self, name: &str) -> Result<Option<f64>, GgufError> {
        let key = self.key(name);
        match self.file.metadata().float(&key)?.map(shortest) {
            Some(value) if !(value > 0.0 && value.is_finite()) => {
                Err(GgufError::wrong(&key, value, "a positive number"))
            }
            value => Ok(value),
        }
    }

    fn wrong(&self, name: &str, got: impl ToString, expected: impl Into<String>) -> GgufError {
        GgufError::wrong(&self.key(name), got, expected)
    }
}

/// Reads the model's shape and refuses what a plain model of the architecture cannot express.
pub(super) fn read(file: &Gguf) -> Result<Shape, GgufError> {
    let metadata = file.metadata();
    let name = required("general.architecture", metadata.text("general.architecture")?)?;
    let Some(architecture) = Architecture::ALL.into_iter().find(|known| known.name() == name) else {
        let known = Architecture::ALL.map(Architecture::name).join(", ");
        return Err(GgufError::wrong("general.architecture", name, format!("{known}, which are converted")));
    };
    let keys = Keys { file, architecture };
    if let Some(experts) = metadata.unsigned(&keys.key("expert_count"))?.filter(|&n| n > 0) {
        return Err(keys.wrong("expert_count", experts, "0: mixtures of experts are not converted"));
    }
    let hidden = keys.size("embedding_length")?;
    let heads = keys.size("attention.head_count")?;
    let kv_heads = keys.dimension("attention.head_count_kv")?.unwrap_or(heads);
    if !heads.is_multiple_of(kv_heads) {
        return Err(keys.wrong("attention.head_count_kv", kv_heads, format!("a divisor of the {heads} heads")));
    }
    let layers = keys.size("block_count")?;
    // A block has several tensors. This bounds what a damaged file can make us list.
    if layers > file.tensors().len() {
        return Err(keys.wrong("block_count", layers, format!("at most {}, the file's tensors", file.tensors().len())));
    }
    let head_dim = head_dim(&keys, hidden, heads)?;
    let embedding = file.tensor("token_embd.weight").ok_or_else(|| missing("token_embd.weight"))?;
    let has = |tensor: &str| file.tensor(tensor).is_some();
    let shape = Shape {
        architecture,
        hidden,
        intermediate: keys.size("feed_forward_length")?,
        layers,
        heads,
        kv_heads,
        head_dim,
        vocab: embedding.rows(),
        context: keys.size("context_length")?,
        norm_eps: required(&keys.key(architecture.norm_eps_key()), keys.positive(architecture.norm_eps_key())?)?,
        rope: rope(&keys, head_dim)?,
        tied: !has("output.weight"),
        attention_bias: has("blk.0.attn_q.bias"),
        mlp_bias: has("blk.0.ffn_up.bias"),
        two_norms: has("blk.0.attn_norm_2.weight"),
    };
    refuse_what_hugging_face_lacks(&keys, &shape)?;
    Ok(shape)
}

/// Biases and head sizes that the architecture can have in llama.cpp and not in Hugging Face.
fn refuse_what_hugging_face_lacks(keys: &Keys<'_>, shape: &Shape) -> Result<(), GgufError> {
    let extra = |tensor: &str| Err(GgufError::ExtraTensor { tensor: tensor.to_owned() });
    match shape.architecture {
        // Hugging Face has biases of all four linears or of none.
        Architecture::Llama if shape.attention_bias && keys.file.tensor("blk.0.attn_output.bias").is_none() => {
            return extra("blk.0.attn_q.bias");
        }
        Architecture::Llama => {}
        Architecture::Qwen2 if !shape.attention_bias => return Err(missing("blk.0.attn_q.bias")),
        Architecture::Qwen3 | Architecture::Falcon if shape.attention_bias => return extra("blk.0.attn_q.bias"),
        _ if shape.mlp_bias => return extra("blk.0.ffn_up.bias"),
        Architecture::Qwen2 | Architecture::Qwen3 => {}
        Architecture::Falcon => {
            if shape.head_dim * shape.heads != shape.hidden {
                let expected = format!("{}, the hidden size over the heads", shape.hidden / shape.heads);
                return Err(keys.wrong("attention.key_length", shape.head_dim, expected));
            }
        }
    }
    Ok(())
}

/// All tensors of the model with their places, in the order of the forward pass. Fails if a tensor is missing or there is an extra one.
pub(super) fn find_all<'a>(file: &'a Gguf, shape: &Shape) -> Result<Vec<(Place, Tensor<'a>)>, GgufError> {
    let found = places(shape).into_iter().map(|place| {
        let tensor = file.tensor(&place.gguf).ok_or_else(|| missing(&place.gguf))?;
        if tensor.shape() != place.shape {
            let got = tensor.shape().to_vec();
            return Err(GgufError::Shape { tensor: place.gguf, got, expected: place.shape });
        }
        Ok((place, tensor))
    });
    let found = found.collect::<Result<Vec<_>, _>>()?;
    let used: BTreeSet<_> = found.iter().map(|(_, tensor)| tensor.name()).chain([ROPE_FACTORS]).collect();
    match file.tensors().find(|tensor| !used.contains(tensor.name())) {
        Some(extra) => Err(GgufError::ExtraTensor { tensor: extra.name().to_owned() }),
        None => Ok(found),
    }
}

fn missing(tensor: &str) -> GgufError {
    GgufError::MissingTensor { tensor: tensor.to_owned() }
}

/// Channels of a head. Queries, keys and values must have the same number, and rotations must cover the whole head.
fn head_dim(keys: &Keys<'_>, hidden: usize, heads: usize) -> Result<usize, GgufError> {
    let head_dim = match keys.dimension("attention.key_length")? {
        Some(head_dim) => head_dim,
        None if hidden.is_multiple_of(heads) => hidden / heads,
        None => {
            return Err(keys.wrong("attention.head_count", heads, format!("a divisor of hidden size {hidden}")));
        }
    };
    for name in ["attention.value_length", "rope.dimension_count"] {
        if let Some(other) = keys.dimension(name)?.filter(|&other| other != head_dim) {
            return Err(keys.wrong(name, other, format!("{head_dim}, the values of a head")));
        }
    }
    if !head_dim.is_multiple_of(2) {
        return Err(keys.wrong("attention.key_length", head_dim, "an even number, so that rotations have pairs"));
    }
    Ok(head_dim)
}

/// The shortest decimal that rounds to this f32, as f64: 1e-5 rather than 9.999999747378752e-6.
fn shortest(value: f64) -> f64 {
    (value as f32).to_string().parse().expect("what Display writes of a float parses as one")
}

fn rope(keys: &Keys<'_>, head_dim: usize) -> Result<Rope, GgufError> {
    // 10,000 is LLaMA's own value, from a time when files did not contain it, and the default of llama.cpp.
    let theta = keys.positive("rope.freq_base")?.unwrap_or(10_000.0);
    if let Some(factors) = keys.file.tensor(ROPE_FACTORS) {
        return Ok(Rope { theta, scaling: llama3_scaling(&factors, head_dim, theta)? });
    }
    let needed = |name: &str| required(&keys.key(name), keys.positive(name)?);
    let type_name = "rope.scaling.type";
    let scaling = match keys.file.metadata().text(&keys.key(type_name))? {
        // scale_linear: used by files before the type was introduced.
        None => match keys.positive("rope.scale_linear")?.filter(|&factor| factor != 1.0) {
            Some(factor) => RopeScaling::Linear { factor },
            None => RopeScaling::None,
        },
        Some("none") => RopeScaling::None,
        Some("linear") => RopeScaling::Linear { factor: needed("rope.scaling.factor")? },
        Some("yarn") => yarn(keys)?,
        Some(other) => return Err(keys.wrong(type_name, other, "none, linear or yarn")),
    };
    Ok(Rope { theta, scaling })
}

fn yarn(keys: &Keys<'_>) -> Result<RopeScaling, GgufError> {
    for name in ["yarn_ext_factor", "yarn_attn_factor", "yarn_log_multiplier"] {
        let name = format!("rope.scaling.{name}");
        if let Some(value) = keys.file.metadata().float(&keys.key(&name))? {
            return Err(keys.wrong(&name, value, "no such key: it is not converted"));
        }
    }
    let factor = required(&keys.key("rope.scaling.factor"), keys.positive("rope.scaling.factor")?)?;
    Ok(RopeScaling::Yarn {
        factor,
        original: keys.size("rope.scaling.original_context_length")?,
        beta_fast: keys.positive("rope.scaling.yarn_beta_fast")?.unwrap_or(32.0),
        beta_slow: keys.positive("rope.scaling.yarn_beta_slow")?.unwrap_or(1.0),
        attention: yarn_attention(factor, 1.0) * keys.positive("rope.scaling.attn_factor")?.unwrap_or(1.0),
    })
}

/// Recognizes the factors of Llama 3.1's rule; the constants of the rule are not in the file.
fn llama3_scaling(factors: &Tensor<'_>, head_dim: usize, theta: f64) -> Result<RopeScaling, GgufError> {
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
    let rule = Llama3Rule::PUBLISHED;
    for (i, &got) in factors.iter().enumerate() {
        let wanted = rule.divisor(i, head_dim, theta, factor);
        let error = (f64::from(got) / wanted - 1.0).abs();
        if error.is_nan() || error > ROPE_TOLERANCE {
            return Err(GgufError::wrong(ROPE_FACTORS, format!("{got} at {i}"), format!("{wanted}, as in Llama 3.1")));
        }
    }
    Ok(RopeScaling::Llama3 { factor, rule })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats_are_written_as_people_write_them() {
        assert_eq!(shortest(f64::from(1e-5f32)), 1e-5);
        assert_eq!(shortest(f64::from(500_000.0f32)), 500_000.0);
    }
}
