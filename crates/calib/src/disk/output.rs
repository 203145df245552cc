//! The packed model's directory, which a run fills block by block.

use std::path::Path;

use oq_formats::{Checkpoint, Dtype, FormatError, OutTensor, PackedWriter, packed_linear, packed_tensors, sha256_file};
use oq_models::{Model, ModelError, OuterOps, Param, intern, tensor_of};
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
        let writer = writer.rotated_online(model.online().is_some());
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

    /// Writes a block's shard: packed linears, and norms and biases as merged, or else as in the checkpoint. Returns the shard's file
    /// name and sha256.
    pub(crate) fn write_block(&self, block_idx: usize, merged: &Merged) -> Result<(String, String), FormatError> {
        let checkpoint = self.model.checkpoint();
        let prefix = self.model.decoder().block_prefix(block_idx);
        let mut tensors = Vec::new();
        for (name, packed) in &merged.codes {
            tensors.extend(packed_tensors(&format!("{prefix}{}", name.0), packed));
        }
        for param in self.params(block_idx) {
            let full_name = format!("{prefix}{}", param.name);
            tensors.push(match merged.params.get(param.name) {
                None => OutTensor::copy_from(checkpoint, &full_name)?,
                Some(tensor) => {
                    let tensor = param.stored_of(tensor);
                    let shape: Vec<usize> = tensor.size().into_iter().map(|n| n as usize).collect();
                    let values = Vec::<f32>::try_from(tensor.contiguous().view(-1)).expect("merged tensors are f32");
                    // Kept in f32: with scales merged in, their range is larger than the originals'.
                    OutTensor::from_f32(full_name, &shape, &values, Dtype::F32)?
                }
            });
        }
        self.writer.write_block(block_idx, &tensors)?;
        let path = self.writer.block_path(block_idx);
        let shard = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        Ok((shard, sha256_file(&path)?))
    }

    /// Reads a block from its shard.
    pub(crate) fn read_block(&self, block_idx: usize, device: Device) -> Result<Merged, ModelError> {
        let shard = Checkpoint::open_file(&self.writer.block_path(block_idx))?;
        let decoder = self.model.decoder();
        let prefix = decoder.block_prefix(block_idx);
        let linears = decoder.layer(block_idx).linears.into_iter().map(|linear| linear.name);
        let codes = linears.map(|name| {
            let spec = self.widths.of(block_idx, name);
            Ok((name, packed_linear(&shard, &format!("{prefix}{}", name.0), spec)?))
        });
        let params = self.params(block_idx).map(|param| {
            let tensor = tensor_of(&shard.tensor(&format!("{prefix}{}", param.name))?, device)?;
            Ok((param.name.to_owned(), param.value_of(tensor)))
        });
        let (codes, params): (Result<_, ModelError>, Result<_, ModelError>) = (codes.collect(), params.collect());
        Ok(Merged { codes: codes?, params: params? })
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
        match sha256_file(&self.writer.block_path(block_idx)) {
            Err(FormatError::MissingFile { .. }) => Ok(false),
            found => Ok(found? == sha256),
        }
    }

    /// Whether the directory has its index and config, and the same tensors outside the blocks as the model.
    pub(crate) fn is_complete(&self) -> bool {
        if !self.writer.is_finished() {
            return false;
        }
        let Ok(written) = Checkpoint::open(self.writer.dir()) else { return false };
        let params = self.model.decoder().outer_params();
        let is_same = |param: &Param| match self.model.is_rotated() {
            false => self.model.checkpoint().is_same(param.name, (&written, param.name)).unwrap_or(false),
            true => {
                let made = self.outer_tensor(param);
                let there = written.tensor(param.name).map(OutTensor::copy_of);
                made.ok().zip(there.ok()).is_some_and(|(made, there)| made == there)
            }
        };
        params.iter().all(is_same)
    }

    /// A tensor outside the blocks: as in the checkpoint or, in a rotated model, rebuilt. Matrices are then stored in f16 like the
    /// packed model, or in f32 if the original is f32; vectors in f32.
    fn outer_tensor(&self, param: &Param) -> Result<OutTensor<'_>, ModelError> {
        let checkpoint = self.model.checkpoint();
        if !self.model.is_rotated() {
            return Ok(OutTensor::copy_from(checkpoint, param.name)?);
        }
        let outer = self.model.outer(Device::Cpu);
        let values = |tensor: Tensor| Vec::try_from(tensor.contiguous().view(-1)).expect("outer tensors are f32");
        let [n, width] = param.shape[..] else {
            let tensor = values(param.stored_of(&outer.param(param.name)?));
            return Ok(OutTensor::from_f32(param.name, &param.shape, &tensor, Dtype::F32)?);
        };
        let stored = checkpoint.tensor(self.model.stored_name(param.name))?.dtype;
        let dtype = if stored == Dtype::F32 { Dtype::F32 } else { Dtype::F16 };
        let rows = (SLAB as usize / width).max(1);
        let slabs = (0..n).step_by(rows).map(|first| {
            let ids = Tensor::arange_start(first as i64, n.min(first + rows) as i64, (Kind::Int64, Device::Cpu));
            Ok::<_, ModelError>(values(outer.rows(param.name, &ids)?))
        });
        OutTensor::from_f32_slabs(param.name, &param.shape, dtype, slabs)
    }

    /// Writes the tensors outside the blocks, the index and the config.
    pub(crate) fn finish(&self) -> Result<(), ModelError> {
        trim_memory();
        let params = self.model.decoder().outer_params();
        let tensors = params.iter().map(|param| self.outer_tensor(param));
        self.writer.write_rest(&tensors.collect::<Result<Vec<_>, _>>()?)?;
        // Embeddings, projections and head. A head that shares the embedding's weights has no tensor of its own.
        let matrices = params.iter().filter(|param| param.shape.len() == 2);
        let mut ignore = vec!["lm_head"];
        ignore.extend(matrices.map(|param| param.name.trim_end_matches(".weight")).filter(|name| *name != "lm_head"));
        let quantization = self.widths.quantization(self.model.decoder());
        Ok(self.writer.finish(self.model.config(), &quantization, &ignore)?)
    }
}
