//! Writes an export: shard by shard, one linear in memory at a time.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use oq_formats::gguf::{WriteOptions, write_gguf};
use oq_formats::{
    Checkpoint, Dtype, FormatError, OutTensor, PackedCheckpoint, TensorPlan, atomic_write, copy_side_files,
    remove_file, remove_leftovers, shard_name, write_index, write_json, write_planned,
};
use oq_quant_core::{QuantSpec, QuantizedTensor};
use serde::Serialize;
use serde_json::Value;

use crate::error::ExportError;
use crate::format::{Container, Format, Layout, Part, Tensors};
use crate::refusal::check;
use crate::subject::Subject;

/// Lies in a directory while its export is unfinished.
const MARK: &str = ".omniquant-export";
/// The only shard of a small model.
const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
const CONFIG: &str = "config.json";
/// The part that every linear has in this program's layout.
const CODES: &str = "weight_packed";

/// Settings of [`export`].
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Options {
    /// Most bytes of tensors in a file, unless a single linear or tensor has more.
    pub shard_bytes: u64,
}

impl Default for Options {
    /// Files of at most 4 GB.
    fn default() -> Self {
        Self { shard_bytes: 4_000_000_000 }
    }
}

impl Options {
    /// Sets the most bytes of tensors in a file.
    pub fn with_shard_bytes(self, shard_bytes: u64) -> Self {
        Self { shard_bytes, ..self }
    }
}

/// Progress of an export.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Progress<'a> {
    /// The tensor that is being written.
    pub tensor: &'a str,
    /// Bytes of the tensors before it; their number, if the format is a GGUF file.
    pub done: u64,
    /// The same of all tensors.
    pub total: u64,
}

/// What [`export`] wrote.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Exported {
    /// The format.
    pub format: &'static str,
    /// The directory.
    pub dir: PathBuf,
    /// Number of tensors.
    pub tensors: usize,
    /// Number of files with tensors.
    pub shards: usize,
    /// Bytes of all tensors; of the file, if it is a GGUF file.
    pub bytes: u64,
}

/// Writes `model` in `format` to the directory `out`: shards, index, tokenizer, and at last `config.json`, or else a GGUF file. Every file is written atomically.
/// An unfinished export in `out` is started again.
///
/// # Errors
/// [`ExportError::Refused`] when the format cannot hold the model, [`ExportError::Used`] when `out` holds something else, both before anything
/// is written; then those of reading the model and of writing files.
pub fn export(
    model: &PackedCheckpoint,
    format: &Format,
    out: &Path,
    options: &Options,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<Exported, ExportError> {
    check(format, &Subject::of(model)?)?;
    match &format.container {
        Container::Directory(layout) => write_directory(model, (format.name, layout), out, options, progress),
        Container::Gguf => write_file(model, format.name, out, progress),
    }
}

/// Writes a GGUF file, named after the packed model and its types.
fn write_file(
    model: &PackedCheckpoint,
    format: &'static str,
    out: &Path,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<Exported, ExportError> {
    begin(out)?;
    let options = WriteOptions::default().with_mixture_of_linears(true);
    let written = write_gguf(model.checkpoint().dir(), out, &options, &mut |at| {
        progress(Progress { tensor: at.tensor, done: at.done as u64, total: at.total as u64 });
    })?;
    remove_file(&out.join(MARK))?;
    Ok(Exported { format, dir: out.to_owned(), tensors: written.tensors, shards: 1, bytes: written.bytes })
}

fn write_directory(
    model: &PackedCheckpoint,
    (format, layout): (&'static str, &Layout),
    out: &Path,
    options: &Options,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<Exported, ExportError> {
    let units = units(model, format, layout)?;
    let total = units.iter().map(Unit::bytes).sum();
    begin(out)?;
    let shards = shards(&units, options.shard_bytes);
    let names: Vec<String> = match shards.len() {
        1 => vec![SINGLE.to_owned()],
        n => (0..n).map(|shard_idx| shard_name(shard_idx, n)).collect(),
    };
    let mut done = 0;
    for (name, units) in names.iter().zip(shards) {
        write_units(model, units, &out.join(name), &mut |tensor, bytes| {
            progress(Progress { tensor, done, total });
            done += bytes;
        })?;
    }
    if names.len() > 1 {
        write_index(out, &names)?;
    }
    copy_side_files(model.checkpoint().dir(), out)?;
    write_json(&out.join(CONFIG), &config(model, layout))?;
    remove_file(&out.join(MARK))?;
    let tensors = units.iter().map(|unit| unit.tensors.len()).sum();
    Ok(Exported { format, dir: out.to_owned(), tensors, shards: names.len(), bytes: total })
}

/// Whether an export can be written to the directory: it is missing, empty, or has an unfinished export.
///
/// # Errors
/// [`ExportError::Used`] otherwise.
pub fn check_directory(out: &Path) -> Result<(), ExportError> {
    let names = names_in(out)?;
    if names.is_empty() || names.iter().any(|name| name == MARK) {
        return Ok(());
    }
    Err(ExportError::Used { dir: out.to_owned() })
}

/// Names of the files in a directory; none if there is no such directory.
fn names_in(dir: &Path) -> Result<Vec<OsString>, FormatError> {
    let failed = |source| FormatError::Io { path: dir.to_owned(), source };
    match fs::read_dir(dir) {
        Ok(entries) => entries.map(|entry| Ok(entry.map_err(failed)?.file_name())).collect(),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(failed(error)),
    }
}

/// Prepares the directory, and removes the files of an unfinished export.
fn begin(out: &Path) -> Result<(), ExportError> {
    check_directory(out)?;
    let names = names_in(out)?;
    fs::create_dir_all(out).map_err(|source| FormatError::Io { path: out.to_owned(), source })?;
    remove_leftovers(out)?;
    atomic_write(&out.join(MARK), b"This export is unfinished.\n")?;
    for name in names.iter().filter_map(|name| name.to_str()) {
        if name.ends_with(".safetensors") || name.ends_with(".gguf") || [INDEX, CONFIG].contains(&name) {
            remove_file(&out.join(name))?;
        }
    }
    Ok(())
}

/// What is written to one file: the tensors of a linear, or another tensor.
struct Unit<'a> {
    /// Name of the linear or of the tensor.
    name: &'a str,
    /// Each with what it is made from.
    tensors: Vec<(TensorPlan, Source)>,
}

#[derive(Clone, Copy)]
enum Source {
    /// The tensor of that name, converted if types differ.
    Tensor,
    /// The linear of that name.
    Linear(fn(&QuantizedTensor) -> Result<Vec<u8>, String>),
}

impl Unit<'_> {
    fn bytes(&self) -> u64 {
        self.tensors.iter().map(|(plan, _)| plan.bytes() as u64).sum()
    }
}

/// All tensors of the export, in the order of their names.
fn units<'a>(model: &'a PackedCheckpoint, format: &str, layout: &Layout) -> Result<Vec<Unit<'a>>, ExportError> {
    let checkpoint = model.checkpoint();
    // A model that computes in f32 may need its range.
    let others = layout.others.filter(|_| dtype(model.config()) != Some("float32"));
    let (mut units, mut seen) = (Vec::new(), BTreeSet::new());
    for name in checkpoint.names() {
        let Some(linear) = model.linear_of(name) else {
            units.push(Unit { name, tensors: vec![(converted(checkpoint, name, others)?, Source::Tensor)] });
            continue;
        };
        let spec = QuantSpec::uniform(model.weight(linear)?, model.quantization().act());
        // Whether this program's layout has it, where the codes come neither first nor last.
        let codes = format!("{linear}.{CODES}");
        let is_ours = checkpoint.contains(&codes);
        let is_turn = if is_ours { name == codes } else { seen.insert(linear) };
        match (layout.tensors)(spec, model.linear_shape(linear)?) {
            Tensors::AsPacked if !is_ours => {
                let why = format!("{format} holds what this program packed, and this is {}", model.method());
                return Err(ExportError::Linear { linear: linear.to_owned(), why });
            }
            Tensors::AsPacked => {
                units.push(Unit { name, tensors: vec![(converted(checkpoint, name, None)?, Source::Tensor)] });
            }
            Tensors::Parts(parts) if is_turn => {
                let made = |part: Part| {
                    let name = format!("{linear}.{}", part.name);
                    (TensorPlan { name, dtype: part.dtype, shape: part.shape }, Source::Linear(part.fill))
                };
                units.push(Unit { name: linear, tensors: parts.into_iter().map(made).collect() });
            }
            Tensors::Parts(_) => {}
        }
    }
    Ok(units)
}

/// A tensor of the packed model, of another type if one is asked for and it has a type of floating point.
fn converted(checkpoint: &Checkpoint, name: &str, dtype: Option<Dtype>) -> Result<TensorPlan, FormatError> {
    let view = checkpoint.tensor(name)?;
    let is_float = matches!(view.dtype, Dtype::F16 | Dtype::BF16 | Dtype::F32);
    let dtype = dtype.filter(|_| is_float).unwrap_or(view.dtype);
    Ok(TensorPlan { name: name.to_owned(), dtype, shape: view.shape.to_vec() })
}

/// The units of each file.
fn shards<'a, 'b>(units: &'b [Unit<'a>], most: u64) -> Vec<&'b [Unit<'a>]> {
    let (mut shards, mut rest, mut bytes) = (Vec::new(), units, 0);
    for (idx, unit) in units.iter().enumerate() {
        let begun = idx - (units.len() - rest.len());
        if begun > 0 && bytes + unit.bytes() > most {
            let (shard, after) = rest.split_at(begun);
            shards.push(shard);
            (rest, bytes) = (after, 0);
        }
        bytes += unit.bytes();
    }
    shards.push(rest);
    shards
}

/// Writes one file; `before` is called with each tensor's name and size before it is made.
fn write_units(
    model: &PackedCheckpoint,
    units: &[Unit<'_>],
    path: &Path,
    before: &mut dyn FnMut(&str, u64),
) -> Result<(), ExportError> {
    let checkpoint = model.checkpoint();
    let tensors: Vec<_> = units.iter().flat_map(|unit| unit.tensors.iter().map(|tensor| (unit.name, tensor))).collect();
    let plans: Vec<TensorPlan> = tensors.iter().map(|(_, (plan, _))| plan.clone()).collect();
    // Parts of a linear that have types of one width come one after the other.
    let mut last: Option<(&str, QuantizedTensor)> = None;
    write_planned(path, &plans, |index| {
        let (name, (plan, source)) = tensors[index];
        before(&plan.name, plan.bytes() as u64);
        match source {
            Source::Tensor if checkpoint.tensor(name)?.dtype == plan.dtype => {
                Ok(OutTensor::copy_from(checkpoint, name)?)
            }
            Source::Tensor => {
                let tensor = OutTensor::from_f32(name, &plan.shape, &checkpoint.values(name)?, plan.dtype)?;
                checkpoint.release();
                Ok(tensor)
            }
            Source::Linear(fill) => {
                if last.as_ref().is_none_or(|(linear, _)| *linear != name) {
                    let codes = model.linear(name)?;
                    checkpoint.release();
                    let (made, said) = (codes.spec(), model.weight(name)?);
                    if made != said {
                        let why = format!("its codes are {made}, and config.json says {said}");
                        return Err(ExportError::Linear { linear: name.to_owned(), why });
                    }
                    last = Some((name, codes));
                }
                let (linear, tensor) = last.as_ref().expect("it was read above");
                let bytes = fill(tensor).map_err(|why| ExportError::Linear { linear: (*linear).to_owned(), why })?;
                Ok(OutTensor::new(&plan.name, plan.dtype, &plan.shape, bytes)?)
            }
        }
    })
}

/// The export's `config.json`.
fn config(model: &PackedCheckpoint, layout: &Layout) -> Value {
    let mut config = model.config().clone();
    if let Some(config) = config.as_object_mut() {
        for key in ["quantization_config", "quantization"] {
            config.shift_remove(key);
        }
    }
    (layout.configure)(model, &mut config);
    config
}

/// The type in which a model computes, according to its config.
fn dtype(config: &Value) -> Option<&str> {
    ["dtype", "torch_dtype"].into_iter().find_map(|key| config.get(key)?.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unit(name: &str, bytes: usize) -> Unit<'_> {
        let plan = TensorPlan { name: name.to_owned(), dtype: Dtype::I8, shape: vec![bytes] };
        Unit { name, tensors: vec![(plan, Source::Tensor)] }
    }

    #[track_caller]
    fn check(sizes: &[usize], most: u64, expected: &[usize]) {
        let units: Vec<Unit<'_>> = sizes.iter().map(|&bytes| unit("w", bytes)).collect();
        let lens: Vec<usize> = shards(&units, most).iter().map(|shard| shard.len()).collect();
        assert_eq!(lens, expected);
    }

    #[test]
    fn files_are_as_full_as_they_may_be() {
        check(&[3, 3, 3], 9, &[3]);
        check(&[3, 3, 3], 8, &[2, 1]);
        check(&[1, 20, 1, 1], 8, &[1, 1, 2]);
        check(&[20, 1], 8, &[1, 1]);
        check(&[], 8, &[0]);
    }
}
