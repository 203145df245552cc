//! A summary of a model directory, in numbers.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Serialize;

use crate::others::linear_of;
use crate::packed::config::packing_of;
use crate::{Checkpoint, FormatError, PackedCheckpoint, Quantization, TensorView, read_config};

/// Sizes of a model on disk. Bytes are those of tensors, without headers.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Summary {
    /// Files with weights.
    pub shards: usize,
    /// Tensors in them.
    pub tensors: usize,
    /// Weights of the model: the elements of dense tensors, and the weights that codes stand for.
    pub params: u64,
    /// Weights stored as codes.
    pub quantized_params: u64,
    /// How they are quantized; none for a full-precision model, and one in FP8.
    pub quantized: Option<Quantization>,
    /// The method that packed it, with its format; none for a full-precision model.
    pub method: Option<String>,
    /// Weights stored as codes, by the bits of a code.
    pub params_by_bits: BTreeMap<u32, u64>,
    /// Bytes of all tensors.
    pub total_bytes: u64,
    /// Bytes of codes.
    pub packed_bytes: u64,
    /// Bytes of scales.
    pub scale_bytes: u64,
    /// Bytes of zero points.
    pub zero_point_bytes: u64,
    /// Bytes of tensors that are not quantized.
    pub dense_bytes: u64,
    /// Bytes of tensors by element type, such as `F16`.
    pub bytes_by_dtype: BTreeMap<String, u64>,
}

impl Summary {
    /// Mean bits per code; none for a full-precision model.
    pub fn bits_per_code(&self) -> Option<f64> {
        let bits: u64 = self.params_by_bits.iter().map(|(bits, params)| u64::from(*bits) * params).sum();
        (self.quantized_params > 0).then(|| bits as f64 / self.quantized_params as f64)
    }

    /// Mean bits per quantized weight, including scales and zero points; none for a full-precision model.
    pub fn bits_per_weight(&self) -> Option<f64> {
        let bytes = self.packed_bytes + self.scale_bytes + self.zero_point_bytes;
        (self.quantized_params > 0).then(|| bytes as f64 * 8.0 / self.quantized_params as f64)
    }
}

/// Summarizes a model directory, full precision or packed. Reads headers and `config.json`.
pub fn inspect(dir: &Path) -> Result<Summary, FormatError> {
    if packing_of(&read_config(dir)?)?.is_none() {
        return Ok(sum_up(&Checkpoint::open(dir)?, None, BTreeMap::new()));
    }
    let model = PackedCheckpoint::open(dir)?;
    let mut params_by_bits = BTreeMap::new();
    for name in model.linear_names() {
        let [rows, cols] = model.linear_shape(name)?;
        // All of them are packed.
        let bits = model.bits(name)?.unwrap_or_default();
        *params_by_bits.entry(bits).or_default() += (rows * cols) as u64;
    }
    Ok(sum_up(model.checkpoint(), Some(&model), params_by_bits))
}

fn sum_up(checkpoint: &Checkpoint, packed: Option<&PackedCheckpoint>, params_by_bits: BTreeMap<u32, u64>) -> Summary {
    let quantized_params = params_by_bits.values().sum();
    let mut summary = Summary {
        shards: checkpoint.shards().len(),
        tensors: 0,
        params: quantized_params,
        quantized_params,
        quantized: packed.map(|packed| packed.quantization().clone()).filter(|quantization| !quantization.is_empty()),
        method: packed.map(|packed| packed.method().to_owned()),
        params_by_bits,
        total_bytes: 0,
        packed_bytes: 0,
        scale_bytes: 0,
        zero_point_bytes: 0,
        dense_bytes: 0,
        bytes_by_dtype: BTreeMap::new(),
    };
    for tensor in checkpoint.tensors() {
        let bytes = tensor.bytes.len() as u64;
        summary.tensors += 1;
        summary.total_bytes += bytes;
        *summary.bytes_by_dtype.entry(tensor.dtype.to_string()).or_default() += bytes;
        match part_of(packed.is_some(), &tensor) {
            Part::Codes => summary.packed_bytes += bytes,
            Part::Scale => summary.scale_bytes += bytes,
            Part::ZeroPoint => summary.zero_point_bytes += bytes,
            Part::Other => {}
            Part::Dense => {
                summary.dense_bytes += bytes;
                summary.params += tensor.len() as u64;
            }
        }
    }
    summary
}

enum Part {
    Codes,
    Scale,
    ZeroPoint,
    /// What stands for no weight, such as a shape.
    Other,
    Dense,
}

fn part_of(is_packed: bool, tensor: &TensorView<'_>) -> Part {
    if !is_packed {
        return Part::Dense;
    }
    if linear_of(tensor.name, tensor.dtype).is_some() {
        return Part::Codes;
    }
    match tensor.name.rsplit_once('.').map_or("", |(_, part)| part) {
        "weight_scale" | "weight_outer_scale" | "weight_global_scale" | "weight_scale_inv" | "scales" => Part::Scale,
        "weight_zero_point" | "weight_min" | "weight_outer_min" | "qzeros" | "biases" => Part::ZeroPoint,
        "weight_shape" | "g_idx" | "weight_g_idx" | "input_scale" | "input_global_scale" => Part::Other,
        _ => Part::Dense,
    }
}
