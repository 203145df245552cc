//! A model directory, packed or in full precision.

use std::collections::BTreeSet;
use std::path::Path;

use oq_quant_core::{QuantizedTensor, WeightSpec};
use serde_json::Value as Json;

use crate::gguf::GgufError;
use crate::{Checkpoint, PackedCheckpoint, is_rotated_online, quantization_of, read_config};

/// Tensors of old checkpoints that are computed from the config.
const BUFFERS: [&str; 2] = [".rotary_emb.inv_freq", ".masked_bias"];
/// The head, which is not written if it is the embedding.
const HEAD: &str = "lm_head.weight";

/// A model directory.
pub(super) enum Source {
    Dense { checkpoint: Checkpoint, config: Json },
    Packed(PackedCheckpoint),
}

impl Source {
    /// Opens a directory. What only our own program computes is refused.
    pub(super) fn open(dir: &Path) -> Result<Self, GgufError> {
        let config = read_config(dir)?;
        let Some(quantization) = quantization_of(&config)? else {
            return Ok(Self::Dense { checkpoint: Checkpoint::open(dir)?, config });
        };
        if is_rotated_online(&config) {
            return Err(GgufError::OnlineRotation);
        }
        match quantization.act().bits() {
            Some(bits) => Err(GgufError::Activations { bits: bits.get() }),
            None => Ok(Self::Packed(PackedCheckpoint::open(dir)?)),
        }
    }

    pub(super) fn checkpoint(&self) -> &Checkpoint {
        match self {
            Self::Dense { checkpoint, .. } => checkpoint,
            Self::Packed(packed) => packed.checkpoint(),
        }
    }

    pub(super) fn config(&self) -> &Json {
        match self {
            Self::Dense { config, .. } => config,
            Self::Packed(packed) => packed.config(),
        }
    }

    /// Whether the model is packed.
    pub(super) fn is_packed(&self) -> bool {
        matches!(self, Self::Packed(_))
    }

    /// Whether the linear of this name, without `.weight`, is quantized.
    pub(super) fn is_quantized(&self, stem: &str) -> bool {
        matches!(self, Self::Packed(_)) && !self.checkpoint().contains(&format!("{stem}.weight"))
    }

    /// How a quantized linear is quantized, and its shape `[out, in]`.
    pub(super) fn quantized(&self, stem: &str) -> Result<(WeightSpec, [usize; 2]), GgufError> {
        let packed = self.packed();
        Ok((packed.weight(stem)?, packed.linear_shape(stem)?))
    }

    /// A quantized linear.
    pub(super) fn linear(&self, stem: &str) -> Result<QuantizedTensor, GgufError> {
        Ok(self.packed().linear(stem)?)
    }

    fn packed(&self) -> &PackedCheckpoint {
        match self {
            Self::Packed(packed) => packed,
            Self::Dense { .. } => unreachable!("only packed models have quantized linears"),
        }
    }

    /// Refuses a tensor that is not in `used` or a part of one that is: the model is another one.
    pub(super) fn check_all_used(&self, used: &BTreeSet<&str>) -> Result<(), GgufError> {
        let is_used = |name: &str| {
            let part = name.rsplit_once('.').map(|(stem, _)| format!("{stem}.weight"));
            used.contains(name) || matches!(self, Self::Packed(_)) && part.is_some_and(|whole| used.contains(&*whole))
        };
        let is_left_out = |name: &str| name == HEAD || BUFFERS.iter().any(|buffer| name.ends_with(buffer));
        match self.checkpoint().names().find(|name| !is_used(name) && !is_left_out(name)) {
            Some(name) => Err(GgufError::ExtraTensor { tensor: name.to_owned() }),
            None => Ok(()),
        }
    }
}
