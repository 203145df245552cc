//! Peak memory of a run, by part.
//!
//! A run has phases, and its peak is that of the largest phase: tokenizing the text; measuring the costs of widths; loading a block;
//! starting its rounding; its optimizer steps; computing its codes; copying the tensors outside the blocks; tuning all blocks, and
//! saving the state of that. The memory of each phase is counted from shapes. The constants below are fitted or measured.
//! `tests/tests/memory.rs` compares plans with the peaks of runs. When a step's memory changes, refit the constants with the same
//! comparison on larger blocks (`cargo xtask synth NAME --layers 1`).

use serde::Serialize;

use super::counts::{Counts, F16, F32};
use super::messages;
use super::setting::Setting;
use crate::block::compensate::WEIGHTS;
use crate::model::chain::POSITIONS;

/// libtorch, its thread pools, the program and a tokenizer: measured on x86-64 with the CPU library.
const PROGRAM_BYTES: u64 = 165 << 20;
/// Additional memory of the CUDA library and driver on the host and on the device: an allowance, not measured.
const CUDA_HOST_BYTES: u64 = 2 << 30;
const CUDA_DEVICE_BYTES: u64 = 512 << 20;
/// Bytes of memory per byte of text, during tokenization and afterwards: measured with SmolLM2's tokenizer on 1 and 10 MB.
const TOKENIZING: u64 = 125;
const TOKENIZED: u64 = 95;
/// Copies of the strengths: values, two moments, gradients and two temporaries.
const STRENGTH_COPIES: u64 = 6;
/// Allocated tenths per tenth of transformed weights and their gradients: measured on a block 2048 wide.
const TRANSFORM_TENTHS: u64 = 11;
/// Tensors of predictions that exist at once while all blocks are tuned.
const PREDICTIONS: u64 = 4;
/// Fragmentation: one in so many bytes of a step's tensors stays behind, in gaps between tensors that live longer. There is a limit,
/// because very large tensors get mappings of their own. This memory is returned to the system before each block and before each step
/// of tuning. Measured on blocks of SmolLM2-135M.
const HOLES_OF: u64 = 2;
const HOLES_MAX_BYTES: u64 = 96 << 20;
/// Allocated tenths per tenth in use, for libtorch's CUDA allocator: an allowance, not measured.
const CUDA_TENTHS: u64 = 11;
/// f32 tensors of the largest linear's size that exist at once when clipping is composed of single operations, as on devices.
const COMPOSED_COPIES: u64 = 6;

/// Peak memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct MemoryPlan {
    /// Of the process, on the host.
    pub host: Parts,
    /// Of the accelerator that computes blocks; none if that is the CPU.
    pub device: Option<Parts>,
    /// Hidden states beyond the memory budget, which are on the output's disk during the run.
    pub spilled_bytes: u64,
}

/// Memory by part at the peak, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Parts {
    /// The program and its libraries, and messages between ranks.
    pub program_bytes: u64,
    /// The calibration text during tokenization, and its tokens afterwards.
    pub text_bytes: u64,
    /// Pages of the checkpoint that are being read.
    pub checkpoint_bytes: u64,
    /// A block's weights, their fake-quantized and transformed copies, gradients, strengths and codes.
    pub block_bytes: u64,
    /// Hidden states of the calibration tokens between blocks.
    pub cache_bytes: u64,
    /// Tensors that a step keeps for its backward pass, and fragmentation of the allocator.
    pub step_bytes: u64,
}

impl Parts {
    /// The sum of all parts.
    pub fn total(&self) -> u64 {
        let parts = [self.program_bytes, self.text_bytes, self.checkpoint_bytes, self.block_bytes];
        parts.into_iter().chain([self.cache_bytes, self.step_bytes]).fold(0, u64::saturating_add)
    }

    fn largest(phases: impl IntoIterator<Item = Self>) -> Self {
        phases.into_iter().max_by_key(Self::total).unwrap_or_default()
    }
}

impl MemoryPlan {
    /// The plan of the largest kind of layer.
    pub(super) fn of_kinds(kinds: &[(Counts, u64)], setting: &Setting<'_>) -> Self {
        let plans = kinds.iter().map(|(counts, _)| {
            let mut plan = Self::new(counts, setting);
            plan.host.program_bytes += messages::held(counts);
            plan
        });
        let largest = plans.max_by_key(|plan| plan.device.unwrap_or(plan.host).total());
        largest.expect("a model has layers")
    }

    fn new(counts: &Counts, setting: &Setting<'_>) -> Self {
        let states = states(counts);
        let (text, masks) = match counts.tokens.max(counts.probed_tokens) {
            0 => (0, 0),
            _ => (setting.text_bytes, mask(counts).saturating_mul(F32)),
        };
        let within = |states: u64| setting.cache_memory.map_or(states, |budget| budget.min(states));
        let held = within(states);
        // Forward and backward passes through all blocks.
        let passes: Vec<(Parts, u64)> = [probing(counts), tuning(counts)].into_iter().flatten().collect();
        let spilled_bytes = passes.iter().map(|(_, states)| *states).chain([states]).map(|all| all - within(all)).max();
        let spilled_bytes = spilled_bytes.unwrap_or(0);
        let program = Parts { program_bytes: PROGRAM_BYTES, text_bytes: TOKENIZED * text, ..Parts::default() };
        let tokenizing = Parts { text_bytes: TOKENIZING * text, ..program };
        let stored = F16 * counts.weights;
        if setting.machine.device.is_none() {
            let with = |parts: Parts| Parts { cache_bytes: held.saturating_add(masks), ..parts };
            let loading = Parts { checkpoint_bytes: stored, block_bytes: loaded(counts), ..program };
            let coding = Parts { block_bytes: coded(counts), ..program };
            let copying = Parts { checkpoint_bytes: counts.outer_bytes, block_bytes: counts.rotated_bytes, ..program };
            let learning = learning(counts, 0, WEIGHTS as u64).map(|parts| Parts {
                block_bytes: parts.block_bytes,
                step_bytes: parts.step_bytes.saturating_add(holes(parts.step_bytes)),
                ..with(program)
            });
            let passes = passes.iter().map(|(parts, states)| {
                let held = within(*states);
                let step_bytes = parts.step_bytes.saturating_add(holes(parts.step_bytes));
                let cache_bytes = held.saturating_add(masks);
                Parts { cache_bytes, step_bytes, block_bytes: parts.block_bytes + places(counts), ..program }
            });
            let saving = with(Parts { block_bytes: 2 * (learned(counts) + places(counts)), ..program });
            let phases = [tokenizing, with(loading), with(coding), copying, saving].into_iter();
            let phases = phases.chain(learning).chain(passes);
            return Self { host: Parts::largest(phases), device: None, spilled_bytes };
        }
        let program = Parts { program_bytes: PROGRAM_BYTES + CUDA_HOST_BYTES, ..program };
        let tokenizing = Parts { program_bytes: program.program_bytes, ..tokenizing };
        // With a budget, hidden states are on the host; otherwise they are on the device.
        let most = passes.iter().map(|(_, states)| within(*states)).fold(held, u64::max);
        let (here, there) = if setting.cache_memory.is_some() { (most, 0) } else { (0, states) };
        let program = Parts { cache_bytes: here, ..program };
        let loading = Parts { checkpoint_bytes: stored, block_bytes: F16 * counts.largest, ..program };
        // Codes are computed on the host, one linear after the other.
        let codes = counts.weights + counts.block_bytes + 2 * F32 * counts.largest;
        let coding = Parts { block_bytes: codes, ..program };
        let copying = Parts { checkpoint_bytes: counts.outer_bytes, block_bytes: counts.rotated_bytes, ..program };
        let saving = Parts { block_bytes: learned(counts) + 2 * places(counts), ..program };
        let context =
            Parts { program_bytes: CUDA_DEVICE_BYTES, cache_bytes: there.saturating_add(masks), ..Parts::default() };
        let composed = COMPOSED_COPIES * F32 * counts.largest;
        let slack = |bytes: u64| bytes.saturating_mul(CUDA_TENTHS) / 10;
        let on_device =
            learning(counts, composed, u64::MAX).chain([Parts { block_bytes: loaded(counts), ..Parts::default() }]);
        let on_device = on_device.map(|parts| Parts {
            block_bytes: slack(parts.block_bytes),
            step_bytes: slack(parts.step_bytes),
            ..context
        });
        let passes = passes.iter().map(|(parts, states)| Parts {
            block_bytes: slack(parts.block_bytes),
            step_bytes: slack(parts.step_bytes),
            cache_bytes: if setting.cache_memory.is_some() { 0 } else { *states }.saturating_add(masks),
            ..context
        });
        let on_device = on_device.chain(passes);
        let host = Parts::largest([tokenizing, loading, coding, copying, saving]);
        Self { host, device: Some(Parts::largest(on_device)), spilled_bytes }
    }
}

/// A block's weights in f32, the largest one also as stored and, with rotation, two rotated copies of it.
fn loaded(counts: &Counts) -> u64 {
    let rotation_bytes = if counts.rotated_bytes > 0 { 2 * F32 * counts.largest } else { 0 };
    F32 * counts.weights + F16 * counts.largest + rotation_bytes + counts.rotated_bytes
}

/// A block with its transformed weights and offsets in f32, its codes as bytes and packed, and the weights being quantized.
fn coded(counts: &Counts) -> u64 {
    F32 * (counts.weights + counts.moved + counts.largest) + rounding(counts) + counts.weights + counts.block_bytes
}

/// Offsets of codes, and products of input channels, in f32.
fn rounding(counts: &Counts) -> u64 {
    F32 * (counts.offsets + counts.products)
}

/// The phases of learning with the most memory: the start of rounding, a step's backward pass and, if weights are transformed, the
/// backward pass from their gradients to the scales. If nothing is learned, the only phase is a pass in full precision. `temporary`:
/// bytes that clipping needs. `compensated`: weights whose errors are compensated at once.
fn learning(counts: &Counts, temporary: u64, compensated: u64) -> impl Iterator<Item = Parts> {
    let product = counts.product_bytes;
    let weights = F32 * counts.weights;
    if counts.targets == 0 {
        let cast = if product < F32 { product * counts.weights } else { 0 };
        let step_bytes = if counts.tokens > 0 { step(counts) / 2 } else { 0 };
        return [Some(Parts { block_bytes: weights + cast, step_bytes, ..Parts::default() }), None, None]
            .into_iter()
            .flatten();
    }
    let weights = weights + rounding(counts);
    // A matrix of products, two factors and an inverse; the columns of weights, copies of them, and offsets.
    let compensating = 4 * counts.largest_products + 6 * counts.largest.min(compensated);
    let compensating = Parts { block_bytes: weights + F32 * compensating, ..Parts::default() };
    let compensating = (counts.products > 0).then_some(compensating);
    let strengths = 2 * STRENGTH_COPIES * F32 * counts.grids;
    let leaves = product * counts.weights;
    let transformed = F32 * (counts.moved + counts.moved_twice);
    let backward = weights + 2 * leaves + transformed + temporary + strengths;
    let backward = Parts { block_bytes: backward, step_bytes: step(counts), ..Parts::default() };
    // For transformed weights, their gradients in f32, twice, and three temporaries of the largest size.
    let of_transformed = transformed + 2 * F32 * counts.moved + 3 * F32 * counts.largest;
    let of_rest = product * (counts.weights - counts.moved);
    let block_bytes =
        weights + leaves + of_rest + of_transformed.saturating_mul(TRANSFORM_TENTHS) / 10 + strengths + temporary;
    let to_scales = (counts.moved > 0).then_some(Parts { block_bytes, ..Parts::default() });
    [Some(backward), to_scales, compensating].into_iter().flatten()
}

/// The learned values of tuning with two moments, in f32. They are copied when they are saved.
fn learned(counts: &Counts) -> u64 {
    if counts.tuning_steps > 0 { 3 * F32 * counts.dims.n_layers as u64 * (counts.grids + counts.params) } else { 0 }
}

/// Places of all codes that tuning may move, on the host.
fn places(counts: &Counts) -> u64 {
    counts.dims.n_layers as u64 * counts.places
}

/// Tuning of all blocks: a block's dequantized weights in f32 and in the type of the products, their gradients, the learned values of
/// all blocks with two moments, the head, and a few tensors of predictions. And the hidden states: targets, and one batch before each
/// block.
fn tuning(counts: &Counts) -> Option<(Parts, u64)> {
    let dims = counts.dims;
    let (n_layers, hidden, vocab) = (dims.n_layers as u64, dims.hidden as u64, dims.vocab as u64);
    let product = counts.product_bytes;
    let values = (2 * product + F32) * counts.weights + 2 * F32 * counts.largest + counts.block_bytes;
    let head = product * vocab * hidden;
    let predictions = PREDICTIONS * F32 * vocab * counts.batch_tokens.min(POSITIONS as u64);
    let (block_bytes, step_bytes) = (learned(counts) + values + head, step(counts).max(predictions));
    let parts = Parts { block_bytes, step_bytes, ..Parts::default() };
    let tokens = counts.tokens.saturating_add(n_layers.saturating_mul(counts.batch_tokens));
    let states = F32.saturating_mul(hidden).saturating_mul(tokens);
    (counts.tuning_steps > 0).then_some((parts, states))
}

/// Measuring the costs of widths: a block's weights in f32 and in the type of the products, the largest linears rounded in two ways and
/// their errors, inputs of linears and gradients of their outputs, the head, and a few tensors of predictions. And the hidden states:
/// the inputs of all blocks, and the current states.
fn probing(counts: &Counts) -> Option<(Parts, u64)> {
    let dims = counts.dims;
    let (n_layers, hidden, vocab) = (dims.n_layers as u64, dims.hidden as u64, dims.vocab as u64);
    let product = counts.product_bytes;
    let values = (F32 + product) * counts.weights + (4 * F32 + 2 * product) * counts.largest;
    let head = product * vocab * hidden;
    let predictions = PREDICTIONS * F32 * vocab * counts.seqlen.min(POSITIONS as u64);
    let one_segment = step(counts) / (counts.batch_tokens / counts.seqlen).max(1);
    let tapped = product.saturating_mul(counts.tapped).saturating_mul(counts.probed_tokens);
    let step_bytes = tapped.saturating_add(one_segment).max(predictions);
    let parts = Parts { block_bytes: values + head, step_bytes, ..Parts::default() };
    let states = F32.saturating_mul(hidden).saturating_mul((n_layers + 1).saturating_mul(counts.probed_tokens));
    (counts.probed_tokens > 0).then_some((parts, states))
}

/// Hidden states between blocks: targets, inputs and the second targets.
fn states(counts: &Counts) -> u64 {
    let copies = match counts.targets {
        0 => 1,
        targets => 1 + targets,
    };
    (copies * F32).saturating_mul(counts.tokens).saturating_mul(counts.dims.hidden as u64)
}

/// Fragmentation left by tensors of `bytes` bytes.
fn holes(bytes: u64) -> u64 {
    (bytes / HOLES_OF).min(HOLES_MAX_BYTES)
}

/// Elements of a mask on attention's scores.
fn mask(counts: &Counts) -> u64 {
    counts.mask_heads.saturating_mul(counts.seqlen).saturating_mul(counts.seqlen)
}

/// Tensors that the backward pass of one block keeps: inputs of norms and linears, Q, K, V, attention's output, the parts of the MLP's
/// product, and the gradients that exist at the same time. Counted, then fitted to measured peaks of blocks of LLaMA-2-7B, OPT-1.3B and
/// Falcon-7B with 128 to 1024 tokens: within 10 %.
fn step(counts: &Counts) -> u64 {
    let (hidden, intermediate) = (counts.dims.hidden as u64, counts.dims.intermediate as u64);
    let product = counts.product_bytes;
    let plain = (16 + 8 * counts.targets) * hidden + 4 * product * counts.heads() + (8 + 4 * product) * intermediate;
    // Levels and masks of every quantized element, and all temporaries of the widest tensor.
    let quantized = if counts.quantizes_act { 8 * counts.product_inputs() + 20 * intermediate } else { 0 };
    let masked = if product < F32 { mask(counts).saturating_mul(product) } else { 0 };
    counts.batch_tokens.saturating_mul(plain + quantized).saturating_add(masked)
}
