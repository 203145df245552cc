//! From bytes in a checkpoint to f32 tensors.

use oq_formats::{Dtype, TensorView};
use tch::{Device, Kind, Tensor};

use crate::error::ModelError;

/// Copies a stored tensor to `device` as f32, refusing NaN, infinity and other kinds of numbers.
pub fn tensor_of(name: &str, view: &TensorView<'_>, device: Device) -> Result<Tensor, ModelError> {
    let shape: Vec<i64> = view.shape.iter().map(|&n| n as i64).collect();
    let stored = Tensor::from_data_size(view.bytes, &shape, kind_of(name, view)?);
    let tensor = stored.to_device(device).to_kind(Kind::Float);
    check_finite(name, &tensor)?;
    Ok(tensor)
}

/// Rows `ids` of a stored matrix `[n, width]` as f32 `[ids, width]` on the CPU; reads nothing else of it.
pub(crate) fn rows_of(name: &str, view: &TensorView<'_>, ids: &[i64]) -> Result<Tensor, ModelError> {
    let kind = kind_of(name, view)?;
    let (vocab, width) = (view.shape[0], view.shape[1]);
    let row_bytes = width * kind.elt_size_in_bytes();
    let mut bytes = Vec::with_capacity(ids.len() * row_bytes);
    for (index, &id) in ids.iter().enumerate() {
        if id < 0 || id >= vocab as i64 {
            return Err(ModelError::TokenId { id, index, vocab });
        }
        bytes.extend_from_slice(&view.bytes[id as usize * row_bytes..][..row_bytes]);
    }
    let rows = Tensor::from_data_size(&bytes, &[ids.len() as i64, width as i64], kind).to_kind(Kind::Float);
    check_finite(name, &rows)?;
    Ok(rows)
}

fn kind_of(name: &str, view: &TensorView<'_>) -> Result<Kind, ModelError> {
    match view.dtype {
        Dtype::F32 => Ok(Kind::Float),
        Dtype::F16 => Ok(Kind::Half),
        Dtype::BF16 => Ok(Kind::BFloat16),
        other => Err(ModelError::Dtype { name: name.to_owned(), dtype: format!("{other:?}") }),
    }
}

fn check_finite(name: &str, tensor: &Tensor) -> Result<(), ModelError> {
    // A sum is finite only if all of its terms are; it can overflow without them, so that only then each one is looked at.
    if tensor.sum(Kind::Float).double_value(&[]).is_finite() {
        return Ok(());
    }
    let flat = tensor.view(-1);
    let bad = flat.isfinite().logical_not().nonzero(); // [n_bad, 1]
    if bad.size()[0] == 0 {
        return Ok(());
    }
    let index = bad.int64_value(&[0, 0]);
    Err(ModelError::NotFinite {
        name: name.to_owned(),
        index: index as usize,
        value: flat.double_value(&[index]) as f32,
    })
}
