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
use crate::header;

/// Values dequantized at a time: 8 MB of f16, so that memory does not grow with the model.
const SLAB_VALUES: usize = 1 << 22;

/// A tensor to convert.
type Placed<'a> = (Place, Tensor<'a>);

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
/// The module names the architectures. Of a split model `gguf` is the first file. Matrices are dequantized in f32 and rounded to f16. Vectors (norms) are f16 if that is
/// exact, else f32. This takes some megabytes of memory, whatever the model's size.
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
    let placed = from_metadata::find_all(&file, &shape)?;
    let tokenizer = Tokenizer::read(file.metadata(), shape.vocab)?;
    let tokenizer_json = tokenizer.json()?;

    fs::create_dir_all(out_dir).map_err(|source| GgufError::Io { path: out_dir.to_owned(), source })?;
    let write = |name: &str, json: &Json| {
        let text = format!("{json:#}\n");
        atomic_write(&out_dir.join(name), text.as_bytes()).map_err(GgufError::from)
    };
    let weight_bytes = write_weights(&out_dir.join("model.safetensors"), &placed, progress)?;
    write("tokenizer.json", &tokenizer_json)?;
    write("tokenizer_config.json", &tokenizer.config(shape.context))?;
    write("generation_config.json", &tokenizer.generation_config())?;
    write("config.json", &hf_config::config(&shape, &tokenizer.ids()))?;
    Ok(Converted {
        dir: out_dir.to_owned(),
        tensors: placed.len(),
        values: placed.iter().map(|(place, _)| place.values()).sum(),
        weight_bytes,
    })
}

/// Streams the tensors to a safetensors file and returns its size.
fn write_weights(path: &Path, placed: &[Placed<'_>], progress: &mut dyn FnMut(Progress<'_>)) -> Result<u64, GgufError> {
    let mut outputs: Vec<_> = placed.iter().map(|placed| (placed, output_dtype(placed))).collect();
    // Readers expect every tensor to be aligned to its type, so the wider type comes first. The sort is stable.
    outputs.sort_by_key(|&(_, dtype)| dtype != Dtype::F32);

    let bytes_of = |(place, _): &Placed<'_>, dtype: Dtype| place.values() * dtype.bitsize() / 8;
    let entries = outputs
        .iter()
        .map(|&(placed, dtype)| (placed.0.hf.clone(), dtype, placed.0.shape.clone(), bytes_of(placed, dtype)));
    let header = header::encode(entries).expect("offsets follow each other by construction");
    let data: usize = outputs.iter().map(|&(placed, dtype)| bytes_of(placed, dtype)).sum();

    // Blocks of zeros are no weights: the data is missing.
    let is_lost = |placed: &&Placed<'_>| placed.0.role.is_some() && placed.1.bytes().iter().all(|&b| b == 0);
    if let Some(placed) = placed.iter().find(is_lost) {
        let (tensor, kind) = (placed.1.name().to_owned(), placed.1.kind().name());
        return Err(GgufError::Zeros { tensor, kind });
    }
    // The writer's errors are io::Error; a refused weight is passed beside it.
    let mut refused = None;
    let written = atomic_write_with(path, |out| {
        out.write_all(&header)?;
        for (i, &(placed, dtype)) in outputs.iter().enumerate() {
            write_tensor(out, placed, dtype, &mut refused)?;
            progress(Progress { tensor: &placed.0.hf, done: i + 1, total: outputs.len() });
        }
        Ok(())
    });
    match refused {
        Some(error) => Err(error),
        None => written.map(|()| (header.len() + data) as u64).map_err(GgufError::from),
    }
}

/// f16, or f32 for a vector or router that f16 would change, such as a norm with more digits. They are too small to be worth rounding.
fn output_dtype(placed: &Placed<'_>) -> Dtype {
    let exact = |value: &f32| f16::from_f32(*value).to_f32() == *value;
    if placed.0.role.is_some() || values(placed).iter().all(exact) { Dtype::F16 } else { Dtype::F32 }
}

/// A tensor that is no linear's matrix, in the order of Hugging Face.
fn values((place, tensor): &Placed<'_>) -> Vec<f32> {
    let values = tensor.dequantize();
    let rows = if place.shape.len() == 1 { values.len() } else { 0 };
    let ordered = (0..rows).map(|row| values[place.order.in_gguf(row)]).chain(values[rows..].iter().copied());
    ordered.map(|value| value - place.plus).collect()
}

fn write_tensor(
    out: &mut impl Write,
    placed: &Placed<'_>,
    dtype: Dtype,
    refused: &mut Option<GgufError>,
) -> io::Result<()> {
    let (place, tensor) = placed;
    if place.role.is_none() {
        let values = values(placed).into_iter();
        return match dtype {
            Dtype::F32 => values.map(f32::to_le_bytes).try_for_each(|bytes| out.write_all(&bytes)),
            _ => values.map(|value| f16::from_f32(value).to_le_bytes()).try_for_each(|bytes| out.write_all(&bytes)),
        };
    }
    let (rows, cols) = (place.shape[0], tensor.row_values());
    let slab_rows = (SLAB_VALUES / cols.max(1)).max(1);
    for first in (0..rows).step_by(slab_rows) {
        let slab = (first..rows.min(first + slab_rows)).into_par_iter().map(|row| half_row(placed, row));
        match slab.collect::<Result<Vec<_>, _>>() {
            Ok(slab) => slab.iter().try_for_each(|row| out.write_all(row))?,
            Err(error) => {
                *refused = Some(error);
                return Err(io::Error::other("a weight was refused"));
            }
        }
    }
    Ok(())
}

/// One row of the output, as bytes of f16.
fn half_row((place, tensor): &Placed<'_>, row: usize) -> Result<Vec<u8>, GgufError> {
    let mut values = vec![0.0; tensor.row_values()];
    tensor.dequantize_row(place.row_in_gguf(row), &mut values);
    let mut bytes = Vec::with_capacity(2 * values.len());
    for (col, &value) in values.iter().enumerate() {
        let half = f16::from_f32(value);
        if !half.is_finite() {
            return Err(GgufError::OutOfRange { tensor: tensor.name().to_owned(), row, col, value });
        }
        bytes.extend(half.to_le_bytes());
    }
    Ok(bytes)
}
