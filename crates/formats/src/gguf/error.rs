//! Why a GGUF file could not be read, converted or written.

use std::io;
use std::path::PathBuf;

use crate::FormatError;

/// Why a GGUF file could not be read, converted or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GgufError {
    /// An operating system error.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's message.
        source: io::Error,
    },
    /// A file of a model directory could not be read, or a file of the output not be written.
    #[error(transparent)]
    Write(#[from] FormatError),
    /// A git-lfs pointer instead of the file.
    #[error("{}: {}", path.display(), crate::LFS_POINTER)]
    LfsPointer {
        /// The file.
        path: PathBuf,
    },
    /// The file is not a GGUF file.
    #[error("not a GGUF file: it begins with bytes {magic:02x?} instead of \"GGUF\"")]
    NotGguf {
        /// Its first bytes, at most four.
        magic: Vec<u8>,
    },
    /// An unsupported version.
    #[error(
        "GGUF version {version}: little-endian versions 2 and 3 are read; convert the model again with a current program"
    )]
    Version {
        /// The file's version.
        version: u32,
    },
    /// A later file of a split model, or one with another name.
    #[error("{}: a part of a model in several files: give the first, whose name ends in `{ending}`", path.display())]
    NotFirstPart {
        /// The file.
        path: PathBuf,
        /// How the first part's name ends.
        ending: String,
    },
    /// A file whose name is that of a part of a split model, and that is not that part.
    #[error("{}: not the part of the model that its name says: fetch it again", path.display())]
    OtherSplit {
        /// The file.
        path: PathBuf,
    },
    /// The file is truncated.
    #[error("{what} at byte {at}: {needed} bytes needed, {left} left: the file is truncated, fetch it again")]
    Truncated {
        /// What was being read.
        what: &'static str,
        /// Its offset.
        at: usize,
        /// Bytes it needs.
        needed: u64,
        /// Bytes left.
        left: usize,
    },
    /// A count that the rest of the file cannot hold.
    #[error("{what} at byte {at}: a count of {count}, but {left} bytes hold at most {limit}: the file is damaged")]
    Count {
        /// What is counted.
        what: &'static str,
        /// Offset after the count.
        at: usize,
        /// The count.
        count: u64,
        /// Bytes left.
        left: usize,
        /// Maximum number of items that these bytes can hold.
        limit: usize,
    },
    /// Text that is not UTF-8.
    #[error("{what} at byte {at}: not UTF-8: the file is damaged")]
    Text {
        /// What was being read.
        what: &'static str,
        /// Its offset.
        at: usize,
    },
    /// A metadata type that the specification does not define.
    #[error("metadata at byte {at}: unknown value type {id}: the file is damaged")]
    ValueType {
        /// Its offset.
        at: usize,
        /// The type in the file.
        id: u32,
    },
    /// A boolean that is neither 0 nor 1.
    #[error("metadata at byte {at}: {value} is neither false (0) nor true (1): the file is damaged")]
    Flag {
        /// Its offset.
        at: usize,
        /// Its value.
        value: u8,
    },
    /// Arrays nested too deeply.
    #[error("metadata at byte {at}: arrays nested deeper than {limit}")]
    Nesting {
        /// Offset of the innermost array.
        at: usize,
        /// Maximum depth.
        limit: usize,
    },
    /// A duplicate metadata key.
    #[error("metadata key `{key}` occurs twice in the file")]
    DuplicateKey {
        /// The key.
        key: String,
    },
    /// Two tensors of the same name.
    #[error("tensor `{tensor}` occurs twice in the file")]
    DuplicateTensor {
        /// The name.
        tensor: String,
    },
    /// An invalid alignment.
    #[error("general.alignment is {alignment}: a power of two is needed")]
    Alignment {
        /// The file's value.
        alignment: u64,
    },
    /// Too many dimensions.
    #[error("`{tensor}`: {n_dims} dimensions, at most {limit} are possible")]
    Dimensions {
        /// The tensor.
        tensor: String,
        /// The file's number.
        n_dims: u32,
        /// The maximum.
        limit: u32,
    },
    /// An unsupported tensor type.
    #[error("`{tensor}`: type {kind} is not supported; supported types are {}", crate::gguf::TensorKind::names())]
    TensorType {
        /// The tensor.
        tensor: String,
        /// Name of its type, or the number if it has no name.
        kind: String,
    },
    /// Rows that are not a whole number of blocks.
    #[error("`{tensor}`: rows of {row} values, but {kind} has blocks of {block}")]
    PartialBlock {
        /// The tensor.
        tensor: String,
        /// Values per row.
        row: usize,
        /// Its type.
        kind: &'static str,
        /// Values per block.
        block: usize,
    },
    /// A size that cannot be addressed.
    #[error("`{tensor}`: shape {shape:?} overflows")]
    Overflow {
        /// The tensor.
        tensor: String,
        /// Its shape, outermost first.
        shape: Vec<u64>,
    },
    /// A tensor whose offset is not a multiple of the alignment.
    #[error("`{tensor}`: offset {offset} is not a multiple of the alignment {alignment}")]
    Misaligned {
        /// The tensor.
        tensor: String,
        /// Its offset.
        offset: u64,
        /// The file's alignment.
        alignment: u64,
    },
    /// A tensor that extends beyond the end of the file.
    #[error(
        "`{tensor}`: {bytes} bytes at offset {offset}, but the data section has {section}: the file is truncated, fetch it again"
    )]
    OutOfBounds {
        /// The tensor.
        tensor: String,
        /// Its offset in the data section.
        offset: u64,
        /// Its size.
        bytes: usize,
        /// Size of the data section.
        section: usize,
    },
    /// A required metadata key is missing.
    #[error("metadata key `{key}` is missing: this file cannot be converted")]
    MissingKey {
        /// The key.
        key: String,
    },
    /// A metadata key has an unexpected value.
    #[error("metadata key `{key}` is {got}, expected {expected}")]
    WrongValue {
        /// The key.
        key: String,
        /// Its value.
        got: String,
        /// The expected value.
        expected: String,
    },
    /// A required tensor is missing.
    #[error("tensor `{tensor}` is missing: the file is incomplete, or a part of a split model")]
    MissingTensor {
        /// The name.
        tensor: String,
    },
    /// A matrix of nothing but zeros.
    #[error("`{tensor}` ({kind}) holds nothing but zeros: its data is missing")]
    Zeros {
        /// The name.
        tensor: String,
        /// Its type.
        kind: &'static str,
    },
    /// A tensor that a plain model of the architecture does not have, so omitting it would change the model.
    #[error("tensor `{tensor}` has no place in a plain model of this architecture: this variant is not converted")]
    ExtraTensor {
        /// The name.
        tensor: String,
    },
    /// A tensor's shape does not match the metadata.
    #[error("`{tensor}` is {got:?}, the metadata says {expected:?}")]
    Shape {
        /// The tensor.
        tensor: String,
        /// Its shape.
        got: Vec<usize>,
        /// The expected shape.
        expected: Vec<usize>,
    },
    /// A model that llama.cpp has no architecture for.
    #[error(
        "`{model_type}` models are not written as GGUF: {}{known} are",
        if model_type == "opt" { "llama.cpp has no OPT; " } else { "" }
    )]
    NoArchitecture {
        /// `model_type` of its config.
        model_type: String,
        /// The model types that are.
        known: String,
    },
    /// The matrices of experts, which GGUF holds as one tensor, have several types.
    #[error("`{tensor}`: its experts are {} and {}, but a GGUF tensor has one type", kinds[0], kinds[1])]
    Kinds {
        /// The tensor.
        tensor: String,
        /// Two of its types.
        kinds: [&'static str; 2],
    },
    /// A value in `config.json` that llama.cpp does not compute with.
    #[error("config.json: `{key}` is {value}, expected {expected}")]
    Config {
        /// The key.
        key: String,
        /// Its value.
        value: String,
        /// What is supported.
        expected: String,
    },
    /// A setting that no block type holds.
    #[error("`{tensor}` is {spec} with rows of {in_features}, which no block of GGUF holds: quantize with {instead}")]
    NoBlock {
        /// The linear.
        tensor: String,
        /// How it is quantized.
        spec: String,
        /// Weights of a row.
        in_features: usize,
        /// A setting that has a block type.
        instead: String,
    },
    /// A model whose activations are rotated while it runs.
    #[error(
        "its activations are rotated while it runs (`--rotate online`), which llama.cpp does not do: quantize with `--rotate merged`"
    )]
    OnlineRotation,
    /// A model with quantized activations.
    #[error(
        "its activations have {bits} bits, which GGUF does not hold: quantize with a16 (llama.cpp itself multiplies 8-bit activations)"
    )]
    Activations {
        /// Width of their codes.
        bits: u32,
    },
    /// A tokenizer that llama.cpp does not have.
    #[error("{}: {why}", path.display())]
    Tokenizer {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// A matrix that was not rounded to blocks.
    #[error("`{tensor}`: {why}")]
    Rounding {
        /// The tensor.
        tensor: String,
        /// Why not.
        why: oq_quant_core::TensorError,
    },
    /// A directory without a name to name the model by.
    #[error("{}: no name for the model: give one", dir.display())]
    Nameless {
        /// The directory.
        dir: PathBuf,
    },
    /// A weight beyond the range of f16.
    #[error("`{tensor}`: value [{row}, {col}] is {value}, which f16 does not hold")]
    OutOfRange {
        /// The tensor.
        tensor: String,
        /// Its row.
        row: usize,
        /// Its column.
        col: usize,
        /// Its value.
        value: f32,
    },
}

impl GgufError {
    /// A key with an unexpected value.
    pub(super) fn wrong(key: &str, got: impl ToString, expected: impl Into<String>) -> Self {
        Self::WrongValue { key: key.to_owned(), got: got.to_string(), expected: expected.into() }
    }
}
