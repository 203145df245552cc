//! Why something on disk was not read or not written.

use std::io;
use std::path::{Path, PathBuf};

use oq_quant_core::TensorError;
use safetensors::Dtype;

use crate::pickle::PickleFault;

/// Why a checkpoint was not read or not written.
#[derive(Debug, thiserror::Error)]
pub enum FormatError {
    /// The directory holds no weights that can be read.
    #[error(
        "{}: no weights: neither model.safetensors nor pytorch_model.bin is there, nor an index of shards of either{}",
        dir.display(), what.as_ref().map_or(String::new(), |what| format!(": {what}"))
    )]
    NoWeights {
        /// Where was looked.
        dir: PathBuf,
        /// What lies there instead, where that is known, and what to do.
        what: Option<String>,
    },
    /// The directory has no `config.json`.
    #[error("{}", no_config(dir, what.as_deref()))]
    NoConfig {
        /// The directory.
        dir: PathBuf,
        /// What lies there instead, where that is known, and what to do.
        what: Option<String>,
    },
    /// A text that git-lfs left in place of the file.
    #[error("{}: {}", path.display(), crate::LFS_POINTER)]
    LfsPointer {
        /// The file.
        path: PathBuf,
    },
    /// A `tokenizer.model` is not of the kind that is read.
    #[error("{}: {why}: convert it to tokenizer.json by transformers (`AutoTokenizer.from_pretrained(..).save_pretrained(..)`)", path.display())]
    SentencePiece {
        /// The file.
        path: PathBuf,
        /// What it is.
        why: String,
    },
    /// A file that has to be there is not.
    #[error("{}: no such file", path.display())]
    MissingFile {
        /// The file.
        path: PathBuf,
    },
    /// The index names a shard that is not there.
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
    /// A file ends before its data does.
    #[error("{}: truncated: {needed} bytes needed, {found} found: fetch the file again", path.display())]
    Truncated {
        /// The file.
        path: PathBuf,
        /// Bytes that its header announces.
        needed: u64,
        /// Bytes that are there.
        found: u64,
    },
    /// A file's header contradicts itself or the file.
    #[error("{}: {fault}", path.display())]
    Header {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        #[source]
        fault: HeaderFault,
    },
    /// A file of PyTorch's own format is not what is read of it.
    #[error("{}: {fault}", path.display())]
    Pickle {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        #[source]
        fault: PickleFault,
    },
    /// The index points out of its directory.
    #[error("{}: shard `{shard}` is not a file name: shards lie beside their index", index.display())]
    ShardOutside {
        /// The index.
        index: PathBuf,
        /// What it names.
        shard: String,
    },
    /// The index places a tensor in a shard that does not hold it.
    #[error("{}: places `{tensor}` in {shard}, which does not hold it", index.display())]
    NotInShard {
        /// The index.
        index: PathBuf,
        /// Name of the tensor.
        tensor: String,
        /// Name of the shard.
        shard: String,
    },
    /// A file is not the JSON that it should be.
    #[error("{}: {why}", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// What the parser says.
        why: String,
    },
    /// Numbers were asked for, but the tensor holds something else.
    #[error(
        "`{tensor}` is {dtype}: weights are read from F16, BF16 and F32: give the model as it was before it was converted"
    )]
    NotFloat {
        /// Name of the tensor.
        tensor: String,
        /// What it holds.
        dtype: Dtype,
    },
    /// NaN or infinity among the weights.
    #[error(
        "`{tensor}`: value {index} is {value}: the checkpoint is damaged, or overflowed when it was written; fetch it again"
    )]
    NotFinite {
        /// Name of the tensor.
        tensor: String,
        /// Place in row-major order.
        index: usize,
        /// What stands there.
        value: f32,
    },
    /// A value does not fit the type it should be written in.
    #[error("`{tensor}`: value {index} is {value}, beyond {dtype}")]
    OutOfRange {
        /// Name of the tensor.
        tensor: String,
        /// Place in row-major order.
        index: usize,
        /// What stands there.
        value: f32,
        /// Type it should be written in.
        dtype: Dtype,
    },
    /// A tensor to be written has too few or too many values for its shape.
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
    /// Two tensors of one file share a name.
    #[error("{}: two tensors are named `{tensor}`", path.display())]
    TwiceWritten {
        /// The file.
        path: PathBuf,
        /// The name.
        tensor: String,
    },
    /// A packed linear is incomplete or its parts disagree.
    #[error("{linear}: {fault}")]
    Packed {
        /// Name of the linear.
        linear: String,
        /// What is wrong.
        #[source]
        fault: PackedFault,
    },
    /// The model was quantized by something that is not read here.
    #[error(
        "quantization method `{method}` is not read, only compressed-tensors (pack-quantized): give the full-precision original"
    )]
    QuantMethod {
        /// What `quant_method` says.
        method: String,
    },
    /// `quantization_config` asks for something that is not done here.
    #[error("quantization_config: {field} is {got}, expected {expected}")]
    QuantConfig {
        /// Which field.
        field: &'static str,
        /// What it says.
        got: String,
        /// What it may say.
        expected: &'static str,
    },
    /// A model that is not quantized, where a packed one is needed.
    #[error("{}: config.json has no quantization_config: this is not a packed model: say --kernels auto, or quantize it first", dir.display())]
    NotPacked {
        /// The model.
        dir: PathBuf,
    },
    /// The output would overwrite the model that it is made from.
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
        /// Its size, where known.
        needed: Option<u64>,
    },
    /// The operating system refused.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What it says.
        source: io::Error,
    },
}

/// What is wrong with a safetensors header.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeaderFault {
    /// The announced length is absurd.
    #[error("announces a header of {len} bytes, more than the {limit} that are allowed")]
    TooLong {
        /// Announced length.
        len: u64,
        /// Longest allowed.
        limit: u64,
    },
    /// Not the JSON it should be.
    #[error("header is not valid: {why}")]
    Json {
        /// What the parser says.
        why: String,
    },
    /// One tensor is not described as it should be.
    #[error("tensor `{tensor}` is described wrongly: {why}")]
    Entry {
        /// Name of the tensor.
        tensor: String,
        /// What the parser says.
        why: String,
    },
    /// Tensors overlap, leave a hole or end before they start.
    #[error("tensor `{tensor}` lies at bytes {start}..{end}, but should start at {expected}")]
    Offsets {
        /// Name of the tensor.
        tensor: String,
        /// First byte.
        start: usize,
        /// One past its last byte.
        end: usize,
        /// Where the tensor before it ends.
        expected: usize,
    },
    /// The shape has more elements than a machine can address.
    #[error("tensor `{tensor}`: shape {shape:?} overflows")]
    Overflow {
        /// Name of the tensor.
        tensor: String,
        /// Its shape.
        shape: Vec<usize>,
    },
    /// Elements of less than a byte do not fill the last one, which the format does not allow.
    #[error("tensor `{tensor}`: shape {shape:?} of {dtype} ends within a byte")]
    PartialByte {
        /// Name of the tensor.
        tensor: String,
        /// Its shape.
        shape: Vec<usize>,
        /// Its type.
        dtype: Dtype,
    },
    /// Shape and offsets disagree.
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
    /// The file goes on after its last tensor.
    #[error("{extra} bytes follow the last tensor")]
    Trailing {
        /// How many.
        extra: u64,
    },
}

/// What is wrong with a packed linear.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum PackedFault {
    /// Nothing says how it is quantized.
    #[error("no group of quantization_config has it among its targets")]
    NoGroup,
    /// It has a weight and no codes.
    #[error("is not quantized: models that are quantized in part are not read")]
    Dense,
    /// A tensor is not there.
    #[error("{part} is missing")]
    Missing {
        /// Which tensor.
        part: &'static str,
    },
    /// A tensor is of another type.
    #[error("{part} is {got}, expected {expected}")]
    PartType {
        /// Which tensor.
        part: &'static str,
        /// Its type.
        got: Dtype,
        /// What it should be.
        expected: &'static str,
    },
    /// A tensor is of another shape.
    #[error("{part} is {got:?}, expected {expected:?}")]
    PartShape {
        /// Which tensor.
        part: &'static str,
        /// Its shape.
        got: Vec<usize>,
        /// What it should be.
        expected: Vec<usize>,
    },
    /// `weight_shape` holds something that is not a shape.
    #[error("weight_shape says [{rows}, {cols}]")]
    BadShape {
        /// First number.
        rows: i64,
        /// Second number.
        cols: i64,
    },
    /// A scale has more digits than f16 keeps.
    #[error("weight_scale: value {index} is {value}, which f16 does not hold exactly")]
    InexactScale {
        /// Place in row-major order.
        index: usize,
        /// What stands there.
        value: f32,
    },
    /// The parts do not make a quantized matrix.
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
    /// A failed read: an absent file is told from other refusals.
    pub(crate) fn reading(path: &Path, source: io::Error) -> Self {
        match source.kind() {
            io::ErrorKind::NotFound => Self::MissingFile { path: path.to_owned() },
            _ => Self::Io { path: path.to_owned(), source },
        }
    }

    /// A failed write of a file of `needed` bytes: a full disk is told from other refusals.
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
