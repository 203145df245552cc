//! Converts between a [`Quantization`] and `quantization_config` in `config.json`.

use oq_quant_core::{ActSpec, GroupSize, Symmetry, WeightSpec};
use serde_json::{Map, Value, json};

use super::fields::{bits, expect, wrong};
use super::online::{FORMAT as ROTATED, is_rotated_online};
use super::scheme::Quantization;
use crate::FormatError;
use crate::others::{self, Layout, Packing};

const METHOD: &str = "compressed-tensors";
const FORMAT: &str = "pack-quantized";
const KEY: &str = "quantization_config";
/// Formats that are read beside ours. The tensors of a linear say which of them it has.
const OTHER_FORMATS: [&str; 7] = [
    "int-quantized",
    "float-quantized",
    "naive-quantized",
    "mxfp4-pack-quantized",
    "nvfp4-pack-quantized",
    "mixed-precision",
    "dense",
];
/// What may stand in `format`.
const FORMATS: &str = "pack-quantized, int-quantized, float-quantized, naive-quantized, mxfp4- or nvfp4-pack-quantized";

/// The value of `quantization_config` for a model whose linears are quantized as given, except those in `ignore`.
///
/// Linears that are not all alike are listed by name, with a group for each spec: names are the only kind of target that all loaders treat
/// alike.
///
/// `ignore` has module names as in the checkpoint, without `.weight`; it must include `lm_head`.
pub fn quantization_config(quantization: &Quantization, ignore: &[&str]) -> Value {
    let act = quantization.act();
    let groups = quantization.groups().enumerate().map(|(idx, (spec, targets))| {
        // The format is repeated in the group: with quantized activations, loaders would infer another one.
        let mut group = json!({"targets": targets, "weights": weights(spec), "format": FORMAT});
        if let ActSpec::PerToken(bits) = act {
            group["input_activations"] = json!({"num_bits": bits.get(), "type": "int", "symmetric": false, "strategy": "token",
                "dynamic": true});
        }
        (format!("group_{idx}"), group)
    });
    let groups: Map<String, Value> = groups.collect();
    let mut config = json!({
        "quant_method": METHOD,
        "format": FORMAT,
        "quantization_status": "compressed",
        "ignore": ignore,
        "config_groups": groups,
    });
    // The default behaviour of transformers is needed for quantized activations only, and works only without zero points. With this flag,
    // it decodes all linears by the first group.
    if let Some(spec) = quantization.uniform()
        && (act == ActSpec::Float || spec.weight.symmetry == Symmetry::Asymmetric)
    {
        config["dequantize"] = true.into();
    }
    config
}

fn weights(spec: WeightSpec) -> Value {
    let mut weights = json!({
        "num_bits": spec.bits.get(),
        "type": "int",
        "symmetric": spec.symmetry == Symmetry::Symmetric,
        "dynamic": false,
    });
    match spec.group {
        GroupSize::PerChannel => weights["strategy"] = "channel".into(),
        GroupSize::Channels(n) => {
            weights["strategy"] = "group".into();
            weights["group_size"] = n.get().into();
        }
    }
    weights
}

/// The packed model's `config.json`: the source's, with the quantization and a dtype that keeps scales exact.
pub(crate) fn packed_config(source: &Value, quantization: &Quantization, ignore: &[&str]) -> Value {
    let mut config = source.as_object().cloned().unwrap_or_default();
    // transformers 5 writes `dtype` and reads both; version 4 knows `torch_dtype`.
    let keys: Vec<&str> = ["dtype", "torch_dtype"].into_iter().filter(|key| config.contains_key(*key)).collect();
    for key in if keys.is_empty() { vec!["torch_dtype"] } else { keys } {
        let kept = config.get(key).and_then(Value::as_str).filter(|dtype| *dtype == "float32");
        let dtype = kept.unwrap_or("float16").to_owned();
        config.insert(key.to_owned(), dtype.into());
    }
    config.insert(KEY.to_owned(), quantization_config(quantization, ignore));
    // Names Python files that are not copied, and that loaders of these architectures do not need.
    config.remove("auto_map");
    // What another program stored in FP8 is codes now.
    config.remove("compression_config");
    Value::Object(config)
}

/// How a model is quantized according to its config; none if it is in full precision or all its linears are stored in FP8.
///
/// # Errors
/// [`FormatError::QuantMethod`] for methods that are not read, [`FormatError::QuantConfig`] for unsupported settings.
pub fn quantization_of(config: &Value) -> Result<Option<Quantization>, FormatError> {
    Ok(packing_of(config)?.map(|packing| packing.quantization).filter(|quantization| !quantization.is_empty()))
}

/// How a model is packed, whatever the method; none for a model in full precision.
pub(crate) fn packing_of(config: &Value) -> Result<Option<Packing>, FormatError> {
    // Older names of compressed-tensors and of MLX.
    let keys = [KEY, "compression_config", "quantization"];
    let found = keys.into_iter().find_map(|key| config.get(key).filter(|value| !value.is_null()));
    let Some(quantization) = found else { return Ok(None) };
    let method = quantization.get("quant_method").and_then(Value::as_str);
    if method != Some(METHOD) {
        return others::packing(method, quantization).map(Some);
    }
    compressed_tensors(quantization, is_rotated_online(config)).map(Some)
}

/// Supported are integer codes per group or per output channel with, at most, dynamic activation quantization per token, FP8 and FP4.
fn compressed_tensors(quantization: &Value, is_rotated: bool) -> Result<Packing, FormatError> {
    let format = if is_rotated { ROTATED } else { FORMAT };
    let named = quantization.get("format").and_then(Value::as_str).filter(|named| OTHER_FORMATS.contains(named));
    if named.is_none() {
        expect(quantization, "format", &[json!(FORMAT), json!(format)], FORMATS)?;
    }
    expect(quantization, "kv_cache_scheme", &[Value::Null], "absent")?;
    no_transforms(quantization)?;
    let groups = quantization.get("config_groups");
    let groups = groups.and_then(Value::as_object).ok_or_else(|| wrong("config_groups", groups, "an object"))?;
    let mut found: Option<Quantization> = None;
    let (mut block, mut has_float_act) = (None, false);
    for group in groups.values() {
        let format = format_of(group, is_rotated)?.or(named).unwrap_or(FORMAT);
        expect(group, "output_activations", &[Value::Null], "absent")?;
        let weights = group.get("weights").filter(|weights| weights.is_object());
        let weights = weights.ok_or_else(|| wrong("weights", group.get("weights"), "an object"))?;
        let act = act_spec(group)?;
        has_float_act |= group.pointer("/input_activations/type").is_some_and(|kind| kind == "float");
        let found = found.get_or_insert_with(|| Quantization::none(act));
        if found.act() != act {
            return Err(wrong("input_activations", group.get("input_activations"), "the same in all groups"));
        }
        let targets = group.get("targets");
        let names = targets.and_then(Value::as_array).filter(|targets| !targets.is_empty());
        let names = names.ok_or_else(|| wrong("targets", targets, "a list of modules"))?;
        let weight = weight_spec(weights, format)?;
        block = block.or(others::block(weights, "block_structure")?);
        for name in names {
            let name = name.as_str().ok_or_else(|| wrong("targets", targets, "a list of modules"))?;
            if let Some(weight) = weight {
                found.add(name, weight)?;
            }
        }
    }
    let none =
        || FormatError::QuantConfig { field: "config_groups", got: "empty".to_owned(), expected: "a group or more" };
    let method = format!("{METHOD} ({})", named.unwrap_or(format));
    let quantization = found.ok_or_else(none)?;
    Ok(Packing { method, quantization, layout: Layout::Parts { block }, has_float_act })
}

/// Refuses configs whose activations and weights are multiplied by matrices other than those of our own format.
fn no_transforms(quantization: &Value) -> Result<(), FormatError> {
    let transforms = quantization.get("transform_config").unwrap_or(&Value::Null);
    let groups = match transforms {
        Value::Object(config) => config.get("config_groups").unwrap_or(&Value::Null),
        other => other,
    };
    let is_empty = groups.is_null() || groups.as_object().is_some_and(Map::is_empty);
    if is_empty { Ok(()) } else { Err(wrong("transform_config", Some(transforms), "absent or without groups")) }
}

/// A group's own format, if it is one of [`OTHER_FORMATS`]. Refuses unknown ones, and a group that differs from the others in rotation.
fn format_of(group: &Value, is_rotated: bool) -> Result<Option<&str>, FormatError> {
    if is_rotated {
        expect(group, "format", &[json!(ROTATED)], "\"pack-quantized-rotated\" in all groups or in none")?;
        return Ok(None);
    }
    let own = group.get("format").and_then(Value::as_str).filter(|named| OTHER_FORMATS.contains(named));
    if own.is_none() {
        expect(group, "format", &[json!(FORMAT), Value::Null], FORMATS)?;
    }
    Ok(own)
}

fn act_spec(group: &Value) -> Result<ActSpec, FormatError> {
    let Some(act) = group.get("input_activations").filter(|value| !value.is_null()) else { return Ok(ActSpec::Float) };
    if act.get("type").is_some_and(|kind| kind == "float") {
        return Ok(ActSpec::Float);
    }
    expect(act, "type", &[json!("int"), Value::Null], "\"int\" or \"float\"")?;
    expect(act, "symmetric", &[json!(false)], "false (for activations)")?;
    expect(act, "dynamic", &[json!(true)], "true (for activations)")?;
    expect(act, "strategy", &[json!("token")], "\"token\" (for activations)")?;
    Ok(ActSpec::PerToken(bits(act, "num_bits")?))
}

/// How integer codes are made; none for floating-point numbers.
fn weight_spec(weights: &Value, format: &str) -> Result<Option<WeightSpec>, FormatError> {
    let get = |field: &str| weights.get(field).filter(|value| !value.is_null());
    expect(weights, "dynamic", &[json!(false), Value::Null], "false (for weights)")?;
    // With reordered channels a group is no longer a run of consecutive channels.
    expect(weights, "actorder", &[Value::Null, json!("weight"), json!("static"), json!(false)], "absent or \"weight\"")?;
    if get("type").is_some_and(|kind| kind == "float") {
        expect(weights, "num_bits", &[json!(4), json!(8)], "4 or 8 (for floating-point weights)")?;
        return Ok(None);
    }
    expect(weights, "type", &[json!("int"), Value::Null], "\"int\" or \"float\"")?;
    let symmetry = match get("symmetric") {
        None | Some(Value::Bool(true)) => Symmetry::Symmetric,
        Some(Value::Bool(false)) => Symmetry::Asymmetric,
        other => return Err(wrong("symmetric", other, "true or false")),
    };
    let size = get("group_size").and_then(Value::as_i64);
    let group = match (get("strategy").and_then(Value::as_str), size) {
        (Some("channel"), None | Some(-1)) | (None, Some(-1)) => GroupSize::PerChannel,
        // One scale for the matrix is the same one for each channel.
        (Some("tensor"), None) if format != FORMAT => GroupSize::PerChannel,
        (Some("group") | None, Some(n @ 1..)) => {
            GroupSize::channels(n as usize).map_err(|_| wrong("group_size", get("group_size"), "at least 1"))?
        }
        (Some("group"), _) => return Err(wrong("group_size", get("group_size"), "at least 1")),
        _ => return Err(wrong("strategy", get("strategy"), "\"group\" with a group_size, or \"channel\"")),
    };
    Ok(Some(WeightSpec { bits: bits(weights, "num_bits")?, group, symmetry }))
}

#[cfg(test)]
mod tests {
    use oq_quant_core::QuantSpec;

    use super::*;

    fn uniform(text: &str) -> Quantization {
        text.parse::<QuantSpec>().unwrap().into()
    }

    #[test]
    fn a_spec_comes_back_from_what_is_written() {
        for text in ["w4a16g64", "w3a16", "w2a16g128sym", "w8a8", "w4a4sym", "w5a16g32"] {
            let config = packed_config(&json!({"model_type": "llama"}), &uniform(text), &["lm_head"]);
            assert_eq!(config["quantization_config"]["config_groups"]["group_0"]["targets"], json!(["Linear"]));
            assert_eq!(quantization_of(&config).unwrap(), Some(uniform(text)), "{text}");
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
        assert_eq!(quantization_of(&config).unwrap(), Some(uniform("w4a16g128sym")));
    }

    #[test]
    fn groups_come_back_with_their_targets() {
        let spec = |text: &str| text.parse::<QuantSpec>().unwrap();
        let linears = [("a.o", "w3a4g64"), ("b.o", "w2a4g64"), ("b.up", "w3a4g64")];
        let linears = linears.map(|(name, text)| (name.to_owned(), spec(text).weight));
        let mixed = Quantization::of_linears(spec("w3a4g64").act, linears);
        let config = packed_config(&json!({}), &mixed, &["lm_head"]);
        let groups = &config["quantization_config"]["config_groups"];
        assert_eq!(groups["group_0"]["targets"], json!(["a.o", "b.up"]));
        assert_eq!(groups["group_1"]["targets"], json!(["b.o"]));
        assert_eq!(groups["group_1"]["weights"]["num_bits"], 2);
        assert_eq!(quantization_of(&config).unwrap(), Some(mixed));
        // As llm-compressor writes them.
        let weights = |bits: u32| json!({"num_bits": bits, "strategy": "group", "group_size": 64, "symmetric": false});
        let config = json!({"quantization_config": {"quant_method": METHOD, "format": FORMAT, "config_groups": {
            "group_0": {"targets": ["re:.*(gate|up)_proj$", "Linear"], "weights": weights(4)},
            "group_1": {"targets": ["re:.*down_proj$"], "weights": weights(8)}}}});
        let read = quantization_of(&config).unwrap().unwrap();
        let bits = |name: &str| read.weight(name).map(|spec| spec.bits.get());
        assert_eq!(["x.up_proj", "x.down_proj", "x.o_proj"].map(bits), [Some(4), Some(8), Some(4)]);
        let again = json!({"quantization_config": quantization_config(&read, &[])});
        assert_eq!(quantization_of(&again).unwrap(), Some(read));
    }

    #[test]
    fn transforms_that_are_none_are_read_over() {
        for none in [json!(null), json!({}), json!({"config_groups": null}), json!({"config_groups": {}})] {
            let mut config = packed_config(&json!({}), &uniform("w4a16g64"), &["lm_head"]);
            config["quantization_config"]["transform_config"] = none;
            assert_eq!(quantization_of(&config).unwrap(), Some(uniform("w4a16g64")));
        }
    }

    #[track_caller]
    fn check_refused(edit: impl Fn(&mut Value), part: &str) {
        let mut config = packed_config(&json!({}), &uniform("w4a8g64"), &["lm_head"]);
        edit(&mut config["quantization_config"]);
        let message = quantization_of(&config).unwrap_err().to_string();
        assert!(message.contains(part), "{message}");
    }

    #[test]
    fn refuses_what_it_does_not_read() {
        check_refused(
            |q| q["quant_method"] = "gptq".into(),
            "`gptq` is not read, only compressed-tensors (pack-quantized): give the full-precision original",
        );
        check_refused(|q| q["format"] = "marlin-24".into(), "format is \"marlin-24\"");
        check_refused(|q| q["format"] = ROTATED.into(), "format is \"pack-quantized-rotated\"");
        check_refused(|q| q["config_groups"]["group_1"] = json!({}), "weights is absent");
        check_refused(|q| q["config_groups"] = json!(null), "config_groups is absent");
        check_refused(|q| q["config_groups"] = json!({}), "config_groups is empty");
        let transforms = |q: &mut Value, value: Value| q["transform_config"] = value;
        check_refused(
            |q| transforms(q, json!({"config_groups": {"u": {"type": "hadamard", "apply": []}}})),
            "transform_config is {\"config_groups\":{\"u\"",
        );
        check_refused(|q| transforms(q, json!("R1")), "transform_config is \"R1\", expected absent or without groups");
        check_refused(
            |q| transforms(q, json!({"config_groups": ["u"]})),
            "transform_config is {\"config_groups\":[\"u\"]}",
        );
        check_refused(|q| q["kv_cache_scheme"] = json!({"num_bits": 8}), "kv_cache_scheme");
        let group = |q: &mut Value, field: &str, value: Value| q["config_groups"]["group_0"][field] = value;
        check_refused(|q| group(q, "format", json!("int-quantized")), "format is \"int-quantized\", expected");
        check_refused(|q| group(q, "targets", json!([])), "targets is [], expected a list of modules");
        check_refused(|q| group(q, "targets", json!(["Linear", 3])), "targets is [\"Linear\",3]");
        check_refused(|q| group(q, "targets", json!(["re:*"])), "targets is \"re:*\", expected a regular expression");
        let second = |q: &mut Value, field: &str, value: Value| {
            let groups = &mut q["config_groups"];
            groups["group_1"] = groups["group_0"].clone();
            groups["group_1"][field] = value;
        };
        check_refused(
            |q| second(q, "input_activations", json!(null)),
            "input_activations is absent, expected the same",
        );
        check_refused(
            |q| second(q, "format", json!(ROTATED)),
            "format is \"pack-quantized\", expected \"pack-quantized-rotated\" in all groups or in none",
        );
        check_refused(
            |q| second(q, "weights", json!({"num_bits": 2, "strategy": "channel"})),
            "\"Linear\" in two groups",
        );
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
        let told = |text: &str| quantization_config(&uniform(text), &[]).get("dequantize").cloned();
        assert_eq!(told("w3a16g64"), Some(json!(true)));
        assert_eq!(told("w3a16sym"), Some(json!(true)));
        assert_eq!(told("w4a4"), Some(json!(true)));
        assert_eq!(told("w4a4sym"), None);
        let linears = ["w4a16sym", "w3a16sym"].map(|text| (text.to_owned(), text.parse::<QuantSpec>().unwrap().weight));
        let mixed = Quantization::of_linears(ActSpec::Float, linears);
        assert_eq!(quantization_config(&mixed, &[]).get("dequantize"), None);
    }

    #[track_caller]
    fn check_dtype(source: Value, expected: Value) {
        let mut config = packed_config(&source, &uniform("w4a16"), &[]);
        config.as_object_mut().unwrap().remove("quantization_config");
        assert_eq!(config, expected);
    }

    #[test]
    fn the_type_keeps_scales_exact() {
        check_dtype(json!({"dtype": "bfloat16"}), json!({"dtype": "float16"}));
        check_dtype(json!({"torch_dtype": "float16"}), json!({"torch_dtype": "float16"}));
        check_dtype(json!({"torch_dtype": "float32"}), json!({"torch_dtype": "float32"}));
        let code = json!({"vocab_size": 8, "auto_map": {"AutoConfig": "configuration_falcon.FalconConfig"}});
        check_dtype(code, json!({"vocab_size": 8, "torch_dtype": "float16"}));
    }
}
