//! compressed-tensors: `pack-quantized`, which is what packed models already are, or `int-quantized` for 8-bit activations.
//!
//! Of quantized activations, programs multiply 8-bit ones only, with a symmetric scale per token, by 8-bit weights with a symmetric scale
//! per output channel (`int-quantized`). Codes are signed there: `w = scale * (code - 128)` is `scale * signed`.

use half::f16;
use oq_formats::packed::quantization_config;
use oq_formats::{Dtype, PackedCheckpoint, to_bytes};
use oq_quant_core::{ActSpec, GroupSize, QuantSpec, QuantizedTensor, Symmetry};
use rayon::prelude::*;
use serde_json::{Value, json};

use crate::codes::scales;
use crate::format::{Format, Part, Tensors};
use crate::limits::any_shape;
use crate::subject::Subject;

/// The row of the table.
pub(crate) const FORMAT: Format = Format {
    name: "compressed-tensors",
    about: "2 to 8 bits in groups or per channel, several widths if symmetric; w8a8sym per channel (int-quantized)",
    holds,
    fits: any_shape,
    tensors: |spec, shape| if is_int8(spec) { Tensors::Parts(int8_parts(shape)) } else { Tensors::AsPacked },
    configure,
    others: None,
};

fn holds(subject: &Subject) -> Result<(), String> {
    let act = subject.act();
    let is_symmetric = subject.weights().iter().all(|weight| weight.symmetry == Symmetry::Symmetric);
    match act {
        ActSpec::Float if is_symmetric || subject.uniform().is_some() => Ok(()),
        ActSpec::Float => Err("loaders take several settings only if all are symmetric".to_owned()),
        ActSpec::PerToken(_) if subject.uniform().is_some_and(|weight| is_int8(QuantSpec { weight, act })) => Ok(()),
        ActSpec::PerToken(_) => {
            let why = "of quantized activations, loaders take 8 bits, with symmetric 8-bit weights per channel";
            Err(why.to_owned())
        }
    }
}

/// Whether products are those of 8-bit integers.
fn is_int8(QuantSpec { weight, act }: QuantSpec) -> bool {
    let is_8 = weight.bits.get() == 8 && matches!(act, ActSpec::PerToken(bits) if bits.get() == 8);
    is_8 && weight.symmetry == Symmetry::Symmetric && weight.group == GroupSize::PerChannel
}

fn int8_parts([rows, cols]: [usize; 2]) -> Vec<Part> {
    vec![
        Part { name: "weight", dtype: Dtype::I8, shape: vec![rows, cols], fill: fill_signed },
        Part {
            name: "weight_scale",
            dtype: Dtype::F16,
            shape: vec![rows, 1],
            fill: |tensor| Ok(to_bytes(scales(tensor), f16::to_le_bytes)),
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
    let ignore = model.config()["quantization_config"]["ignore"].as_array();
    ignore.into_iter().flatten().filter_map(Value::as_str).collect()
}
