//! Converts between a [`Quantization`] and `quantization_config` in `config.json`.

use oq_quant_core::{ActSpec, GroupSize, Storage, Symmetry, WeightSpec};
use serde_json::{Map, Value, json};

use super::experts::{Experts, experts_of};
use super::fields::{bits, expect, wrong};
use super::online::{FORMAT as ROTATED, is_rotated_online};
use super::portable::{describe_rope, set_dtype};
use super::scheme::Quantization;
use crate::FormatError;
use crate::others::{self, Layout, Packing};

const METHOD: &str = "compressed-tensors";
const FORMAT: &str = "pack-quantized";
/// The same with quantized activations. Loaders of the format above drop some or all of the quantization of activations in silence; those of
/// compressed-tensors refuse this name.
const QUANTIZED_ACTIVATIONS: &str = "pack-quantized-activations";
/// Formats of compressed-tensors with float codes.
const MXFP4: &str = "mxfp4-pack-quantized";
const NVFP4: &str = "nvfp4-pack-quantized";
/// A format of our own, with the types of ggml that no format of compressed-tensors holds.
const BLOCKS: &str = "pack-quantized-blocks";
/// A format of our own, of models whose experts are one tensor to other programs. Here they are linears of their own, which loaders that
/// know the plain format would leave out without a word.
const SEPARATE_EXPERTS: &str = "pack-quantized-experts";
/// Of a model whose groups have several formats.
const MIXED: &str = "mixed-precision";
/// Formats of other programs: a byte for each weight.
const BYTES: [&str; 3] = ["int-quantized", "float-quantized", "naive-quantized"];
/// What may stand in `format`.
const READ: &str = "pack-quantized, int-, float- or naive-quantized, mxfp4- or nvfp4-pack-quantized";
const KEY: &str = "quantization_config";
/// The name that compressed-tensors gave it in 2024. transformers ignores it, and would run such a model on random weights.
const OLD_KEY: &str = "compression_config";

/// The value of `quantization_config` for a model whose linears are quantized as given, except those in `ignore`.
///
/// Linears that are not all alike are listed by name, with a group for each spec: names are the only kind of target that all loaders treat
/// alike.
///
/// `ignore` has module names as in the checkpoint, without `.weight`; it must include `lm_head` unless that is quantized. Linears that the
/// quantization leaves out follow.
pub fn quantization_config(quantization: &Quantization, ignore: &[&str]) -> Value {
    let act = quantization.act();
    let groups = quantization.groups().enumerate().map(|(idx, (spec, targets))| {
        // The format is repeated in the group, where some loaders look for it.
        let mut group = json!({"targets": targets, "weights": weights(spec), "format": format_of(spec, act)});
        if let Some(bits) = act.bits() {
            let symmetric = matches!(act, ActSpec::PerTokenSymmetric(_));
            group["input_activations"] = json!({"num_bits": bits.get(), "type": "int", "symmetric": symmetric,
                "strategy": "token", "dynamic": true});
        }
        (format!("group_{idx}"), group)
    });
    let groups: Map<String, Value> = groups.collect();
    // Our own format, if one linear has it: loaders refuse a model that they would read in part only.
    let formats: Vec<&str> = quantization.groups().map(|(spec, _)| format_of(spec, act)).collect();
    let format = match formats[..] {
        _ if formats.contains(&BLOCKS) => BLOCKS,
        [first, ref rest @ ..] if rest.iter().all(|other| *other == first) => first,
        [] => FORMAT,
        _ => MIXED,
    };
    let ignore: Vec<&str> =
        ignore.iter().copied().chain(quantization.left_out().filter(|name| !ignore.contains(name))).collect();
    let mut config = json!({
        "quant_method": METHOD,
        "format": format,
        "quantization_status": "compressed",
        "ignore": ignore,
        "config_groups": groups,
    });
    // The default behaviour of transformers works only without zero points, and is needed only for quantized activations. With this flag, it
    // decodes all linears by the first group.
    if act == ActSpec::Float && quantization.uniform().is_some_and(|spec| spec.weight.storage == Storage::Half) {
        config["dequantize"] = true.into();
    }
    config
}

/// The format that holds linears of this spec.
fn format_of(spec: WeightSpec, act: ActSpec) -> &'static str {
    match spec.storage {
        Storage::Half if matches!(act, ActSpec::PerToken(_)) => QUANTIZED_ACTIVATIONS,
        Storage::Half => FORMAT,
        Storage::HalfMin | Storage::Super => BLOCKS,
        Storage::E8m0 => MXFP4,
        Storage::E4m3 => NVFP4,
    }
}

fn weights(spec: WeightSpec) -> Value {
    let mut weights = json!({
        "num_bits": spec.bits.get(),
        "type": "int",
        "symmetric": spec.symmetry != Symmetry::Asymmetric,
        "dynamic": false,
    });
    match spec.storage {
        Storage::Half if spec.symmetry == Symmetry::FullRange => weights["observer_kwargs"] = json!({FULL_RANGE: true}),
        Storage::Half => {}
        Storage::HalfMin | Storage::Super => weights["type"] = spec.to_string().into(),
        Storage::E8m0 => {
            weights["type"] = "float".into();
            weights["scale_dtype"] = "torch.uint8".into();
        }
        Storage::E4m3 => {
            weights["type"] = "float".into();
            weights["scale_dtype"] = "torch.float8_e4m3fn".into();
        }
    }
    match spec.group {
        GroupSize::PerChannel => weights["strategy"] = "channel".into(),
        GroupSize::Channels(n) => {
            let is_nvfp4 = spec.storage == Storage::E4m3;
            weights["strategy"] = if is_nvfp4 { "tensor_group" } else { "group" }.into();
            weights["group_size"] = n.get().into();
        }
    }
    weights
}

/// The packed model's `config.json`: the source's, with the quantization and a dtype that keeps scales exact.
pub(crate) fn packed_config(source: &Value, quantization: &Quantization, ignore: &[&str]) -> Value {
    let mut config = source.as_object().cloned().unwrap_or_default();
    set_dtype(&mut config, quantization.weights().iter().any(|weight| weight.storage.has_float_codes()));
    describe_rope(&mut config);
    let mut quantization = quantization_config(quantization, ignore);
    if source["model_type"].as_str().and_then(experts_of) == Some(Experts::Together) {
        quantization["format"] = SEPARATE_EXPERTS.into();
        for group in quantization["config_groups"].as_object_mut().into_iter().flat_map(|groups| groups.values_mut()) {
            if group["format"] == FORMAT {
                group["format"] = SEPARATE_EXPERTS.into();
            }
        }
    }
    config.insert(KEY.to_owned(), quantization);
    // Names Python files that are not copied, and that loaders of these architectures do not need.
    config.remove("auto_map");
    Value::Object(config)
}

/// How a model is quantized according to its config; none if it is in full precision, or all its linears are stored in FP8.
///
/// # Errors
/// [`FormatError::QuantMethod`] for methods that are not read, [`FormatError::QuantConfig`] for unsupported settings.
pub fn quantization_of(config: &Value) -> Result<Option<Quantization>, FormatError> {
    Ok(packing_of(config)?.map(|packing| packing.quantization).filter(|quantization| !quantization.is_empty()))
}

/// How a model is packed, by any method; none for a model in full precision.
pub(crate) fn packing_of(config: &Value) -> Result<Option<Packing>, FormatError> {
    let section = |key| config.get(key).filter(|value| !value.is_null());
    // MLX writes both.
    let Some(quantization) = section(KEY).or(section("quantization")) else {
        return match section(OLD_KEY) {
            None => Ok(None),
            Some(_) => Err(wrong(OLD_KEY, Some(&json!("there")), "absent: rename it to quantization_config")),
        };
    };
    let method = quantization.get("quant_method").and_then(Value::as_str);
    if method == Some(METHOD) {
        return compressed_tensors(quantization, is_rotated_online(config)).map(Some);
    }
    others::packing(method, quantization).map(Some)
}

/// Supported are codes per group or per output channel, and FP8, with dynamic quantization of activations per token.
fn compressed_tensors(quantization: &Value, is_rotated: bool) -> Result<Packing, FormatError> {
    let format = if is_rotated { ROTATED } else { FORMAT };
    let plain = [FORMAT, QUANTIZED_ACTIVATIONS, MXFP4, NVFP4, BLOCKS, SEPARATE_EXPERTS, MIXED];
    let formats: Vec<Value> = plain.into_iter().chain(BYTES).chain([format]).map(Value::from).collect();
    expect(quantization, "format", &formats, READ)?;
    expect(quantization, "kv_cache_scheme", &[Value::Null], "absent")?;
    no_transforms(quantization)?;
    let groups = quantization.get("config_groups");
    let groups = groups.and_then(Value::as_object).ok_or_else(|| wrong("config_groups", groups, "an object"))?;
    let (mut block, mut has_float_act) = (None, false);
    let mut found: Option<Quantization> = None;
    for group in groups.values() {
        check_format(group, is_rotated)?;
        expect(group, "output_activations", &[Value::Null], "absent")?;
        let weights = group.get("weights").filter(|weights| weights.is_object());
        let weights = weights.ok_or_else(|| wrong("weights", group.get("weights"), "an object"))?;
        let (weight, act) = (weight_spec(weights)?, act_spec(group)?);
        block = block.or(others::block(weights, "block_structure")?);
        has_float_act |= group.pointer("/input_activations/type").is_some_and(|kind| kind == "float");
        let found = found.get_or_insert_with(|| Quantization::none(act));
        if found.act() != act {
            return Err(wrong("input_activations", group.get("input_activations"), "the same in all groups"));
        }
        if act == ActSpec::Float && group.get("format").is_some_and(|format| format == QUANTIZED_ACTIVATIONS) {
            return Err(wrong("input_activations", None, "present in a group of this format"));
        }
        let targets = group.get("targets");
        let names = targets.and_then(Value::as_array).filter(|targets| !targets.is_empty());
        let names = names.ok_or_else(|| wrong("targets", targets, "a list of modules"))?;
        for name in names {
            let name = name.as_str().ok_or_else(|| wrong("targets", targets, "a list of modules"))?;
            weight.map_or(Ok(()), |weight| found.add(name, weight))?;
        }
    }
    let none =
        || FormatError::QuantConfig { field: "config_groups", got: "empty".to_owned(), expected: "a group or more" };
    let mut quantization_of_codes = found.ok_or_else(none)?;
    let ignored = quantization.get("ignore").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str);
    // What lies outside the blocks has no number, and is never looked up by class.
    let is_in_block = |name: &&str| name.split('.').any(|part| part.parse::<usize>().is_ok());
    ignored.filter(is_in_block).for_each(|name| quantization_of_codes.leave_out(name.to_owned()));
    let method = format!("{METHOD} ({})", quantization.get("format").and_then(Value::as_str).unwrap_or(format));
    Ok(Packing { method, quantization: quantization_of_codes, layout: Layout::Parts { block }, has_float_act })
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

/// Refuses a group of another format, or one that differs from the others in rotation.
fn check_format(group: &Value, is_rotated: bool) -> Result<(), FormatError> {
    match is_rotated {
        false => {
            let formats =
                [FORMAT, QUANTIZED_ACTIVATIONS, MXFP4, NVFP4, BLOCKS, SEPARATE_EXPERTS].into_iter().chain(BYTES);
            let formats: Vec<Value> = formats.map(Value::from).chain([Value::Null]).collect();
            expect(group, "format", &formats, READ)
        }
        true => expect(group, "format", &[json!(ROTATED)], "\"pack-quantized-rotated\" in all groups or in none"),
    }
}

fn act_spec(group: &Value) -> Result<ActSpec, FormatError> {
    let Some(act) = group.get("input_activations").filter(|value| !value.is_null()) else { return Ok(ActSpec::Float) };
    // Not rounded here, and so not as other programs do: callers warn.
    if act.get("type").is_some_and(|kind| kind == "float") {
        return Ok(ActSpec::Float);
    }
    expect(act, "type", &[json!("int"), Value::Null], "\"int\" or \"float\"")?;
    expect(act, "symmetric", &[json!(false), json!(true), Value::Null], "true or false (for activations)")?;
    expect(act, "dynamic", &[json!(true)], "true (for activations)")?;
    expect(act, "strategy", &[json!("token")], "\"token\" (for activations)")?;
    let bits = bits(act, "num_bits")?;
    // The default of compressed-tensors is symmetric.
    let asymmetric = act.get("symmetric") == Some(&Value::Bool(false));
    Ok(if asymmetric { ActSpec::PerToken(bits) } else { ActSpec::PerTokenSymmetric(bits) })
}

/// How codes are made; none for numbers in FP8.
fn weight_spec(weights: &Value) -> Result<Option<WeightSpec>, FormatError> {
    let get = |field: &str| weights.get(field).filter(|value| !value.is_null());
    if let Some(spec) = get("type").and_then(Value::as_str).and_then(WeightSpec::named) {
        return Ok(Some(spec));
    }
    if get("type").is_some_and(|kind| kind == "float") {
        return float_spec(weights);
    }
    expect(weights, "type", &[json!("int"), Value::Null], "\"int\" or \"float\"")?;
    expect(weights, "dynamic", &[json!(false), Value::Null], "false (for weights)")?;
    // With reordered channels a group is no longer a run of consecutive channels.
    expect(
        weights,
        "actorder",
        &[Value::Null, json!("weight"), json!("static"), json!(false)],
        "absent or \"weight\"",
    )?;
    let symmetry = match get("symmetric") {
        None | Some(Value::Bool(true)) if is_full_range(weights) => Symmetry::FullRange,
        None | Some(Value::Bool(true)) => Symmetry::Symmetric,
        Some(Value::Bool(false)) => Symmetry::Asymmetric,
        other => return Err(wrong("symmetric", other, "true or false")),
    };
    let size = get("group_size").and_then(Value::as_i64);
    let group = match (get("strategy").and_then(Value::as_str), size) {
        // One scale for the whole matrix is the same one for each channel.
        (Some("channel"), None | Some(-1)) | (None, Some(-1)) | (Some("tensor"), None) => GroupSize::PerChannel,
        (Some("group") | None, Some(n @ 1..)) => {
            GroupSize::channels(n as usize).map_err(|_| wrong("group_size", get("group_size"), "at least 1"))?
        }
        (Some("group"), _) => return Err(wrong("group_size", get("group_size"), "at least 1")),
        _ => return Err(wrong("strategy", get("strategy"), "\"group\" with a group_size, \"channel\" or \"tensor\"")),
    };
    Ok(Some(WeightSpec::integer(bits(weights, "num_bits")?, group, symmetry)))
}

/// The key among an observer's settings that says that all codes are used.
const FULL_RANGE: &str = "full_range";

fn is_full_range(weights: &Value) -> bool {
    weights.get("observer_kwargs").and_then(|observer| observer.get(FULL_RANGE)) == Some(&Value::Bool(true))
}

/// MXFP4 or NVFP4; none for FP8.
fn float_spec(weights: &Value) -> Result<Option<WeightSpec>, FormatError> {
    expect(weights, "num_bits", &[json!(4), json!(8)], "4 or 8 (for float codes)")?;
    expect(weights, "symmetric", &[json!(true), Value::Null], "true (for float codes)")?;
    expect(weights, "dynamic", &[json!(false), Value::Null], "false (for weights)")?;
    if weights["num_bits"] == 8 {
        return Ok(None);
    }
    let group = weights.get("group_size");
    let name = match group.and_then(Value::as_u64) {
        Some(32) => "mxfp4",
        Some(16) => "nvfp4",
        _ => return Err(wrong("group_size", group, "16 or 32 (for float codes)")),
    };
    Ok(WeightSpec::named(name))
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
        for text in [
            "w4a16g64",
            "w3a16",
            "w2a16g128sym",
            "w8a8",
            "w4a4sym",
            "w5a16g32",
            "w2a16g64full",
            "w8a8-int8",
            "mxfp4",
            "nvfp4",
            "q2_k_pure",
            "q4_1_pure",
        ] {
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
    fn quantized_activations_have_a_format_of_their_own() {
        for (text, format) in
            [("w4a16g64", FORMAT), ("w8a8", QUANTIZED_ACTIVATIONS), ("w4a4sym", QUANTIZED_ACTIVATIONS)]
        {
            let mut config = packed_config(&json!({}), &uniform(text), &["lm_head"]);
            let quantization = &mut config["quantization_config"];
            assert_eq!(
                [&quantization["format"], &quantization["config_groups"]["group_0"]["format"]],
                [format; 2],
                "{text}"
            );
            assert_eq!(quantization.get("dequantize").is_some(), format == FORMAT, "{text}");
            // As other programs, and earlier versions of this one, write it.
            quantization["format"] = FORMAT.into();
            quantization["config_groups"]["group_0"]["format"] = FORMAT.into();
            assert_eq!(quantization_of(&config).unwrap(), Some(uniform(text)), "{text}");
        }
    }

    #[test]
    fn linears_in_full_precision_are_ignored() {
        let weight = uniform("w4a16g64").weights()[0];
        let linears = [("layers.0.a", None), ("layers.0.b", Some(weight)), ("layers.1.a", Some(weight))];
        let found = Quantization::of_linears(ActSpec::Float, linears.map(|(name, spec)| (name.to_owned(), spec)));
        let config = packed_config(&json!({}), &found, &["lm_head"]);
        assert_eq!(config["quantization_config"]["ignore"], json!(["lm_head", "layers.0.a"]));
        assert_eq!(quantization_of(&config).unwrap(), Some(found));
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
            |q| q["quant_method"] = "hqq".into(),
            "`hqq` is not read, only compressed-tensors, gptq, awq, auto-round, mlx and fp8: give the full-precision original",
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
        check_refused(|q| group(q, "format", json!("marlin-24")), "format is \"marlin-24\", expected");
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
            "format is \"pack-quantized-activations\", expected \"pack-quantized-rotated\" in all groups or in none",
        );
        check_refused(
            |q| group(q, "input_activations", json!(null)),
            "input_activations is absent, expected present in a group of this format",
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
        check_refused(|q| weights(q, "type", "float".into()), "symmetric is false, expected true (for float codes)");
        check_refused(|q| weights(q, "type", "complex".into()), "type is \"complex\", expected \"int\" or \"float\"");
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
    fn loaders_are_told_to_decode_at_once() {
        let told = |text: &str| quantization_config(&uniform(text), &[]).get("dequantize").cloned();
        assert_eq!(told("w3a16g64"), Some(json!(true)));
        assert_eq!(told("w3a16sym"), Some(json!(true)));
        let linears = ["w4a16sym", "w3a16sym"].map(|text| (text.to_owned(), text.parse::<QuantSpec>().unwrap().weight));
        let mixed = Quantization::of_linears(ActSpec::Float, linears);
        assert_eq!(quantization_config(&mixed, &[]).get("dequantize"), None);
    }

    #[test]
    fn code_that_is_not_copied_is_not_named() {
        let source = json!({"vocab_size": 8, "auto_map": {"AutoConfig": "configuration_falcon.FalconConfig"}});
        let mut config = packed_config(&source, &uniform("w4a16"), &[]);
        config.as_object_mut().unwrap().remove("quantization_config");
        assert_eq!(config, json!({"vocab_size": 8, "dtype": "float16", "torch_dtype": "float16"}));
    }
}
