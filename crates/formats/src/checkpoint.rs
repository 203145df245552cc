//! A checkpoint directory: memory-mapped shards behind one table of tensor names.

use std::collections::BTreeMap;
use std::io;
use std::ops::Bound;
use std::path::{Component, Path, PathBuf};

use safetensors::Dtype;
use serde::Deserialize;

use crate::header::{self, Entry, UniqueMap};
use crate::lfs::refuse_pointer;
use crate::mistaken::what_lies_in;
use crate::mmap::MappedFile;
use crate::{FormatError, TensorView, without_mark};

/// The only shard of a small model.
pub(crate) const SINGLE: &str = "model.safetensors";
/// The index: which shard has which tensor.
pub(crate) const INDEX: &str = "model.safetensors.index.json";
/// The same two in PyTorch's own format, in which older models are published.
const PICKLED_SINGLE: &str = "pytorch_model.bin";
const PICKLED_INDEX: &str = "pytorch_model.bin.index.json";

/// How many bytes of a tensor are in memory at once during a scan; a multiple of every element size.
pub(crate) const PIECE: usize = 16 << 20;

/// The tensors of a model directory. Opening reads headers only; data is paged in when it is used.
///
/// Files must not be rewritten in place while they are open. Replacing them by rename is fine.
#[derive(Debug)]
pub struct Checkpoint {
    dir: PathBuf,
    shards: Vec<Shard>,
    tensors: BTreeMap<String, Tensor>,
}

/// One file of a checkpoint.
#[derive(Debug)]
pub struct Shard {
    path: PathBuf,
    map: MappedFile,
}

#[derive(Debug)]
struct Tensor {
    shard: usize,
    dtype: Dtype,
    shape: Vec<usize>,
    place: (usize, usize),
}

#[derive(Deserialize)]
struct Index {
    weight_map: UniqueMap<String>,
}

impl Checkpoint {
    /// Opens `model.safetensors.index.json` and the shards it names, else `model.safetensors`, else their `pytorch_model.bin` counterparts.
    ///
    /// # Errors
    /// When files are missing, truncated or inconsistent. No tensor data is read.
    pub fn open(dir: &Path) -> Result<Self, FormatError> {
        for (index, single) in [(INDEX, SINGLE), (PICKLED_INDEX, PICKLED_SINGLE)] {
            let (index, single) = (dir.join(index), dir.join(single));
            // Like transformers, which ignores an index beside a single file, because it belongs to an earlier model.
            if single.exists() {
                return Self::open_file(&single);
            }
            match std::fs::read(&index) {
                Ok(json) => return Self::open_sharded(dir, &index, &json),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(FormatError::reading(&index, error)),
            }
        }
        Err(FormatError::NoWeights { dir: dir.to_owned(), what: what_lies_in(dir) })
    }

    /// Opens one file: PyTorch's own format if its name ends in `.bin` or `.pth`, else safetensors.
    ///
    /// # Errors
    /// Same as [`Self::open`].
    pub fn open_file(path: &Path) -> Result<Self, FormatError> {
        let (shard, entries) = Shard::open(path.to_owned())?;
        let tensors = entries.into_iter().map(|entry| Tensor::new(0, entry)).collect();
        Ok(Self { dir: path.parent().unwrap_or(path).to_owned(), shards: vec![shard], tensors })
    }

    fn open_sharded(dir: &Path, index: &Path, json: &[u8]) -> Result<Self, FormatError> {
        refuse_pointer(index, json)?;
        let Index { weight_map: UniqueMap(places) } = serde_json::from_slice(without_mark(json))
            .map_err(|error| FormatError::Json { path: index.to_owned(), why: error.to_string() })?;
        let mut by_shard: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for (tensor, shard) in &places {
            by_shard.entry(shard).or_default().push(tensor);
        }
        let (mut shards, mut tensors, mut unlisted) = (Vec::new(), BTreeMap::new(), Vec::new());
        for (shard_idx, (name, listed)) in by_shard.into_iter().enumerate() {
            let (shard, entries) = Shard::open_named(dir, index, name)?;
            shards.push(shard);
            let mut held: BTreeMap<String, Tensor> =
                entries.into_iter().map(|entry| Tensor::new(shard_idx, entry)).collect();
            for tensor in listed {
                let found = held.remove_entry(tensor).ok_or_else(|| FormatError::NotInShard {
                    index: index.to_owned(),
                    tensor: tensor.to_owned(),
                    shard: name.to_owned(),
                })?;
                tensors.extend([found]);
            }
            unlisted.extend(held);
        }
        // For the tensors that it lists, the index decides which shard is read. Others are used too, as in transformers, which reads whole
        // shards; of several with one name, the last.
        for (name, tensor) in unlisted.into_iter().rev() {
            tensors.entry(name).or_insert(tensor);
        }
        Ok(Self { dir: dir.to_owned(), shards, tensors })
    }

    /// A view of one tensor in its file.
    ///
    /// # Errors
    /// [`FormatError::MissingTensor`]; [`FormatError::Truncated`] when the file has become shorter since it was opened.
    pub fn tensor(&self, name: &str) -> Result<TensorView<'_>, FormatError> {
        match self.tensors.get_key_value(name) {
            Some((name, tensor)) => {
                self.shards[tensor.shard].check_length()?;
                Ok(self.view(name, tensor))
            }
            None => Err(FormatError::MissingTensor { tensor: name.to_owned(), dir: self.dir.clone() }),
        }
    }

    /// Values of one tensor as f32, row-major. All are finite.
    pub fn values(&self, name: &str) -> Result<Vec<f32>, FormatError> {
        self.tensor(name)?.to_finite_f32_vec()
    }

    /// Calls `look` with a tensor of any size in pieces of a few MiB, and releases the memory of each ([`Self::release`]). `look` also gets
    /// the offset of the piece, in bytes from the start of the tensor. No piece splits an element.
    ///
    /// # Errors
    /// Same as [`Self::tensor`], and the errors of `look`.
    pub fn for_each_piece<E: From<FormatError>>(
        &self,
        name: &str,
        mut look: impl FnMut(usize, &[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        for (piece_idx, piece) in self.tensor(name)?.bytes.chunks(PIECE).enumerate() {
            let outcome = look(piece_idx * PIECE, piece);
            self.release();
            outcome?;
        }
        Ok(())
    }

    /// [`TensorView::check_finite`] for a tensor of any size, in pieces.
    ///
    /// # Errors
    /// Same as [`Self::tensor`] and [`TensorView::check_finite`].
    pub fn check_finite(&self, name: &str) -> Result<(), FormatError> {
        let view = self.tensor(name)?;
        self.for_each_piece(name, |start, bytes| {
            // Types of less than a byte are refused below.
            let width = view.dtype.bitsize().div_ceil(8);
            let piece = TensorView { shape: &[bytes.len() / width], bytes, ..view };
            piece.check_finite().map_err(|error| match error {
                FormatError::NotFinite { tensor, index, value } => {
                    FormatError::NotFinite { tensor, index: start / width + index, value }
                }
                other => other,
            })
        })
    }

    /// Whether a tensor equals one in this or another checkpoint, byte for byte; compared in pieces.
    ///
    /// # Errors
    /// Same as [`Self::tensor`].
    pub fn is_same(&self, name: &str, (other, its_name): (&Self, &str)) -> Result<bool, FormatError> {
        let (ours, theirs) = (self.tensor(name)?, other.tensor(its_name)?);
        let mut is_same = ours.dtype == theirs.dtype && ours.shape == theirs.shape;
        if is_same {
            self.for_each_piece(name, |start, bytes| {
                is_same &= *bytes == theirs.bytes[start..start + bytes.len()];
                other.release();
                Ok::<_, FormatError>(())
            })?;
        }
        Ok(is_same)
    }

    /// Asks the operating system to read ahead all tensors whose names begin with `prefix`, without waiting.
    pub fn read_ahead(&self, prefix: &str) {
        let from = self.tensors.range::<str, _>((Bound::Included(prefix), Bound::Unbounded));
        for (_, tensor) in from.take_while(|(name, _)| name.starts_with(prefix)) {
            self.shards[tensor.shard].map.read_ahead(tensor.place.0..tensor.place.1);
        }
    }

    /// Renames the tensors; `rename` must not produce a name twice.
    pub fn rename(self, rename: impl Fn(String) -> String) -> Self {
        let tensors = self.tensors.into_iter().map(|(name, tensor)| (rename(name), tensor)).collect();
        Self { tensors, ..self }
    }

    /// Replaces a tensor by its parts, which lie in it one after the other: their names, and the shape of each.
    ///
    /// # Errors
    /// [`FormatError::MissingTensor`], and [`FormatError::Parts`] if it has another size than all parts together.
    pub fn split(
        &mut self,
        name: &str,
        parts: impl ExactSizeIterator<Item = String>,
        shape: &[usize],
    ) -> Result<(), FormatError> {
        let missing = || FormatError::MissingTensor { tensor: name.to_owned(), dir: self.dir.clone() };
        let tensor = self.tensors.get(name).ok_or_else(missing)?;
        let n = parts.len();
        if n == 0 || tensor.shape.iter().product::<usize>() != n * shape.iter().product::<usize>() {
            let expected = [&[n], shape].concat();
            return Err(FormatError::Parts { tensor: name.to_owned(), shape: tensor.shape.clone(), expected });
        }
        let Some(Tensor { shard, dtype, place: (start, end), .. }) = self.tensors.remove(name) else { return Ok(()) };
        let bytes = (end - start) / n;
        for (idx, part) in parts.enumerate() {
            let start = start + idx * bytes;
            let place = (start, start + bytes);
            self.tensors.insert(part, Tensor { shard, dtype, shape: shape.to_vec(), place });
        }
        Ok(())
    }

    /// Keeps the tensors whose names `keep` accepts, and returns the names of the others.
    pub fn retain(&mut self, keep: impl Fn(&str) -> bool) -> Vec<String> {
        let left_out: Vec<String> = self.tensors.keys().filter(|name| !keep(name)).cloned().collect();
        self.tensors.retain(|name, _| keep(name));
        left_out
    }

    /// Whether there is a tensor with this name.
    pub fn contains(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// Names of all tensors, sorted.
    pub fn names(&self) -> impl ExactSizeIterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// All tensors, sorted by name.
    pub fn tensors(&self) -> impl ExactSizeIterator<Item = TensorView<'_>> {
        self.tensors.iter().map(|(name, tensor)| self.view(name, tensor))
    }

    /// Its files, sorted by name.
    pub fn shards(&self) -> &[Shard] {
        &self.shards
    }

    /// The directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Total size of all files.
    pub fn total_bytes(&self) -> u64 {
        self.shards.iter().map(Shard::bytes).sum()
    }

    /// Returns the memory of all pages read so far to the operating system; until then, mapped pages count as memory of the process. Views
    /// stay valid, and data that is read again is paged in again.
    pub fn release(&self) {
        for shard in &self.shards {
            shard.map.release();
        }
    }

    fn view<'a>(&'a self, name: &'a str, tensor: &'a Tensor) -> TensorView<'a> {
        let (start, end) = tensor.place;
        let bytes = &self.shards[tensor.shard].map.bytes()[start..end];
        TensorView { name, dtype: tensor.dtype, shape: &tensor.shape, bytes }
    }
}

impl Shard {
    /// Path of the file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Size of the file.
    pub fn bytes(&self) -> u64 {
        self.map.bytes().len() as u64
    }

    fn open(path: PathBuf) -> Result<(Self, Vec<Entry>), FormatError> {
        let map = MappedFile::open(&path).map_err(|source| FormatError::reading(&path, source))?;
        refuse_pointer(&path, map.bytes())?;
        let is_pickled = path.extension().is_some_and(|extension| extension == "bin" || extension == "pth");
        let entries = if is_pickled { pickled(&path, map.bytes()) } else { header::parse(&path, map.bytes()) }?;
        // The pages around a header are some 100 KiB per shard of a large model.
        map.release();
        Ok((Self { path, map }, entries))
    }

    /// Refuses a file that has become shorter since it was opened: reading on would kill the process with a signal.
    fn check_length(&self) -> Result<(), FormatError> {
        let found = self.map.len_now().map_err(|source| FormatError::reading(&self.path, source))?;
        let needed = self.bytes();
        if found < needed { Err(FormatError::Truncated { path: self.path.clone(), needed, found }) } else { Ok(()) }
    }

    /// Opens a shard that `index` names.
    fn open_named(dir: &Path, index: &Path, name: &str) -> Result<(Self, Vec<Entry>), FormatError> {
        // A plain file name has exactly one component, which is not `..`; an absolute path has more than one.
        let mut components = Path::new(name).components();
        let is_plain = matches!((components.next(), components.next()), (Some(Component::Normal(_)), None));
        if !is_plain || name.contains(['/', '\\']) {
            return Err(FormatError::ShardOutside { index: index.to_owned(), shard: name.to_owned() });
        }
        Self::open(dir.join(name)).map_err(|error| match error {
            FormatError::MissingFile { path } => FormatError::MissingShard { path, index: index.to_owned() },
            other => other,
        })
    }
}

impl Tensor {
    fn new(shard: usize, entry: Entry) -> (String, Self) {
        (entry.name, Self { shard, dtype: entry.dtype, shape: entry.shape, place: entry.place })
    }
}

/// The tensors of a file of PyTorch's own format.
#[cfg(feature = "pickle")]
fn pickled(path: &Path, file: &[u8]) -> Result<Vec<Entry>, FormatError> {
    crate::pickle::parse(path, file)
}

#[cfg(not(feature = "pickle"))]
fn pickled(path: &Path, _file: &[u8]) -> Result<Vec<Entry>, FormatError> {
    Err(FormatError::NotBuilt { path: path.to_owned(), feature: "pickle" })
}

/// Names and byte sizes of the tensors of one safetensors file.
pub(crate) fn shard_contents(path: &Path) -> Result<Vec<(String, u64)>, FormatError> {
    let (_, entries) = Shard::open(path.to_owned())?;
    Ok(entries.into_iter().map(|entry| (entry.name, (entry.place.1 - entry.place.0) as u64)).collect())
}
