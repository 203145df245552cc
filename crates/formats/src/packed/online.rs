//! Packed models whose activations are rotated while they run.
//!
//! Queries, keys and what the MLP's last linear reads are multiplied with Hadamard matrices (SpinQuant's R3 and R4), those that `oq-models`
//! makes for their widths. `transform_config` of compressed-tensors has no word for these where a width is no power of two, and loaders pass
//! over it. So the model and its groups of linears name a format of their own, which other loaders refuse.

use serde_json::Value;

/// The format of linears in such a model.
pub(super) const FORMAT: &str = "pack-quantized-rotated";

/// Says in a packed model's `config.json` that its activations are rotated.
pub(crate) fn mark(config: &mut Value) {
    let groups = config.pointer_mut("/quantization_config/config_groups").and_then(Value::as_object_mut);
    groups.into_iter().flat_map(|groups| groups.values_mut()).for_each(|group| group["format"] = FORMAT.into());
    // Some loaders ask here alone.
    config["quantization_config"]["format"] = FORMAT.into();
}

/// Whether a packed model's activations are rotated: [`quantization_of`](super::quantization_of) refuses one that is so in part.
pub fn is_rotated_online(config: &Value) -> bool {
    let groups = config.pointer("/quantization_config/config_groups").and_then(Value::as_object);
    groups.into_iter().flat_map(|groups| groups.values()).any(|group| group.get("format").is_some_and(|f| f == FORMAT))
}

#[cfg(test)]
mod tests {
    use oq_quant_core::QuantSpec;

    use super::*;
    use crate::packed::config::packed_config;
    use crate::{Quantization, quantization_of};

    #[test]
    fn the_mark_is_read_and_hides_nothing() {
        let spec: Quantization = "w4a4".parse::<QuantSpec>().unwrap().into();
        let mut config = packed_config(&serde_json::json!({"model_type": "llama"}), &spec, &["lm_head"]);
        assert!(!is_rotated_online(&config));
        mark(&mut config);
        assert!(is_rotated_online(&config));
        let quantization = &config["quantization_config"];
        assert_eq!([&quantization["format"], &quantization["config_groups"]["group_0"]["format"]], [FORMAT; 2]);
        assert_eq!(quantization_of(&config).unwrap(), Some(spec));
        assert!(!is_rotated_online(&serde_json::json!({"model_type": "llama"})));
    }
}
