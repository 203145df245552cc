//! AutoRound: the tensors of GPTQ or AWQ, under names of its own for what they hold.
//!
//! Symmetric models are `auto_round:auto_gptq` (zero points minus one) and asymmetric ones of 4 bits `auto_round:auto_awq`, which vLLM reads
//! too. Other asymmetric ones are plain `auto_round` (zero points as they are), which only AutoRound reads.

use oq_formats::PackedCheckpoint;
use oq_quant_core::{Symmetry, WeightSpec};
use serde_json::{Value, json};

use super::{awq, gptq};
use crate::format::{Container, Format, Layout};
use crate::limits::{float_activations, group_size, integer_grid, multiples, one_setting, replaceable};
use crate::subject::Subject;

/// The row of the table.
pub(crate) const FORMAT: Format = Format {
    name: "auto-round",
    about: "2 to 8 bits, one setting for all linears; in groups or per channel",
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
    integer_grid(one_setting(subject)?)
}

fn configure(model: &PackedCheckpoint, config: &mut Value) {
    let Some(spec) = model.quantization().uniform() else { return };
    config["quantization_config"] = json!({
        "quant_method": "auto-round",
        "packing_format": match packing(spec.weight) {
            Packing::Gptq => "auto_round:auto_gptq",
            Packing::Awq => "auto_round:auto_awq",
            Packing::Own => "auto_round",
        },
        "bits": spec.weight.bits.get(),
        "group_size": group_size(spec.weight.group),
        "sym": spec.weight.symmetry != Symmetry::Asymmetric,
        "data_type": "int",
        "block_name_to_quantize": blocks(model),
    });
}

/// What the names of all linears have in common up to the block's number, such as `model.layers`.
fn blocks(model: &PackedCheckpoint) -> String {
    let name = model.linear_names().next().unwrap_or_default();
    let is_number = |part: &&str| part.bytes().all(|byte| byte.is_ascii_digit());
    name.split('.').take_while(|part| !is_number(part)).collect::<Vec<_>>().join(".")
}
