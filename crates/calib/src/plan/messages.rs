//! What ranks send each other.

use super::counts::{Counts, F32};

/// Bytes per second that a rank sends while it receives as many. Assumed: 10 Gbit/s between machines.
pub const BYTES_PER_SEC: f64 = 1.25e9;
/// Longest message, and how many of its size exist at once.
const LONGEST: u64 = 64 << 20;
const COPIES: u64 = 4;

/// Bytes that a rank sends for a sum of `bytes`: its shares of the elements to the others, and then the sums of its own share.
fn sent(counts: &Counts, bytes: u64) -> u64 {
    (2 * bytes).saturating_mul(counts.ranks - 1) / counts.ranks
}

/// Per step: gradients of weights if rounding is learned, else those of clipping strengths.
pub(super) fn per_step(counts: &Counts) -> u64 {
    if counts.steps == 0 {
        return 0;
    }
    let bytes = if counts.rounds { counts.product_bytes * counts.weights } else { 2 * F32 * counts.grids };
    sent(counts, bytes)
}

/// Per step of tuning: gradients of changes or, if codes move, of weights.
pub(super) fn per_tuning_step(counts: &Counts) -> u64 {
    let bytes =
        if counts.places > 0 { counts.product_bytes * counts.weights } else { F32 * (counts.grids + counts.params) };
    sent(counts, bytes).saturating_mul(counts.dims.n_layers as u64)
}

/// Per block: products of inputs, and where rounding and clipping start.
pub(super) fn per_block(counts: &Counts) -> u64 {
    let starts = if counts.products > 0 { F32 * (counts.offsets + 2 * counts.grids) } else { 0 };
    per_probed_block(counts) + if counts.ranks > 1 { starts } else { 0 }
}

/// For the widths of a block: products of inputs.
pub(super) fn per_probed_block(counts: &Counts) -> u64 {
    sent(counts, F32 * counts.products)
}

/// Memory of messages, on the host.
pub(super) fn held(counts: &Counts) -> u64 {
    COPIES * per_step(counts).max(per_block(counts)).min(LONGEST)
}
