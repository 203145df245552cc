//! `config.json` of models that other methods packed.

use oq_quant_core::{ActSpec, GroupSize, Symmetry, WeightSpec};
use serde_json::{Map, Value, json};

use crate::FormatError;
use crate::packed::fields::{bits, expect, wrong};
use crate::packed::scheme::Quantization;

/// How a model is packed.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Packing {
    /// The method and, where it has several, its layout.
    pub(crate) method: String,
    /// Its linears with integer codes. If none has, it covers none.
    pub(crate) quantization: Quantization,
    pub(crate) layout: Layout,
    /// Whether other programs round its activations to floating-point numbers of few bits. This one does not.
    pub(crate) has_float_act: bool,
}

/// What the tensors of a linear mean. Their names and types say the rest.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Layout {
    /// `qweight` as GPTQ writes it, with what is added to its stored zero points.
    Gptq { zero_offset: i32 },
    /// `qweight` as AWQ writes it.
    Awq,
    /// `weight` of words.
    Mlx,
    /// Experts as GPT-OSS is published: the parts of compressed-tensors once they are split. Their codes are numbers like those of FP8:
    /// the model as it was trained.
    Mxfp4,
    /// Parts of compressed-tensors; rows and channels of a block, if FP8 weights have such scales.
    Parts { block: Option<[usize; 2]> },
}

/// Reads `quantization_config` of a method other than compressed-tensors; MLX names none.
///
/// # Errors
/// [`FormatError::QuantMethod`] for methods that are not read, [`FormatError::QuantConfig`] for settings that are not.
pub(crate) fn packing(method: Option<&str>, config: &Value) -> Result<Packing, FormatError> {
    match method {
        Some("gptq") => gptq(config),
        Some("awq") => awq(config),
        Some("auto-round" | "intel/auto-round") => auto_round(config),
        Some(method @ ("fp8" | "fbgemm_fp8")) => fp8(method, config),
        Some("mxfp4") => Ok(Packing {
            method: "mxfp4".to_owned(),
            quantization: Quantization::none(ActSpec::Float),
            layout: Layout::Mxfp4,
            has_float_act: false,
        }),
        None if config.get("bits").is_some() => mlx(config),
        other => Err(FormatError::QuantMethod { method: other.unwrap_or("none given").to_owned() }),
    }
}

fn gptq(config: &Value) -> Result<Packing, FormatError> {
    let version = config.get("checkpoint_format").and_then(Value::as_str).unwrap_or("gptq");
    let zero_offset = match version {
        "gptq" => 1,
        "gptq_v2" => 0,
        _ => return Err(wrong("checkpoint_format", config.get("checkpoint_format"), "\"gptq\" or \"gptq_v2\"")),
    };
    expect(config, "is_marlin_format", &[Value::Null, json!(false)], "false")?;
    let mut quantization = of_all(gptq_spec(config)?)?;
    // Modules that are left out have plain weights; others have settings of their own.
    for (pattern, own) in objects(config, "dynamic")? {
        if let Some(pattern) = pattern.strip_prefix("+:").or((!pattern.starts_with("-:")).then_some(pattern)) {
            quantization.add(&format!("re:{pattern}"), gptq_spec(&over(config, own))?)?;
        }
    }
    let method = if version == "gptq" { "gptq".to_owned() } else { format!("gptq ({version})") };
    Ok(Packing { method, quantization, layout: Layout::Gptq { zero_offset }, has_float_act: false })
}

fn gptq_spec(config: &Value) -> Result<WeightSpec, FormatError> {
    expect(config, "bits", &[json!(2), json!(3), json!(4), json!(8)], "2, 3, 4 or 8")?;
    sym_spec(config)
}

fn sym_spec(config: &Value) -> Result<WeightSpec, FormatError> {
    Ok(WeightSpec::integer(bits(config, "bits")?, group(config)?, symmetry(config)?))
}

fn awq(config: &Value) -> Result<Packing, FormatError> {
    expect(config, "bits", &[json!(4)], "4")?;
    let version = config.get("version").and_then(Value::as_str).unwrap_or("gemm").to_ascii_lowercase();
    if version != "gemm" {
        return Err(wrong("version", config.get("version"), "\"gemm\""));
    }
    let quantization = of_all(awq_spec(config)?)?;
    Ok(Packing { method: "awq".to_owned(), quantization, layout: Layout::Awq, has_float_act: false })
}

fn awq_spec(config: &Value) -> Result<WeightSpec, FormatError> {
    let symmetry = match config.get("zero_point") {
        Some(Value::Bool(false)) => Symmetry::Symmetric,
        _ => Symmetry::Asymmetric,
    };
    Ok(WeightSpec::integer(bits(config, "bits")?, group(config)?, symmetry))
}

fn auto_round(config: &Value) -> Result<Packing, FormatError> {
    expect(config, "data_type", &[Value::Null, json!("int")], "\"int\"")?;
    expect(config, "act_bits", &[Value::Null, json!(16), json!(32)], "16")?;
    let format = config.get("packing_format");
    let layout = match format.and_then(Value::as_str) {
        Some("auto_round:auto_gptq") => Layout::Gptq { zero_offset: 1 },
        Some("auto_round" | "auto_round:gptqmodel") => Layout::Gptq { zero_offset: 0 },
        Some("auto_round:auto_awq") => {
            expect(config, "bits", &[json!(4)], "4")?;
            Layout::Awq
        }
        _ => {
            return Err(wrong(
                "packing_format",
                format,
                "auto_round, or auto_round:auto_gptq, :gptqmodel or :auto_awq",
            ));
        }
    };
    let mut quantization = of_all(sym_spec(config)?)?;
    for (name, own) in objects(config, "extra_config")? {
        let own = over(config, own);
        // Those of more bits have plain weights.
        if own.get("bits").and_then(Value::as_u64).is_some_and(|bits| bits > 8) {
            continue;
        }
        if layout == Layout::Awq {
            expect(&own, "bits", &[json!(4)], "4")?;
        }
        let is_name = name.chars().all(|c| c.is_ascii_alphanumeric() || "_.-".contains(c));
        let target = if is_name { name.clone() } else { format!("re:{name}") };
        quantization.add(&target, sym_spec(&own)?)?;
    }
    let method = format!("auto-round ({})", format.and_then(Value::as_str).unwrap_or_default());
    Ok(Packing { method, quantization, layout, has_float_act: false })
}

fn mlx(config: &Value) -> Result<Packing, FormatError> {
    let mut quantization = of_all(mlx_spec(config)?)?;
    for (name, own) in config.as_object().into_iter().flatten().filter(|(_, own)| own.is_object()) {
        quantization.add(name, mlx_spec(&over(config, own))?)?;
    }
    Ok(Packing { method: "mlx".to_owned(), quantization, layout: Layout::Mlx, has_float_act: false })
}

fn mlx_spec(config: &Value) -> Result<WeightSpec, FormatError> {
    expect(config, "mode", &[Value::Null, json!("affine")], "\"affine\"")?;
    let (bits, group) = (bits(config, "bits")?, group(config)?);
    match group {
        _ if bits.get() == 7 => Err(wrong("bits", config.get("bits"), "2, 3, 4, 5, 6 or 8")),
        GroupSize::PerChannel => Err(wrong("group_size", config.get("group_size"), "at least 1")),
        GroupSize::Channels(_) => Ok(WeightSpec::integer(bits, group, Symmetry::Asymmetric)),
    }
}

fn fp8(method: &str, config: &Value) -> Result<Packing, FormatError> {
    let block = block(config, "weight_block_size")?;
    let quantization = Quantization::none(ActSpec::Float);
    Ok(Packing { method: method.to_owned(), quantization, layout: Layout::Parts { block }, has_float_act: true })
}

/// Rows and channels of a block.
pub(crate) fn block(config: &Value, field: &'static str) -> Result<Option<[usize; 2]>, FormatError> {
    let Some(value) = config.get(field).filter(|value| !value.is_null()) else { return Ok(None) };
    let sides: Option<Vec<usize>> = value.as_array().and_then(|sides| {
        sides.iter().map(|side| side.as_u64().filter(|side| (1..=1 << 20).contains(side)).map(|n| n as usize)).collect()
    });
    match sides.as_deref() {
        Some(&[high, wide]) => Ok(Some([high, wide])),
        _ => Err(wrong(field, Some(value), "two sizes, such as [128, 128]")),
    }
}

/// All linears alike.
fn of_all(spec: WeightSpec) -> Result<Quantization, FormatError> {
    let mut quantization = Quantization::none(ActSpec::Float);
    quantization.add("Linear", spec)?;
    Ok(quantization)
}

fn group(config: &Value) -> Result<GroupSize, FormatError> {
    let wrong = || wrong("group_size", config.get("group_size"), "-1 or at least 1");
    match config.get("group_size").and_then(Value::as_i64) {
        Some(-1) => Ok(GroupSize::PerChannel),
        Some(n @ 1..) => GroupSize::channels(n as usize).map_err(|_| wrong()),
        _ => Err(wrong()),
    }
}

fn symmetry(config: &Value) -> Result<Symmetry, FormatError> {
    match config.get("sym") {
        None | Some(Value::Null | Value::Bool(true)) => Ok(Symmetry::Symmetric),
        Some(Value::Bool(false)) => Ok(Symmetry::Asymmetric),
        other => Err(wrong("sym", other, "true or false")),
    }
}

/// The entries of a field that assigns settings to modules.
fn objects<'a>(config: &'a Value, field: &'static str) -> Result<Vec<(&'a String, &'a Value)>, FormatError> {
    match config.get(field) {
        None | Some(Value::Null) => Ok(Vec::new()),
        Some(Value::Object(entries)) => Ok(entries.iter().collect()),
        other => Err(wrong(field, other, "an object")),
    }
}

/// The settings of the whole model with a module's own put over them, where it has any.
fn over(config: &Value, own: &Value) -> Value {
    let both = config.as_object().into_iter().chain(own.as_object()).flatten().filter(|(_, value)| !value.is_null());
    Value::Object(both.map(|(field, value)| (field.clone(), value.clone())).collect::<Map<_, _>>())
}
