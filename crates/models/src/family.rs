//! The list of supported families.

use serde_json::Value;

use crate::config::Config;
use crate::decoder::{Decoder, Family};
use crate::error::ModelError;
use crate::{falcon, llama, opt};

/// All supported families.
pub static FAMILIES: &[Family] = &[llama::FAMILY, opt::FAMILY, falcon::FAMILY];

/// Reads a `config.json` with the family that its `model_type` names.
///
/// # Errors
/// When no family reads that `model_type`, or a key is missing or invalid.
pub fn decoder_of(json: &Value) -> Result<Box<dyn Decoder>, ModelError> {
    let config = Config::new(json);
    let model_type = config.text("model_type")?.ok_or_else(|| config.wrong("model_type", "a name is needed"))?;
    match FAMILIES.iter().find(|family| family.model_types.contains(&model_type)) {
        Some(family) => (family.read)(json),
        None => {
            let known: Vec<&str> = FAMILIES.iter().flat_map(|family| family.model_types).copied().collect();
            Err(ModelError::UnknownArchitecture { model_type: model_type.to_owned(), known: known.join(", ") })
        }
    }
}
