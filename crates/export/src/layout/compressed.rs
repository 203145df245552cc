//! compressed-tensors: `pack-quantized`, which is what packed models already are, or `int-quantized` for 8-bit activations.
//!
//! Of quantized activations, programs multiply 8-bit ones only, with a symmetric scale per token, by 8-bit weights with a symmetric scale
//! per output channel (`int-quantized`). Codes are signed there: `w = scale * (code - 128)` is `scale * signed`.

use half::f16;
use oq_formats::packed::quantization_config;
use oq_formats::{Dtype, PackedCheckpoint, to_bytes};
use oq_quant_core::{ActSpec, GroupSize, QuantSpec, QuantizedTensor, Storage, Symmetry, WeightSpec};
use rayon::prelude::*;
use serde_json::{Value, json};

use crate::codes::scales_and_zeros;
use crate::format::{Container, Format, Layout, Part, Tensors};
use crate::limits::{any_shape, blocks_alone, blocks_and_head};
use crate::subject::Subject;

/// The row of the table.
pub(crate) const FORMAT: Format = Format {
    name: "compressed-tensors",
    about: "2 to 8 bits in groups or per channel, several widths if symmetric; w8a8-int8, mxfp4, nvfp4",
    holds,
    fits: any_shape,
    container: Container::Directory(Layout {
        tensors: |spec, shape| if is_int8(spec) { Tensors::Parts(int8_parts(shape)) } else { Tensors::AsPacked },
        configure,
        others: None,
    }),
};

fn holds(subject: &Subject) -> Result<(), String> {
    let act = subject.act();
    // The head and the embedding are settings too.
    let is_uniform = |weight: &WeightSpec| subject.outer().iter().all(|tensor| tensor.weight == Some(*weight));
    let uniform = subject.uniform().filter(is_uniform);
    let plain = |weight: WeightSpec| weight.storage == Storage::Half && weight.symmetry != Symmetry::Asymmetric;
    if let Some(weight) = subject.weights().iter().find(|weight| is_foreign(weight.storage)) {
        return Err(format!("it has no place for the scales of {weight}"));
    }
    if act != ActSpec::Float {
        blocks_alone(subject)?;
    }
    if uniform.is_none() && blocks_and_head(subject).is_err() {
        return Err("loaders take a quantized embedding only with the setting of all linears".to_owned());
    }
    match act {
        ActSpec::Float if uniform.is_some() || subject.all_weights().all(plain) => Ok(()),
        ActSpec::Float => Err("loaders take several settings only if all are integers and symmetric".to_owned()),
        _ if uniform.is_some_and(|weight| is_int8(QuantSpec::uniform(weight, act))) => Ok(()),
        _ => {
            let why =
                "of quantized activations, loaders take 8 bits, symmetric, with symmetric 8-bit weights per channel";
            Err(why.to_owned())
        }
    }
}

/// Whether the scales are those of ggml's types.
fn is_foreign(storage: Storage) -> bool {
    matches!(storage, Storage::HalfMin | Storage::Super)
}

/// Whether products are those of 8-bit integers.
fn is_int8(QuantSpec { weight, act, .. }: QuantSpec) -> bool {
    let is_8 = weight.bits.get() == 8 && matches!(act, ActSpec::PerTokenSymmetric(bits) if bits.get() == 8);
    is_8 && weight.symmetry == Symmetry::Symmetric && weight.group == GroupSize::PerChannel
}

fn int8_parts([rows, cols]: [usize; 2]) -> Vec<Part> {
    vec![
        Part { name: "weight", dtype: Dtype::I8, shape: vec![rows, cols], fill: fill_signed },
        Part {
            name: "weight_scale",
            dtype: Dtype::F16,
            shape: vec![rows, 1],
            fill: |tensor| Ok(to_bytes(scales_and_zeros(tensor).0, f16::to_le_bytes)),
        },
    ]
}

/// Codes less their centre, which is zero.
fn fill_signed(tensor: &QuantizedTensor) -> Result<Vec<u8>, String> {
    let [rows, cols] = tensor.shape();
    let mut codes = vec![0; rows * cols];
    codes.par_chunks_mut(cols).enumerate().for_each(|(row, codes)| {
        tensor.row_codes(row, codes);
        codes.iter_mut().for_each(|code| *code = code.wrapping_sub(128));
    });
    Ok(codes)
}

fn configure(model: &PackedCheckpoint, config: &mut Value) {
    let quantization = model.quantization();
    let ignore = ignored(model);
    config["quantization_config"] = match quantization.uniform() {
        Some(spec) if is_int8(spec) => json!({
            "quant_method": "compressed-tensors",
            "format": "int-quantized",
            "quantization_status": "compressed",
            "ignore": ignore,
            "config_groups": {"group_0": {
                "targets": ["Linear"],
                "format": "int-quantized",
                "weights": {"num_bits": 8, "type": "int", "symmetric": true, "dynamic": false, "strategy": "channel"},
                "input_activations": {"num_bits": 8, "type": "int", "symmetric": true, "dynamic": true,
                    "strategy": "token"},
            }},
        }),
        _ => quantization_config(quantization, &ignore),
    };
}

/// Linears of the model that are not quantized.
pub(crate) fn ignored(model: &PackedCheckpoint) -> Vec<&str> {
    let config = &model.config()["quantization_config"];
    let named = ["ignore", "modules_to_not_convert"].into_iter().find_map(|key| config[key].as_array());
    // Other programs leave the head out without saying so.
    named.map_or(vec!["lm_head"], |names| names.iter().filter_map(Value::as_str).collect())
}
