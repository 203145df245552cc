//! Reads packed directories.

use std::path::Path;

use oq_quant_core::{QuantizedTensor, WeightSpec};
use serde_json::Value;

use super::config::quantization_of;
use super::layout::{self, PACKED};
use super::scheme::Quantization;
use crate::{Checkpoint, FormatError, PackedFault, read_config};

/// A packed model: its quantized linears, and its other tensors through [`Self::checkpoint`].
#[derive(Debug)]
pub struct PackedCheckpoint {
    checkpoint: Checkpoint,
    config: Value,
    quantization: Quantization,
}

impl PackedCheckpoint {
    /// Opens a finished directory that was written by [`PackedWriter`](super::PackedWriter) or another program that uses this layout.
    ///
    /// # Errors
    /// [`FormatError::NotPacked`] for a full-precision model; otherwise the same as [`Checkpoint::open`] and [`quantization_of`].
    pub fn open(dir: &Path) -> Result<Self, FormatError> {
        let config = read_config(dir)?;
        let quantization = quantization_of(&config)?.ok_or_else(|| FormatError::NotPacked { dir: dir.to_owned() })?;
        Ok(Self { checkpoint: Checkpoint::open(dir)?, config, quantization })
    }

    /// Reads one quantized linear by its name without `.weight`, such as `model.layers.0.self_attn.q_proj`.
    ///
    /// # Errors
    /// [`FormatError::Packed`] when a part is missing or the parts do not match.
    pub fn linear(&self, name: &str) -> Result<QuantizedTensor, FormatError> {
        layout::packed_linear(&self.checkpoint, name, self.weight(name)?)
    }

    /// `[out_features, in_features]` of one quantized linear, without reading its codes.
    ///
    /// # Errors
    /// [`FormatError::Packed`] when the shape or the codes are missing or do not match.
    pub fn linear_shape(&self, name: &str) -> Result<[usize; 2], FormatError> {
        layout::read_shape(&self.checkpoint, name, self.weight(name)?)
    }

    /// Names of all quantized linears, sorted.
    pub fn linear_names(&self) -> impl Iterator<Item = &str> {
        self.checkpoint.names().filter_map(|name| name.strip_suffix(PACKED)?.strip_suffix('.'))
    }

    /// All tensors.
    pub fn checkpoint(&self) -> &Checkpoint {
        &self.checkpoint
    }

    /// Its `config.json`.
    pub fn config(&self) -> &Value {
        &self.config
    }

    /// How the model is quantized.
    pub fn quantization(&self) -> &Quantization {
        &self.quantization
    }

    /// How one linear is quantized.
    ///
    /// # Errors
    /// [`FormatError::Packed`] when no group of `quantization_config` covers it, or it has a weight instead of codes.
    pub fn weight(&self, name: &str) -> Result<WeightSpec, FormatError> {
        let has = |part: &str| self.checkpoint.contains(&format!("{name}.{part}"));
        if has("weight") && !has(PACKED) {
            return Err(FormatError::packed(name, PackedFault::Dense));
        }
        self.quantization.weight(name).ok_or_else(|| FormatError::packed(name, PackedFault::NoGroup))
    }
}
