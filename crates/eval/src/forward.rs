//! The forward pass through all blocks, block by block, over many sequences.

use std::collections::BTreeMap;

use oq_models::layers::token_nll;
use oq_models::{Head, Model, ModelError};
use oq_runtime::trim_memory;
use tch::{Device, Kind, Tensor};

/// Hidden states of this many bytes go through a block together, so that its weights are read only once for them.
pub(crate) const STATES_BYTES: usize = 512 << 20;
/// Number of tokens whose logits are held at once: 512 rows of 128k entries are 256 MiB.
const LOGIT_ROWS: i64 = 512;

/// Logits of this many bytes are held at once, for each of some five intermediate results.
const LOGITS_BYTES: usize = 64 << 20;

/// Number of positions whose logits are held at once where several tensors of their size are needed.
pub(crate) fn logit_rows(vocab: usize) -> i64 {
    (LOGITS_BYTES / (vocab * 4)).max(1) as i64
}

/// Progress of a measurement.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct Progress {
    /// Block passes done.
    pub done: usize,
    /// Total number of block passes.
    pub total: usize,
}

/// Logits of token ids: `ids [b, t]` (i64) -> `[b, t, vocab]` f32 on the CPU.
pub fn logits(model: &Model, ids: &Tensor, device: Device) -> Result<Tensor, ModelError> {
    let _no_grad = tch::no_grad_guard();
    let mut states = embed(model, std::slice::from_ref(ids), device)?;
    run_blocks(model, &mut states, device, &mut || {})?;
    let x = model.decoder().finish(&model.outer(device), &states[0])?;
    Ok(model.head(device)?.logits(&x).to_device(Device::Cpu))
}

/// The embeddings of each batch of ids.
pub(crate) fn embed(model: &Model, batches: &[Tensor], device: Device) -> Result<Vec<Tensor>, ModelError> {
    let outer = model.outer(device);
    batches.iter().map(|ids| model.decoder().embed(&outer, ids)).collect()
}

/// Runs all hidden states through all blocks; `after_block` is called after each.
pub(crate) fn run_blocks(
    model: &Model,
    states: &mut [Tensor],
    device: Device,
    after_block: &mut dyn FnMut(),
) -> Result<(), ModelError> {
    let decoder = model.decoder();
    // One context for each length of sequences.
    let mut contexts = BTreeMap::new();
    for x in &*states {
        let t = x.size()[1];
        contexts.entry(t).or_insert_with(|| decoder.context(t as usize, device));
    }
    for block_idx in 0..decoder.dims().n_layers {
        trim_memory();
        let block = model.block(block_idx, device)?;
        model.read_ahead(block_idx + 1);
        block.with_ops(|ops| {
            for x in states.iter_mut() {
                *x = decoder.block(block_idx, ops, &contexts[&x.size()[1]], x);
            }
        });
        after_block();
    }
    Ok(())
}

/// Sum of the negative log-likelihoods of the tokens `targets [n]`, given normed hidden states `x [n, width]`.
pub(crate) fn nll(head: &Head, x: &Tensor, targets: &Tensor) -> f64 {
    let rows = x.split(LOGIT_ROWS, 0).into_iter().zip(targets.split(LOGIT_ROWS, 0));
    // Read once, at the end: reading waits for the device.
    let sum = Tensor::zeros([], (Kind::Double, x.device()));
    let sum = rows.fold(sum, |sum, (x, targets)| sum + token_nll(&head.logits(&x), &targets).sum(Kind::Double));
    sum.double_value(&[])
}
