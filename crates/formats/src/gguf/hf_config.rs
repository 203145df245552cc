//! The [`Shape`] of a model as a Hugging Face `config.json`.

use serde_json::{Map, Value as Json, json};

use super::architecture::Architecture;
use super::shape::{RopeScaling, Shape};

/// `config.json`, in the form of transformers 4, which versions 4 and 5 read. `ids` are the ids of special tokens.
pub(super) fn config(shape: &Shape, ids: &Map<String, Json>) -> Json {
    let mut config = json!({
        "architectures": [shape.architecture.class()],
        "attention_dropout": 0.0,
        "hidden_size": shape.hidden,
        "initializer_range": 0.02,
        "max_position_embeddings": shape.context,
        "model_type": shape.architecture.name(),
        "num_attention_heads": shape.heads,
        "num_hidden_layers": shape.layers,
        "rope_scaling": rope_scaling(shape.rope.scaling),
        "rope_theta": shape.rope.theta,
        "tie_word_embeddings": shape.tied,
        "torch_dtype": "float16",
        "use_cache": true,
        "vocab_size": shape.vocab,
    });
    let of_family = if shape.architecture == Architecture::Falcon { falcon(shape) } else { llama(shape) };
    let config_object = config.as_object_mut().expect("json! made an object");
    for part in [of_family, ids.clone().into()] {
        config_object.extend(part.as_object().cloned().unwrap_or_default());
    }
    config
}

fn llama(shape: &Shape) -> Json {
    let mut part = json!({
        "head_dim": shape.head_dim,
        "hidden_act": "silu",
        "intermediate_size": shape.intermediate,
        "num_key_value_heads": shape.kv_heads,
        "rms_norm_eps": shape.norm_eps,
    });
    match shape.architecture {
        Architecture::Llama => {
            part["attention_bias"] = shape.attention_bias.into();
            part["mlp_bias"] = shape.mlp_bias.into();
        }
        // The other classes have no such keys: their biases are fixed.
        Architecture::Qwen3 => part["attention_bias"] = false.into(),
        Architecture::Qwen2 | Architecture::Falcon => {}
    }
    if shape.architecture != Architecture::Llama {
        part["use_sliding_window"] = false.into();
    }
    part
}

fn falcon(shape: &Shape) -> Json {
    // With one key/value head the two decoder architectures are the same, and one norm is the default of the older one.
    let is_new = shape.kv_heads > 1 || shape.two_norms;
    let mut part = json!({
        "activation": "gelu",
        "alibi": false,
        "bias": false,
        "ffn_hidden_size": shape.intermediate,
        "hidden_dropout": 0.0,
        "layer_norm_epsilon": shape.norm_eps,
        "multi_query": true,
        "new_decoder_architecture": is_new,
        "num_kv_heads": shape.kv_heads,
        "parallel_attn": true,
    });
    if is_new {
        part["num_ln_in_parallel_attn"] = (if shape.two_norms { 2 } else { 1 }).into();
    }
    part
}

fn rope_scaling(scaling: RopeScaling) -> Json {
    match scaling {
        RopeScaling::None => Json::Null,
        RopeScaling::Linear { factor } => json!({ "rope_type": "linear", "factor": factor }),
        RopeScaling::Llama3 { factor, rule } => json!({
            "rope_type": "llama3",
            "factor": factor,
            "low_freq_factor": rule.low,
            "high_freq_factor": rule.high,
            "original_max_position_embeddings": rule.context as u64,
        }),
        RopeScaling::Yarn { factor, original, beta_fast, beta_slow, attention } => json!({
            "rope_type": "yarn",
            "factor": factor,
            "original_max_position_embeddings": original,
            "beta_fast": beta_fast,
            "beta_slow": beta_slow,
            "attention_factor": attention,
        }),
    }
}
