//! AutoRound: the tensors of GPTQ or AWQ, under names of its own for what they hold.
//!
//! Symmetric models are `auto_round:auto_gptq` (zero points minus one) and asymmetric ones of 4 bits `auto_round:auto_awq`, which vLLM reads
//! too. Other asymmetric ones are plain `auto_round` (zero points as they are), which only AutoRound reads.

use oq_formats::PackedCheckpoint;
use oq_quant_core::{Symmetry, WeightSpec};
use serde_json::{Map, Value, json};

use super::{awq, gptq};
use crate::format::{Container, Format, Layout};
use crate::limits::{
    blocks_and_head, float_activations, group_size, integer_grid, multiples, replaceable, settings_alike,
};
use crate::own::own_settings;
use crate::subject::Subject;

/// The row of the table.
pub(crate) const FORMAT: Format = Format {
    name: "auto-round",
    about: "2 to 8 bits, also several widths; in groups or per channel",
    holds,
    fits: |_, shape| multiples(shape, [32, 32]),
    container: Container::Directory(Layout {
        tensors: |spec, shape| match packing(spec.weight) {
            Packing::Gptq => gptq::tensors(spec.weight, shape, gptq::fill_zeros_less_one),
            Packing::Awq => awq::tensors(spec.weight, shape),
            Packing::Own => gptq::tensors(spec.weight, shape, gptq::fill_zeros),
        },
        configure,
        others: None,
    }),
};

#[derive(PartialEq)]
enum Packing {
    Gptq,
    Awq,
    Own,
}

fn packing(weight: WeightSpec) -> Packing {
    match (weight.symmetry, weight.bits.get()) {
        (Symmetry::Symmetric | Symmetry::FullRange, _) => Packing::Gptq,
        (Symmetry::Asymmetric, 4) => Packing::Awq,
        (Symmetry::Asymmetric, _) => Packing::Own,
    }
}

fn holds(subject: &Subject) -> Result<(), String> {
    float_activations(subject)?;
    replaceable(subject)?;
    blocks_and_head(subject)?;
    let weights = settings_alike(subject)?;
    if weights.iter().any(|&weight| packing(weight) != packing(weights[0])) {
        return Err("asymmetric linears have 4 bits in one layout, and others in another".to_owned());
    }
    weights.iter().try_for_each(|&weight| integer_grid(weight))
}

fn configure(model: &PackedCheckpoint, config: &mut Value) {
    let (weight, mut own) = own_settings(model);
    // Outside the blocks, linears are quantized if they are listed.
    if let Ok(head) = model.weight("lm_head") {
        own.insert("lm_head", Some(head));
    }
    config["quantization_config"] = json!({
        "quant_method": "auto-round",
        "packing_format": match packing(weight) {
            Packing::Gptq => "auto_round:auto_gptq",
            Packing::Awq => "auto_round:auto_awq",
            Packing::Own => "auto_round",
        },
        "bits": weight.bits.get(),
        "group_size": group_size(weight.group),
        "sym": weight.symmetry != Symmetry::Asymmetric,
        "data_type": "int",
        "block_name_to_quantize": blocks(model),
    });
    let entry = |(name, weight): (&str, Option<WeightSpec>)| {
        let own = match weight {
            Some(weight) => json!({"bits": weight.bits.get(), "group_size": group_size(weight.group),
                "sym": weight.symmetry != Symmetry::Asymmetric, "data_type": "int"}),
            None => json!({"bits": 16, "data_type": "float"}),
        };
        (name.to_owned(), own)
    };
    if !own.is_empty() {
        let own: Map<String, Value> = own.into_iter().map(entry).collect();
        config["quantization_config"]["extra_config"] = own.into();
    }
}

/// What the names of all linears have in common up to the block's number, such as `model.layers`.
fn blocks(model: &PackedCheckpoint) -> String {
    let is_number = |part: &&str| part.bytes().all(|byte| byte.is_ascii_digit());
    let in_block = |name: &&str| name.split('.').any(|part| is_number(&part));
    let name = model.linear_names().find(in_block).unwrap_or_default();
    name.split('.').take_while(|part| !is_number(part)).collect::<Vec<_>>().join(".")
}
