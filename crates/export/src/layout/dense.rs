//! Plain weights: `scale * (code - zero_point)` in f16, bf16 or f32.

use half::{bf16, f16};
use oq_formats::{Dtype, to_bytes};
use oq_quant_core::{QuantizedTensor, to_bf16};
use serde_json::Value;

use crate::format::{Container, Format, Layout, Part, Tensors};
use crate::limits::{any_shape, float_activations};

/// The rows of the table.
pub(crate) const F16: Format = Format {
    name: "dense",
    about: "plain f16 weights, rounded from the exact ones: every scheme",
    holds: float_activations,
    fits: any_shape,
    container: Container::Directory(Layout {
        tensors: |_, shape| weight(Dtype::F16, shape, fill_f16),
        configure: |_, config| set_dtype(config, "float16"),
        others: None,
    }),
};

pub(crate) const BF16: Format = Format {
    name: "dense-bf16",
    about: "plain bf16 weights, rounded from the exact ones: every scheme",
    container: Container::Directory(Layout {
        tensors: |_, shape| weight(Dtype::BF16, shape, |tensor| Ok(to_bytes(&bf16s(tensor), bf16::to_le_bytes))),
        configure: |_, config| set_dtype(config, "bfloat16"),
        others: None,
    }),
    ..F16
};

pub(crate) const F32: Format = Format {
    name: "dense-f32",
    about: "plain f32 weights, exact: every scheme",
    container: Container::Directory(Layout {
        tensors: |_, shape| weight(Dtype::F32, shape, |tensor| Ok(to_bytes(&tensor.dequantize(), f32::to_le_bytes))),
        configure: |_, config| set_dtype(config, "float32"),
        others: None,
    }),
    ..F16
};

fn weight(dtype: Dtype, shape: [usize; 2], fill: fn(&QuantizedTensor) -> Result<Vec<u8>, String>) -> Tensors {
    Tensors::Parts(vec![Part { name: "weight", dtype, shape: shape.to_vec(), fill }])
}

fn fill_f16(tensor: &QuantizedTensor) -> Result<Vec<u8>, String> {
    let values = tensor.dequantize();
    match values.iter().find(|value| !f16::from_f32(**value).is_finite()) {
        Some(value) => Err(format!("a weight of {value} is beyond f16: take dense-bf16 or dense-f32")),
        None => Ok(to_bytes(&values, |value| f16::from_f32(value).to_le_bytes())),
    }
}

fn bf16s(tensor: &QuantizedTensor) -> Vec<bf16> {
    tensor.dequantize().into_iter().map(to_bf16).collect()
}

/// Transformers 5 writes `dtype`, version 4 knows `torch_dtype`; the packed config has one of them or both.
fn set_dtype(config: &mut Value, dtype: &str) {
    for key in ["dtype", "torch_dtype"] {
        if config.get(key).is_some() {
            config[key] = dtype.into();
        }
    }
}
