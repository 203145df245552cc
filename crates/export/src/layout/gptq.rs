//! GPTQ: codes as bit streams along the input channels, transposed (`qweight`), scales and zero points by group.
//!
//! Version 1 stores zero points minus one, and its kernels add the one after unpacking, so a zero point of 0 becomes 2^bits. So asymmetric
//! models are written as version 2, which stores them as they are; symmetric ones as version 1, which more kernels read. `g_idx`, the group
//! of each input channel, is always there: some kernels read it without asking.

use half::f16;
use oq_formats::{Dtype, PackedCheckpoint, to_bytes};
use oq_quant_core::{QuantizedTensor, Symmetry, WeightSpec, packed_words};
use serde_json::{Map, Value, json};

use crate::codes::{scales_and_zeros, transposed, zero_stream};
use crate::format::{Container, Format, Layout, Part, Tensors};
use crate::limits::{
    bits, blocks_and_head, float_activations, group_size, groups, integer_grid, multiples, replaceable, settings_alike,
};
use crate::own::own_settings;
use crate::subject::Subject;

/// The row of the table.
pub(crate) const FORMAT: Format = Format {
    name: "gptq",
    about: "2, 3, 4 or 8 bits, also several widths; in groups of 32 to 256, or per channel (4 bits if symmetric)",
    holds,
    fits: |_, shape| multiples(shape, [32, 32]),
    container: Container::Directory(Layout {
        tensors: |spec, shape| match spec.weight.symmetry {
            Symmetry::Symmetric | Symmetry::FullRange => tensors(spec.weight, shape, fill_zeros_less_one),
            Symmetry::Asymmetric => tensors(spec.weight, shape, fill_zeros),
        },
        configure,
        others: None,
    }),
};

fn holds(subject: &Subject) -> Result<(), String> {
    float_activations(subject)?;
    replaceable(subject)?;
    blocks_and_head(subject)?;
    settings_alike(subject)?.into_iter().try_for_each(|weight| {
        integer_grid(weight)?;
        bits(weight, &[2, 3, 4, 8])?;
        // gptqmodel's 4-bit kernel on a CPU takes these groups only, and fails on whole rows once it runs; vLLM's takes those if they are
        // symmetric.
        let per_channel = weight.bits.get() != 4 || weight.symmetry != Symmetry::Asymmetric;
        groups(weight, &[32, 64, 128, 256], per_channel)
    })
}

/// The tensors, with zero points made by `zeros`.
pub(crate) fn tensors(
    weight: WeightSpec,
    [rows, cols]: [usize; 2],
    zeros: fn(&QuantizedTensor) -> Result<Vec<u8>, String>,
) -> Tensors {
    let n_groups = weight.group.count(cols);
    let words = |codes| packed_words(codes, weight.bits);
    Tensors::Parts(vec![
        Part { name: "qweight", dtype: Dtype::I32, shape: vec![words(cols), rows], fill: fill_codes },
        Part { name: "qzeros", dtype: Dtype::I32, shape: vec![n_groups, words(rows)], fill: zeros },
        Part { name: "scales", dtype: Dtype::F16, shape: vec![n_groups, rows], fill: fill_scales },
        Part { name: "g_idx", dtype: Dtype::I32, shape: vec![cols], fill: fill_group_of_channel },
    ])
}

fn fill_codes(tensor: &QuantizedTensor) -> Result<Vec<u8>, String> {
    let [_, cols] = tensor.shape();
    let words = transposed(tensor.words(), packed_words(cols, tensor.spec().bits));
    Ok(to_bytes(&words, u32::to_le_bytes))
}

/// Version 2: zero points as they are.
pub(crate) fn fill_zeros(tensor: &QuantizedTensor) -> Result<Vec<u8>, String> {
    Ok(to_bytes(&zero_stream(tensor, |zero| zero), u32::to_le_bytes))
}

/// Version 1: zero points minus one. Those of symmetric quantization are never 0.
pub(crate) fn fill_zeros_less_one(tensor: &QuantizedTensor) -> Result<Vec<u8>, String> {
    Ok(to_bytes(&zero_stream(tensor, |zero| zero - 1), u32::to_le_bytes))
}

/// Scales `[groups, out]`.
pub(crate) fn fill_scales(tensor: &QuantizedTensor) -> Result<Vec<u8>, String> {
    Ok(to_bytes(&transposed(scales_and_zeros(tensor).0, tensor.groups()), f16::to_le_bytes))
}

fn fill_group_of_channel(tensor: &QuantizedTensor) -> Result<Vec<u8>, String> {
    let [_, cols] = tensor.shape();
    let len = tensor.spec().group.len(cols);
    let groups: Vec<i32> = (0..cols).map(|channel| (channel / len) as i32).collect();
    Ok(to_bytes(&groups, i32::to_le_bytes))
}

fn configure(model: &PackedCheckpoint, config: &mut Value) {
    let (weight, own) = own_settings(model);
    let is_symmetric = weight.symmetry != Symmetry::Asymmetric;
    config["quantization_config"] = json!({
        "quant_method": "gptq",
        "bits": weight.bits.get(),
        "group_size": group_size(weight.group),
        "desc_act": false,
        "sym": is_symmetric,
        "lm_head": model.is_packed("lm_head"),
        "checkpoint_format": if is_symmetric { "gptq" } else { "gptq_v2" },
        "damp_percent": 0.01,
    });
    if !own.is_empty() {
        let pattern = |name: &str| format!("^{}$", name.replace('.', "\\."));
        let entry = |(name, weight): (&str, Option<WeightSpec>)| match weight {
            Some(weight) => {
                let own = json!({"bits": weight.bits.get(), "group_size": group_size(weight.group)});
                (format!("+:{}", pattern(name)), own)
            }
            None => (format!("-:{}", pattern(name)), json!({})),
        };
        let dynamic: Map<String, Value> = own.into_iter().map(entry).collect();
        config["quantization_config"]["dynamic"] = dynamic.into();
    }
}
