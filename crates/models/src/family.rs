//! The list of supported families.

use serde_json::Value;

use crate::config::Config;
use crate::decoder::{Decoder, Family};
use crate::error::ModelError;
use crate::{falcon, gemma, glm4, gpt_oss, granite, llama, mixtral, olmo, opt, phi3, qwen_moe, smollm3};

/// All supported families.
pub static FAMILIES: &[Family] = &[
    llama::FAMILY,
    opt::FAMILY,
    falcon::FAMILY,
    gemma::FAMILY,
    glm4::FAMILY,
    gpt_oss::FAMILY,
    granite::FAMILY,
    mixtral::FAMILY,
    olmo::FAMILY,
    phi3::FAMILY,
    qwen_moe::FAMILY,
    smollm3::FAMILY,
];

/// Whether a family reads this `model_type`.
fn is_known(model_type: &str) -> bool {
    FAMILIES.iter().any(|family| family.model_types.contains(&model_type))
}

/// The class that `architectures` names, if it is another family's: then one of the two keys is wrong, and the model would be computed
/// wrongly.
fn other_class<'a>(config: &'a Value, family: &Family) -> Option<&'a str> {
    let classes = config["architectures"].as_array().into_iter().flatten().filter_map(Value::as_str);
    let is_of = |family: &Family, class: &str| {
        let stem = class.strip_suffix("ForCausalLM").map(str::to_ascii_lowercase);
        family.model_types.iter().any(|name| stem == Some(name.trim_end_matches("_text").replace('_', "")))
    };
    let mut classes = classes.filter(|class| FAMILIES.iter().any(|known| is_of(known, class)));
    classes.find(|class| !is_of(family, class))
}

/// The config of the text model in a larger one, if this is such a config: one with vision or audio beside it.
pub fn text_config(config: Value) -> Value {
    let Some(text) = config.get("text_config").filter(|text| text.is_object()) else { return config };
    let is_text = |config: &Value| config["model_type"].as_str().is_some_and(is_known);
    if is_text(&config) || !is_text(text) {
        return config;
    }
    let mut text = text.clone();
    // Keys that transformers reads from the outer config.
    for key in ["tie_word_embeddings", "quantization_config", "torch_dtype", "dtype", "bos_token_id", "eos_token_id"] {
        if let (None, Some(value)) = (text.get(key), config.get(key)) {
            text[key] = value.clone();
        }
    }
    text
}

/// Reads a `config.json` with the family that its `model_type` names, or that of its [`text_config`].
///
/// # Errors
/// When no family reads that `model_type`, or a key is missing or invalid.
pub fn decoder_of(json: &Value) -> Result<Box<dyn Decoder>, ModelError> {
    let json = &text_config(json.clone());
    let config = Config::new(json);
    let model_type = config.text("model_type")?.ok_or_else(|| config.wrong("model_type", "a name is needed"))?;
    match FAMILIES.iter().find(|family| family.model_types.contains(&model_type)) {
        Some(family) => {
            if let Some(class) = other_class(json, family) {
                return Err(config.wrong("model_type", format!("must be that of {class}, which `architectures` names")));
            }
            (family.read)(json)
        }
        None => {
            let known: Vec<&str> = FAMILIES.iter().flat_map(|family| family.model_types).copied().collect();
            Err(ModelError::UnknownArchitecture { model_type: model_type.to_owned(), known: known.join(", ") })
        }
    }
}
