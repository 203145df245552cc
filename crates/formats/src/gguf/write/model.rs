//! Writes a model directory as a GGUF file.

use std::io::Write;
use std::path::{Path, PathBuf};

use half::f16;
use oq_quant_core::{Block, Mixture, MixtureModel, QuantizedTensor, Role, Storage};
use rayon::prelude::*;

use super::file::{self, Fault, Info};
use super::pairs::Pairs;
use super::source::Source;
use super::{config, description, encode, file_type, tokenizer};
use crate::gguf::architecture::Architecture;
use crate::gguf::row_order::RowOrder;
use crate::gguf::shape::{RopeScaling, Shape};
use crate::gguf::tensors::{LONG_FACTORS, Place, ROPE_FACTORS, places};
use crate::gguf::{GgufError, Progress, TensorKind};

/// Values converted at a time, so that memory does not grow with the model.
const SLAB_VALUES: usize = 1 << 22;

/// How [`write_gguf`] writes what leaves a choice.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct WriteOptions {
    /// The types of matrices that are not quantized: embedding and head of a packed model, all matrices of a full-precision model. They
    /// are rounded to nearest. None for f16.
    pub mixture: Option<Mixture>,
    /// Whether, without [`Self::mixture`], embedding and head of a packed model get the types of the mixture with K types that its linears
    /// make up, if they make up one: a file named `Q4_K_M` is then as large as llama.cpp's own.
    pub mixture_of_linears: bool,
    /// Whether zero points may be rounded to f16 minima where that takes a smaller block: Q4_1 (5 bits per weight) instead of Q5_0 (5.5)
    /// for asymmetric 4-bit codes, Q5_1 instead of Q8_0 for 5-bit ones. Values move by less than a hundredth of a step.
    pub near: bool,
    /// `general.name`, and the beginning of a file name that is chosen here. None for the directory's name.
    pub name: Option<String>,
}

impl WriteOptions {
    /// Sets [`Self::mixture`].
    pub fn with_mixture(self, mixture: Mixture) -> Self {
        Self { mixture: Some(mixture), ..self }
    }

    /// Sets [`Self::mixture_of_linears`].
    pub fn with_mixture_of_linears(self, mixture_of_linears: bool) -> Self {
        Self { mixture_of_linears, ..self }
    }

    /// Sets [`Self::near`].
    pub fn with_near(self, near: bool) -> Self {
        Self { near, ..self }
    }

    /// Sets [`Self::name`].
    pub fn with_name(self, name: impl Into<String>) -> Self {
        Self { name: Some(name.into()), ..self }
    }
}

/// A GGUF file that was written.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Written {
    /// The file.
    pub path: PathBuf,
    /// The name of its mixture of types in llama.cpp, such as `Q4_K_M`.
    pub file_type: &'static str,
    /// Number of tensors.
    pub tensors: usize,
    /// Number of weights.
    pub values: usize,
    /// Size of the file.
    pub bytes: u64,
}

/// Where the data of a tensor comes from.
enum Content {
    /// A quantized linear, by its name without `.weight`.
    Packed(String),
    /// A matrix of floats, to be stored in blocks of this type, else as f16.
    Matrix(Option<Block>),
    /// A norm or bias.
    Vector,
    /// Values that the checkpoint does not have.
    Values(Vec<f32>),
}

struct Output {
    place: Place,
    kind: TensorKind,
    content: Content,
}

/// Writes the model in `dir`, packed or in full precision, as a GGUF file for llama.cpp, with its tokenizer. `out` is the file, or a
/// directory in which it is named `NAME-TYPE.gguf`.
///
/// The module names the architectures. Quantized linears keep the value of every weight (but see
/// [`WriteOptions::near`]): each setting has a block type that holds it, or the error names a setting that has one. Norms and biases are
/// f32. Of a Mistral with a sliding window, `context_length` is the window, within which llama.cpp computes the same.
///
/// # Errors
/// When llama.cpp could not run the model, or would run a different one; when a file is missing or broken.
pub fn write_gguf(
    dir: &Path,
    out: &Path,
    options: &WriteOptions,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<Written, GgufError> {
    let mut source = Source::open(dir)?;
    let shape = config::read(source.config(), source.checkpoint())?;
    source.split(&places(&shape))?;
    let tokenizer = tokenizer::metadata(dir, shape.vocab)?;
    let mixture = match options.mixture {
        None if options.mixture_of_linears => mixture_of_linears(&source, &shape)?,
        mixture => mixture,
    };
    let options = &WriteOptions { mixture, ..options.clone() };
    let outputs = plan(&source, &shape, options)?;
    source.check_all_used(&outputs.iter().map(|output| output.place.hf.as_str()).collect())?;

    // The matrices of all experts follow each other.
    let tensors: Vec<&[Output]> = outputs.chunk_by(|a, b| a.place.gguf == b.place.gguf).collect();
    let infos = tensors.iter().map(|parts| info(parts)).collect::<Result<Vec<_>, _>>()?;
    let values = infos.iter().map(|info| info.shape.iter().product::<usize>()).sum();
    let matrices = outputs.iter().filter_map(|output| {
        let role = output.place.role?;
        Some((role, output.place.layer, &output.place.shape[..], output.kind))
    });
    let file_type = file_type::of(mixture_model(&shape), matrices, options.mixture);
    let name = match &options.name {
        Some(name) => name.clone(),
        None => name_of(dir).ok_or_else(|| GgufError::Nameless { dir: dir.to_owned() })?,
    };
    let mut pairs: Pairs = description::general(&shape, &name, dir, values, file_type.id);
    pairs.extend(description::architecture(&shape));
    pairs.extend(tokenizer);

    let path = if out.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf")) {
        out.to_owned()
    } else {
        std::fs::create_dir_all(out).map_err(|source| GgufError::Io { path: out.to_owned(), source })?;
        let stem: String = name.trim().chars().map(|c| if matches!(c, ' ' | '/' | '\\') { '-' } else { c }).collect();
        out.join(format!("{stem}-{}.gguf", file_type.name))
    };
    let bytes = file::write(&path, &pairs, &infos, |idx, out| {
        tensors[idx].iter().try_for_each(|part| write_tensor(&source, part, out))?;
        source.checkpoint().release();
        progress(Progress { tensor: &infos[idx].name, done: idx + 1, total: infos.len() });
        Ok(())
    })?;
    Ok(Written { path, file_type: file_type.name, tensors: infos.len(), values, bytes })
}

/// A tensor of the file: one of the model's, or those of all experts.
fn info(parts: &[Output]) -> Result<Info, GgufError> {
    let Output { place, kind, .. } = &parts[0];
    match parts.iter().find(|part| part.kind != *kind) {
        Some(other) => Err(GgufError::Kinds { tensor: place.gguf.clone(), kinds: [kind.name(), other.kind.name()] }),
        None => Ok(Info { name: place.gguf.clone(), shape: place.gguf_shape(), kind: *kind }),
    }
}

/// The last part of a directory's path.
fn name_of(dir: &Path) -> Option<String> {
    let whole = std::fs::canonicalize(dir).ok()?;
    Some(whole.file_name()?.to_string_lossy().into_owned())
}

fn mixture_model(shape: &Shape) -> MixtureModel {
    MixtureModel {
        layers: shape.layers,
        gqa: shape.heads / shape.kv_heads,
        falcon: shape.architecture == Architecture::Falcon,
        tied: shape.tied,
    }
}

/// The mixture with K types whose rules give all quantized linears the specs that they have.
fn mixture_of_linears(source: &Source, shape: &Shape) -> Result<Option<Mixture>, GgufError> {
    let mut linears = Vec::new();
    for place in places(shape) {
        let stem = place.hf.strip_suffix(".weight").filter(|stem| source.is_quantized(stem));
        if let (Some(stem), Some(role)) = (stem, place.role) {
            let (spec, [_, cols]) = source.quantized(stem)?;
            linears.push((role, place.layer, spec, cols));
        }
    }
    if !linears.iter().any(|(_, _, spec, _)| spec.storage == Storage::Super) {
        return Ok(None);
    }
    let model = mixture_model(shape);
    let explains = |mixture: &Mixture| {
        let spec = |role, layer, cols| mixture.block(model, role, layer, cols).map(Block::spec);
        linears.iter().all(|&(role, layer, found, cols)| spec(role, layer, cols) == Some(found))
    };
    Ok(Mixture::ALL.into_iter().find(explains))
}

/// All tensors with their types. Shapes are checked against the checkpoint.
fn plan(source: &Source, shape: &Shape, options: &WriteOptions) -> Result<Vec<Output>, GgufError> {
    let model = mixture_model(shape);
    let mut outputs = Vec::new();
    for (name, values) in factors(shape) {
        let place = Place {
            gguf: name.to_owned(),
            hf: String::new(),
            shape: vec![values.len()],
            role: None,
            layer: 0,
            order: RowOrder::Plain,
            expert: None,
            plus: 0.0,
            fused: None,
        };
        outputs.push(Output { place, kind: TensorKind::F32, content: Content::Values(values) });
    }
    for place in places(shape) {
        let stem = place.hf.strip_suffix(".weight").filter(|_| place.role.is_some());
        let (kind, content, got) = match (stem.filter(|stem| source.is_quantized(stem)), place.role) {
            (Some(stem), _) => {
                let (spec, got) = source.quantized(stem)?;
                let kind = encode::kind_of(spec, got[1], options.near).ok_or_else(|| GgufError::NoBlock {
                    tensor: stem.to_owned(),
                    spec: spec.to_string(),
                    in_features: got[1],
                    instead: encode::that_would_do(spec, got[1]),
                })?;
                (kind, Content::Packed(stem.to_owned()), got.to_vec())
            }
            (None, Some(role)) => {
                let got = source.shape(&place.hf)?;
                let cols = got.last().copied().unwrap_or(0);
                // Linears that the quantizer left in full precision stay so.
                let is_left_out = source.is_packed() && !matches!(role, Role::Embedding | Role::Head);
                let mixture = options.mixture.filter(|_| !is_left_out);
                let block = mixture.and_then(|mixture| mixture.block(model, role, place.layer, cols));
                let kind = block.map_or(Some(TensorKind::F16), |block| encode::kind_of(block.spec(), cols, false));
                (kind.expect("a block type holds its own grid"), Content::Matrix(block), got)
            }
            (None, None) => (TensorKind::F32, Content::Vector, source.shape(&place.hf)?),
        };
        let expected = place.hf_shape();
        if got != expected {
            return Err(GgufError::Shape { tensor: place.hf, got, expected });
        }
        outputs.push(Output { place, kind, content });
    }
    Ok(outputs)
}

/// Tensors that hold what Hugging Face has in the config.
fn factors(shape: &Shape) -> Vec<(&'static str, Vec<f32>)> {
    let single = |values: &[f64]| values.iter().map(|&value| value as f32).collect();
    match &shape.rope.scaling {
        RopeScaling::Llama3 { factor, rule } => {
            let divisor = |i| rule.divisor(i, shape.head_dim, shape.rope.theta, *factor) as f32;
            vec![(ROPE_FACTORS, (0..shape.head_dim / 2).map(divisor).collect())]
        }
        RopeScaling::Long { short, long, .. } => {
            LONG_FACTORS.into_iter().zip([short, long].map(|factors| single(factors))).collect()
        }
        _ => Vec::new(),
    }
}

fn write_tensor(source: &Source, output: &Output, out: &mut dyn Write) -> Result<(), Fault> {
    let Output { place, kind, content } = output;
    let mut write = |bytes: &[u8]| out.write_all(bytes).map_err(Fault::Io);
    let (rows, cols) = (place.shape[0], place.shape.get(1).copied().unwrap_or(1));
    let slab = (SLAB_VALUES / cols.max(1)).max(1);
    let slabs = || (0..rows).step_by(slab).map(|first| first..rows.min(first + slab));
    match content {
        Content::Values(values) => write(&floats(values)),
        Content::Vector => {
            let values = source.checkpoint().values(&place.hf).map_err(GgufError::from)?;
            // A router's rows stay in order.
            let row = |row: usize| values[row * cols..][..cols].iter().map(|value| value + place.plus);
            let ordered: Vec<f32> = (0..rows).flat_map(|to| row(place.order.in_hf(to))).collect();
            write(&floats(&ordered))
        }
        Content::Packed(stem) => {
            let tensor = source.linear(stem)?;
            slabs().try_for_each(|rows| write(&encode::encode(&tensor, *kind, rows, |row| place.order.in_hf(row))))
        }
        Content::Matrix(block) => slabs().try_for_each(|rows| {
            let values = source.rows(&place.hf, rows.clone().map(|row| place.order.in_hf(row)).collect())?;
            match block {
                None => write(&halves(place, rows.start, cols, &values)?),
                Some(block) => {
                    let tensor = QuantizedTensor::quantize(&values, rows.len(), cols, block.spec());
                    let tensor = tensor.map_err(|why| GgufError::Rounding { tensor: place.hf.clone(), why })?;
                    write(&encode::encode(&tensor, *kind, 0..rows.len(), |row| row))
                }
            }
        }),
    }
}

fn floats(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

/// Rows as f16, the first of them row `first` of the file's.
fn halves(place: &Place, first: usize, cols: usize, values: &[f32]) -> Result<Vec<u8>, GgufError> {
    if let Some(at) = values.par_iter().position_first(|value| !f16::from_f32(*value).is_finite()) {
        let (row, col, value) = (place.order.in_hf(first + at / cols), at % cols, values[at]);
        return Err(GgufError::OutOfRange { tensor: place.hf.clone(), row, col, value });
    }
    Ok(values.par_iter().flat_map_iter(|&value| f16::from_f32(value).to_le_bytes()).collect())
}
