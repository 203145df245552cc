//! LLaMA, LLaMA-2, LLaMA-3 and models with the same architecture, among them Mistral, Qwen 2 and 3, and Seed-OSS.
//!
//! Touvron et al. 2023 (arXiv 2302.13971, 2307.09288). Names and shapes are those of Hugging Face's `modeling_llama.py`. Blocks have
//! RMSNorm before attention and MLP, rotary embedding on whole heads, grouped-query attention and a gated MLP. Mistral has sliding-window
//! attention, Qwen 2 has biases on queries, keys and values, and Qwen 3 normalizes the queries and keys of each head. Ministral 3 multiplies
//! queries by a factor that grows with their position.

use serde_json::Value;

use crate::config::Config;
use crate::decoder::Family;
use crate::error::ModelError;
use crate::llama_like::keys::{Common, Defaults, sliding_layers};
use crate::llama_like::{HeadNorms, LayerKind, LlamaLike, Mlp, QueryScale};
use crate::rope::{self, Rope, Scaling};

/// The entry in [`crate::FAMILIES`].
pub const FAMILY: Family = Family {
    model_types: &["llama", "mistral", "ministral3", "qwen2", "qwen3", "seed_oss"],
    read: |json| Ok(Box::new(read(json)?)),
};

/// The config class of a model type in transformers: its defaults for missing keys, and the properties that no key sets.
struct ModelClass {
    model_type: &'static str,
    defaults: Defaults,
    /// Whether queries, keys and values have a bias, and whether the output projection has one. `None` means that `attention_bias` decides.
    biases: Option<(bool, bool)>,
    /// Whether the queries and keys of each head are normalized.
    head_norms: HeadNorms,
    window: Window,
}

/// Sliding windows of a model type.
enum Window {
    /// No window.
    None,
    /// A window of `sliding_window` positions in all layers, or this one if the key is missing.
    Sliding(Option<usize>),
    /// Some layers may have a window.
    OfSomeLayers,
}

const LLAMA: ModelClass = ModelClass {
    model_type: "llama",
    defaults: Defaults::LLAMA,
    biases: None,
    head_norms: HeadNorms::None,
    window: Window::None,
};

const CLASSES: [ModelClass; 6] = [
    LLAMA,
    ModelClass {
        model_type: "mistral",
        defaults: Defaults { kv_heads: Some(8), positions: 131_072, ..Defaults::LLAMA },
        biases: Some((false, false)),
        window: Window::Sliding(Some(4096)),
        ..LLAMA
    },
    ModelClass {
        model_type: "ministral3",
        defaults: Defaults { kv_heads: Some(8), positions: 262_144, head_dim: Some(128), eps: 1e-5, ..Defaults::LLAMA },
        biases: Some((false, false)),
        window: Window::Sliding(None),
        ..LLAMA
    },
    ModelClass {
        model_type: "seed_oss",
        defaults: Defaults { kv_heads: Some(8), positions: 524_288, head_dim: Some(128), ..Defaults::LLAMA },
        ..LLAMA
    },
    ModelClass {
        model_type: "qwen2",
        defaults: Defaults { kv_heads: Some(32), positions: 32_768, ..Defaults::LLAMA },
        biases: Some((true, false)),
        window: Window::OfSomeLayers,
        ..LLAMA
    },
    ModelClass {
        model_type: "qwen3",
        defaults: Defaults { kv_heads: Some(32), positions: 32_768, head_dim: Some(128), ..Defaults::LLAMA },
        head_norms: HeadNorms::OfEach,
        window: Window::OfSomeLayers,
        ..LLAMA
    },
];

fn read(json: &Value) -> Result<LlamaLike, ModelError> {
    let config = Config::new(json);
    let model_type = config.text("model_type")?.unwrap_or(LLAMA.model_type);
    let class = CLASSES.iter().find(|class| class.model_type == model_type).unwrap_or(&LLAMA);
    let common = Common::read(&config, &class.defaults)?;
    let n_layers = common.dims.n_layers;
    let windows = match class.window {
        Window::None => vec![None; n_layers],
        Window::Sliding(window) if !config.is_written("sliding_window") => vec![window; n_layers],
        Window::Sliding(_) => vec![config.size_or_none("sliding_window")?; n_layers],
        Window::OfSomeLayers => windows_of_qwen(&config, n_layers)?,
    };
    let rope = rope::read(&config, &rope::Defaults::of(&common.dims), None)?;
    let mut plain = LayerKind::plain(&common, &rope);
    (plain.attention.qkv_bias, plain.attention.out_bias) = match class.biases {
        Some(biases) => biases,
        None if model_type == "seed_oss" => {
            (config.flag_or("attention_bias", true)?, config.flag_or("attention_out_bias", false)?)
        }
        None => {
            let bias = config.flag_or("attention_bias", false)?;
            (bias, bias)
        }
    };
    plain.attention.norms = class.head_norms;
    if let Mlp::Gated(mlp) = &mut plain.mlp {
        mlp.bias = config.flag_or("mlp_bias", false)?;
    }
    let query_scale = match model_type {
        "ministral3" => query_scale_of(&config, &rope)?,
        _ => None,
    };
    let kind = |window: &Option<usize>| plain.with_window(*window);
    Ok(LlamaLike { query_scale, ..LlamaLike::of_layers(&common, windows, kind) })
}

/// The factor of Ministral's queries.
fn query_scale_of(config: &Config<'_>, rope: &Rope) -> Result<Option<QueryScale>, ModelError> {
    let beta = match config.object("rope_parameters")? {
        Some(section) => section.number_unless_zero("llama_4_scaling_beta")?,
        None => None,
    };
    let positions = match rope.scaling {
        Scaling::Yarn { original_max_positions, .. } => Some(original_max_positions),
        _ => None,
    };
    Ok(beta.zip(positions).map(|(beta, positions)| QueryScale { beta, positions }))
}

/// The sliding window of each layer of a Qwen model.
fn windows_of_qwen(config: &Config<'_>, n_layers: usize) -> Result<Vec<Option<usize>>, ModelError> {
    let window = match config.flag_or("use_sliding_window", false)? {
        false => None,
        true if !config.is_written("sliding_window") => Some(4096),
        true => config.size_or_none("sliding_window")?,
    };
    // Layers before this one have no window.
    let first = config.count_or("max_window_layers", 28)?;
    let slides = sliding_layers(config, n_layers, |layer| window.is_some() && layer >= first)?;
    let of_layer = |slides: bool| match (slides, window) {
        (true, None) => Err(config.wrong("layer_types", "has sliding_attention, but there is no sliding_window")),
        (slides, window) => Ok(window.filter(|_| slides)),
    };
    slides.into_iter().map(of_layer).collect()
}
