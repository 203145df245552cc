//! What a `config.json` has in one family and not in others, and what llama.cpp computes in one way only.

use serde_json::Value as Json;

use super::keys::Config;
use crate::gguf::GgufError;
use crate::gguf::architecture::Architecture;
use crate::gguf::shape::{Experts, Multipliers, Shape, Window};

/// Ends the errors that name the one value that is possible.
const NO_OTHER: &str = "llama.cpp computes no other";

/// Whether the width of a head does not follow from that of a hidden state.
pub(super) fn needs_head_dim(architecture: Architecture) -> bool {
    let has_its_own = matches!(
        architecture,
        Architecture::Glm4 | Architecture::SeedOss | Architecture::Ministral3 | Architecture::GptOss
    );
    has_its_own || architecture.is_gemma()
}

/// `tie_word_embeddings` where the config has no such key, as in transformers' classes.
pub(super) fn is_tied_by_default(architecture: Architecture) -> bool {
    architecture.is_gemma() || architecture == Architecture::SmolLm3
}

/// `rms_norm_eps` where the config has no such key, as in transformers' classes.
pub(super) fn class_norm_eps(architecture: Architecture) -> f64 {
    match architecture {
        Architecture::Mixtral
        | Architecture::Ministral3
        | Architecture::GptOss
        | Architecture::Phi3
        | Architecture::Olmo2
        | Architecture::Olmo3
        | Architecture::Olmoe => 1e-5,
        Architecture::Glm4 => 1.5625e-7,
        _ => 1e-6,
    }
}

/// Refuses settings that llama.cpp has no key for.
pub(super) fn refuse(config: Config<'_>, architecture: Architecture, model_type: &str) -> Result<(), GgufError> {
    if architecture.is_gemma() {
        let key = if architecture == Architecture::Gemma { "hidden_act" } else { "hidden_activation" };
        config.only(key, "gelu_pytorch_tanh")?;
        config.is("use_bidirectional_attention", false, NO_OTHER)?;
    } else {
        config.only("hidden_act", "silu")?;
    }
    if !matches!(model_type, "mistral" | "mixtral" | "ministral3") {
        config.is("use_sliding_window", false, "llama.cpp has no windows in these models")?;
    }
    match architecture {
        Architecture::Qwen2Moe | Architecture::Qwen3Moe => {
            config.is("decoder_sparse_step", 1, NO_OTHER)?;
            config.is("mlp_only_layers", Vec::<Json>::new(), NO_OTHER)?;
            let normalizes = architecture == Architecture::Qwen3Moe;
            // The default of both classes.
            if config.flag("norm_topk_prob", false)? != normalizes {
                return Err(config.wrong("norm_topk_prob", format!("{normalizes}: {NO_OTHER}")));
            }
            Ok(())
        }
        Architecture::Olmoe => {
            config.is("norm_topk_prob", false, NO_OTHER)?;
            match config.get("clip_qkv") {
                None => Ok(()),
                Some(_) => Err(config.wrong("clip_qkv", "null: it is not written")),
            }
        }
        Architecture::GptOss => {
            config.is("swiglu_alpha", 1.702, NO_OTHER)?;
            config.is("swiglu_limit", 7.0, NO_OTHER)
        }
        Architecture::Gemma3 => match config.get("attn_logit_softcapping") {
            None => Ok(()),
            Some(_) => Err(config.wrong("attn_logit_softcapping", format!("null: {NO_OTHER}"))),
        },
        Architecture::SmolLm3 => {
            config.is("no_rope_layer_interval", 4, NO_OTHER)?;
            let listed = config.get("no_rope_layers").and_then(Json::as_array).map_or(&[][..], Vec::as_slice);
            let is_usual = |(layer, rotates): (usize, &Json)| rotates.as_u64() == Some(u64::from(layer % 4 != 3));
            if listed.iter().enumerate().all(is_usual) {
                return Ok(());
            }
            Err(config.wrong("no_rope_layers", "0 for every fourth block and 1 for the others: llama.cpp has no other"))
        }
        _ => Ok(()),
    }
}

/// Refuses shapes that llama.cpp does not have.
pub(super) fn refuse_shape(config: Config<'_>, shape: &Shape) -> Result<(), GgufError> {
    match shape.architecture {
        Architecture::Gemma2 | Architecture::Gemma3 => {
            let scalar = shape.query_scalar();
            // The default of both classes.
            if config.number("query_pre_attn_scalar")?.unwrap_or(256.0) != scalar as f64 {
                let expected = format!("{scalar}: llama.cpp has no other for {} blocks", shape.layers);
                return Err(config.wrong("query_pre_attn_scalar", expected));
            }
        }
        Architecture::Granite
        | Architecture::GraniteMoe
        | Architecture::Phi3
        | Architecture::Olmo2
        | Architecture::Olmo3
        | Architecture::Olmoe
            if shape.head_dim * shape.heads != shape.hidden =>
        {
            return Err(config.wrong("head_dim", format!("{}: {NO_OTHER}", shape.hidden / shape.heads)));
        }
        Architecture::Olmoe if shape.kv_heads != shape.heads => {
            return Err(config.wrong("num_key_value_heads", format!("{}: {NO_OTHER}", shape.heads)));
        }
        _ => {}
    }
    refuse_biases(shape)?;
    match shape.architecture {
        architecture if architecture.is_always_tied() && !shape.tied => {
            Err(config.wrong("tie_word_embeddings", "true: llama.cpp has no other head here"))
        }
        Architecture::GptOss if !shape.output_bias => Err(config.wrong("attention_bias", format!("true: {NO_OTHER}"))),
        Architecture::Olmo2
        | Architecture::Olmo3
        | Architecture::Olmoe
        | Architecture::Qwen2Moe
        | Architecture::GptOss
            if shape.tied =>
        {
            Err(config.wrong("tie_word_embeddings", "false: llama.cpp needs a head of its own here"))
        }
        _ => Ok(()),
    }
}

/// Refuses biases that llama.cpp does not read.
fn refuse_biases(shape: &Shape) -> Result<(), GgufError> {
    let is_llama = shape.architecture == Architecture::Llama;
    let has_all = is_llama || shape.architecture == Architecture::GptOss;
    let has_inputs = has_all
        || matches!(
            shape.architecture,
            Architecture::Qwen2 | Architecture::Qwen2Moe | Architecture::Glm4 | Architecture::SeedOss
        );
    let biases = [
        (shape.attention_bias && !has_inputs, "self_attn.q_proj"),
        (shape.output_bias && !has_all, "self_attn.o_proj"),
        (shape.mlp_bias && !is_llama, "mlp.up_proj"),
    ];
    match biases.into_iter().find(|(is_extra, _)| *is_extra) {
        Some((_, linear)) => Err(GgufError::ExtraTensor { tensor: format!("model.layers.0.{linear}.bias") }),
        None => Ok(()),
    }
}

/// Experts in every block.
pub(super) fn experts(config: Config<'_>, architecture: Architecture) -> Result<Option<Experts>, GgufError> {
    if !architecture.has_experts() {
        return Ok(None);
    }
    // transformers writes one of the two, by its version.
    let count = match config.size("num_experts")? {
        Some(count) => count,
        None => config.needed("num_local_experts")?,
    };
    let is_qwen = matches!(architecture, Architecture::Qwen2Moe | Architecture::Qwen3Moe);
    let width = config.needed(if is_qwen { "moe_intermediate_size" } else { "intermediate_size" })?;
    let has_shared = architecture == Architecture::Qwen2Moe;
    let shared = has_shared.then(|| config.needed("shared_expert_intermediate_size")).transpose()?;
    let used = config.needed("num_experts_per_tok")?;
    if used > count {
        return Err(config.wrong("num_experts_per_tok", format!("at most the {count} experts")));
    }
    Ok(Some(Experts { count, used, width, shared }))
}

/// Sliding windows in some blocks.
pub(super) fn window(
    config: Config<'_>,
    architecture: Architecture,
    layers: usize,
) -> Result<Option<Window>, GgufError> {
    let Some(usual) = architecture.usual_period() else { return Ok(None) };
    let positions = config.needed("sliding_window")?;
    let period = match config.size("sliding_window_pattern")? {
        Some(period) => period,
        None => config.size("_sliding_window_pattern")?.unwrap_or(usual),
    };
    let Some(types) = config.get("layer_types").and_then(Json::as_array) else {
        return Ok(Some(Window::with_period(positions, period, layers)));
    };
    let window = Window { positions, slides: types.iter().map(|kind| kind == "sliding_attention").collect() };
    if window.slides.len() != layers || window.period().is_none() {
        let expected = format!("{layers} kinds, full attention in every n-th block: llama.cpp has no other order");
        return Err(config.wrong("layer_types", expected));
    }
    Ok(Some(window))
}

/// Bounds of scores and logits.
pub(super) fn caps(config: Config<'_>, architecture: Architecture) -> Result<[Option<f64>; 2], GgufError> {
    match architecture {
        // llama.cpp always bounds both.
        Architecture::Gemma2 => {
            let cap = |key: &str, class: f64| match config.number(key)? {
                None if config.0.get(key).is_none() => Ok(Some(class)),
                None => Err(config.wrong(key, "a positive number: llama.cpp always has a bound")),
                cap => Ok(cap),
            };
            Ok([cap("attn_logit_softcapping", 50.0)?, cap("final_logit_softcapping", 30.0)?])
        }
        Architecture::Gemma3 => Ok([None, config.number("final_logit_softcapping")?]),
        _ => Ok([None; 2]),
    }
}

/// Factors of hidden states.
pub(super) fn multipliers(config: Config<'_>, architecture: Architecture) -> Result<Option<Multipliers>, GgufError> {
    if !architecture.is_granite() {
        return Ok(None);
    }
    // The defaults of transformers' class.
    let factor = |key: &str| Ok::<_, GgufError>(config.number(key)?.unwrap_or(1.0));
    Ok(Some(Multipliers {
        embedding: factor("embedding_multiplier")?,
        residual: factor("residual_multiplier")?,
        attention: factor("attention_multiplier")?,
        logits: factor("logits_scaling")?,
    }))
}

/// How queries grow with the logarithm of their position.
pub(super) fn temperature(config: Config<'_>, architecture: Architecture) -> Result<Option<f64>, GgufError> {
    if architecture != Architecture::Ministral3 {
        return Ok(None);
    }
    // transformers' class does not run without them.
    let section = Config(config.get("rope_parameters").unwrap_or(&Json::Null));
    if section.text("rope_type").or_else(|| section.text("type")) != Some("yarn") {
        return Err(section.wrong("rope_type", "yarn"));
    }
    match section.number("llama_4_scaling_beta")? {
        None => Err(section.wrong("llama_4_scaling_beta", "a positive number")),
        beta => Ok(beta),
    }
}
