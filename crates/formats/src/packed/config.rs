//! `quantization_config` in `config.json`: a [`QuantSpec`] there and back.

use oq_quant_core::{ActSpec, Bits, GroupSize, QuantSpec, Symmetry, WeightSpec};
use serde_json::{Map, Value, json};

use crate::FormatError;

const METHOD: &str = "compressed-tensors";
const FORMAT: &str = "pack-quantized";
const KEY: &str = "quantization_config";

/// The value of `quantization_config` for a model whose linears, all but those named in `ignore`, are quantized by `spec`.
///
/// `ignore` holds module names as in the checkpoint, without `.weight`; `lm_head` always belongs there.
pub fn quantization_config(spec: QuantSpec, ignore: &[&str]) -> Value {
    let mut weights = json!({
        "num_bits": spec.weight.bits.get(),
        "type": "int",
        "symmetric": spec.weight.symmetry == Symmetry::Symmetric,
        "dynamic": false,
    });
    match spec.weight.group {
        GroupSize::PerChannel => weights["strategy"] = "channel".into(),
        GroupSize::Channels(n) => {
            weights["strategy"] = "group".into();
            weights["group_size"] = n.get().into();
        }
    }
    // Said inside the group too: with quantized activations loaders would infer another format.
    let mut group = json!({"targets": ["Linear"], "weights": weights, "format": FORMAT});
    if let ActSpec::PerToken(bits) = spec.act {
        group["input_activations"] =
            json!({"num_bits": bits.get(), "type": "int", "symmetric": false, "strategy": "token", "dynamic": true});
    }
    let mut config = json!({
        "quant_method": METHOD,
        "format": FORMAT,
        "quantization_status": "compressed",
        "ignore": ignore,
        "config_groups": {"group_0": group},
    });
    // What transformers does otherwise is wanted for quantized activations alone, and only works without zero points.
    if spec.act == ActSpec::Float || spec.weight.symmetry == Symmetry::Asymmetric {
        config["dequantize"] = true.into();
    }
    config
}

/// The packed model's `config.json`: the source's, with the quantization and a type that keeps scales exact.
pub(crate) fn packed_config(source: &Value, spec: QuantSpec, ignore: &[&str]) -> Value {
    let mut config = source.as_object().cloned().unwrap_or_default();
    // transformers 5 writes `dtype` and reads both, 4 knows `torch_dtype`.
    let keys: Vec<&str> = ["dtype", "torch_dtype"].into_iter().filter(|key| config.contains_key(*key)).collect();
    for key in if keys.is_empty() { vec!["torch_dtype"] } else { keys } {
        let kept = config.get(key).and_then(Value::as_str).filter(|dtype| *dtype == "float32");
        let dtype = kept.unwrap_or("float16").to_owned();
        config.insert(key.to_owned(), dtype.into());
    }
    config.insert(KEY.to_owned(), quantization_config(spec, ignore));
    Value::Object(config)
}

/// How a model says it is quantized; none when `config.json` has no `quantization_config`.
///
/// # Errors
/// [`FormatError::QuantMethod`] for methods other than compressed-tensors, [`FormatError::QuantConfig`] for settings that are
/// not integer grids per group or per output channel with, at most, dynamic activations per token.
pub fn quantization_of(config: &Value) -> Result<Option<QuantSpec>, FormatError> {
    let Some(quantization) = config.get(KEY).filter(|value| !value.is_null()) else { return Ok(None) };
    let method = quantization.get("quant_method").and_then(Value::as_str).unwrap_or("none given");
    if method != METHOD {
        return Err(FormatError::QuantMethod { method: method.to_owned() });
    }
    expect(quantization, "format", &[json!(FORMAT)], "\"pack-quantized\"")?;
    expect(quantization, "kv_cache_scheme", &[Value::Null], "absent")?;
    let groups = quantization.get("config_groups").and_then(Value::as_object);
    let group = match groups.map(|groups| groups.values().collect::<Vec<_>>()).as_deref() {
        Some([group]) => *group,
        other => {
            return Err(FormatError::QuantConfig {
                field: "config_groups",
                got: format!("{} groups", other.map_or(0, <[_]>::len)),
                expected: "one group",
            });
        }
    };
    expect(group, "targets", &[json!(["Linear"])], "[\"Linear\"]")?;
    expect(group, "output_activations", &[Value::Null], "absent")?;
    let weights = group.get("weights").and_then(Value::as_object);
    let weights = weights.ok_or_else(|| wrong("weights", group.get("weights"), "an object"))?;
    let act = match group.get("input_activations").filter(|value| !value.is_null()) {
        None => ActSpec::Float,
        Some(act) => {
            expect(act, "type", &[json!("int"), Value::Null], "\"int\"")?;
            expect(act, "symmetric", &[json!(false)], "false (for activations)")?;
            expect(act, "dynamic", &[json!(true)], "true (for activations)")?;
            expect(act, "strategy", &[json!("token")], "\"token\" (for activations)")?;
            ActSpec::PerToken(bits(act)?)
        }
    };
    Ok(Some(QuantSpec { weight: weight_spec(weights)?, act }))
}

fn weight_spec(weights: &Map<String, Value>) -> Result<WeightSpec, FormatError> {
    let get = |field: &str| weights.get(field).filter(|value| !value.is_null());
    let all = Value::Object(weights.clone());
    expect(&all, "type", &[json!("int"), Value::Null], "\"int\"")?;
    expect(&all, "dynamic", &[json!(false), Value::Null], "false (for weights)")?;
    // With reordered channels a group is no longer a run of neighbours.
    expect(&all, "actorder", &[Value::Null, json!("weight"), json!("static"), json!(false)], "absent or \"weight\"")?;
    let symmetry = match get("symmetric") {
        None | Some(Value::Bool(true)) => Symmetry::Symmetric,
        Some(Value::Bool(false)) => Symmetry::Asymmetric,
        other => return Err(wrong("symmetric", other, "true or false")),
    };
    let size = get("group_size").and_then(Value::as_i64);
    let group = match (get("strategy").and_then(Value::as_str), size) {
        (Some("channel"), None | Some(-1)) | (None, Some(-1)) => GroupSize::PerChannel,
        (Some("group") | None, Some(n @ 1..)) => {
            GroupSize::channels(n as usize).map_err(|_| wrong("group_size", get("group_size"), "at least 1"))?
        }
        (Some("group"), _) => return Err(wrong("group_size", get("group_size"), "at least 1")),
        _ => return Err(wrong("strategy", get("strategy"), "\"group\" with a group_size, or \"channel\"")),
    };
    Ok(WeightSpec { bits: bits(&all)?, group, symmetry })
}

fn bits(args: &Value) -> Result<Bits, FormatError> {
    let field = args.get("num_bits");
    let number = field.and_then(Value::as_u64).and_then(|bits| u32::try_from(bits).ok());
    number.and_then(|bits| Bits::new(bits).ok()).ok_or_else(|| wrong("num_bits", field, "2 to 8"))
}

/// Refuses a field whose value is none of `allowed`; an absent field counts as null.
fn expect(object: &Value, field: &'static str, allowed: &[Value], expected: &'static str) -> Result<(), FormatError> {
    let value = object.get(field).unwrap_or(&Value::Null);
    if allowed.contains(value) { Ok(()) } else { Err(wrong(field, Some(value), expected)) }
}

fn wrong(field: &'static str, got: Option<&Value>, expected: &'static str) -> FormatError {
    let got = got.filter(|value| !value.is_null()).map_or("absent".to_owned(), Value::to_string);
    FormatError::QuantConfig { field, got, expected }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spec_comes_back_from_what_is_written() {
        for text in ["w4a16g64", "w3a16", "w2a16g128sym", "w8a8", "w4a4sym", "w5a16g32"] {
            let spec: QuantSpec = text.parse().unwrap();
            let config = packed_config(&json!({"model_type": "llama"}), spec, &["lm_head"]);
            assert_eq!(quantization_of(&config).unwrap(), Some(spec), "{text}");
        }
        assert_eq!(quantization_of(&json!({"model_type": "llama"})).unwrap(), None);
        assert_eq!(quantization_of(&json!({"quantization_config": null})).unwrap(), None);
    }

    #[test]
    fn what_other_writers_leave_out_has_their_defaults() {
        let config = json!({"quantization_config": {
            "quant_method": "compressed-tensors", "format": "pack-quantized", "ignore": ["lm_head"],
            "config_groups": {"group_0": {"targets": ["Linear"], "input_activations": null,
                "weights": {"num_bits": 4, "group_size": 128, "actorder": "weight", "observer": "mse"}}},
        }});
        assert_eq!(quantization_of(&config).unwrap(), Some("w4a16g128sym".parse().unwrap()));
    }

    #[track_caller]
    fn check_refused(edit: impl Fn(&mut Value), part: &str) {
        let spec = "w4a8g64".parse().unwrap();
        let mut config = packed_config(&json!({}), spec, &["lm_head"]);
        edit(&mut config["quantization_config"]);
        let message = quantization_of(&config).unwrap_err().to_string();
        assert!(message.contains(part), "{message}");
    }

    #[test]
    fn refuses_what_it_does_not_read() {
        check_refused(|q| q["quant_method"] = "gptq".into(), "`gptq` is not read: only compressed-tensors");
        check_refused(|q| q["format"] = "marlin-24".into(), "format is \"marlin-24\"");
        check_refused(|q| q["config_groups"]["group_1"] = json!({}), "2 groups, expected one");
        check_refused(|q| q["config_groups"] = json!(null), "0 groups");
        check_refused(|q| q["kv_cache_scheme"] = json!({"num_bits": 8}), "kv_cache_scheme");
        let group = |q: &mut Value, field: &str, value: Value| q["config_groups"]["group_0"][field] = value;
        check_refused(|q| group(q, "targets", json!(["re:.*q_proj"])), "targets");
        check_refused(|q| group(q, "weights", json!(4)), "weights is 4, expected an object");
        let weights =
            |q: &mut Value, field: &str, value: Value| q["config_groups"]["group_0"]["weights"][field] = value;
        check_refused(|q| weights(q, "num_bits", json!(1)), "num_bits is 1, expected 2 to 8");
        check_refused(|q| weights(q, "num_bits", json!(-4)), "num_bits is -4");
        check_refused(|q| weights(q, "type", "float".into()), "type is \"float\"");
        check_refused(|q| weights(q, "group_size", json!(0)), "group_size is 0");
        check_refused(|q| weights(q, "strategy", "tensor".into()), "strategy is \"tensor\"");
        check_refused(|q| weights(q, "strategy", "channel".into()), "strategy is \"channel\"");
        check_refused(|q| weights(q, "actorder", "group".into()), "actorder");
        check_refused(|q| weights(q, "symmetric", json!("no")), "symmetric");
        let act = |q: &mut Value, field: &str, value: Value| {
            q["config_groups"]["group_0"]["input_activations"][field] = value
        };
        check_refused(|q| act(q, "dynamic", json!(false)), "dynamic is false");
        check_refused(|q| act(q, "num_bits", json!(16)), "num_bits is 16");
    }

    #[test]
    fn loaders_decode_at_once_where_activations_are_none_of_their_business() {
        let told = |text: &str| quantization_config(text.parse().unwrap(), &[]).get("dequantize").cloned();
        assert_eq!(told("w3a16g64"), Some(json!(true)));
        assert_eq!(told("w3a16sym"), Some(json!(true)));
        assert_eq!(told("w4a4"), Some(json!(true)));
        assert_eq!(told("w4a4sym"), None);
    }

    #[track_caller]
    fn check_dtype(source: Value, expected: Value) {
        let mut config = packed_config(&source, "w4a16".parse().unwrap(), &[]);
        config.as_object_mut().unwrap().remove("quantization_config");
        assert_eq!(config, expected);
    }

    #[test]
    fn the_type_keeps_scales_exact() {
        check_dtype(json!({"dtype": "bfloat16"}), json!({"dtype": "float16"}));
        check_dtype(json!({"torch_dtype": "float16"}), json!({"torch_dtype": "float16"}));
        check_dtype(json!({"torch_dtype": "float32"}), json!({"torch_dtype": "float32"}));
        check_dtype(json!({"vocab_size": 8}), json!({"vocab_size": 8, "torch_dtype": "float16"}));
    }
}
