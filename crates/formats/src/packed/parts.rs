//! The parts of a packed linear: their names, and how each is read and checked.

use half::f16;
use safetensors::Dtype;

use crate::{Checkpoint, PackedFault, TensorView};

pub(crate) const PACKED: &str = "weight_packed";
pub(crate) const SCALE: &str = "weight_scale";
pub(crate) const ZERO_POINT: &str = "weight_zero_point";
pub(crate) const SHAPE: &str = "weight_shape";

pub(super) fn part<'a>(
    checkpoint: &'a Checkpoint,
    name: &str,
    part: &'static str,
) -> Result<TensorView<'a>, PackedFault> {
    checkpoint.tensor(&format!("{name}.{part}")).map_err(|_| PackedFault::Missing { part })
}

pub(super) fn check_shape(part: &'static str, got: &[usize], expected: &[usize]) -> Result<(), PackedFault> {
    if got == expected {
        return Ok(());
    }
    Err(PackedFault::PartShape { part, got: got.to_vec(), expected: expected.to_vec() })
}

pub(super) fn words(part: &'static str, view: TensorView<'_>) -> Result<Vec<u32>, PackedFault> {
    match view.dtype {
        // Float codes lie two to a byte: the same stream.
        Dtype::I32 | Dtype::U32 | Dtype::U8 => {
            Ok(view.bytes.as_chunks().0.iter().map(|bytes| u32::from_le_bytes(*bytes)).collect())
        }
        got => Err(PackedFault::PartType { part, got, expected: "I32" }),
    }
}

/// Scales as f16. Other writers store them as bf16 or f32, which is accepted if f16 holds them exactly.
pub(super) fn scales(view: TensorView<'_>) -> Result<Vec<f16>, PackedFault> {
    let values = view.to_f32_vec().map_err(|_| PackedFault::PartType {
        part: SCALE,
        got: view.dtype,
        expected: "F16, BF16 or F32",
    })?;
    let exact = |(index, value): (usize, f32)| {
        let scale = f16::from_f32(value);
        // NaN passes here, and is refused with the tensor.
        if scale.to_f32() == value || !value.is_finite() {
            Ok(scale)
        } else {
            Err(PackedFault::InexactScale { index, value })
        }
    };
    values.into_iter().enumerate().map(exact).collect()
}
