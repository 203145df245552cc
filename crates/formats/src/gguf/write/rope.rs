//! The rotary embedding of a Hugging Face `config.json`.

use serde_json::{Value as Json, json};

use super::keys::Config;
use crate::gguf::GgufError;
use crate::gguf::architecture::Architecture;
use crate::gguf::shape::{Llama3Rule, Rope, RopeScaling, long_attention, yarn_attention};

/// `rope_parameters` (transformers 5) or `rope_theta` and `rope_scaling` (transformers 4). As in that library, a `rope_scaling` that is not
/// empty replaces all of `rope_parameters`.
pub(super) fn rope(
    config: Config<'_>,
    architecture: Architecture,
    head_dim: usize,
    positions: usize,
) -> Result<Rope, GgufError> {
    if !head_dim.is_multiple_of(2) {
        return Err(config.wrong("head_dim", "an even number, so that rotations have pairs"));
    }
    let is_full = |section: &&Json| section.as_object().is_some_and(|object| !object.is_empty());
    let parameters = config.get("rope_parameters");
    // Some families have a section for each kind of block.
    let of_full = parameters.map(|parameters| parameters.get("full_attention").unwrap_or(parameters));
    let class = class_scaling(architecture);
    let section = Config(config.get("rope_scaling").filter(is_full).or(of_full).unwrap_or(&class));
    let either = |key: &str, default: f64| match section.number(key)? {
        Some(value) => Ok(value),
        None => config.number(key).map(|value| value.unwrap_or(default)),
    };
    let theta = either("rope_theta", class_theta(architecture))?;
    let part = if architecture == Architecture::Glm4 { 0.5 } else { 1.0 };
    let part = either("partial_rotary_factor", part)?;
    let rotated = (head_dim as f64 * part) as usize;
    let is_possible = if architecture.rotates_partly() { part <= 1.0 } else { part == 1.0 };
    if !is_possible || rotated < 2 || !rotated.is_multiple_of(2) {
        return Err(config.wrong("partial_rotary_factor", "1: whole heads are rotated"));
    }
    let local = Config(parameters.and_then(|parameters| parameters.get("sliding_attention")).unwrap_or(&Json::Null));
    local.only("rope_type", "default")?;
    let local_theta = match local.number("rope_theta")? {
        Some(theta) => Some(theta),
        None => config.number("rope_local_base_freq")?,
    };
    let local_theta = match (architecture, local_theta) {
        (Architecture::Gemma3, found) => Some(found.unwrap_or(10_000.0)),
        (_, Some(other)) if other != theta => {
            return Err(local.wrong("rope_theta", format!("{theta}: llama.cpp has one for all blocks here")));
        }
        _ => None,
    };
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
        "yarn" => yarn(section, architecture, positions, original)?,
        "longrope" | "su" if architecture == Architecture::Phi3 => long(section, positions, original, rotated)?,
        _ => return Err(section.wrong("rope_type", "default, linear, llama3 or yarn: llama.cpp has no other")),
    };
    Ok(Rope { theta, local_theta, rotated, scaling })
}

/// The default of transformers' class.
fn class_theta(architecture: Architecture) -> f64 {
    match architecture {
        Architecture::Gemma3 | Architecture::Mixtral => 1_000_000.0,
        Architecture::SmolLm3 => 2_000_000.0,
        Architecture::Olmo3 => 500_000.0,
        Architecture::GptOss => 150_000.0,
        _ => 10_000.0,
    }
}

/// The scaling of transformers' class.
fn class_scaling(architecture: Architecture) -> Json {
    match architecture {
        Architecture::GptOss => {
            json!({ "rope_type": "yarn", "factor": 32.0, "original_max_position_embeddings": 4096, "truncate": false })
        }
        _ => Json::Null,
    }
}

fn long(section: Config<'_>, positions: usize, original: usize, rotated: usize) -> Result<RopeScaling, GgufError> {
    let factors = |key: &str| {
        let listed = section.get(key).and_then(Json::as_array).map_or(&[][..], Vec::as_slice);
        let numbers: Vec<f64> = listed.iter().filter_map(Json::as_f64).filter(|x| x.is_finite() && *x > 0.0).collect();
        let is_whole = numbers.len() == rotated / 2 && listed.len() == numbers.len();
        is_whole.then_some(numbers).ok_or_else(|| section.wrong(key, format!("{} positive numbers", rotated / 2)))
    };
    let attention = section.number("attention_factor")?.unwrap_or(long_attention(positions, original));
    Ok(RopeScaling::Long { original, short: factors("short_factor")?, long: factors("long_factor")?, attention })
}

fn yarn(
    section: Config<'_>,
    architecture: Architecture,
    positions: usize,
    original: usize,
) -> Result<RopeScaling, GgufError> {
    let truncate = section.flag("truncate", true)?;
    // GPT-OSS is published without, and llama.cpp runs it with rounded ends.
    if !truncate && architecture != Architecture::GptOss {
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
    Ok(RopeScaling::Yarn { factor, original, beta_fast: 32.0, beta_slow: 1.0, attention, truncate })
}
