//! Keys of `config.json` that have two names. Programs know one or the other, so a packed model has both.

use serde_json::{Map, Value};

/// The names of the type that a model is loaded in: transformers 5 writes the first and reads both, version 4 knows the second.
const DTYPE: [&str; 2] = ["dtype", "torch_dtype"];

/// Sets the type that a model is loaded in.
pub(super) fn set_dtype(config: &mut Map<String, Value>, has_float_codes: bool) {
    let dtype = DTYPE.iter().find_map(|key| config.get(*key).and_then(Value::as_str));
    let dtype = match dtype {
        // compressed-tensors 0.20 decodes float codes to bf16 and fails in other types.
        _ if has_float_codes => "bfloat16",
        // f16 and f32 hold scales exactly.
        Some("float32") => "float32",
        _ => "float16",
    };
    for key in DTYPE {
        config.insert(key.to_owned(), dtype.into());
    }
}

/// Describes rotary positions as transformers 5 does (`rope_parameters`) and as version 4 does (`rope_theta`, and `rope_scaling` if
/// positions are scaled), if the config has one of them. Programs that know one form only would fail, or use defaults of their own.
///
/// Left alone are models whose layers with a sliding window have an embedding of their own: the two forms say that in their own ways.
pub(super) fn describe_rope(config: &mut Map<String, Value>) {
    const BY_LAYER_TYPE: [&str; 2] = ["gemma3_text", "olmo3"];
    if config.get("model_type").and_then(Value::as_str).is_some_and(|model| BY_LAYER_TYPE.contains(&model)) {
        return;
    }
    let object = |key: &str| config.get(key).and_then(Value::as_object).filter(|object| !object.is_empty()).cloned();
    let theta = config.get("rope_theta").filter(|theta| theta.is_number()).cloned();
    let kind = |rope: &Map<String, Value>| {
        let kind = rope.get("rope_type").or_else(|| rope.get("type"));
        kind.and_then(Value::as_str).unwrap_or("default").to_owned()
    };
    // transformers 5, too, prefers `rope_scaling`.
    match (object("rope_scaling"), object("rope_parameters")) {
        (None, Some(rope)) => {
            let Some(theta) = rope.get("rope_theta").cloned().or(theta) else { return };
            config.insert("rope_theta".to_owned(), theta);
            if kind(&rope) != "default" {
                let scaling = rope.into_iter().filter(|(key, _)| key != "rope_theta");
                config.insert("rope_scaling".to_owned(), Value::Object(scaling.collect()));
            }
        }
        (scaling, None) => {
            let Some(theta) = theta else { return };
            let mut rope = scaling.unwrap_or_default();
            rope.insert("rope_type".to_owned(), kind(&rope).into());
            rope.entry("rope_theta").or_insert(theta);
            config.insert("rope_parameters".to_owned(), Value::Object(rope));
        }
        (Some(_), Some(_)) => {}
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[track_caller]
    fn check(source: Value, expected: Value) {
        let mut config = source.as_object().unwrap().clone();
        describe_rope(&mut config);
        assert_eq!(Value::Object(config), expected);
    }

    #[test]
    fn positions_are_described_in_both_forms() {
        let plain = json!({"rope_theta": 5e5, "rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}});
        check(json!({"rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}}), plain.clone());
        check(json!({"rope_theta": 5e5}), plain.clone());
        check(
            json!({"rope_theta": 5e5, "rope_scaling": null}),
            json!({"rope_theta": 5e5, "rope_scaling": null,
                "rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}),
        );
        check(
            json!({"rope_theta": 1.0, "rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}}),
            plain.clone(),
        );
        check(plain.clone(), plain);
        check(
            json!({"rope_parameters": {"rope_theta": 5e5, "rope_type": "linear", "factor": 2.0}}),
            json!({"rope_parameters": {"rope_theta": 5e5, "rope_type": "linear", "factor": 2.0}, "rope_theta": 5e5,
                "rope_scaling": {"rope_type": "linear", "factor": 2.0}}),
        );
        check(
            json!({"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 2.0}}),
            json!({"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 2.0},
                "rope_parameters": {"type": "linear", "factor": 2.0, "rope_type": "linear", "rope_theta": 5e5}}),
        );
        for unclear in [
            json!({}),
            json!({"rope_scaling": {"type": "linear", "factor": 2.0}}),
            json!({"rope_parameters": {"full_attention": {"rope_theta": 5e5}}}),
            json!({"model_type": "gemma3_text", "rope_theta": 1e6, "rope_local_base_freq": 1e4}),
            json!({"rope_parameters": {"rope_theta": 1.0}, "rope_scaling": {"type": "linear"}}),
        ] {
            check(unclear.clone(), unclear);
        }
    }

    #[test]
    fn the_type_keeps_scales_exact() {
        for (source, has_float_codes, expected) in [
            (json!({"dtype": "bfloat16"}), false, "float16"),
            (json!({"torch_dtype": "float16"}), false, "float16"),
            (json!({"torch_dtype": "float32"}), false, "float32"),
            (json!({"dtype": "float32", "torch_dtype": "float16"}), false, "float32"),
            (json!({}), false, "float16"),
            (json!({"dtype": "float32"}), true, "bfloat16"),
        ] {
            let mut config = source.as_object().unwrap().clone();
            set_dtype(&mut config, has_float_codes);
            assert_eq!(Value::Object(config), json!({"dtype": expected, "torch_dtype": expected}));
        }
    }
}
