//! The tensors of linears whose scales are not f16 numbers with an integer zero point.
//!
//! Float codes are those of compressed-tensors' `mxfp4-pack-quantized` and `nvfp4-pack-quantized`. The others have a layout of our own, in
//! which each part of a block of ggml has a tensor.

use half::f16;
use oq_quant_core::{QuantizedTensor, Storage, Stored, Symmetry, WeightSpec, packed_words};
use safetensors::Dtype;

use super::parts::{PACKED, SCALE, SHAPE, check_shape, part, scales};
use crate::{Checkpoint, OutTensor, PackedFault, TensorView};

const MINIMUM: &str = "weight_min";
const OUTER_SCALE: &str = "weight_outer_scale";
const OUTER_MINIMUM: &str = "weight_outer_min";
const GLOBAL_SCALE: &str = "weight_global_scale";

/// The tensors of the linear `name`.
pub(super) fn tensors(name: &str, tensor: &QuantizedTensor) -> Vec<OutTensor<'static>> {
    let [rows, cols] = tensor.shape();
    let (groups, supers) = (tensor.groups(), cols / Storage::SUPER);
    let part = |part: &str| format!("{name}.{part}");
    let bytes = |which, shape: &[usize], dtype, bytes: &[u8]| {
        OutTensor::from_elements(part(which), dtype, shape, bytes.to_vec())
    };
    let packed = || {
        let words = packed_words(cols, tensor.spec().bits);
        let shape = OutTensor::from_i64(part(SHAPE), &[2], &[rows as i64, cols as i64]);
        [OutTensor::from_i32(part(PACKED), &[rows, words], tensor.words()), shape]
    };
    let float_codes = || {
        let codes: Vec<u8> = tensor.words().iter().flat_map(|word| word.to_le_bytes()).collect();
        bytes(PACKED, &[rows, cols / 2], Dtype::U8, &codes)
    };
    let mut parts = Vec::new();
    match tensor.stored() {
        Stored::HalfMin { scales, minima } => {
            parts.extend(packed());
            parts.push(OutTensor::from_f16(part(SCALE), &[rows, groups], scales));
            parts.push(OutTensor::from_f16(part(MINIMUM), &[rows, groups], minima));
        }
        Stored::Super { scales, minima, outer_scales, outer_minima } => {
            parts.extend(packed());
            let signed: Vec<u8> = scales.iter().map(|scale| scale.to_le_bytes()[0]).collect();
            parts.push(bytes(SCALE, &[rows, groups], Dtype::I8, &signed));
            parts.push(OutTensor::from_f16(part(OUTER_SCALE), &[rows, supers], outer_scales));
            if !tensor.is_symmetric() {
                parts.push(bytes(MINIMUM, &[rows, groups], Dtype::U8, minima));
                parts.push(OutTensor::from_f16(part(OUTER_MINIMUM), &[rows, supers], outer_minima));
            }
        }
        Stored::E8m0 { exponents } => {
            parts.push(float_codes());
            parts.push(bytes(SCALE, &[rows, groups], Dtype::U8, exponents));
        }
        Stored::E4m3 { scales, global } => {
            parts.push(float_codes());
            parts.push(bytes(SCALE, &[rows, groups], Dtype::F8_E4M3, scales));
            parts.push(bytes(GLOBAL_SCALE, &[1], Dtype::F32, &global.to_le_bytes()));
        }
        stored => unreachable!("{stored:?} has the layout of pack-quantized"),
    }
    parts
}

/// What is stored beside the codes of the linear `name`, `[rows, cols]`.
pub(super) fn stored(
    checkpoint: &Checkpoint,
    name: &str,
    spec: WeightSpec,
    [rows, cols]: [usize; 2],
) -> Result<Stored, PackedFault> {
    let (groups, supers) = (spec.group.count(cols), cols / Storage::SUPER);
    let bytes = |which, dtype: Dtype, expected: &'static str| {
        let view = part(checkpoint, name, which)?;
        check_shape(which, view.shape, &[rows, groups])?;
        match view.dtype {
            got if got == dtype => Ok(view.bytes.to_vec()),
            got => Err(PackedFault::PartType { part: which, got, expected }),
        }
    };
    let halves = |which, n: usize| -> Result<Vec<f16>, PackedFault> {
        let view = part(checkpoint, name, which)?;
        check_shape(which, view.shape, &[rows, n])?;
        scales(view)
    };
    let has_minima = spec.symmetry == Symmetry::Asymmetric;
    Ok(match spec.storage {
        Storage::Half | Storage::HalfMin => {
            Stored::HalfMin { scales: halves(SCALE, groups)?, minima: halves(MINIMUM, groups)? }
        }
        Storage::Super => Stored::Super {
            scales: bytes(SCALE, Dtype::I8, "I8")?.into_iter().map(|byte| i8::from_le_bytes([byte])).collect(),
            minima: if has_minima { bytes(MINIMUM, Dtype::U8, "U8")? } else { Vec::new() },
            outer_scales: halves(OUTER_SCALE, supers)?,
            outer_minima: if has_minima { halves(OUTER_MINIMUM, supers)? } else { Vec::new() },
        },
        Storage::E8m0 => Stored::E8m0 { exponents: bytes(SCALE, Dtype::U8, "U8")? },
        Storage::E4m3 => {
            Stored::E4m3 { scales: bytes(SCALE, Dtype::F8_E4M3, "F8_E4M3")?, global: global(checkpoint, name)? }
        }
    })
}

fn global(checkpoint: &Checkpoint, name: &str) -> Result<f32, PackedFault> {
    let view = part(checkpoint, name, GLOBAL_SCALE)?;
    let values = view.to_f32_vec();
    let values = values.map_err(|_| PackedFault::PartType { part: GLOBAL_SCALE, got: view.dtype, expected: "F32" })?;
    match values[..] {
        [global] => Ok(global),
        _ => Err(PackedFault::PartShape { part: GLOBAL_SCALE, got: view.shape.to_vec(), expected: vec![1] }),
    }
}

/// `[out, in]` of float codes, which lie two to a byte, and the codes.
pub(super) fn shape_of_float_codes<'a>(
    checkpoint: &'a Checkpoint,
    name: &str,
) -> Result<([usize; 2], TensorView<'a>), PackedFault> {
    let packed = part(checkpoint, name, PACKED)?;
    if packed.dtype != Dtype::U8 {
        return Err(PackedFault::PartType { part: PACKED, got: packed.dtype, expected: "U8" });
    }
    match *packed.shape {
        // Whole words, because groups have 16 channels or more.
        [rows, bytes] if bytes.is_multiple_of(8) => Ok(([rows, bytes * 2], packed)),
        _ => Err(PackedFault::PartShape { part: PACKED, got: packed.shape.to_vec(), expected: vec![0, 8] }),
    }
}
