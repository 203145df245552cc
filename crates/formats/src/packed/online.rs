//! Packed models whose activations are rotated at run time.
//!
//! Queries, keys and the input of the MLP's last linear are multiplied by Hadamard matrices (SpinQuant's R3 and R4), which `oq-models`
//! makes for their widths. `transform_config` of compressed-tensors can describe them only if a width is a power of two, and loaders ignore
//! it. So the model and its groups of linears name their own format, which other loaders refuse.

use serde_json::Value;

/// Format name of the linears in such a model.
pub(super) const FORMAT: &str = "pack-quantized-rotated";

/// Marks in a packed model's `config.json` that its activations are rotated.
pub(crate) fn mark(config: &mut Value) {
    let groups = config.pointer_mut("/quantization_config/config_groups").and_then(Value::as_object_mut);
    groups.into_iter().flat_map(|groups| groups.values_mut()).for_each(|group| group["format"] = FORMAT.into());
    // Some loaders look only here.
    config["quantization_config"]["format"] = FORMAT.into();
}

/// Whether a packed model's activations are rotated. [`quantization_of`](super::quantization_of) refuses partly rotated models.
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
