//! Where blocks are computed, and helpers of every pass through them.

use oq_models::{BlockWeights, Compute, Model, ModelError};
use oq_runtime::trim_memory;
use tch::{Device, Tensor};

/// The device and the type of products that a block is computed with.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    pub(crate) device: Device,
    pub(crate) compute: Compute,
}

/// Loads a block's tensors, and reads ahead those of the block `next`, if there is one. First it returns freed memory to the system.
pub(crate) fn load_block(
    model: &Model,
    block: usize,
    next: Option<usize>,
    device: Device,
) -> Result<BlockWeights, ModelError> {
    trim_memory();
    let weights = model.load_block(block, device)?;
    if let Some(next) = next {
        model.read_ahead(next);
    }
    Ok(weights)
}

/// Token ids of segments of equal length, `[b, t]` i64.
pub(crate) fn ids_of(segments: &[Vec<u32>]) -> Tensor {
    let flat: Vec<i64> = segments.iter().flatten().map(|&id| i64::from(id)).collect();
    Tensor::from_slice(&flat).view([segments.len() as i64, -1])
}

/// Whether no element is NaN or infinite.
pub(crate) fn is_finite(x: &Tensor) -> bool {
    x.isfinite().all().int64_value(&[]) != 0
}
