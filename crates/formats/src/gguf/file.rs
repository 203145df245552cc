//! A GGUF file: header, metadata, and the position of each tensor.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use super::cursor::Cursor;
use super::split;
use super::{GgufError, Metadata, TensorKind};
use crate::lfs::is_lfs_pointer;
use crate::mmap::MappedFile;

/// Maximum number of dimensions in ggml.
const MAX_DIMS: u32 = 4;
/// Maximum size of the header: a vocabulary of a million strings takes less. In memory it becomes several times as large.
const MAX_HEADER: usize = 64 << 20;
/// Default of `general.alignment`.
const DEFAULT_ALIGNMENT: u64 = 32;

/// A GGUF file, or the files of a split model, memory-mapped and validated: every tensor lies inside its file.
pub struct Gguf {
    parts: Vec<Bytes>,
    /// The first file's, with the tensors of all.
    header: Header,
}

enum Bytes {
    Mapped(MappedFile),
    Owned(Vec<u8>),
}

/// Everything before the data.
struct Header {
    version: u32,
    metadata: Metadata,
    tensors: BTreeMap<String, Entry>,
    /// Names in the order of the file.
    order: Vec<String>,
}

/// Position of a tensor: bytes `start..start + len` of its file, validated.
struct Entry {
    /// Index of the file.
    part: usize,
    kind: TensorKind,
    shape: Vec<usize>,
    start: usize,
    len: usize,
}

impl Gguf {
    /// Maps the file and reads its header. If it is the first of a split model (`NAME-00001-of-00003.gguf`), so are the others beside it.
    pub fn open(path: &Path) -> Result<Self, GgufError> {
        let (bytes, header) = Self::open_one(path)?;
        let mut all = Self { parts: vec![bytes], header };
        if let Some(place) = split::Place::read(all.metadata())? {
            for (path, place) in place.others(path)? {
                all.add(&path, place)?;
            }
        }
        Ok(all)
    }

    fn open_one(path: &Path) -> Result<(Bytes, Header), GgufError> {
        let file = MappedFile::open(path).map_err(|source| GgufError::Io { path: path.to_owned(), source })?;
        if is_lfs_pointer(file.bytes()) {
            return Err(GgufError::LfsPointer { path: path.to_owned() });
        }
        let header = Header::read(file.bytes())?;
        Ok((Bytes::Mapped(file), header))
    }

    /// Adds the tensors of another file of a split model, which must say that it has this place.
    fn add(&mut self, path: &Path, place: split::Place) -> Result<(), GgufError> {
        let (bytes, header) = Self::open_one(path)?;
        if split::Place::read(&header.metadata)? != Some(place) {
            return Err(GgufError::OtherSplit { path: path.to_owned() });
        }
        for (name, entry) in header.tensors {
            let entry = Entry { part: self.parts.len(), ..entry };
            if self.header.tensors.insert(name.clone(), entry).is_some() {
                return Err(GgufError::DuplicateTensor { tensor: name });
            }
        }
        self.header.order.extend(header.order);
        self.parts.push(bytes);
        Ok(())
    }

    /// Parses a file that is already in memory.
    pub fn from_bytes(bytes: Vec<u8>) -> Result<Self, GgufError> {
        let header = Header::read(&bytes)?;
        Ok(Self { parts: vec![Bytes::Owned(bytes)], header })
    }

    /// Format version, 2 or 3.
    pub fn version(&self) -> u32 {
        self.header.version
    }

    /// Keys and values; of a split model those of the first file.
    pub fn metadata(&self) -> &Metadata {
        &self.header.metadata
    }

    /// All tensors, in the order of the file.
    pub fn tensors(&self) -> impl ExactSizeIterator<Item = Tensor<'_>> {
        self.header.order.iter().map(|name| self.tensor(name).expect("the order lists the names of the map"))
    }

    /// The tensor with this name.
    pub fn tensor(&self, name: &str) -> Option<Tensor<'_>> {
        let (name, entry) = self.header.tensors.get_key_value(name)?;
        let bytes = match &self.parts[entry.part] {
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

/// Prints counts only: a model has hundreds of tensors and a large vocabulary.
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
        // The data section begins at the next multiple of the alignment. Without data, the file may end before it.
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

/// A tensor as described in the header, not yet validated.
struct Info {
    name: String,
    /// Outermost dimension first, unlike in the file.
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

    /// Validates the description against the file.
    fn place(&self, alignment: u64, data_start: usize, file_len: usize) -> Result<Entry, GgufError> {
        let tensor = || self.name.clone();
        let overflow = || GgufError::Overflow { tensor: tensor(), shape: self.shape.clone() };
        let kind = TensorKind::from_id(self.kind).map_err(|kind| GgufError::TensorType { tensor: tensor(), kind })?;
        let shape: Vec<usize> =
            self.shape.iter().map(|&dim| usize::try_from(dim)).collect::<Result<_, _>>().map_err(|_| overflow())?;
        // A tensor with an empty dimension is empty, whatever the others are.
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
        Ok(Entry { part: 0, kind, shape, start: data_start + offset, len })
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

    /// Its type.
    pub fn kind(&self) -> TensorKind {
        self.kind
    }

    /// Its shape, outermost dimension first: `[out, in]` for a linear. (The file has the reverse order.)
    pub fn shape(&self) -> &'a [usize] {
        self.shape
    }

    /// Its bytes in the file.
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// Values per row, the innermost dimension.
    pub fn row_values(&self) -> usize {
        self.shape.last().copied().unwrap_or(1)
    }

    /// Number of rows: the product of all other dimensions.
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

    /// Dequantizes one row to f32: -> `out` `[row_values]`.
    ///
    /// # Panics
    /// When there is no such row, or `out` has a different length.
    pub fn dequantize_row(&self, row: usize, out: &mut [f32]) {
        assert_eq!(out.len(), self.row_values(), "`{}`: length of a row", self.name);
        let row_bytes = out.len() / self.kind.block_values() * self.kind.block_bytes();
        self.kind.dequantize(&self.bytes[row * row_bytes..][..row_bytes], out);
    }
}

/// Prints the description without the bytes.
impl fmt::Debug for Tensor<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tensor({} {} {:?})", self.name, self.kind, self.shape)
    }
}
