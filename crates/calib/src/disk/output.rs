//! The packed model's directory, which a run fills block by block.

use std::path::Path;

use oq_formats::{
    Checkpoint, Dtype, FormatError, OutTensor, PackedWriter, Staged, packed_linear, packed_tensors, sha256_file,
};
use oq_models::{BlockWeights, LinearName, Model, ModelError, OuterOps, Param, intern, tensor_of};
use oq_quant_core::{QuantizedTensor, WeightSpec};
use oq_rotation::SLAB;
use oq_runtime::trim_memory;
use tch::{Device, Kind, Tensor};

use crate::merged::Merged;
use crate::widths::Widths;

/// A packed model that is being written.
pub(crate) struct Output<'a> {
    writer: PackedWriter,
    model: &'a Model,
    widths: Widths,
}

impl<'a> Output<'a> {
    /// Creates the directory, or continues in an existing one.
    pub(crate) fn create(dir: &Path, model: &'a Model, widths: Widths) -> Result<Self, FormatError> {
        let writer = PackedWriter::create(dir, model.dir(), model.decoder().dims().n_layers)?;
        let writer = writer.rotated_online(model.online(Device::Cpu).is_some());
        Ok(Self { writer, model, widths })
    }

    /// Its directory.
    pub(crate) fn dir(&self) -> &Path {
        self.writer.dir()
    }

    /// Sets how linears are quantized, if that is not known at first.
    pub(crate) fn set_widths(&mut self, widths: Widths) {
        self.widths = widths;
    }

    /// How linears are quantized.
    pub(crate) fn widths(&self) -> &Widths {
        &self.widths
    }

    /// Writes a block's shard, which has yet to be placed: packed linears, and norms and biases as merged, or else as in the checkpoint.
    /// Returns the shard's file name and sha256, too.
    pub(crate) fn stage_block(
        &self,
        block_idx: usize,
        merged: &Merged,
    ) -> Result<(Staged, String, String), FormatError> {
        let checkpoint = self.model.checkpoint();
        let prefix = self.model.decoder().block_prefix(block_idx);
        let mut tensors = Vec::new();
        for (name, packed) in &merged.codes {
            tensors.extend(packed_tensors(&format!("{prefix}{}", name.0), packed));
        }
        for name in self.floats(block_idx) {
            let weight = format!("{prefix}{}", name.weight());
            tensors.push(match merged.floats.get(&name) {
                None => OutTensor::copy_from(checkpoint, &weight)?,
                Some(tensor) => {
                    let dtype = dtype_beside(checkpoint.tensor(&weight)?.dtype);
                    out_tensor(weight, tensor, dtype)?
                }
            });
        }
        for param in self.params(block_idx) {
            let full_name = format!("{prefix}{}", param.name);
            tensors.push(match merged.params.get(param.name) {
                None => OutTensor::copy_from(checkpoint, &full_name)?,
                // Kept in f32: with scales merged in, their range is larger than the originals'.
                Some(tensor) => out_tensor(full_name, &param.stored_of(tensor), Dtype::F32)?,
            });
        }
        let staged = self.writer.stage_block(block_idx, &tensors)?;
        let shard =
            staged.destination().file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let sha256 = sha256_file(staged.path())?;
        Ok((staged, shard, sha256))
    }

    /// Writes a block's shard in its place. Returns its file name and sha256.
    pub(crate) fn write_block(&self, block_idx: usize, merged: &Merged) -> Result<(String, String), FormatError> {
        let (staged, shard, sha256) = self.stage_block(block_idx, merged)?;
        staged.place()?;
        Ok((shard, sha256))
    }

    /// Reads a block from its shard.
    pub(crate) fn read_block(&self, block_idx: usize, device: Device) -> Result<Merged, ModelError> {
        self.read_from(&self.writer.block_path(block_idx), block_idx, device)
    }

    /// Reads a block from its shard, which a process has written and not yet placed.
    pub(crate) fn read_staged(&self, block_idx: usize, device: Device) -> Result<Merged, ModelError> {
        self.read_from(&self.writer.staged_path(block_idx), block_idx, device)
    }

    fn read_from(&self, path: &Path, block_idx: usize, device: Device) -> Result<Merged, ModelError> {
        let shard = Checkpoint::open_file(path)?;
        let decoder = self.model.decoder();
        let prefix = decoder.block_prefix(block_idx);
        let linears = decoder.layer(block_idx).linears.into_iter();
        let codes = linears.filter_map(|linear| Some((linear.name, self.widths.of(block_idx, linear.name)?)));
        let codes = codes.map(|(name, spec)| Ok((name, packed_linear(&shard, &format!("{prefix}{}", name.0), spec)?)));
        let floats = self.floats(block_idx).into_iter().map(|name| {
            let tensor = tensor_of(&shard.tensor(&format!("{prefix}{}", name.weight()))?, device)?;
            Ok((name, tensor))
        });
        let floats = floats.collect::<Result<_, ModelError>>()?;
        let params = self.params(block_idx).map(|param| {
            let tensor = tensor_of(&shard.tensor(&format!("{prefix}{}", param.name))?, device)?;
            Ok((param.name.to_owned(), param.value_of(tensor)))
        });
        let (codes, params): (Result<_, ModelError>, Result<_, ModelError>) = (codes.collect(), params.collect());
        Ok(Merged { codes: codes?, floats, params: params? })
    }

    /// A block's linears that are not quantized.
    pub(crate) fn floats(&self, block_idx: usize) -> Vec<LinearName> {
        self.widths.parted(self.model.decoder(), block_idx).1
    }

    /// Makes a block's weights in full precision what their tensors will hold: the checkpoint's, unless they were changed or are stored
    /// otherwise. The others are rounded to f16 if the original is not f32.
    pub(crate) fn settle_floats(
        &self,
        block_idx: usize,
        merged: &mut Merged,
        weights: &BlockWeights,
    ) -> Result<(), FormatError> {
        let prefix = self.model.decoder().block_prefix(block_idx);
        for name in self.floats(block_idx) {
            let stored = format!("{prefix}{}", name.weight());
            let weight = match merged.params.remove(&name.weight()) {
                None if self.model.is_as_stored(&stored) => continue,
                None => weights.weight(name).shallow_clone(),
                Some(changed) => changed,
            };
            let is_half = dtype_beside(self.model.checkpoint().tensor(&stored)?.dtype) == Dtype::F16;
            let weight = if is_half { weight.to_kind(Kind::Half).to_kind(Kind::Float) } else { weight };
            merged.floats.insert(name, weight);
        }
        Ok(())
    }

    /// A block's tensors that are not packed.
    pub(crate) fn params(&self, block_idx: usize) -> impl Iterator<Item = Param> {
        let layout = self.model.decoder().layer(block_idx);
        let biases = layout.linears.into_iter().filter(|linear| linear.bias);
        let biases = biases.map(|linear| Param::new(intern(&linear.name.bias()), [linear.out_features]));
        layout.params.into_iter().chain(biases)
    }

    /// Whether a block's shard exists and has this hash.
    ///
    /// # Errors
    /// If it cannot be read, which says nothing about its content.
    pub(crate) fn is_intact(&self, block_idx: usize, sha256: &str) -> Result<bool, FormatError> {
        is_intact(&self.writer.block_path(block_idx), sha256)
    }

    /// Whether the directory has its index and config, and the same tensors outside the blocks as the model.
    pub(crate) fn is_complete(&self) -> bool {
        if !self.writer.is_finished() {
            return false;
        }
        let Ok(written) = Checkpoint::open(self.writer.dir()) else { return false };
        let params = self.model.decoder().outer_params();
        let is_same = |param: &Param| match (self.model.is_rotated(), self.outer_spec(param)) {
            (false, None) => self.model.checkpoint().is_same(param.name, (&written, param.name)).unwrap_or(false),
            _ => {
                let is_there = |made: &OutTensor<'_>| {
                    written.tensor(made.name()).is_ok_and(|there| OutTensor::copy_of(there) == *made)
                };
                self.outer_tensors(param).is_ok_and(|made| made.iter().all(is_there))
            }
        };
        params.iter().all(is_same)
    }

    /// How a matrix outside the blocks is quantized; none in full precision.
    fn outer_spec(&self, param: &Param) -> Option<WeightSpec> {
        self.widths.of_outer(self.model.decoder(), param.name)
    }

    /// The tensors of what lies outside the blocks: one, or the parts of a quantized matrix.
    fn outer_tensors(&self, param: &Param) -> Result<Vec<OutTensor<'_>>, ModelError> {
        let Some(spec) = self.outer_spec(param) else { return Ok(vec![self.outer_tensor(param)?]) };
        let (linear, width) = (param.name.trim_end_matches(".weight"), param.shape[1]);
        let quantized = self.slabs(param).map(|values| {
            let values = values?;
            let quantized = QuantizedTensor::quantize(&values, values.len() / width, width, spec);
            quantized.map_err(|source| ModelError::Quantize { linear: linear.to_owned(), source })
        });
        let slabs = quantized.collect::<Result<Vec<_>, ModelError>>()?;
        Ok(packed_tensors(linear, &QuantizedTensor::stack(&slabs)))
    }

    /// A tensor outside the blocks: as in the checkpoint or, in a rotated model, rebuilt. Matrices are then stored in f16 like the
    /// packed model, or in f32 if the original is f32; vectors in f32.
    fn outer_tensor(&self, param: &Param) -> Result<OutTensor<'_>, ModelError> {
        let checkpoint = self.model.checkpoint();
        if !self.model.is_rotated() {
            return Ok(OutTensor::copy_from(checkpoint, param.name)?);
        }
        if param.shape.len() != 2 {
            let tensor = values_of(param.stored_of(&self.model.outer(Device::Cpu).param(param.name)?));
            return Ok(OutTensor::from_f32(param.name, &param.shape, &tensor, Dtype::F32)?);
        }
        let stored = checkpoint.tensor(self.model.stored_name(param.name))?.dtype;
        OutTensor::from_f32_slabs(param.name, &param.shape, dtype_beside(stored), self.slabs(param))
    }

    /// The values of a matrix outside the blocks, some rows at a time.
    fn slabs(&self, param: &Param) -> impl Iterator<Item = Result<Vec<f32>, ModelError>> {
        let (name, n, width) = (param.name, param.shape[0], param.shape[1]);
        let rows = (SLAB as usize / width).max(1);
        (0..n).step_by(rows).map(move |first| {
            let ids = Tensor::arange_start(first as i64, n.min(first + rows) as i64, (Kind::Int64, Device::Cpu));
            Ok(values_of(self.model.outer(Device::Cpu).rows(name, &ids)?))
        })
    }

    /// Writes the tensors outside the blocks, the index and the config.
    pub(crate) fn finish(&self) -> Result<(), ModelError> {
        trim_memory();
        let params = self.model.decoder().outer_params();
        let tensors = params.iter().map(|param| self.outer_tensors(param));
        let tensors = tensors.collect::<Result<Vec<_>, _>>()?;
        self.writer.write_rest(&tensors.into_iter().flatten().collect::<Vec<_>>())?;
        // Embeddings, projections and head. A head that shares the embedding's weights has no tensor of its own.
        let matrices = params.iter().filter(|param| param.shape.len() == 2);
        let mut ignore = vec!["lm_head"];
        ignore.extend(matrices.map(|param| param.name.trim_end_matches(".weight")).filter(|name| *name != "lm_head"));
        let decoder = self.model.decoder();
        ignore.retain(|name| self.widths.of_outer(decoder, &format!("{name}.weight")).is_none());
        let quantization = self.widths.quantization(decoder);
        Ok(self.writer.finish(self.model.config(), &quantization, &ignore)?)
    }
}

/// Whether a file exists and has this hash.
///
/// # Errors
/// If it cannot be read, which says nothing about its content.
pub(crate) fn is_intact(path: &Path, sha256: &str) -> Result<bool, FormatError> {
    match sha256_file(path) {
        Err(FormatError::MissingFile { .. }) => Ok(false),
        found => Ok(found? == sha256),
    }
}

fn out_tensor(name: String, tensor: &Tensor, dtype: Dtype) -> Result<OutTensor<'static>, FormatError> {
    let shape: Vec<usize> = tensor.size().into_iter().map(|n| n as usize).collect();
    OutTensor::from_f32(name, &shape, &values_of(tensor.shallow_clone()), dtype)
}

fn values_of(tensor: Tensor) -> Vec<f32> {
    Vec::try_from(tensor.contiguous().view(-1)).expect("what is written was computed in f32")
}

/// Type of a matrix that is not what the checkpoint has: f16 like the packed model, or f32 if the original is f32.
fn dtype_beside(original: Dtype) -> Dtype {
    if original == Dtype::F32 { Dtype::F32 } else { Dtype::F16 }
}
