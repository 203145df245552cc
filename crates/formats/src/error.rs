//! Why something on disk could not be read or written.

use std::io;
use std::path::{Path, PathBuf};

use oq_quant_core::TensorError;
use safetensors::Dtype;

#[cfg(feature = "pickle")]
use crate::pickle::PickleFault;

/// Why a checkpoint could not be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FormatError {
    /// The directory has no weights in a supported format.
    #[error(
        "{}: no weights: neither model.safetensors nor pytorch_model.bin is there, nor an index of shards of either{}",
        dir.display(), what.as_ref().map_or(String::new(), |what| format!(": {what}"))
    )]
    NoWeights {
        /// The directory.
        dir: PathBuf,
        /// What it contains instead, if known, and what to do.
        what: Option<String>,
    },
    /// The directory has no `config.json`.
    #[error("{}", no_config(dir, what.as_deref()))]
    NoConfig {
        /// The directory.
        dir: PathBuf,
        /// What it contains instead, if known, and what to do.
        what: Option<String>,
    },
    /// A git-lfs pointer instead of the file.
    #[error("{}: {}", path.display(), crate::LFS_POINTER)]
    LfsPointer {
        /// The file.
        path: PathBuf,
    },
    /// A `tokenizer.model` of an unsupported kind.
    #[error("{}: {why}: convert it to tokenizer.json by transformers (`AutoTokenizer.from_pretrained(..).save_pretrained(..)`)", path.display())]
    SentencePiece {
        /// The file.
        path: PathBuf,
        /// What it is.
        why: String,
    },
    /// A required file is missing.
    #[error("{}: no such file", path.display())]
    MissingFile {
        /// The file.
        path: PathBuf,
    },
    /// The index names a missing shard.
    #[error(
        "{}: no such shard, but {} names it: download the missing file",
        path.display(),
        index.display()
    )]
    MissingShard {
        /// The shard.
        path: PathBuf,
        /// The index that names it.
        index: PathBuf,
    },
    /// The checkpoint has no such tensor.
    #[error("{}: no tensor `{tensor}`", dir.display())]
    MissingTensor {
        /// Name of the tensor.
        tensor: String,
        /// The checkpoint.
        dir: PathBuf,
    },
    /// A file is shorter than its header says.
    #[error("{}: truncated: {needed} bytes needed, {found} found: fetch the file again", path.display())]
    Truncated {
        /// The file.
        path: PathBuf,
        /// Bytes that its header requires.
        needed: u64,
        /// Bytes in the file.
        found: u64,
    },
    /// A header that contradicts itself or the file.
    #[error("{}: {fault}", path.display())]
    Header {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        #[source]
        fault: HeaderFault,
    },
    /// What reads such a file was left out.
    #[error("{}: this program was built without the feature {feature} of oq-formats, which reads such files", path.display())]
    NotBuilt {
        /// The file.
        path: PathBuf,
        /// The feature.
        feature: &'static str,
    },
    /// A file in PyTorch's own format that is not a supported state dict.
    #[cfg(feature = "pickle")]
    #[error("{}: {fault}", path.display())]
    Pickle {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        #[source]
        fault: PickleFault,
    },
    /// The index refers to a file outside of its directory.
    #[error("{}: shard `{shard}` is not a file name: shards lie beside their index", index.display())]
    ShardOutside {
        /// The index.
        index: PathBuf,
        /// What it names.
        shard: String,
    },
    /// The index assigns a tensor to a shard that does not contain it.
    #[error("{}: places `{tensor}` in {shard}, which does not contain it", index.display())]
    NotInShard {
        /// The index.
        index: PathBuf,
        /// Name of the tensor.
        tensor: String,
        /// Name of the shard.
        shard: String,
    },
    /// A file is not the expected JSON.
    #[error("{}: {why}", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// The parser's message.
        why: String,
    },
    /// A tensor that is not of a floating-point type.
    #[error(
        "`{tensor}` is {dtype}: weights must be F16, BF16 or F32: give the model as it was before it was converted"
    )]
    NotFloat {
        /// Name of the tensor.
        tensor: String,
        /// Its type.
        dtype: Dtype,
    },
    /// A tensor with the parts of several others has another number of them.
    #[error("`{tensor}` has shape {shape:?}: {expected} parts are expected")]
    Parts {
        /// Name of the tensor.
        tensor: String,
        /// Its shape.
        shape: Vec<usize>,
        /// Number of parts that the config implies.
        expected: usize,
    },
    /// NaN or infinity among the weights.
    #[error(
        "`{tensor}`: value {index} is {value}: the checkpoint is damaged, or overflowed when it was written; fetch it again"
    )]
    NotFinite {
        /// Name of the tensor.
        tensor: String,
        /// Index in row-major order.
        index: usize,
        /// The value.
        value: f32,
    },
    /// A value that does not fit the type to write.
    #[error("`{tensor}`: value {index} is {value}, beyond {dtype}")]
    OutOfRange {
        /// Name of the tensor.
        tensor: String,
        /// Index in row-major order.
        index: usize,
        /// The value.
        value: f32,
        /// The type to write.
        dtype: Dtype,
    },
    /// The number of values does not match the shape.
    #[error("`{tensor}`: shape {shape:?} of {dtype} needs {needed} bytes, got {got}")]
    WrongLength {
        /// Name of the tensor.
        tensor: String,
        /// Its shape.
        shape: Vec<usize>,
        /// Its type.
        dtype: Dtype,
        /// Bytes that shape and type need.
        needed: usize,
        /// Bytes that were given.
        got: usize,
    },
    /// Two tensors of one file have the same name.
    #[error("{}: two tensors are named `{tensor}`", path.display())]
    TwiceWritten {
        /// The file.
        path: PathBuf,
        /// The name.
        tensor: String,
    },
    /// A packed linear is incomplete or inconsistent.
    #[error("{linear}: {fault}")]
    Packed {
        /// Name of the linear.
        linear: String,
        /// What is wrong.
        #[source]
        fault: PackedFault,
    },
    /// The model was quantized in an unsupported format.
    #[error(
        "quantization method `{method}` is not read, only compressed-tensors, gptq, awq, auto-round, mlx and fp8: give the full-precision original"
    )]
    QuantMethod {
        /// The value of `quant_method`.
        method: String,
    },
    /// An unsupported setting in `quantization_config`.
    #[error("quantization_config: {field} is {got}, expected {expected}")]
    QuantConfig {
        /// Which field.
        field: &'static str,
        /// Its value.
        got: String,
        /// The supported values.
        expected: &'static str,
    },
    /// A packed model was required, but this one is not quantized.
    #[error("{}: its linears have no codes, so this is not a packed model: use --kernels auto, or quantize it first", dir.display())]
    NotPacked {
        /// The model.
        dir: PathBuf,
    },
    /// The output would overwrite the source model.
    #[error("{}: the output is the source: choose another output directory", dir.display())]
    OutputIsSource {
        /// The directory.
        dir: PathBuf,
    },
    /// The disk is full.
    #[error(
        "{}: no space left on the disk for {}: free some and run again, finished files are kept",
        path.display(),
        needed.map_or("it".to_owned(), |bytes| format!("its {bytes} bytes"))
    )]
    NoSpace {
        /// The file that did not fit.
        path: PathBuf,
        /// Its size, if known.
        needed: Option<u64>,
    },
    /// An operating system error.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's message.
        source: io::Error,
    },
}

/// What is wrong with a safetensors header.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HeaderFault {
    /// The header is too long.
    #[error("announces a header of {len} bytes, more than the {limit} that are allowed")]
    TooLong {
        /// Length of the header.
        len: u64,
        /// Longest allowed.
        limit: u64,
    },
    /// The header is not the expected JSON.
    #[error("header is not valid: {why}")]
    Json {
        /// The parser's message.
        why: String,
    },
    /// The entry of a tensor is invalid.
    #[error("tensor `{tensor}` has an invalid description: {why}")]
    Entry {
        /// Name of the tensor.
        tensor: String,
        /// The parser's message.
        why: String,
    },
    /// Tensors overlap, leave a gap, or end before they begin.
    #[error("tensor `{tensor}` lies at bytes {start}..{end}, but should start at {expected}")]
    Offsets {
        /// Name of the tensor.
        tensor: String,
        /// First byte.
        start: usize,
        /// One past its last byte.
        end: usize,
        /// End of the previous tensor.
        expected: usize,
    },
    /// The shape has more elements than can be addressed.
    #[error("tensor `{tensor}`: shape {shape:?} overflows")]
    Overflow {
        /// Name of the tensor.
        tensor: String,
        /// Its shape.
        shape: Vec<usize>,
    },
    /// Elements of less than a byte do not fill the last byte, which the format does not allow.
    #[error("tensor `{tensor}`: shape {shape:?} of {dtype} ends within a byte")]
    PartialByte {
        /// Name of the tensor.
        tensor: String,
        /// Its shape.
        shape: Vec<usize>,
        /// Its type.
        dtype: Dtype,
    },
    /// Shape and offsets do not match.
    #[error("tensor `{tensor}`: shape {shape:?} of {dtype} needs {needed} bytes, its offsets span {got}")]
    Size {
        /// Name of the tensor.
        tensor: String,
        /// Its shape.
        shape: Vec<usize>,
        /// Its type.
        dtype: Dtype,
        /// Bytes that shape and type need.
        needed: usize,
        /// Bytes that the offsets span.
        got: usize,
    },
    /// Data after the last tensor.
    #[error("{extra} bytes follow the last tensor")]
    Trailing {
        /// Number of extra bytes.
        extra: u64,
    },
}

/// What is wrong with a packed linear.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum PackedFault {
    /// No group of the config covers it.
    #[error("no group of quantization_config has it among its targets")]
    NoGroup,
    /// It has a weight instead of codes.
    #[error("its weight has no codes: it is a plain weight, or scales and zero points are none that codes have here")]
    Dense,
    /// A tensor is missing.
    #[error("{part} is missing")]
    Missing {
        /// Which tensor.
        part: &'static str,
    },
    /// A tensor has the wrong type.
    #[error("{part} is {got}, expected {expected}")]
    PartType {
        /// Which tensor.
        part: &'static str,
        /// Its type.
        got: Dtype,
        /// The expected type.
        expected: &'static str,
    },
    /// A tensor has the wrong shape.
    #[error("{part} is {got:?}, expected {expected:?}")]
    PartShape {
        /// Which tensor.
        part: &'static str,
        /// Its shape.
        got: Vec<usize>,
        /// The expected shape.
        expected: Vec<usize>,
    },
    /// A tensor that is not a matrix.
    #[error("{part} is {got:?}, expected a matrix")]
    NoMatrix {
        /// Which tensor.
        part: &'static str,
        /// Its shape.
        got: Vec<usize>,
    },
    /// NaN or infinity.
    #[error("{part}: value {index} is {value}")]
    NoNumber {
        /// Which tensor.
        part: &'static str,
        /// Index in row-major order.
        index: usize,
        /// The value.
        value: f32,
    },
    /// An input channel belongs to a group that does not exist.
    #[error("g_idx: channel {index} is in group {value} of {groups}")]
    NoSuchGroup {
        /// Which channel.
        index: usize,
        /// Its group.
        value: i64,
        /// Number of groups.
        groups: usize,
    },
    /// A byte that is no code of so many bits.
    #[error("weight [{row}, {col}] is {value}, which has more than {bits} bits")]
    NoCode {
        /// Output channel.
        row: usize,
        /// Input channel.
        col: usize,
        /// The byte.
        value: i8,
        /// Bits of a code.
        bits: u32,
    },
    /// `weight_shape` is not a valid shape.
    #[error("weight_shape says [{rows}, {cols}]")]
    BadShape {
        /// First number.
        rows: i64,
        /// Second number.
        cols: i64,
    },
    /// A scale that f16 cannot represent.
    #[error("weight_scale: value {index} is {value}, which f16 does not hold exactly")]
    InexactScale {
        /// Index in row-major order.
        index: usize,
        /// The value.
        value: f32,
    },
    /// The parts do not form a valid quantized matrix.
    #[error(transparent)]
    Tensor(#[from] TensorError),
}

fn no_config(dir: &Path, what: Option<&str>) -> String {
    match what {
        Some(what) => format!("{}: no config.json here: {what}", dir.display()),
        None => format!("{}: no such file: not a model's folder", dir.join("config.json").display()),
    }
}

impl FormatError {
    /// A failed read; distinguishes a missing file from other errors.
    pub(crate) fn reading(path: &Path, source: io::Error) -> Self {
        match source.kind() {
            io::ErrorKind::NotFound => Self::MissingFile { path: path.to_owned() },
            _ => Self::Io { path: path.to_owned(), source },
        }
    }

    /// A failed write of a file of `needed` bytes; distinguishes a full disk from other errors.
    pub(crate) fn writing(path: &Path, needed: Option<u64>, source: io::Error) -> Self {
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                Self::NoSpace { path: path.to_owned(), needed }
            }
            _ => Self::Io { path: path.to_owned(), source },
        }
    }

    pub(crate) fn packed(linear: &str, fault: impl Into<PackedFault>) -> Self {
        Self::Packed { linear: linear.to_owned(), fault: fault.into() }
    }
}
