//! A Hugging Face `config.json` as the [`Shape`] of a model.

use serde_json::Value as Json;

use super::families;
use super::keys::Config;
use super::rope::rope;
use crate::Checkpoint;
use crate::gguf::GgufError;
use crate::gguf::architecture::Architecture;
use crate::gguf::shape::Shape;

/// The shape of the model in a directory, and what llama.cpp cannot run as an error.
pub(super) fn read(json: &Json, checkpoint: &Checkpoint) -> Result<Shape, GgufError> {
    let config = Config(json);
    let model_type = config.text("model_type").ok_or_else(|| config.wrong("model_type", "a text"))?;
    let architecture = Architecture::of_model_type(model_type).ok_or_else(|| GgufError::NoArchitecture {
        model_type: model_type.to_owned(),
        known: Architecture::model_types(),
    })?;
    let shape = match architecture {
        Architecture::Falcon => falcon(config, checkpoint),
        _ => llama(config, checkpoint, architecture, model_type),
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
    // The defaults of transformers' classes. Other classes write all of their keys.
    let class = match model_type {
        "mistral" => Some((8, 131_072)),
        "llama" => Some((heads, 2048)),
        "qwen2" | "qwen3" => Some((32, 32_768)),
        "olmo2" | "olmo3" | "granite" | "granitemoe" => Some((heads, 2048)),
        "olmoe" | "phi3" => Some((heads, 4096)),
        _ => None,
    };
    // A key with the value null differs from a missing key.
    let is_written = config.0.get("num_key_value_heads").is_some();
    let kv_heads = match (config.size("num_key_value_heads")?, class) {
        (Some(kv_heads), _) => kv_heads,
        (None, Some((kv_heads, _))) if !is_written => kv_heads,
        (None, _) if is_written => heads,
        (None, _) => config.needed("num_key_value_heads")?,
    };
    if !heads.is_multiple_of(kv_heads) {
        return Err(config.wrong("num_key_value_heads", format!("a divisor of the {heads} heads")));
    }
    let class_head_dim = (architecture == Architecture::Qwen3).then_some(128);
    let head_dim = match config.size("head_dim")?.or(class_head_dim) {
        Some(head_dim) => head_dim,
        None if families::needs_head_dim(architecture) => config.needed("head_dim")?,
        None if hidden.is_multiple_of(heads) => hidden / heads,
        None => return Err(config.wrong("num_attention_heads", format!("a divisor of hidden_size {hidden}"))),
    };
    let positions = match (config.size("max_position_embeddings")?, class) {
        (Some(positions), _) | (None, Some((_, positions))) => positions,
        (None, None) => config.needed("max_position_embeddings")?,
    };
    families::refuse(config, architecture, model_type)?;
    let layers = config.needed("num_hidden_layers")?;
    // llama.cpp attends to all positions in these. Within the window that is the same.
    let bound = match model_type {
        "mistral" if config.0.get("sliding_window").is_none() => Some(4096),
        "mistral" | "mixtral" | "ministral3" | "phi3" => config.size("sliding_window")?,
        _ => None,
    };
    let has = |name: &str| checkpoint.contains(name);
    let shape = Shape {
        architecture,
        hidden,
        intermediate: config.needed("intermediate_size")?,
        layers,
        heads,
        kv_heads,
        head_dim,
        vocab: config.needed("vocab_size")?,
        context: bound.map_or(positions, |window| positions.min(window)),
        norm_eps: config.number("rms_norm_eps")?.unwrap_or(families::class_norm_eps(architecture)),
        rope: rope(config, architecture, head_dim, positions)?,
        tied: is_tied(config, checkpoint, families::is_tied_by_default(architecture), "model.embed_tokens.weight")?,
        attention_bias: has("model.layers.0.self_attn.q_proj.bias"),
        output_bias: has("model.layers.0.self_attn.o_proj.bias"),
        mlp_bias: has("model.layers.0.mlp.up_proj.bias"),
        two_norms: false,
        experts: families::experts(config, architecture)?,
        window: families::window(config, architecture, layers)?,
        caps: families::caps(config, architecture)?,
        multipliers: families::multipliers(config, architecture)?,
        temperature: families::temperature(config, architecture)?,
    };
    families::refuse_shape(config, &shape)?;
    Ok(shape)
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
        rope: rope(config, Architecture::Falcon, hidden / heads, context)?,
        tied: is_tied(config, checkpoint, true, "transformer.word_embeddings.weight")?,
        attention_bias: false,
        output_bias: false,
        mlp_bias: false,
        two_norms: checkpoint.contains("transformer.h.0.ln_attn.weight"),
        experts: None,
        window: None,
        caps: [None; 2],
        multipliers: None,
        temperature: None,
    })
}

/// Whether the head is the embedding. A head that differs from it is separate even if the config ties the two, as in transformers since
/// version 5.
fn is_tied(config: Config<'_>, checkpoint: &Checkpoint, default: bool, embedding: &str) -> Result<bool, GgufError> {
    const HEAD: &str = "lm_head.weight";
    let tied = config.flag("tie_word_embeddings", default)?;
    Ok(tied && (!checkpoint.contains(HEAD) || checkpoint.is_same(HEAD, (checkpoint, embedding))?))
}
