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
        "model_type": shape.architecture.model_type(),
        "num_attention_heads": shape.heads,
        "num_hidden_layers": shape.layers,
        "rope_scaling": rope_scaling(&shape.rope.scaling),
        "rope_theta": shape.rope.theta,
        "tie_word_embeddings": shape.tied,
        "torch_dtype": "float16",
        "use_cache": true,
        "vocab_size": shape.vocab,
    });
    let parts = match shape.architecture {
        Architecture::Falcon => vec![falcon(shape)],
        _ => vec![llama(shape), of_family(shape), mixture(shape)],
    };
    let config_object = config.as_object_mut().expect("json! made an object");
    for part in parts.into_iter().chain([ids.clone().into()]) {
        config_object.extend(part.as_object().cloned().unwrap_or_default());
    }
    config
}

/// What most families have.
fn llama(shape: &Shape) -> Json {
    json!({
        "head_dim": shape.head_dim,
        "hidden_act": "silu",
        "intermediate_size": shape.intermediate,
        "num_key_value_heads": shape.kv_heads,
        "rms_norm_eps": shape.norm_eps,
    })
}

/// The keys of one family. What GGUF files do not say is what llama.cpp computes.
fn of_family(shape: &Shape) -> Json {
    match shape.architecture {
        Architecture::Llama | Architecture::Granite | Architecture::GraniteMoe | Architecture::SmolLm3 => {
            let mut part = json!({ "attention_bias": shape.attention_bias, "mlp_bias": shape.mlp_bias });
            if let Some(factors) = shape.multipliers {
                part["embedding_multiplier"] = factors.embedding.into();
                part["residual_multiplier"] = factors.residual.into();
                part["attention_multiplier"] = factors.attention.into();
                part["logits_scaling"] = factors.logits.into();
            }
            if shape.architecture == Architecture::SmolLm3 {
                part["layer_types"] = vec!["full_attention"; shape.layers].into();
                part["no_rope_layer_interval"] = NO_ROPE_EVERY.into();
                let rotates = |layer: usize| u8::from(!(layer + 1).is_multiple_of(NO_ROPE_EVERY));
                part["no_rope_layers"] = (0..shape.layers).map(rotates).collect();
                part["use_sliding_window"] = false.into();
            }
            part
        }
        Architecture::Qwen3 | Architecture::Qwen3Moe => {
            json!({ "attention_bias": false, "use_sliding_window": false })
        }
        Architecture::Qwen2 | Architecture::Qwen2Moe => json!({ "use_sliding_window": false }),
        Architecture::Gemma => gemma(shape),
        Architecture::Gemma2 | Architecture::Gemma3 => {
            let mut part = gemma(shape);
            part["query_pre_attn_scalar"] = shape.query_scalar().into();
            part["attn_logit_softcapping"] = shape.caps[0].into();
            part["final_logit_softcapping"] = shape.caps[1].into();
            if let Some(theta) = shape.rope.local_theta {
                part["rope_local_base_freq"] = theta.into();
            }
            with_window(part, shape)
        }
        Architecture::Olmo3 => with_window(json!({ "attention_bias": false }), shape),
        Architecture::Olmo2 => json!({ "attention_bias": false }),
        Architecture::Olmoe => json!({ "attention_bias": false, "clip_qkv": null }),
        Architecture::Phi3 => {
            let mut part = json!({
                "partial_rotary_factor": shape.rope.rotated as f64 / shape.head_dim as f64,
                "sliding_window": shape.window.as_ref().map(|window| window.positions),
                // Else the class has an id of its own vocabulary.
                "pad_token_id": null,
            });
            if let RopeScaling::Long { original, .. } = shape.rope.scaling {
                part["original_max_position_embeddings"] = original.into();
            }
            part
        }
        Architecture::Glm4 => json!({
            "attention_bias": shape.attention_bias,
            "partial_rotary_factor": shape.rope.rotated as f64 / shape.head_dim as f64,
        }),
        Architecture::SeedOss => json!({
            "attention_bias": shape.attention_bias,
            "attention_out_bias": shape.output_bias,
            "mlp_bias": shape.mlp_bias,
        }),
        Architecture::Mixtral => json!({ "sliding_window": null }),
        Architecture::Ministral3 => {
            // The factor of queries has a place in this section alone.
            let mut section = rope_scaling(&shape.rope.scaling);
            section["rope_theta"] = shape.rope.theta.into();
            section["llama_4_scaling_beta"] = shape.temperature.into();
            json!({ "rope_parameters": section, "rope_scaling": null, "sliding_window": null })
        }
        Architecture::GptOss => {
            let part = json!({ "attention_bias": shape.attention_bias, "swiglu_alpha": 1.702, "swiglu_limit": 7.0 });
            with_window(part, shape)
        }
        Architecture::Falcon => Json::Null,
    }
}

/// SmolLM3 leaves rotations out in every fourth block.
const NO_ROPE_EVERY: usize = 4;

fn gemma(shape: &Shape) -> Json {
    let activation = "gelu_pytorch_tanh";
    let key = if shape.architecture == Architecture::Gemma { "hidden_act" } else { "hidden_activation" };
    json!({ "attention_bias": false, "hidden_act": activation, key: activation })
}

fn with_window(mut part: Json, shape: &Shape) -> Json {
    if let Some(window) = &shape.window {
        let kind = |&slides: &bool| if slides { "sliding_attention" } else { "full_attention" };
        part["sliding_window"] = window.positions.into();
        part["layer_types"] = window.slides.iter().map(kind).collect();
    }
    part
}

fn mixture(shape: &Shape) -> Json {
    let Some(experts) = shape.experts else { return Json::Null };
    let mut part = json!({ "num_experts_per_tok": experts.used });
    let is_local =
        matches!(shape.architecture, Architecture::Mixtral | Architecture::GraniteMoe | Architecture::GptOss);
    part[if is_local { "num_local_experts" } else { "num_experts" }] = experts.count.into();
    if matches!(shape.architecture, Architecture::Qwen2Moe | Architecture::Qwen3Moe) {
        part["moe_intermediate_size"] = experts.width.into();
        part["decoder_sparse_step"] = 1.into();
        part["mlp_only_layers"] = json!([]);
    }
    if let Some(width) = experts.shared {
        part["shared_expert_intermediate_size"] = width.into();
    }
    if !is_local {
        part["norm_topk_prob"] = (shape.architecture == Architecture::Qwen3Moe).into();
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

fn rope_scaling(scaling: &RopeScaling) -> Json {
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
        RopeScaling::Yarn { factor, original, beta_fast, beta_slow, attention, truncate } => {
            let mut section = json!({
                "rope_type": "yarn",
                "factor": factor,
                "original_max_position_embeddings": original,
                "beta_fast": beta_fast,
                "beta_slow": beta_slow,
                "attention_factor": attention,
            });
            // Else it is what transformers does.
            if !truncate {
                section["truncate"] = false.into();
            }
            section
        }
        RopeScaling::Long { short, long, attention, .. } => json!({
            "type": "longrope",
            "rope_type": "longrope",
            "short_factor": short,
            "long_factor": long,
            "attention_factor": attention,
        }),
    }
}
