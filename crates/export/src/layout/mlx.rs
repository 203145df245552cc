//! MLX, mode `affine`: codes as a bit stream, `w = scales * q + biases`.
//!
//! `biases = -scale * zero_point` has up to eight bits more than an f16. The zero points of symmetric models are a power of two, so these
//! are written in f16; asymmetric ones in f32, so that every weight is exact. Grids with a minimum (`q4_1`) are what MLX has itself.

use half::f16;
use oq_formats::{Dtype, PackedCheckpoint, to_bytes};
use oq_quant_core::{QuantizedTensor, Storage, Stored, Symmetry, WeightSpec, packed_words};
use serde_json::{Value, json};

use crate::codes::scales_and_zeros;
use crate::format::{Container, Format, Layout, Part, Tensors};
use crate::limits::{bits, float_activations, group_size, groups, integer_grid, multiples};
use crate::subject::Subject;

/// The row of the table.
pub(crate) const FORMAT: Format = Format {
    name: "mlx",
    about: "2, 3, 4, 5, 6 or 8 bits, also several widths; in groups of 32, 64 or 128",
    holds,
    fits: |_, shape| multiples(shape, [64, 32]),
    container: Container::Directory(Layout {
        tensors: |spec, shape| tensors(spec.weight, shape),
        configure,
        others: Some(Dtype::F16),
    }),
};

/// Architectures that mlx-lm has.
const ARCHITECTURES: [&str; 4] = ["llama", "mistral", "qwen2", "qwen3"];

/// Whether mlx-lm has the model's architecture, if that is known.
pub(crate) fn runs(subject: &Subject) -> bool {
    subject.architecture().is_none_or(|architecture| ARCHITECTURES.contains(&architecture))
}

fn holds(subject: &Subject) -> Result<(), String> {
    float_activations(subject)?;
    if !runs(subject) {
        let architecture = subject.architecture().unwrap_or_default();
        return Err(format!("mlx-lm has {}, not {architecture}", ARCHITECTURES.join(", ")));
    }
    subject.all_weights().try_for_each(|weight| {
        if weight.storage != Storage::HalfMin {
            integer_grid(weight)?;
        }
        bits(weight, &[2, 3, 4, 5, 6, 8])?;
        groups(weight, &[32, 64, 128], false)
    })
}

fn tensors(weight: WeightSpec, [rows, cols]: [usize; 2]) -> Tensors {
    let by_group = vec![rows, weight.group.count(cols)];
    let codes = Part {
        name: "weight",
        dtype: Dtype::U32,
        shape: vec![rows, packed_words(cols, weight.bits)],
        fill: |tensor| Ok(to_bytes(tensor.words(), u32::to_le_bytes)),
    };
    let (dtype, scales, biases): (_, Fill, Fill) = match (weight.storage, weight.symmetry) {
        (Storage::Half, Symmetry::Asymmetric) => (Dtype::F32, fill_scales, fill_biases),
        _ => (Dtype::F16, fill_half_scales, fill_half_biases),
    };
    Tensors::Parts(vec![
        codes,
        Part { name: "scales", dtype, shape: by_group.clone(), fill: scales },
        Part { name: "biases", dtype, shape: by_group, fill: biases },
    ])
}

type Fill = fn(&QuantizedTensor) -> Result<Vec<u8>, String>;

fn fill_half_scales(tensor: &QuantizedTensor) -> Result<Vec<u8>, String> {
    let scales = match tensor.stored() {
        Stored::HalfMin { scales, .. } => scales,
        _ => scales_and_zeros(tensor).0,
    };
    Ok(to_bytes(scales, f16::to_le_bytes))
}

fn fill_scales(tensor: &QuantizedTensor) -> Result<Vec<u8>, String> {
    let scales: Vec<f32> = scales_and_zeros(tensor).0.iter().map(|scale| scale.to_f32()).collect();
    Ok(to_bytes(&scales, f32::to_le_bytes))
}

fn biases(tensor: &QuantizedTensor) -> impl Iterator<Item = f32> {
    let (scales, zeros) = scales_and_zeros(tensor);
    // Exact in f32: 11 bits of a scale times 8 of a zero point.
    scales.iter().zip(zeros).map(|(scale, &zero)| -scale.to_f32() * f32::from(zero))
}

fn fill_biases(tensor: &QuantizedTensor) -> Result<Vec<u8>, String> {
    Ok(to_bytes(&biases(tensor).collect::<Vec<_>>(), f32::to_le_bytes))
}

fn fill_half_biases(tensor: &QuantizedTensor) -> Result<Vec<u8>, String> {
    if let Stored::HalfMin { minima, .. } = tensor.stored() {
        return Ok(to_bytes(minima, f16::to_le_bytes));
    }
    let half = |bias: f32| match f16::from_f32(bias) {
        half if half.to_f32() == bias => Ok(half),
        _ => Err(format!("a bias of {bias} is not an f16 number, which mlx needs here")),
    };
    let biases = biases(tensor).map(half).collect::<Result<Vec<_>, _>>()?;
    Ok(to_bytes(&biases, f16::to_le_bytes))
}

fn configure(model: &PackedCheckpoint, config: &mut Value) {
    let of = |weight: WeightSpec| json!({"group_size": group_size(weight.group), "bits": weight.bits.get()});
    let linears = || model.linear_names().filter_map(|name| Some((name, model.weight(name).ok()?)));
    // The first linear's setting is the default, others are listed by name. Linears without scales are taken as they are.
    let Some((_, default)) = linears().next() else { return };
    let mut quantization = of(default);
    quantization["mode"] = "affine".into();
    for (name, weight) in linears().filter(|(_, weight)| *weight != default) {
        quantization[name] = of(weight);
    }
    // mlx-lm writes both. The second has no `quant_method`, so that other loaders refuse it.
    config["quantization"] = quantization.clone();
    config["quantization_config"] = quantization;
}
