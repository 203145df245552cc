//! A model directory, packed or in full precision.

use std::collections::BTreeSet;
use std::path::Path;

use oq_quant_core::{QuantizedTensor, WeightSpec};
use rayon::prelude::*;
use serde_json::Value as Json;

use crate::gguf::GgufError;
use crate::gguf::tensors::Place;
use crate::packed::layout::{packed_linear, read_shape};
use crate::packed::parts::{PACKED, SCALE};
use crate::{
    Checkpoint, FormatError, PackedCheckpoint, TensorView, is_rotated_online, quantization_of, read_config, transposed,
};

/// Tensors of old checkpoints that are computed from the config.
const BUFFERS: [&str; 2] = [".rotary_emb.inv_freq", ".masked_bias"];
/// The head, which is not written if it is the embedding.
const HEAD: &str = "lm_head.weight";
const WEIGHT: &str = ".weight";

/// Of the experts of a model that is not packed.
fn mxfp4() -> WeightSpec {
    WeightSpec::named("mxfp4").expect("it is the name of a type")
}

/// A model directory.
pub(super) struct Source {
    model: Model,
    /// Matrices that are stored `[in, out]`.
    transposed: BTreeSet<String>,
}

enum Model {
    /// In full precision, but for experts in MXFP4.
    Dense {
        checkpoint: Checkpoint,
        config: Json,
    },
    Packed(PackedCheckpoint),
}

impl Source {
    /// Opens a directory. What only our own program computes is refused.
    pub(super) fn open(dir: &Path) -> Result<Self, GgufError> {
        let config = read_config(dir)?;
        let model = match quantization_of(&config)? {
            None => Model::Dense { checkpoint: Checkpoint::open(dir)?, config },
            Some(_) if is_rotated_online(&config) => return Err(GgufError::OnlineRotation),
            Some(quantization) => match quantization.act().bits() {
                Some(bits) => return Err(GgufError::Activations { bits: bits.get() }),
                None => Model::Packed(PackedCheckpoint::open(dir)?),
            },
        };
        Ok(Self { model, transposed: BTreeSet::new() })
    }

    /// Splits the tensors that have the matrices of all experts, so that each has the name of its place.
    pub(super) fn split(&mut self, places: &[Place]) -> Result<(), GgufError> {
        let checkpoint = match &mut self.model {
            Model::Dense { checkpoint, .. } => checkpoint,
            Model::Packed(packed) => packed.checkpoint_mut(),
        };
        for experts in places.chunk_by(|a, b| a.gguf == b.gguf) {
            let Some(fused) = &experts[0].fused else { continue };
            let mut shape = experts[0].hf_shape();
            if let [rows, cols] = shape[..] {
                // As published with MXFP4: two codes to a byte, and a scale for each group of 32.
                for (end, part, cols) in [("blocks", PACKED, cols / 2), ("scales", SCALE, cols.div_ceil(32))] {
                    let name = format!("{}_{end}", fused.name);
                    if checkpoint.contains(&name) {
                        let parts = experts.iter().map(|place| place.hf.replace(WEIGHT, &format!(".{part}")));
                        checkpoint.split(&name, parts, &[rows, cols])?;
                    }
                }
            }
            // Gates and ups may be in one tensor, which is split once.
            if checkpoint.contains(&fused.name) {
                if fused.transposed {
                    shape.reverse();
                    self.transposed.extend(experts.iter().map(|place| place.hf.clone()));
                }
                checkpoint.split(&fused.name, experts.iter().map(|place| place.hf.clone()), &shape)?;
            }
        }
        Ok(())
    }

    pub(super) fn checkpoint(&self) -> &Checkpoint {
        match &self.model {
            Model::Dense { checkpoint, .. } => checkpoint,
            Model::Packed(packed) => packed.checkpoint(),
        }
    }

    pub(super) fn config(&self) -> &Json {
        match &self.model {
            Model::Dense { config, .. } => config,
            Model::Packed(packed) => packed.config(),
        }
    }

    /// Whether the model is packed.
    pub(super) fn is_packed(&self) -> bool {
        matches!(self.model, Model::Packed(_))
    }

    /// Whether the linear of this name, without `.weight`, is quantized.
    pub(super) fn is_quantized(&self, stem: &str) -> bool {
        match &self.model {
            Model::Dense { checkpoint, .. } => checkpoint.contains(&format!("{stem}.{PACKED}")),
            Model::Packed(packed) => !packed.checkpoint().contains(&format!("{stem}{WEIGHT}")),
        }
    }

    /// How a quantized linear is quantized, and its shape `[out, in]`.
    pub(super) fn quantized(&self, stem: &str) -> Result<(WeightSpec, [usize; 2]), GgufError> {
        Ok(match &self.model {
            Model::Dense { checkpoint, .. } => (mxfp4(), read_shape(checkpoint, stem, mxfp4())?),
            Model::Packed(packed) => (packed.weight(stem)?, packed.linear_shape(stem)?),
        })
    }

    /// A quantized linear.
    pub(super) fn linear(&self, stem: &str) -> Result<QuantizedTensor, GgufError> {
        Ok(match &self.model {
            Model::Dense { checkpoint, .. } => packed_linear(checkpoint, stem, mxfp4())?,
            Model::Packed(packed) => packed.linear(stem)?,
        })
    }

    /// The shape of a tensor of floats, of a matrix `[out, in]`.
    pub(super) fn shape(&self, name: &str) -> Result<Vec<usize>, GgufError> {
        let mut shape = self.checkpoint().tensor(name)?.shape.to_vec();
        if self.transposed.contains(name) {
            shape.reverse();
        }
        Ok(shape)
    }

    /// Rows of a matrix of floats.
    pub(super) fn rows(&self, name: &str, rows: Vec<usize>) -> Result<Vec<f32>, GgufError> {
        let view = self.checkpoint().tensor(name)?;
        if self.transposed.contains(name) {
            let whole = transposed(&view.to_f32_vec()?, view.shape[1].max(1));
            return Ok(rows.iter().flat_map(|row| &whole[row * view.shape[0]..][..view.shape[0]]).copied().collect());
        }
        let cols = view.shape[1];
        let row_bytes = cols * view.dtype.bitsize() / 8;
        let row = |row: usize| {
            let bytes = &view.bytes[row * row_bytes..][..row_bytes];
            TensorView { shape: &[cols], bytes, ..view }.to_f32_vec()
        };
        Ok(rows.into_par_iter().map(row).collect::<Result<Vec<_>, FormatError>>()?.concat())
    }

    /// Refuses a tensor that is not in `used` or a part of one that is: the model is another one.
    pub(super) fn check_all_used(&self, used: &BTreeSet<&str>) -> Result<(), GgufError> {
        let is_used = |name: &str| {
            let is_part = |stem: &str| self.is_quantized(stem) && used.contains(&*format!("{stem}{WEIGHT}"));
            used.contains(name) || name.rsplit_once('.').is_some_and(|(stem, _)| is_part(stem))
        };
        let is_left_out = |name: &str| name == HEAD || BUFFERS.iter().any(|buffer| name.ends_with(buffer));
        match self.checkpoint().names().find(|name| !is_used(name) && !is_left_out(name)) {
            Some(name) => Err(GgufError::ExtraTensor { tensor: name.to_owned() }),
            None => Ok(()),
        }
    }
}
