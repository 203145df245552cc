//! Why a GGUF file could not be read or converted.

use std::io;
use std::path::PathBuf;

use crate::FormatError;

/// Why a GGUF file could not be read or converted.
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
    /// A file of the output could not be written.
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
