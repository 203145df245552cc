//! A Hugging Face `config.json` as the [`Shape`] of a model.

use serde_json::Value as Json;

use crate::Checkpoint;
use crate::gguf::GgufError;
use crate::gguf::architecture::Architecture;
use crate::gguf::shape::{Llama3Rule, Rope, RopeScaling, Shape, yarn_attention};

/// Largest size that is accepted: far above that of any model, and small enough that products of two sizes cannot overflow.
const MAX: u64 = 1 << 24;

/// A JSON object; `null` counts as absent.
#[derive(Clone, Copy)]
struct Config<'a>(&'a Json);

impl<'a> Config<'a> {
    fn get(self, key: &str) -> Option<&'a Json> {
        self.0.get(key).filter(|value| !value.is_null())
    }

    fn wrong(self, key: &str, expected: impl Into<String>) -> GgufError {
        let value = self.get(key).map_or_else(|| "missing".to_owned(), Json::to_string);
        GgufError::Config { key: key.to_owned(), value, expected: expected.into() }
    }

    fn size(self, key: &str) -> Result<Option<usize>, GgufError> {
        match self.get(key).map(Json::as_u64) {
            None => Ok(None),
            Some(Some(n)) if (1..=MAX).contains(&n) => Ok(Some(n as usize)),
            Some(_) => Err(self.wrong(key, format!("a whole number from 1 to {MAX}"))),
        }
    }

    fn needed(self, key: &str) -> Result<usize, GgufError> {
        self.size(key)?.ok_or_else(|| self.wrong(key, "a positive whole number"))
    }

    fn number(self, key: &str) -> Result<Option<f64>, GgufError> {
        match self.get(key).map(Json::as_f64) {
            None => Ok(None),
            Some(Some(x)) if x.is_finite() && x > 0.0 => Ok(Some(x)),
            Some(_) => Err(self.wrong(key, "a positive number")),
        }
    }

    /// A positive number; 0 counts as absent.
    fn number_unless_zero(self, key: &str) -> Result<Option<f64>, GgufError> {
        if self.get(key).and_then(Json::as_f64) == Some(0.0) { Ok(None) } else { self.number(key) }
    }

    fn flag(self, key: &str, default: bool) -> Result<bool, GgufError> {
        self.get(key).map_or(Ok(default), |value| value.as_bool().ok_or_else(|| self.wrong(key, "true or false")))
    }

    fn text(self, key: &str) -> Option<&'a str> {
        self.get(key)?.as_str()
    }

    /// Refuses every value but this one.
    fn only(self, key: &str, allowed: &str) -> Result<(), GgufError> {
        match self.text(key).unwrap_or(allowed) {
            value if value == allowed => Ok(()),
            _ => Err(self.wrong(key, format!("{allowed}: llama.cpp computes no other"))),
        }
    }
}

/// The shape of the model in a directory, and what llama.cpp cannot run as an error.
pub(super) fn read(json: &Json, checkpoint: &Checkpoint) -> Result<Shape, GgufError> {
    let config = Config(json);
    let model_type = config.text("model_type").ok_or_else(|| config.wrong("model_type", "a text"))?;
    let architecture = Architecture::of_model_type(model_type)
        .ok_or_else(|| GgufError::NoArchitecture { model_type: model_type.to_owned() })?;
    let shape = match architecture {
        Architecture::Falcon => falcon(config, checkpoint),
        Architecture::Llama | Architecture::Qwen2 | Architecture::Qwen3 => {
            llama(config, checkpoint, architecture, model_type)
        }
    }?;
    // A block has several tensors. This bounds what a damaged config can make us list.
    let tensors = checkpoint.tensors().len();
    if shape.layers > tensors {
        return Err(config.wrong("num_hidden_layers", format!("at most {tensors}, the tensors of the checkpoint")));
    }
    Ok(shape)
}

fn llama(
    config: Config<'_>,
    checkpoint: &Checkpoint,
    architecture: Architecture,
    model_type: &str,
) -> Result<Shape, GgufError> {
    let (hidden, heads) = (config.needed("hidden_size")?, config.needed("num_attention_heads")?);
    // The defaults of transformers' classes.
    let (class_kv_heads, class_context) = match model_type {
        "mistral" => (8, 131_072),
        "llama" => (heads, 2048),
        _ => (32, 32_768),
    };
    // A key with the value null differs from a missing key.
    let is_written = config.0.get("num_key_value_heads").is_some();
    let kv_heads = config.size("num_key_value_heads")?.unwrap_or(if is_written { heads } else { class_kv_heads });
    if !heads.is_multiple_of(kv_heads) {
        return Err(config.wrong("num_key_value_heads", format!("a divisor of the {heads} heads")));
    }
    let class_head_dim = (architecture == Architecture::Qwen3).then_some(128);
    let head_dim = match config.size("head_dim")?.or(class_head_dim) {
        Some(head_dim) => head_dim,
        None if hidden.is_multiple_of(heads) => hidden / heads,
        None => return Err(config.wrong("num_attention_heads", format!("a divisor of hidden_size {hidden}"))),
    };
    config.only("hidden_act", "silu")?;
    let positions = config.size("max_position_embeddings")?.unwrap_or(class_context);
    // llama.cpp attends to all positions. Within the window that is the same.
    let window = match model_type {
        "mistral" if config.0.get("sliding_window").is_none() => Some(4096),
        "mistral" => config.size("sliding_window")?,
        _ if config.flag("use_sliding_window", false)? => {
            return Err(config.wrong("use_sliding_window", "false: llama.cpp has no windows in these models"));
        }
        _ => None,
    };
    let has = |name: &str| checkpoint.contains(name);
    Ok(Shape {
        architecture,
        hidden,
        intermediate: config.needed("intermediate_size")?,
        layers: config.needed("num_hidden_layers")?,
        heads,
        kv_heads,
        head_dim,
        vocab: config.needed("vocab_size")?,
        context: window.map_or(positions, |window| positions.min(window)),
        norm_eps: config.number("rms_norm_eps")?.unwrap_or(1e-6),
        rope: rope(config, head_dim, positions)?,
        tied: is_tied(config, checkpoint, false, "model.embed_tokens.weight")?,
        attention_bias: has("model.layers.0.self_attn.q_proj.bias"),
        mlp_bias: has("model.layers.0.mlp.up_proj.bias"),
        two_norms: false,
    })
}

fn falcon(config: Config<'_>, checkpoint: &Checkpoint) -> Result<Shape, GgufError> {
    let (hidden, heads) = (config.needed("hidden_size")?, config.needed("num_attention_heads")?);
    if !hidden.is_multiple_of(heads) {
        return Err(config.wrong("num_attention_heads", format!("a divisor of hidden_size {hidden}")));
    }
    for (key, default, needed) in [("alibi", false, false), ("bias", false, false), ("parallel_attn", true, true)] {
        if config.flag(key, default)? != needed {
            return Err(config.wrong(key, format!("{needed}: llama.cpp computes no other")));
        }
    }
    config.only("activation", "gelu")?;
    let is_new = config.flag("new_decoder_architecture", false)?;
    let kv_heads = match (is_new, config.flag("multi_query", true)?) {
        (true, _) => config.size("num_kv_heads")?.unwrap_or(heads),
        (false, true) => 1,
        (false, false) => heads,
    };
    if !heads.is_multiple_of(kv_heads) {
        return Err(config.wrong("num_kv_heads", format!("a divisor of the {heads} heads")));
    }
    let context = config.size("max_position_embeddings")?.unwrap_or(2048);
    Ok(Shape {
        architecture: Architecture::Falcon,
        hidden,
        intermediate: config.size("ffn_hidden_size")?.unwrap_or(4 * hidden),
        layers: config.needed("num_hidden_layers")?,
        heads,
        kv_heads,
        head_dim: hidden / heads,
        vocab: config.needed("vocab_size")?,
        context,
        norm_eps: config.number("layer_norm_epsilon")?.unwrap_or(1e-5),
        rope: rope(config, hidden / heads, context)?,
        tied: is_tied(config, checkpoint, true, "transformer.word_embeddings.weight")?,
        attention_bias: false,
        mlp_bias: false,
        two_norms: checkpoint.contains("transformer.h.0.ln_attn.weight"),
    })
}

/// Whether the head is the embedding. A head that differs from it is separate even if the config ties the two, as in transformers since
/// version 5.
fn is_tied(config: Config<'_>, checkpoint: &Checkpoint, default: bool, embedding: &str) -> Result<bool, GgufError> {
    const HEAD: &str = "lm_head.weight";
    let tied = config.flag("tie_word_embeddings", default)?;
    Ok(tied && (!checkpoint.contains(HEAD) || checkpoint.is_same(HEAD, (checkpoint, embedding))?))
}

/// `rope_parameters` (transformers 5) or `rope_theta` and `rope_scaling` (transformers 4). As in that library, a `rope_scaling` that is not
/// empty replaces all of `rope_parameters`.
fn rope(config: Config<'_>, head_dim: usize, positions: usize) -> Result<Rope, GgufError> {
    if !head_dim.is_multiple_of(2) {
        return Err(config.wrong("head_dim", "an even number, so that rotations have pairs"));
    }
    let is_full = |section: &&Json| section.as_object().is_some_and(|object| !object.is_empty());
    let section = config.get("rope_scaling").filter(is_full).or_else(|| config.get("rope_parameters"));
    let section = Config(section.unwrap_or(&Json::Null));
    let either = |key: &str, default: f64| match section.number(key)? {
        Some(value) => Ok(value),
        None => config.number(key).map(|value| value.unwrap_or(default)),
    };
    let theta = either("rope_theta", 10_000.0)?;
    if either("partial_rotary_factor", 1.0)? != 1.0 {
        return Err(config.wrong("partial_rotary_factor", "1: whole heads are rotated"));
    }
    let original = match config.size("original_max_position_embeddings")? {
        Some(original) => original,
        None => section.size("original_max_position_embeddings")?.unwrap_or(positions),
    };
    let needed = |key: &str| section.number(key)?.ok_or_else(|| section.wrong(key, "a positive number"));
    let scaling = match section.text("rope_type").or_else(|| section.text("type")).unwrap_or("default") {
        "default" => RopeScaling::None,
        "linear" => RopeScaling::Linear { factor: needed("factor")? },
        "llama3" => RopeScaling::Llama3 {
            factor: needed("factor")?,
            rule: Llama3Rule {
                low: needed("low_freq_factor")?,
                high: needed("high_freq_factor")?,
                context: original as f64,
            },
        },
        "yarn" => yarn(section, positions, original)?,
        _ => return Err(section.wrong("rope_type", "default, linear, llama3 or yarn: llama.cpp has no other")),
    };
    Ok(Rope { theta, scaling })
}

fn yarn(section: Config<'_>, positions: usize, original: usize) -> Result<RopeScaling, GgufError> {
    if !section.flag("truncate", true)? {
        return Err(section.wrong("truncate", "true: llama.cpp rounds the ends of the ramp"));
    }
    for (key, only) in [("beta_fast", 32.0), ("beta_slow", 1.0)] {
        if section.number_unless_zero(key)?.is_some_and(|beta| beta != only) {
            return Err(section.wrong(key, format!("{only}: llama.cpp has no other for this architecture")));
        }
    }
    let factor = section.number("factor")?.unwrap_or(positions as f64 / original as f64);
    let mscale = section.number_unless_zero("mscale")?.zip(section.number_unless_zero("mscale_all_dim")?);
    let of_scales = mscale.map(|(mscale, all)| yarn_attention(factor, mscale) / yarn_attention(factor, all));
    let attention = section.number("attention_factor")?.or(of_scales).unwrap_or(yarn_attention(factor, 1.0));
    Ok(RopeScaling::Yarn { factor, original, beta_fast: 32.0, beta_slow: 1.0, attention })
}
