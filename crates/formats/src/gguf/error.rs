//! Why a GGUF file was not read or not converted.

use std::io;
use std::path::PathBuf;

use crate::FormatError;

/// Why a GGUF file was not read or not converted.
#[derive(Debug, thiserror::Error)]
pub enum GgufError {
    /// The operating system refused.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What it says.
        source: io::Error,
    },
    /// Something of the output was not written.
    #[error(transparent)]
    Write(#[from] FormatError),
    /// A text that git-lfs left in place of the file.
    #[error("{}: {}", path.display(), crate::LFS_POINTER)]
    LfsPointer {
        /// The file.
        path: PathBuf,
    },
    /// The file is something else.
    #[error("not a GGUF file: it begins with bytes {magic:02x?} instead of \"GGUF\"")]
    NotGguf {
        /// Its first bytes, at most four.
        magic: Vec<u8>,
    },
    /// A version that is not read.
    #[error(
        "GGUF version {version}: little-endian versions 2 and 3 are read; convert the model again with a current program"
    )]
    Version {
        /// What the file says.
        version: u32,
    },
    /// The file ends too early.
    #[error("{what} at byte {at}: {needed} bytes needed, {left} left: the file is truncated, fetch it again")]
    Truncated {
        /// What was being read.
        what: &'static str,
        /// Where it begins.
        at: usize,
        /// Bytes it needs.
        needed: u64,
        /// Bytes that follow.
        left: usize,
    },
    /// A count that the rest of the file cannot hold.
    #[error("{what} at byte {at}: a count of {count}, but {left} bytes hold at most {limit}: the file is damaged")]
    Count {
        /// What is counted.
        what: &'static str,
        /// Where the count ends.
        at: usize,
        /// What it says.
        count: u64,
        /// Bytes that follow.
        left: usize,
        /// Most items these bytes can hold.
        limit: usize,
    },
    /// Text that is not UTF-8.
    #[error("{what} at byte {at}: not UTF-8: the file is damaged")]
    Text {
        /// What was being read.
        what: &'static str,
        /// Where it begins.
        at: usize,
    },
    /// A type of metadata that the specification does not know.
    #[error("metadata at byte {at}: unknown value type {id}: the file is damaged")]
    ValueType {
        /// Where it stands.
        at: usize,
        /// What the file says.
        id: u32,
    },
    /// A truth value that is neither 0 nor 1.
    #[error("metadata at byte {at}: {value} is neither false (0) nor true (1): the file is damaged")]
    Flag {
        /// Where it stands.
        at: usize,
        /// What stands there.
        value: u8,
    },
    /// Arrays of arrays of arrays.
    #[error("metadata at byte {at}: arrays nested deeper than {limit}")]
    Nesting {
        /// Where the innermost begins.
        at: usize,
        /// Deepest that is read.
        limit: usize,
    },
    /// Two values under one key.
    #[error("metadata key `{key}` stands twice in the file")]
    DuplicateKey {
        /// The key.
        key: String,
    },
    /// Two tensors of one name.
    #[error("tensor `{tensor}` stands twice in the file")]
    DuplicateTensor {
        /// The name.
        tensor: String,
    },
    /// An alignment that is none.
    #[error("general.alignment is {alignment}: a power of two is needed")]
    Alignment {
        /// What the file says.
        alignment: u64,
    },
    /// Too many dimensions.
    #[error("`{tensor}`: {n_dims} dimensions, at most {limit} are possible")]
    Dimensions {
        /// The tensor.
        tensor: String,
        /// What the file says.
        n_dims: u32,
        /// Most there can be.
        limit: u32,
    },
    /// A type of blocks that is not read.
    #[error("`{tensor}`: type {kind} is not read; types that are: {}", crate::gguf::TensorKind::names())]
    TensorType {
        /// The tensor.
        tensor: String,
        /// Name of its type, or its number where it has no name.
        kind: String,
    },
    /// Rows that are no whole number of blocks.
    #[error("`{tensor}`: rows of {row} values, but {kind} has blocks of {block}")]
    PartialBlock {
        /// The tensor.
        tensor: String,
        /// Values of a row.
        row: usize,
        /// Its type.
        kind: &'static str,
        /// Values of a block.
        block: usize,
    },
    /// A size beyond what a machine can address.
    #[error("`{tensor}`: shape {shape:?} overflows")]
    Overflow {
        /// The tensor.
        tensor: String,
        /// Its shape, outermost first.
        shape: Vec<u64>,
    },
    /// A tensor that begins between two multiples of the alignment.
    #[error("`{tensor}`: offset {offset} is not a multiple of the alignment {alignment}")]
    Misaligned {
        /// The tensor.
        tensor: String,
        /// Where it begins.
        offset: u64,
        /// The file's alignment.
        alignment: u64,
    },
    /// A tensor that ends after the file does.
    #[error(
        "`{tensor}`: {bytes} bytes at offset {offset}, but the data section has {section}: the file is truncated, fetch it again"
    )]
    OutOfBounds {
        /// The tensor.
        tensor: String,
        /// Where it begins in the data section.
        offset: u64,
        /// Its size.
        bytes: usize,
        /// Size of the data section.
        section: usize,
    },
    /// A key that the conversion needs is absent.
    #[error("metadata key `{key}` is missing: this file cannot be converted")]
    MissingKey {
        /// The key.
        key: String,
    },
    /// A key holds something else than it should.
    #[error("metadata key `{key}` is {got}, expected {expected}")]
    WrongValue {
        /// The key.
        key: String,
        /// What it holds.
        got: String,
        /// What it may hold.
        expected: String,
    },
    /// A tensor that the conversion needs is absent.
    #[error("tensor `{tensor}` is missing: the file is incomplete, or a part of a split model")]
    MissingTensor {
        /// The name.
        tensor: String,
    },
    /// A tensor that a plain LLaMA model does not have, so that leaving it out would change the model.
    #[error("tensor `{tensor}` has no place in a LLaMA model: this variant is not converted")]
    ExtraTensor {
        /// The name.
        tensor: String,
    },
    /// A tensor of another shape than the metadata says.
    #[error("`{tensor}` is {got:?}, the metadata says {expected:?}")]
    Shape {
        /// The tensor.
        tensor: String,
        /// Its shape.
        got: Vec<usize>,
        /// What it should be.
        expected: Vec<usize>,
    },
    /// A weight that f16 does not hold.
    #[error("`{tensor}`: value [{row}, {col}] is {value}, which f16 does not hold")]
    OutOfRange {
        /// The tensor.
        tensor: String,
        /// Its row.
        row: usize,
        /// Its column.
        col: usize,
        /// What stands there.
        value: f32,
    },
}

impl GgufError {
    /// A key that holds something else than it should.
    pub(super) fn wrong(key: &str, got: impl ToString, expected: impl Into<String>) -> Self {
        Self::WrongValue { key: key.to_owned(), got: got.to_string(), expected: expected.into() }
    }
}
