//! AWQ, version `gemm`: 4-bit codes of eight output channels in a word, in an order of its own.

use oq_formats::{Dtype, PackedCheckpoint, to_bytes};
use oq_quant_core::{QuantizedTensor, Symmetry, WeightSpec};
use serde_json::{Value, json};

use super::compressed::ignored;
use super::gptq::fill_scales;
use crate::codes::{nibbles_of_rows, scales_and_zeros, transposed};
use crate::format::{Container, Format, Layout, Part, Tensors};
use crate::limits::{
    bits, blocks_alone, float_activations, group_size, groups, integer_grid, multiples, one_setting, replaceable,
};
use crate::subject::Subject;

/// Which of eight output channels is in each nibble of a word, the lowest first.
const ORDER: [usize; 8] = [0, 2, 4, 6, 1, 3, 5, 7];

/// The row of the table.
pub(crate) const FORMAT: Format = Format {
    name: "awq",
    about: "4 bits, one setting for all linears; in groups of 32, 64 or 128, or per channel",
    holds,
    fits: |_, shape| multiples(shape, [8, 1]),
    container: Container::Directory(Layout {
        tensors: |spec, shape| tensors(spec.weight, shape),
        configure,
        others: None,
    }),
};

fn holds(subject: &Subject) -> Result<(), String> {
    float_activations(subject)?;
    replaceable(subject)?;
    blocks_alone(subject)?;
    let weight = one_setting(subject)?;
    integer_grid(weight)?;
    bits(weight, &[4])?;
    groups(weight, &[32, 64, 128], true)
}

/// The tensors of a linear.
pub(crate) fn tensors(weight: WeightSpec, [rows, cols]: [usize; 2]) -> Tensors {
    let n_groups = weight.group.count(cols);
    Tensors::Parts(vec![
        Part { name: "qweight", dtype: Dtype::I32, shape: vec![cols, rows / 8], fill: fill_codes },
        Part { name: "qzeros", dtype: Dtype::I32, shape: vec![n_groups, rows / 8], fill: fill_zeros },
        Part { name: "scales", dtype: Dtype::F16, shape: vec![n_groups, rows], fill: fill_scales },
    ])
}

fn fill_codes(tensor: &QuantizedTensor) -> Result<Vec<u8>, String> {
    let [_, cols] = tensor.shape();
    Ok(to_bytes(&transposed(&nibbles_of_rows(tensor, ORDER), cols), u32::to_le_bytes))
}

fn fill_zeros(tensor: &QuantizedTensor) -> Result<Vec<u8>, String> {
    let zeros = transposed(scales_and_zeros(tensor).1, tensor.groups());
    let word = |eight: &[u8]| ORDER.iter().rev().fold(0u32, |word, &row| word << 4 | u32::from(eight[row]));
    let words: Vec<u32> = zeros.chunks_exact(8).map(word).collect();
    Ok(to_bytes(&words, u32::to_le_bytes))
}

fn configure(model: &PackedCheckpoint, config: &mut Value) {
    let Some(spec) = model.quantization().uniform() else { return };
    config["quantization_config"] = json!({
        "quant_method": "awq",
        "bits": spec.weight.bits.get(),
        "group_size": group_size(spec.weight.group),
        // Zero points are stored in either case.
        "zero_point": true,
        "sym": spec.weight.symmetry != Symmetry::Asymmetric,
        "version": "gemm",
        "modules_to_not_convert": ignored(model),
    });
}
