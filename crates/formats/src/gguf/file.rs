//! A GGUF file: header, metadata, and where each tensor lies.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use super::cursor::Cursor;
use super::{GgufError, Metadata, TensorKind};
use crate::lfs::is_lfs_pointer;
use crate::mmap::MappedFile;

/// Most dimensions a tensor can have in ggml.
const MAX_DIMS: u32 = 4;
/// What is read of a file as its header: a vocabulary of a million texts takes less. What it becomes in memory is several times as large.
const MAX_HEADER: usize = 64 << 20;
/// What `general.alignment` is where the file does not say.
const DEFAULT_ALIGNMENT: u64 = 32;

/// A GGUF file, memory-mapped and checked: every tensor lies inside the file.
pub struct Gguf {
    bytes: Bytes,
    header: Header,
}

enum Bytes {
    Mapped(MappedFile),
    Owned(Vec<u8>),
}

/// What stands before the data.
struct Header {
    version: u32,
    metadata: Metadata,
    tensors: BTreeMap<String, Entry>,
    /// Names as they follow each other in the file.
    order: Vec<String>,
}

/// Where a tensor lies: bytes `start..start + len` of the file, checked.
struct Entry {
    kind: TensorKind,
    shape: Vec<usize>,
    start: usize,
    len: usize,
}

impl Gguf {
    /// Maps the file and reads its header.
    pub fn open(path: &Path) -> Result<Self, GgufError> {
        let file = MappedFile::open(path).map_err(|source| GgufError::Io { path: path.to_owned(), source })?;
        if is_lfs_pointer(file.bytes()) {
            return Err(GgufError::LfsPointer { path: path.to_owned() });
        }
        let header = Header::read(file.bytes())?;
        Ok(Self { bytes: Bytes::Mapped(file), header })
    }

    /// Reads a file that is in memory already.
    pub fn from_bytes(bytes: Vec<u8>) -> Result<Self, GgufError> {
        let header = Header::read(&bytes)?;
        Ok(Self { bytes: Bytes::Owned(bytes), header })
    }

    /// Version of the format, 2 or 3.
    pub fn version(&self) -> u32 {
        self.header.version
    }

    /// Keys and values.
    pub fn metadata(&self) -> &Metadata {
        &self.header.metadata
    }

    /// All tensors, as they follow each other in the file.
    pub fn tensors(&self) -> impl ExactSizeIterator<Item = Tensor<'_>> {
        self.header.order.iter().map(|name| self.tensor(name).expect("the order lists the names of the map"))
    }

    /// The tensor of this name.
    pub fn tensor(&self, name: &str) -> Option<Tensor<'_>> {
        let (name, entry) = self.header.tensors.get_key_value(name)?;
        let bytes = match &self.bytes {
            Bytes::Mapped(file) => file.bytes(),
            Bytes::Owned(bytes) => bytes,
        };
        Some(Tensor {
            name,
            kind: entry.kind,
            shape: &entry.shape,
            bytes: &bytes[entry.start..entry.start + entry.len],
        })
    }
}

/// Counts alone: a model has hundreds of tensors and a vocabulary.
impl fmt::Debug for Gguf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let pairs = self.metadata().iter().count();
        let tensors = self.header.order.len();
        f.debug_struct("Gguf").field("pairs", &pairs).field("tensors", &tensors).finish_non_exhaustive()
    }
}

impl Header {
    fn read(bytes: &[u8]) -> Result<Self, GgufError> {
        if !bytes.starts_with(b"GGUF") {
            return Err(GgufError::NotGguf { magic: bytes[..bytes.len().min(4)].to_vec() });
        }
        let mut cursor = Cursor::new(&bytes[..bytes.len().min(MAX_HEADER)]);
        cursor.u32("magic number")?;
        let version = cursor.u32("version")?;
        if !(2..=3).contains(&version) {
            return Err(GgufError::Version { version });
        }
        let n_tensors = cursor.count("number of tensors", 24)?; // 24: a tensor without name and dimensions
        let n_pairs = cursor.count("number of metadata pairs", 13)?; // 13: an empty key, a type and one byte
        let metadata = Metadata::read(&mut cursor, n_pairs)?;
        let alignment = metadata.unsigned("general.alignment")?.unwrap_or(DEFAULT_ALIGNMENT);
        if !alignment.is_power_of_two() {
            return Err(GgufError::Alignment { alignment });
        }

        let infos = (0..n_tensors).map(|_| Info::read(&mut cursor)).collect::<Result<Vec<_>, _>>()?;
        // The data section begins at the next multiple of the alignment; without data, the file may end before it.
        let data_start = (cursor.at() as u64).checked_next_multiple_of(alignment);
        let data_start =
            data_start.and_then(|at| usize::try_from(at).ok()).map_or(bytes.len(), |at| at.min(bytes.len()));

        let mut tensors = BTreeMap::new();
        let mut order = Vec::with_capacity(n_tensors);
        for info in infos {
            let entry = info.place(alignment, data_start, bytes.len())?;
            if tensors.insert(info.name.clone(), entry).is_some() {
                return Err(GgufError::DuplicateTensor { tensor: info.name });
            }
            order.push(info.name);
        }
        Ok(Self { version, metadata, tensors, order })
    }
}

/// A tensor as the header describes it, unchecked.
struct Info {
    name: String,
    /// Outermost first, unlike in the file.
    shape: Vec<u64>,
    kind: u32,
    offset: u64,
}

impl Info {
    fn read(cursor: &mut Cursor<'_>) -> Result<Self, GgufError> {
        let name = cursor.text("tensor name")?.to_owned();
        let n_dims = cursor.u32("number of dimensions")?;
        if n_dims > MAX_DIMS {
            return Err(GgufError::Dimensions { tensor: name, n_dims, limit: MAX_DIMS });
        }
        let mut shape = (0..n_dims).map(|_| cursor.u64("dimension")).collect::<Result<Vec<_>, _>>()?;
        shape.reverse();
        Ok(Self { name, shape, kind: cursor.u32("tensor type")?, offset: cursor.u64("tensor offset")? })
    }

    /// Checks the description against the file.
    fn place(&self, alignment: u64, data_start: usize, file_len: usize) -> Result<Entry, GgufError> {
        let tensor = || self.name.clone();
        let overflow = || GgufError::Overflow { tensor: tensor(), shape: self.shape.clone() };
        let kind = TensorKind::from_id(self.kind).map_err(|kind| GgufError::TensorType { tensor: tensor(), kind })?;
        let shape: Vec<usize> =
            self.shape.iter().map(|&dim| usize::try_from(dim)).collect::<Result<_, _>>().map_err(|_| overflow())?;
        // An empty tensor is one whatever its other dimensions.
        let values =
            if shape.contains(&0) { Some(0) } else { shape.iter().try_fold(1usize, |n, &dim| n.checked_mul(dim)) };
        let values = values.ok_or_else(overflow)?;
        let (row, block) = (shape.last().copied().unwrap_or(1), kind.block_values());
        if !row.is_multiple_of(block) {
            return Err(GgufError::PartialBlock { tensor: tensor(), row, kind: kind.name(), block });
        }
        let len = (values / block).checked_mul(kind.block_bytes()).ok_or_else(overflow)?;
        if !self.offset.is_multiple_of(alignment) {
            return Err(GgufError::Misaligned { tensor: tensor(), offset: self.offset, alignment });
        }
        let section = file_len - data_start;
        let offset = usize::try_from(self.offset)
            .ok()
            .filter(|offset| offset.checked_add(len).is_some_and(|end| end <= section));
        let offset =
            offset.ok_or(GgufError::OutOfBounds { tensor: tensor(), offset: self.offset, bytes: len, section })?;
        Ok(Entry { kind, shape, start: data_start + offset, len })
    }
}

/// A tensor of a file: its description and its bytes.
#[derive(Clone, Copy)]
pub struct Tensor<'a> {
    name: &'a str,
    kind: TensorKind,
    shape: &'a [usize],
    bytes: &'a [u8],
}

impl<'a> Tensor<'a> {
    /// Its name.
    pub fn name(&self) -> &'a str {
        self.name
    }

    /// How its values are stored.
    pub fn kind(&self) -> TensorKind {
        self.kind
    }

    /// Its shape, outermost first: `[out, in]` for a linear. (The file has them the other way round.)
    pub fn shape(&self) -> &'a [usize] {
        self.shape
    }

    /// Its bytes as they lie in the file.
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// Values of a row: the innermost dimension.
    pub fn row_values(&self) -> usize {
        self.shape.last().copied().unwrap_or(1)
    }

    /// Number of rows: the product of all dimensions but the innermost.
    pub fn rows(&self) -> usize {
        self.values().checked_div(self.row_values()).unwrap_or(0)
    }

    /// Number of values.
    pub fn values(&self) -> usize {
        self.bytes.len() / self.kind.block_bytes() * self.kind.block_values()
    }

    /// All values in f32, row-major.
    pub fn dequantize(&self) -> Vec<f32> {
        let mut out = vec![0.0; self.values()];
        self.kind.dequantize(self.bytes, &mut out);
        out
    }

    /// One row in f32: -> `out` `[row_values]`.
    ///
    /// # Panics
    /// When there is no such row or `out` has another length, like indexing a slice.
    pub fn dequantize_row(&self, row: usize, out: &mut [f32]) {
        assert_eq!(out.len(), self.row_values(), "`{}`: length of a row", self.name);
        let row_bytes = out.len() / self.kind.block_values() * self.kind.block_bytes();
        self.kind.dequantize(&self.bytes[row * row_bytes..][..row_bytes], out);
    }
}

/// The description without the bytes.
impl fmt::Debug for Tensor<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tensor({} {} {:?})", self.name, self.kind, self.shape)
    }
}
