//! Writes one safetensors file. The same tensors always give the same bytes.

use std::borrow::{Borrow, Cow};
use std::cmp::Reverse;
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

    fn write_as(&self, plan: &TensorPlan, out: &mut impl Write) -> io::Result<()> {
        let made = (&self.name, self.dtype, &self.shape);
        assert_eq!(made, (&plan.name, plan.dtype, &plan.shape), "the tensor on the left, its plan on the right");
        for piece in self.bytes.chunks(PIECE) {
            out.write_all(piece)?;
            if let Some(checkpoint) = self.from {
                checkpoint.release();
            }
        }
        Ok(())
    }
}

/// What a tensor of a file will be, before it is made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorPlan {
    /// Name in the checkpoint.
    pub name: String,
    /// Type of its elements.
    pub dtype: Dtype,
    /// Its shape.
    pub shape: Vec<usize>,
}

impl TensorPlan {
    /// Size in the file.
    pub fn bytes(&self) -> usize {
        byte_len(self.dtype, &self.shape).unwrap_or(usize::MAX)
    }
}

/// Writes a safetensors file atomically. The order of `tensors` does not matter.
///
/// # Errors
/// [`FormatError::NoSpace`] with the size that did not fit; [`FormatError::TwiceWritten`] for a duplicate name.
pub fn write_shard(path: &Path, tensors: &[OutTensor<'_>]) -> Result<(), FormatError> {
    let plan = |tensor: &OutTensor<'_>| TensorPlan {
        name: tensor.name.clone(),
        dtype: tensor.dtype,
        shape: tensor.shape.clone(),
    };
    let plans: Vec<TensorPlan> = tensors.iter().map(plan).collect();
    write_planned(path, &plans, |index| Ok(&tensors[index]))
}

/// [`write_shard`] with one tensor in memory at a time: `make` is called with the index of each of `plans`, in the order of the file.
///
/// # Errors
/// Those of [`write_shard`] and of `make`.
///
/// # Panics
/// When `make` returns another tensor than was planned.
pub fn write_planned<'a, T: Borrow<OutTensor<'a>>, E: From<FormatError>>(
    path: &Path,
    plans: &[TensorPlan],
    mut make: impl FnMut(usize) -> Result<T, E>,
) -> Result<(), E> {
    let mut order: Vec<usize> = (0..plans.len()).collect();
    // Widest elements first: the data starts at a multiple of eight, so every tensor is aligned to its elements.
    order.sort_by_key(|&index| (Reverse(plans[index].dtype.bitsize()), &plans[index].name));

    let mut names: Vec<&str> = plans.iter().map(|plan| &*plan.name).collect();
    names.sort_unstable();
    if let Some(pair) = names.windows(2).find(|pair| pair[0] == pair[1]) {
        return Err(FormatError::TwiceWritten { path: path.to_owned(), tensor: pair[0].to_owned() }.into());
    }

    let entries = order.iter().map(|&index| &plans[index]);
    let entries = entries.map(|plan| (plan.name.clone(), plan.dtype, plan.shape.clone(), plan.bytes()));
    let header = encode(entries).map_err(|fault| FormatError::Header { path: path.to_owned(), fault })?;
    let size = plans.iter().map(TensorPlan::bytes).fold(header.len(), usize::saturating_add);
    // An error of `make` passes through the writer, which knows only those of the system.
    let mut failed = None;
    let written = write_sized(path, Some(size as u64), |out| {
        out.write_all(&header)?;
        order.iter().try_for_each(|&index| match make(index) {
            Ok(tensor) => tensor.borrow().write_as(&plans[index], out),
            Err(error) => {
                failed = Some(error);
                Err(io::ErrorKind::Other.into())
            }
        })
    });
    failed.map_or_else(|| written.map_err(E::from), Err)
}
