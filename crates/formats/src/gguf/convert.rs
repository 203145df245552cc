//! Converts a GGUF model to a Hugging Face directory.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use half::f16;
use rayon::prelude::*;
use safetensors::Dtype;
use serde_json::Value as Json;

use super::tensors::Place;
use super::tokenizer::Tokenizer;
use super::{Gguf, GgufError, Tensor, from_metadata, hf_config};
use crate::atomic::{atomic_write, atomic_write_with};
use crate::{header, transposed};

/// Values dequantized at a time: 8 MB of f16, so that memory does not grow with the model.
const SLAB_VALUES: usize = 1 << 22;

/// A tensor of the file, or one expert's part of it.
type Placed<'a> = (Place, Tensor<'a>);

/// A tensor to write.
struct Output<'a> {
    hf: String,
    /// Outermost dimension first: of experts that are one tensor, their number.
    shape: Vec<usize>,
    /// A matrix or vector for each of these experts, of one tensor of the file or of several that have its rows.
    matrices: Vec<Vec<Placed<'a>>>,
    /// Whether each matrix is `[in, out]`.
    transposed: bool,
}

impl Output<'_> {
    fn placed(&self) -> impl Iterator<Item = &Placed<'_>> {
        self.matrices.iter().flatten()
    }

    fn values(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether its values are a linear's weights, which are rounded to f16.
    fn is_matrix(&self) -> bool {
        self.matrices[0][0].0.role.is_some()
    }

    /// f16, or f32 for a vector or router that f16 would change, such as a norm with more digits. They are too small to be worth rounding.
    fn dtype(&self) -> Dtype {
        let exact = |value: &f32| f16::from_f32(*value).to_f32() == *value;
        let is_exact = |parts: &Vec<Placed<'_>>| values(parts).iter().all(exact);
        if self.is_matrix() || self.matrices.iter().all(is_exact) { Dtype::F16 } else { Dtype::F32 }
    }
}

/// The tensors to write: experts that are one tensor in Hugging Face are put together.
fn outputs(placed: Vec<Placed<'_>>) -> Vec<Output<'_>> {
    let mut outputs: Vec<Output<'_>> = Vec::new();
    for (place, tensor) in placed {
        let (hf, transposed) = match &place.fused {
            Some(fused) => (fused.name.clone(), fused.transposed),
            None => (place.hf.clone(), false),
        };
        let (expert, count) = place.expert.filter(|_| place.fused.is_some()).unwrap_or((0, 1));
        let started = if place.fused.is_some() { outputs.iter().rposition(|output| output.hf == hf) } else { None };
        let at = started.unwrap_or_else(|| {
            let mut shape = place.hf_shape();
            if transposed {
                shape.reverse();
            }
            if place.fused.is_some() {
                shape.insert(0, count);
            }
            outputs.push(Output { hf, shape, matrices: Vec::new(), transposed });
            outputs.len() - 1
        });
        let matrices = &mut outputs[at].matrices;
        matrices.resize_with(matrices.len().max(expert + 1), Vec::new);
        matrices[expert].push((place, tensor));
    }
    outputs
}

/// Progress of a conversion.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Progress<'a> {
    /// The Hugging Face name of the tensor that was just written.
    pub tensor: &'a str,
    /// Tensors written so far.
    pub done: usize,
    /// Total number of tensors.
    pub total: usize,
}

/// The result of a conversion.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Converted {
    /// The output directory.
    pub dir: PathBuf,
    /// Tensors of the model.
    pub tensors: usize,
    /// Number of values in all tensors.
    pub values: usize,
    /// Size of `model.safetensors`.
    pub weight_bytes: u64,
}

/// Converts the model in `gguf` to a directory `out_dir` with `model.safetensors`, `tokenizer.json`, `tokenizer_config.json`,
/// `generation_config.json` and, last, `config.json`. Each file is written atomically.
///
/// The module names the architectures. Of a split model `gguf` is the first file. Matrices are dequantized in f32 and rounded to f16. Vectors
/// (norms) are f16 if that is exact, else f32. This takes some megabytes of memory, whatever the model's size; with experts that Hugging Face
/// stores by columns, as much as one expert's matrix.
///
/// # Errors
/// Fails if the result would be a different model, and names the reason: other architectures, missing or extra tensors, weights beyond f16,
/// unsupported tokenizers.
pub fn convert_to_hf(
    gguf: &Path,
    out_dir: &Path,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<Converted, GgufError> {
    let file = Gguf::open(gguf)?;
    // Except for weights beyond f16, everything is validated before the first byte is written.
    let shape = from_metadata::read(&file)?;
    let outputs = outputs(from_metadata::find_all(&file, &shape)?);
    let tokenizer = Tokenizer::read(file.metadata(), shape.vocab)?;
    let tokenizer_json = tokenizer.json()?;

    fs::create_dir_all(out_dir).map_err(|source| GgufError::Io { path: out_dir.to_owned(), source })?;
    let write = |name: &str, json: &Json| {
        let text = format!("{json:#}\n");
        atomic_write(&out_dir.join(name), text.as_bytes()).map_err(GgufError::from)
    };
    let weight_bytes = write_weights(&out_dir.join("model.safetensors"), &outputs, progress)?;
    write("tokenizer.json", &tokenizer_json)?;
    write("tokenizer_config.json", &tokenizer.config(shape.context))?;
    write("generation_config.json", &tokenizer.generation_config())?;
    write("config.json", &hf_config::config(&shape, &tokenizer.ids()))?;
    Ok(Converted {
        dir: out_dir.to_owned(),
        tensors: outputs.len(),
        values: outputs.iter().map(Output::values).sum(),
        weight_bytes,
    })
}

/// Streams the tensors to a safetensors file and returns its size.
fn write_weights(path: &Path, all: &[Output<'_>], progress: &mut dyn FnMut(Progress<'_>)) -> Result<u64, GgufError> {
    let mut outputs: Vec<_> = all.iter().map(|output| (output, output.dtype())).collect();
    // Readers expect every tensor to be aligned to its type, so the wider type comes first. The sort is stable.
    outputs.sort_by_key(|&(_, dtype)| dtype != Dtype::F32);

    let bytes_of = |output: &Output<'_>, dtype: Dtype| output.values() * dtype.bitsize() / 8;
    let entries = outputs
        .iter()
        .map(|&(output, dtype)| (output.hf.clone(), dtype, output.shape.clone(), bytes_of(output, dtype)));
    let header = header::encode(entries).expect("offsets follow each other by construction");
    let data: usize = outputs.iter().map(|&(output, dtype)| bytes_of(output, dtype)).sum();

    // Blocks of zeros are no weights: the data is missing.
    let is_lost = |placed: &&Placed<'_>| placed.0.role.is_some() && placed.1.bytes().iter().all(|&b| b == 0);
    if let Some((_, tensor)) = all.iter().flat_map(Output::placed).find(is_lost) {
        return Err(GgufError::Zeros { tensor: tensor.name().to_owned(), kind: tensor.kind().name() });
    }
    // The writer's errors are io::Error; a refused weight is passed beside it.
    let mut refused = None;
    let written = atomic_write_with(path, |out| {
        out.write_all(&header)?;
        for (i, &(output, dtype)) in outputs.iter().enumerate() {
            for parts in &output.matrices {
                match output.is_matrix() {
                    true => write_matrix(out, parts, output.transposed, &mut refused)?,
                    false => write_values(out, &values(parts), dtype)?,
                }
            }
            progress(Progress { tensor: &output.hf, done: i + 1, total: outputs.len() });
        }
        Ok(())
    });
    match refused {
        Some(error) => Err(error),
        None => written.map(|()| (header.len() + data) as u64).map_err(GgufError::from),
    }
}

/// A tensor that is no linear's matrix, in the order of Hugging Face.
fn values(parts: &[Placed<'_>]) -> Vec<f32> {
    let mut all = vec![0.0; parts[0].0.hf_shape().iter().product()];
    for (place, tensor) in parts {
        let first = place.first_row();
        let mut values = vec![0.0; place.rows() * tensor.row_values()];
        for (row, values) in values.chunks_mut(tensor.row_values()).enumerate() {
            tensor.dequantize_row(first + row, values);
        }
        let cols = values.len() / place.shape[0];
        for (row, values) in values.chunks(cols).enumerate() {
            let to = &mut all[place.order.in_hf(row) * cols..][..cols];
            to.iter_mut().zip(values).for_each(|(to, value)| *to = value - place.plus);
        }
    }
    all
}

fn write_values(out: &mut impl Write, values: &[f32], dtype: Dtype) -> io::Result<()> {
    match dtype {
        Dtype::F32 => values.iter().try_for_each(|value| out.write_all(&value.to_le_bytes())),
        _ => values.iter().try_for_each(|value| out.write_all(&f16::from_f32(*value).to_le_bytes())),
    }
}

/// A linear's matrix, whose rows are in one tensor or in several.
fn write_matrix(
    out: &mut impl Write,
    parts: &[Placed<'_>],
    is_transposed: bool,
    refused: &mut Option<GgufError>,
) -> io::Result<()> {
    let (rows, cols) = (parts[0].0.hf_shape()[0], parts[0].1.row_values());
    // For each row, the part that has it, and its number there.
    let mut sources = vec![(&parts[0], 0); rows];
    for part in parts {
        (0..part.0.shape[0]).for_each(|row| sources[part.0.order.in_hf(row)] = (part, row));
    }
    // A matrix that is transposed is one expert's, and taken whole.
    let slab_rows = if is_transposed { rows } else { (SLAB_VALUES / cols.max(1)).max(1) };
    for (slab_idx, slab) in sources.chunks(slab_rows).enumerate() {
        let first = slab_idx * slab_rows;
        let half_row = |(idx, &(part, row)): (usize, &(&Placed<'_>, usize))| half_row(part, row, first + idx);
        match slab.par_iter().enumerate().map(half_row).collect::<Result<Vec<_>, _>>() {
            Ok(slab) if is_transposed => out.write_all(&bytes(&transposed(&slab.concat(), cols)))?,
            Ok(slab) => slab.iter().try_for_each(|row| out.write_all(&bytes(row)))?,
            Err(error) => {
                *refused = Some(error);
                return Err(io::Error::other("a weight was refused"));
            }
        }
    }
    Ok(())
}

fn bytes(halves: &[f16]) -> Vec<u8> {
    halves.iter().flat_map(|half| half.to_le_bytes()).collect()
}

/// One row of a matrix, which is row `in_hf` of the output.
fn half_row((place, tensor): &Placed<'_>, row: usize, in_hf: usize) -> Result<Vec<f16>, GgufError> {
    let mut values = vec![0.0; tensor.row_values()];
    tensor.dequantize_row(place.first_row() + row, &mut values);
    let half = |(col, &value): (usize, &f32)| match f16::from_f32(value) {
        half if half.is_finite() => Ok(half),
        _ => Err(GgufError::OutOfRange { tensor: tensor.name().to_owned(), row: in_hf, col, value }),
    };
    values.iter().enumerate().map(half).collect()
}
