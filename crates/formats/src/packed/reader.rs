//! Reads packed directories, our own and others'.

use std::path::Path;

use oq_quant_core::{QuantizedTensor, WeightSpec};
use safetensors::Dtype;
use serde_json::Value;

use super::config::packing_of;
use super::parts::PACKED;
use super::scheme::Quantization;
use crate::others::{Layout, Linear, Matrix, Packing, Part, part_of};
use crate::{Checkpoint, FormatError, PackedFault, read_config};

/// A packed model: its packed linears, and its other tensors through [`Self::checkpoint`].
#[derive(Debug)]
pub struct PackedCheckpoint {
    checkpoint: Checkpoint,
    config: Value,
    packing: Packing,
}

impl PackedCheckpoint {
    /// Opens a finished directory that was written by [`PackedWriter`](super::PackedWriter) or packed by another program: GPTQ, AWQ,
    /// AutoRound, MLX, compressed-tensors, FP8.
    ///
    /// # Errors
    /// [`FormatError::NotPacked`] for a full-precision model; otherwise the same as [`Checkpoint::open`] and
    /// [`quantization_of`](super::quantization_of).
    pub fn open(dir: &Path) -> Result<Self, FormatError> {
        let config = read_config(dir)?;
        let packing = packing_of(&config)?.ok_or_else(|| FormatError::NotPacked { dir: dir.to_owned() })?;
        if packing.has_float_act {
            tracing::warn!("{}: activations are not rounded to floating-point numbers of 8 or 4 bits", dir.display());
        }
        let checkpoint = Checkpoint::open(dir)?;
        let is_fp8 = |tensor: crate::TensorView<'_>| matches!(tensor.dtype, Dtype::F8_E4M3 | Dtype::F8_E5M2);
        let says_fp8 = packing.method == "fp8" || packing.method.contains("float-quantized");
        if says_fp8 && !checkpoint.tensors().any(is_fp8) {
            let got = format!("{}, and no weight is of FP8", packing.method);
            let expected = "weights as the config says, or the full-precision model without quantization_config";
            return Err(FormatError::QuantConfig { field: "quant_method", got, expected });
        }
        if packing.layout == Layout::Mxfp4 && !checkpoint.names().any(|name| name.ends_with("_blocks")) {
            let got = "mxfp4, and no weight is of MXFP4".to_owned();
            let expected = "weights as the config says, or the full-precision model without quantization_config";
            return Err(FormatError::QuantConfig { field: "quant_method", got, expected });
        }
        Ok(Self { checkpoint, config, packing })
    }

    /// Reads the codes of one quantized linear by its name without `.weight`, such as `model.layers.0.self_attn.q_proj`.
    ///
    /// # Errors
    /// [`FormatError::Packed`] when a part is missing, the parts do not match, or its values have no such codes ([`Self::matrix`]).
    pub fn linear(&self, name: &str) -> Result<QuantizedTensor, FormatError> {
        // With the error that says what the codes lack.
        if self.checkpoint.contains(&format!("{name}.{PACKED}")) {
            return super::layout::packed_linear(&self.checkpoint, name, self.weight(name)?);
        }
        match self.matrix(name)? {
            Matrix::Codes(codes) => Ok(codes),
            Matrix::Values(_) => Err(FormatError::packed(name, PackedFault::Dense)),
        }
    }

    /// Reads the weight of one linear, packed or not, by its name without `.weight`.
    ///
    /// # Errors
    /// [`FormatError::Packed`] when a part is missing or the parts do not match.
    pub fn matrix(&self, name: &str) -> Result<Matrix, FormatError> {
        self.open_linear(name)?.matrix()
    }

    /// Values of some rows of a linear or an embedding, `[rows.len(), in_features]`.
    ///
    /// # Errors
    /// Same as [`Self::matrix`].
    ///
    /// # Panics
    /// When there is no such row.
    pub fn rows(&self, name: &str, rows: &[usize]) -> Result<Vec<f32>, FormatError> {
        self.open_linear(name)?.rows(rows)
    }

    /// `[out_features, in_features]` of one linear, packed or not, without reading its weight.
    ///
    /// # Errors
    /// [`FormatError::Packed`] when the shape or the codes are missing or do not match.
    pub fn linear_shape(&self, name: &str) -> Result<[usize; 2], FormatError> {
        self.open_linear(name)?.shape()
    }

    /// Whether there is a packed linear or embedding of this name.
    pub fn is_packed(&self, name: &str) -> bool {
        self.bits(name).is_ok_and(|bits| bits.is_some())
    }

    /// Bits of a stored weight of one linear, without scales; none if it is not packed.
    ///
    /// # Errors
    /// [`FormatError::Packed`] when no group of `quantization_config` covers it.
    pub fn bits(&self, name: &str) -> Result<Option<u32>, FormatError> {
        Ok(self.open_linear(name)?.bits())
    }

    /// Names of all packed linears and embeddings, sorted.
    pub fn linear_names(&self) -> impl Iterator<Item = &str> {
        self.checkpoint.tensors().filter_map(|tensor| match part_of(tensor.name, tensor.dtype)? {
            (linear, Part::Codes) => Some(linear),
            _ => None,
        })
    }

    /// The packed linear or embedding that a tensor is a part of, if it is: its codes, scales, zero points or shape.
    pub fn linear_of<'a>(&self, tensor: &'a str) -> Option<&'a str> {
        let dtype = self.checkpoint.tensor(tensor).ok()?.dtype;
        let (linear, _) = part_of(tensor, dtype)?;
        self.is_packed(linear).then_some(linear)
    }

    /// All tensors.
    pub fn checkpoint(&self) -> &Checkpoint {
        &self.checkpoint
    }

    /// All tensors, to rename them or to split what holds several.
    pub fn checkpoint_mut(&mut self) -> &mut Checkpoint {
        &mut self.checkpoint
    }

    /// Its `config.json`.
    pub fn config(&self) -> &Value {
        &self.config
    }

    /// The method that packed it, with its format: `awq`, `compressed-tensors (pack-quantized)`.
    pub fn method(&self) -> &str {
        &self.packing.method
    }

    /// How linears with integer codes are quantized; it is empty if there are none, as in FP8.
    pub fn quantization(&self) -> &Quantization {
        &self.packing.quantization
    }

    /// How one linear is quantized.
    ///
    /// # Errors
    /// [`FormatError::Packed`] when no group of `quantization_config` covers it, or it has a weight instead of codes.
    pub fn weight(&self, name: &str) -> Result<WeightSpec, FormatError> {
        if self.bits(name)?.is_none() {
            return Err(FormatError::packed(name, PackedFault::Dense));
        }
        self.packing.quantization.weight(name).ok_or_else(|| FormatError::packed(name, PackedFault::NoGroup))
    }

    fn open_linear<'a>(&'a self, name: &'a str) -> Result<Linear<'a>, FormatError> {
        Linear::open(&self.checkpoint, name, &self.packing)
    }
}
