//! A GGUF file's metadata as the [`Shape`] of a model, and its tensors by their places.

use std::collections::BTreeSet;

use super::architecture::{Architecture, TEMPERATURE};
use super::metadata::{Array, Value, required};
use super::shape::{
    Experts, Llama3Rule, Multipliers, Rope, RopeScaling, Shape, Window, long_attention, yarn_attention,
};
use super::tensors::{LONG_FACTORS, Place, ROPE_FACTORS, places};
use super::{Gguf, GgufError, Tensor};

/// Relative tolerance. The factors were computed in f32, and their rounding error passes through one subtraction: 1e-6, with a margin.
const ROPE_TOLERANCE: f64 = 1e-4;

/// Largest number of experts that is accepted: far above that of any model.
const MOST_EXPERTS: usize = 1 << 12;

/// A file's keys under the prefix of its architecture.
struct Keys<'a> {
    file: &'a Gguf,
    prefix: &'a str,
    architecture: Architecture,
}

impl Keys<'_> {
    fn key(&self, name: &str) -> String {
        format!("{}.{name}", self.prefix)
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
    let count = |key: &str| metadata.unsigned(&format!("{name}.{key}"));
    let has_experts = count("expert_count")?.is_some_and(|n| n > 0);
    let is_set = |value: &Value| value.as_unsigned() != Some(0);
    let has = |key: &str| metadata.get(&format!("{name}.{key}")).is_some_and(is_set);
    let Some(architecture) = Architecture::of_name(name, has) else {
        let known = Architecture::known();
        return Err(GgufError::wrong("general.architecture", name, format!("{known}, which are converted")));
    };
    let keys = Keys { file, prefix: name, architecture };
    if has_experts && !architecture.has_experts() {
        let experts = count("expert_count")?.unwrap_or_default();
        return Err(keys.wrong("expert_count", experts, "0: experts of this architecture are not converted"));
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
    let intermediate = keys.size("feed_forward_length")?;
    let embedding = file.tensor("token_embd.weight").ok_or_else(|| missing("token_embd.weight"))?;
    let has = |tensor: &str| file.tensor(tensor).is_some();
    let shape = Shape {
        architecture,
        hidden,
        intermediate,
        layers,
        heads,
        kv_heads,
        head_dim,
        vocab: embedding.rows(),
        context: keys.size("context_length")?,
        norm_eps: required(&keys.key(architecture.norm_eps_key()), keys.positive(architecture.norm_eps_key())?)?,
        rope: rope(&keys, head_dim)?,
        tied: architecture.is_always_tied() || !has("output.weight"),
        attention_bias: has("blk.0.attn_q.bias"),
        output_bias: has("blk.0.attn_output.bias"),
        mlp_bias: has("blk.0.ffn_up.bias"),
        two_norms: has("blk.0.attn_norm_2.weight"),
        experts: if architecture.has_experts() { Some(experts(&keys, intermediate)?) } else { None },
        window: window(&keys, layers)?,
        caps: [keys.positive("attn_logit_softcapping")?, keys.positive("final_logit_softcapping")?],
        multipliers: if architecture.is_granite() { Some(multipliers(&keys, head_dim)?) } else { None },
        temperature: if architecture == Architecture::Ministral3 { keys.positive(TEMPERATURE)? } else { None },
    };
    refuse_what_hugging_face_lacks(&keys, &shape)?;
    Ok(shape)
}

/// Biases and head sizes that the architecture can have in llama.cpp and not in Hugging Face.
fn refuse_what_hugging_face_lacks(keys: &Keys<'_>, shape: &Shape) -> Result<(), GgufError> {
    let extra = |tensor: &str| Err(GgufError::ExtraTensor { tensor: tensor.to_owned() });
    let (inputs, output) = (shape.attention_bias, shape.output_bias);
    match shape.architecture {
        // Hugging Face has biases of all four linears or of none.
        Architecture::Llama
        | Architecture::Granite
        | Architecture::GraniteMoe
        | Architecture::GptOss
        | Architecture::SmolLm3 => match (inputs, output) {
            (true, false) => return extra("blk.0.attn_q.bias"),
            (false, true) => return extra("blk.0.attn_output.bias"),
            _ => {}
        },
        Architecture::SeedOss => {}
        _ if shape.mlp_bias => return extra("blk.0.ffn_up.bias"),
        _ if output => return extra("blk.0.attn_output.bias"),
        Architecture::Qwen2 | Architecture::Qwen2Moe if !inputs => return Err(missing("blk.0.attn_q.bias")),
        Architecture::Qwen2 | Architecture::Qwen2Moe | Architecture::Glm4 => {}
        _ if inputs => return extra("blk.0.attn_q.bias"),
        Architecture::Falcon if shape.head_dim * shape.heads != shape.hidden => {
            let expected = format!("{}, the hidden size over the heads", shape.hidden / shape.heads);
            return Err(keys.wrong("attention.key_length", shape.head_dim, expected));
        }
        _ => {}
    }
    Ok(())
}

fn experts(keys: &Keys<'_>, intermediate: usize) -> Result<Experts, GgufError> {
    let (count, used) = (keys.size("expert_count")?, keys.size("expert_used_count")?);
    if used > count {
        return Err(keys.wrong("expert_used_count", used, format!("at most the {count} experts")));
    }
    // Each is listed, so a damaged number must not be taken.
    if count > MOST_EXPERTS {
        return Err(keys.wrong("expert_count", count, format!("at most {MOST_EXPERTS}")));
    }
    let width = keys.dimension("expert_feed_forward_length")?.unwrap_or(intermediate);
    let gate = keys.file.tensor("blk.0.ffn_gate_shexp.weight");
    // Files from before the key have the tensor alone.
    let shared = keys.dimension("expert_shared_feed_forward_length")?.or(gate.map(|gate| gate.rows()));
    let shared = shared.filter(|_| keys.architecture == Architecture::Qwen2Moe);
    Ok(Experts { count, used, width, shared })
}

/// Windows, by the pattern that the file or else llama.cpp has.
fn window(keys: &Keys<'_>, layers: usize) -> Result<Option<Window>, GgufError> {
    let (window, pattern) = ("attention.sliding_window", "attention.sliding_window_pattern");
    let positions = keys.file.metadata().unsigned(&keys.key(window))?.filter(|&n| n > 0);
    let usual = match keys.architecture {
        // Hugging Face has it in all blocks.
        Architecture::Phi3 => 0,
        other => match other.usual_period() {
            Some(period) => period,
            None => return Ok(None),
        },
    };
    let positions = match positions {
        Some(positions) => usize::try_from(positions).ok().filter(|&n| n <= i32::MAX as usize),
        None if keys.architecture == Architecture::Gemma2 => Some(4096),
        None => return Ok(None),
    };
    let positions = positions.ok_or_else(|| keys.wrong(window, "more", format!("at most {}", i32::MAX)))?;
    let of_period = |period: usize| Window::with_period(positions, period, layers);
    Ok(Some(match keys.file.metadata().get(&keys.key(pattern)) {
        None => of_period(usual),
        Some(Value::Array(Array::Bool(slides))) if slides.len() == layers => {
            Window { positions, slides: slides.clone() }
        }
        Some(value) => match value.as_unsigned() {
            Some(period) => of_period(usize::try_from(period).unwrap_or(usize::MAX)),
            None => return Err(keys.wrong(pattern, "another list", format!("a number, or {layers} flags"))),
        },
    }))
}

fn multipliers(keys: &Keys<'_>, head_dim: usize) -> Result<Multipliers, GgufError> {
    Ok(Multipliers {
        embedding: keys.positive("embedding_scale")?.unwrap_or(1.0),
        residual: keys.positive("residual_scale")?.unwrap_or(1.0),
        attention: keys.positive("attention.scale")?.unwrap_or(1.0 / (head_dim as f64).sqrt()),
        logits: required(&keys.key("logit_scale"), keys.positive("logit_scale")?)?,
    })
}

/// All tensors of the model with their places, in the order of the forward pass. Fails if a tensor is missing or there is an extra one.
pub(super) fn find_all<'a>(file: &'a Gguf, shape: &Shape) -> Result<Vec<(Place, Tensor<'a>)>, GgufError> {
    let found = places(shape).into_iter().map(|place| {
        let tensor = file.tensor(&place.gguf).ok_or_else(|| missing(&place.gguf))?;
        let expected = place.gguf_shape();
        // Older files lack outer dimensions of one.
        let is_squeezed = expected.first() == Some(&1) && tensor.shape() == &expected[1..];
        if tensor.shape() != expected && !is_squeezed {
            return Err(GgufError::Shape { tensor: place.gguf, got: tensor.shape().to_vec(), expected });
        }
        Ok((place, tensor))
    });
    let found = found.collect::<Result<Vec<_>, _>>()?;
    let factors = [ROPE_FACTORS].into_iter().chain(LONG_FACTORS.into_iter().filter(|_| shape.rope.is_long()));
    let used: BTreeSet<_> = found.iter().map(|(_, tensor)| tensor.name()).chain(factors).collect();
    match file.tensors().find(|tensor| !used.contains(tensor.name())) {
        Some(extra) => Err(GgufError::ExtraTensor { tensor: extra.name().to_owned() }),
        None => Ok(found),
    }
}

fn missing(tensor: &str) -> GgufError {
    GgufError::MissingTensor { tensor: tensor.to_owned() }
}

/// Channels of a head. Queries, keys and values must have the same number.
fn head_dim(keys: &Keys<'_>, hidden: usize, heads: usize) -> Result<usize, GgufError> {
    let head_dim = match keys.dimension("attention.key_length")? {
        Some(head_dim) => head_dim,
        None if hidden.is_multiple_of(heads) => hidden / heads,
        None => {
            return Err(keys.wrong("attention.head_count", heads, format!("a divisor of hidden size {hidden}")));
        }
    };
    let value = "attention.value_length";
    if let Some(other) = keys.dimension(value)?.filter(|&other| other != head_dim) {
        return Err(keys.wrong(value, other, format!("{head_dim}, the values of a head")));
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

/// How many of a head's values are rotated: all in most architectures.
fn rotated(keys: &Keys<'_>, head_dim: usize) -> Result<usize, GgufError> {
    let name = "rope.dimension_count";
    match keys.dimension(name)?.unwrap_or(head_dim) {
        part if keys.architecture.rotates_partly() && part <= head_dim && part.is_multiple_of(2) => Ok(part),
        whole if whole == head_dim => Ok(whole),
        other => Err(keys.wrong(name, other, format!("{head_dim}, the values of a head"))),
    }
}

fn rope(keys: &Keys<'_>, head_dim: usize) -> Result<Rope, GgufError> {
    // 10,000 is LLaMA's own value, from a time when files did not contain it, and the default of llama.cpp.
    const THETA: f64 = 10_000.0;
    let theta = keys.positive("rope.freq_base")?.unwrap_or(THETA);
    let of_window = keys.positive("rope.freq_base_swa")?;
    let local_theta = (keys.architecture == Architecture::Gemma3).then(|| of_window.unwrap_or(THETA));
    if let Some(other) = of_window.filter(|&other| local_theta.is_none() && other != theta) {
        return Err(keys.wrong("rope.freq_base_swa", other, format!("{theta}, as in the other blocks")));
    }
    let rotated = rotated(keys, head_dim)?;
    let scaling = scaling(keys, rotated, theta)?;
    Ok(Rope { theta, local_theta, rotated, scaling })
}

fn scaling(keys: &Keys<'_>, rotated: usize, theta: f64) -> Result<RopeScaling, GgufError> {
    if let Some(factors) = keys.file.tensor(ROPE_FACTORS) {
        return llama3_scaling(&factors, rotated, theta);
    }
    if keys.architecture == Architecture::Phi3 && LONG_FACTORS.iter().any(|name| keys.file.tensor(name).is_some()) {
        return long_scaling(keys, rotated);
    }
    let needed = |name: &str| required(&keys.key(name), keys.positive(name)?);
    let type_name = "rope.scaling.type";
    match keys.file.metadata().text(&keys.key(type_name))? {
        // scale_linear: used by files before the type was introduced.
        None => Ok(match keys.positive("rope.scale_linear")?.filter(|&factor| factor != 1.0) {
            Some(factor) => RopeScaling::Linear { factor },
            None => RopeScaling::None,
        }),
        Some("none") => Ok(RopeScaling::None),
        Some("linear") => Ok(RopeScaling::Linear { factor: needed("rope.scaling.factor")? }),
        Some("yarn") => yarn(keys),
        Some(other) => Err(keys.wrong(type_name, other, "none, linear or yarn")),
    }
}

/// The factors of LongRoPE, which are tensors.
fn long_scaling(keys: &Keys<'_>, rotated: usize) -> Result<RopeScaling, GgufError> {
    let factors = |name: &str| -> Result<Vec<f64>, GgufError> {
        let tensor = keys.file.tensor(name).ok_or_else(|| missing(name))?;
        let (got, expected) = (tensor.shape().to_vec(), vec![rotated / 2]);
        if got != expected {
            return Err(GgufError::Shape { tensor: name.to_owned(), got, expected });
        }
        Ok(tensor.dequantize().iter().map(|&factor| shortest(factor.into())).collect())
    };
    let [short, long] = LONG_FACTORS;
    let (context, original) = (keys.size("context_length")?, keys.size("rope.scaling.original_context_length")?);
    let computed = long_attention(context, original);
    let attention = keys.positive("rope.scaling.attn_factor")?.unwrap_or(1.0);
    // The same number, but for its rounding to f32.
    let attention = if (attention / computed - 1.0).abs() < 1e-6 { computed } else { attention };
    Ok(RopeScaling::Long { original, short: factors(short)?, long: factors(long)?, attention })
}

fn yarn(keys: &Keys<'_>) -> Result<RopeScaling, GgufError> {
    const LOG_MULTIPLIER: &str = "rope.scaling.yarn_log_multiplier";
    // Those of other architectures stand for something else.
    let of_ministral = (keys.prefix == "mistral3").then(|| keys.positive(LOG_MULTIPLIER)).transpose()?.flatten();
    for name in ["rope.scaling.yarn_ext_factor", "rope.scaling.yarn_attn_factor", LOG_MULTIPLIER] {
        match keys.file.metadata().float(&keys.key(name))? {
            Some(value) if name != LOG_MULTIPLIER || of_ministral.is_none() => {
                return Err(keys.wrong(name, value, "no such key: it is not converted"));
            }
            _ => {}
        }
    }
    let factor = required(&keys.key("rope.scaling.factor"), keys.positive("rope.scaling.factor")?)?;
    let own = yarn_attention(factor, 1.0) / of_ministral.map_or(1.0, |mscale| yarn_attention(factor, mscale));
    Ok(RopeScaling::Yarn {
        factor,
        original: keys.size("rope.scaling.original_context_length")?,
        beta_fast: keys.positive("rope.scaling.yarn_beta_fast")?.unwrap_or(32.0),
        beta_slow: keys.positive("rope.scaling.yarn_beta_slow")?.unwrap_or(1.0),
        attention: own * keys.positive("rope.scaling.attn_factor")?.unwrap_or(1.0),
        // All published models have it so, and files do not say.
        truncate: keys.architecture != Architecture::GptOss,
    })
}

/// Recognizes the factors of Llama 3.1's rule; the constants of the rule are not in the file.
fn llama3_scaling(factors: &Tensor<'_>, rotated: usize, theta: f64) -> Result<RopeScaling, GgufError> {
    let expected = [rotated / 2];
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
        let wanted = rule.divisor(i, rotated, theta, factor);
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
