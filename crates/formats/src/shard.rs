//! Writes one safetensors file. The same tensors always give the same bytes.

use std::borrow::Cow;
use std::io::{self, Write};
use std::path::Path;

use half::f16;
use safetensors::Dtype;

use crate::atomic::write_sized;
use crate::checkpoint::PIECE;
use crate::header::{byte_len, encode};
use crate::view::{f32_to_bytes, to_bytes};
use crate::{Checkpoint, FormatError, TensorView};

/// A tensor to write: its own bytes or those of another file.
#[derive(Clone, Debug)]
pub struct OutTensor<'a> {
    name: String,
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Cow<'a, [u8]>,
    /// The checkpoint that the bytes come from, if its memory should be released as they are written.
    from: Option<&'a Checkpoint>,
}

/// Compares what is written, not where it comes from.
impl PartialEq for OutTensor<'_> {
    fn eq(&self, other: &Self) -> bool {
        (&self.name, self.dtype, &self.shape, &self.bytes) == (&other.name, other.dtype, &other.shape, &other.bytes)
    }
}

impl<'a> OutTensor<'a> {
    /// A tensor of little-endian `bytes`.
    ///
    /// # Errors
    /// [`FormatError::WrongLength`] when they do not match the shape.
    pub fn new(
        name: impl Into<String>,
        dtype: Dtype,
        shape: &[usize],
        bytes: impl Into<Cow<'a, [u8]>>,
    ) -> Result<Self, FormatError> {
        let (tensor, shape, bytes) = (name.into(), shape.to_vec(), bytes.into());
        let (needed, got) = (byte_len(dtype, &shape).unwrap_or(usize::MAX), bytes.len());
        if needed != got {
            return Err(FormatError::WrongLength { tensor, shape, dtype, needed, got });
        }
        Ok(Self { name: tensor, dtype, shape, bytes, from: None })
    }

    /// A copy of a tensor in another checkpoint, byte for byte.
    pub fn copy_of(view: TensorView<'a>) -> Self {
        Self {
            name: view.name.to_owned(),
            dtype: view.dtype,
            shape: view.shape.to_vec(),
            bytes: Cow::Borrowed(view.bytes),
            from: None,
        }
    }

    /// [`Self::copy_of`] for a tensor of any size: only a few MiB of it are in memory while it is written.
    ///
    /// # Errors
    /// Same as [`Checkpoint::tensor`].
    pub fn copy_from(checkpoint: &'a Checkpoint, name: &str) -> Result<Self, FormatError> {
        Ok(Self { from: Some(checkpoint), ..Self::copy_of(checkpoint.tensor(name)?) })
    }

    /// Values rounded to `dtype`: F16, BF16 or F32.
    ///
    /// # Errors
    /// [`FormatError::OutOfRange`] for values that exceed the range of `dtype`.
    pub fn from_f32(
        name: impl Into<String>,
        shape: &[usize],
        values: &[f32],
        dtype: Dtype,
    ) -> Result<Self, FormatError> {
        let name = name.into();
        let bytes = f32_to_bytes(&name, values, dtype)?;
        Self::new(name, dtype, shape, bytes)
    }

    /// [`Self::from_f32`] in several slabs.
    ///
    /// # Errors
    /// The same, and those of `slabs`.
    pub fn from_f32_slabs<E: From<FormatError>>(
        name: &str,
        shape: &[usize],
        dtype: Dtype,
        slabs: impl IntoIterator<Item = Result<Vec<f32>, E>>,
    ) -> Result<Self, E> {
        let mut bytes = Vec::new();
        for slab in slabs {
            bytes.extend(f32_to_bytes(name, &slab?, dtype)?);
        }
        Ok(Self::new(name, dtype, shape, bytes)?)
    }

    pub(crate) fn from_f16(name: String, shape: &[usize], values: &[f16]) -> Self {
        Self::from_elements(name, Dtype::F16, shape, to_bytes(values, f16::to_le_bytes))
    }

    pub(crate) fn from_i32(name: String, shape: &[usize], words: &[u32]) -> Self {
        Self::from_elements(name, Dtype::I32, shape, to_bytes(words, u32::to_le_bytes))
    }

    pub(crate) fn from_i64(name: String, shape: &[usize], values: &[i64]) -> Self {
        Self::from_elements(name, Dtype::I64, shape, to_bytes(values, i64::to_le_bytes))
    }

    pub(crate) fn from_elements(name: String, dtype: Dtype, shape: &[usize], bytes: Vec<u8>) -> Self {
        debug_assert_eq!(byte_len(dtype, shape), Some(bytes.len()), "{name}");
        Self { name, dtype, shape: shape.to_vec(), bytes: bytes.into(), from: None }
    }

    /// Name in the checkpoint.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Size in the file.
    pub fn bytes(&self) -> usize {
        self.bytes.len()
    }

    fn write_to(&self, out: &mut impl Write) -> io::Result<()> {
        for piece in self.bytes.chunks(PIECE) {
            out.write_all(piece)?;
            if let Some(checkpoint) = self.from {
                checkpoint.release();
            }
        }
        Ok(())
    }
}

/// Writes a safetensors file atomically. The order of `tensors` does not matter.
///
/// # Errors
/// [`FormatError::NoSpace`] with the size that did not fit; [`FormatError::TwiceWritten`] for a duplicate name.
pub fn write_shard(path: &Path, tensors: &[OutTensor<'_>]) -> Result<(), FormatError> {
    let mut order: Vec<&OutTensor<'_>> = tensors.iter().collect();
    // Widest elements first: the data starts at a multiple of eight, so every tensor is aligned to its elements.
    order.sort_by(|a, b| b.dtype.bitsize().cmp(&a.dtype.bitsize()).then_with(|| a.name.cmp(&b.name)));

    let mut names: Vec<&str> = tensors.iter().map(OutTensor::name).collect();
    names.sort_unstable();
    if let Some(pair) = names.windows(2).find(|pair| pair[0] == pair[1]) {
        return Err(FormatError::TwiceWritten { path: path.to_owned(), tensor: pair[0].to_owned() });
    }

    let entries = order.iter().map(|t| (t.name.clone(), t.dtype, t.shape.clone(), t.bytes.len()));
    let header = encode(entries).map_err(|fault| FormatError::Header { path: path.to_owned(), fault })?;
    let size = header.len() + tensors.iter().map(OutTensor::bytes).sum::<usize>();
    write_sized(path, Some(size as u64), |out| {
        out.write_all(&header)?;
        order.iter().try_for_each(|tensor| tensor.write_to(out))
    })
}
