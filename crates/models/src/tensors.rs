//! Conversion of a checkpoint's bytes to f32 tensors.

use oq_formats::{Dtype, FormatError, TensorView};
use tch::{Device, Kind, Tensor};

use crate::error::ModelError;

/// Copies a stored tensor to `device` as f32.
///
/// # Errors
/// When the tensor contains NaN or infinity, or its type is not f32, f16 or bf16.
pub fn tensor_of(view: &TensorView<'_>, device: Device) -> Result<Tensor, ModelError> {
    Ok(stored_tensor_of(view, device)?.to_kind(Kind::Float))
}

/// [`tensor_of`] without conversion to f32.
pub(crate) fn stored_tensor_of(view: &TensorView<'_>, device: Device) -> Result<Tensor, ModelError> {
    view.check_finite()?;
    let shape: Vec<i64> = view.shape.iter().map(|&n| n as i64).collect();
    Ok(Tensor::from_data_size(view.bytes, &shape, kind_of(view)?).to_device(device))
}

/// Rows `ids` of a stored matrix `[n, width]` as f32 `[ids, width]` on the CPU. Reads only these rows.
pub(crate) fn rows_of(view: &TensorView<'_>, ids: &[i64]) -> Result<Tensor, ModelError> {
    let (vocab, width) = (view.shape[0], view.shape[1]);
    let row_bytes = width * kind_of(view)?.elt_size_in_bytes();
    let mut bytes = Vec::with_capacity(ids.len() * row_bytes);
    for row in checked_ids(ids, vocab)? {
        bytes.extend_from_slice(&view.bytes[row * row_bytes..][..row_bytes]);
    }
    tensor_of(&TensorView { shape: &[ids.len(), width], bytes: &bytes, ..*view }, Device::Cpu)
}

/// Token ids as rows of a matrix of `vocab` rows.
pub(crate) fn checked_ids(ids: &[i64], vocab: usize) -> Result<Vec<usize>, ModelError> {
    let row = |(index, &id): (usize, &i64)| {
        usize::try_from(id).ok().filter(|row| *row < vocab).ok_or(ModelError::TokenId { id, index, vocab })
    };
    ids.iter().enumerate().map(row).collect()
}

fn kind_of(view: &TensorView<'_>) -> Result<Kind, ModelError> {
    match view.dtype {
        Dtype::F32 => Ok(Kind::Float),
        Dtype::F16 => Ok(Kind::Half),
        Dtype::BF16 => Ok(Kind::BFloat16),
        dtype => Err(FormatError::NotFloat { tensor: view.name.to_owned(), dtype }.into()),
    }
}

/// Size of a tensor's elements in bytes.
pub(crate) fn bytes_of(tensor: &Tensor) -> usize {
    tensor.numel() * tensor.kind().elt_size_in_bytes()
}
