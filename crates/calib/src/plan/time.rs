//! Duration of a run on a machine, from shapes and the machine's [`Profile`].
//!
//! A step consists of matrix products, attention, passes over activations, passes over weights (fake quantization, gradients of
//! strengths, transformation), and the overhead of each operation. Each part is counted in operations or bytes, and divided by the
//! machine's rate times the fraction of it that such work reaches. The fitted fractions are in [`Fit`].

use oq_recipe::Profile;
use serde::Serialize;

use super::counts::{Counts, F16, F32};
use super::messages::{self, BYTES_PER_SEC};

/// Fitted values for one kind of device.
///
/// To refit: get the machine's rates with `omniquant plan --measure`. Then run `benches/step.rs` on a block of LLaMA-2-7B, which is
/// dominated by products (`products`), and quantize SmolLM2-135M, which is dominated by passes and operations (`memory`,
/// `secs_per_op`). Compare the measured times with this module's parts (`omniquant plan --json`).
struct Fit {
    /// Fraction of the fastest product's rate that a step's products reach, in f32 and in bf16.
    products_f32: f64,
    products_bf16: f64,
    /// The same for attention.
    attention_f32: f64,
    attention_bf16: f64,
    /// Fraction of the fastest stream's rate that passes over activations and weights reach.
    memory: f64,
    /// Bytes moved per weight for fake quantization and for the gradients of its strengths.
    clip_bytes: f64,
    /// Seconds per operation, however small.
    secs_per_op: f64,
}

/// Two Zen 4 cores with products of 400 GFLOP/s in bf16 and a stream of 22 GB/s. A block of LLaMA-2-7B, w4a16g128, 2048 tokens, with 4
/// steps and everything around them, took 41.7 s. A block of SmolLM2-135M, w3a16g64, 32 steps of 1024 tokens, took 5.1 s. In f32, where
/// products reach 180 GFLOP/s, a step of LLaMA-2-7B took 16.7 s.
const CPU: Fit = Fit {
    products_f32: 0.93,
    products_bf16: 0.83,
    attention_f32: 0.6,
    attention_bf16: 0.6,
    memory: 0.6,
    clip_bytes: 20.0,
    secs_per_op: 8e-6,
};

/// Assumed, not measured. On devices clipping is composed of single operations, whose reads and writes are counted from `oq-lwc`.
const DEVICE: Fit = Fit {
    products_f32: 0.8,
    products_bf16: 0.6,
    attention_f32: 0.35,
    attention_bf16: 0.35,
    memory: 0.8,
    clip_bytes: 134.0,
    secs_per_op: 10e-6,
};

/// Fraction of a data sheet's rates that is reached: an allowance. Large bf16 products are reported at about 790 of 989 TFLOP/s on an
/// H200.
const OF_DATA_SHEET: f64 = 0.8;
/// Operations of a step: for each linear (clipping, its optimizer), in the rest of the block, and for each site.
const OPS_PER_LINEAR: f64 = 45.0;
const OPS_PER_BLOCK: f64 = 150.0;
const OPS_PER_SITE: f64 = 40.0;
/// Cost of attention's backward pass relative to its forward pass: five products instead of two.
const ATTENTION_BACKWARD: f64 = 2.5;
/// Bytes per token and channel that a step moves forward and backward: in norms, residual sums and losses; in the rotation of queries
/// and keys and before attention; per byte of a product's element in rows of the MLP; in a quantized activation.
const HIDDEN_BYTES: f64 = 140.0;
const HEAD_BYTES: f64 = 90.0;
const MLP_PASSES: f64 = 7.0;
const QUANTIZED_BYTES: f64 = 150.0;
/// Bytes per transformed weight: scaling it, and its gradient's way back.
const TRANSFORM_BYTES: f64 = 60.0;
/// Bytes per weight whose rounding is learned: reading its offset in every pass, and updating it.
const OFFSET_BYTES: f64 = 22.0;
/// Operations per column that compensation processes.
const OPS_PER_COLUMN: f64 = 16.0;
/// Bytes per weight in a step of tuning: dequantizing twice, applying changes, and the gradients of these.
const TUNING_BYTES: f64 = 70.0;
/// Bytes per prediction in a step of tuning: two distributions, their difference and its gradient.
const PREDICTION_BYTES: f64 = 60.0;
/// Passes over activations in a forward pass, as a fraction of those in a step.
const FORWARD_SHARE: f64 = 0.4;
/// Computing final codes, on one core; hashing a shard.
const SECS_PER_CODE: f64 = 20e-9;
const HASH_BYTES_PER_SEC: f64 = 1e9;

/// Time of a run, in seconds.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TimePlan {
    /// The profile's name.
    pub profile: String,
    /// Whether the profile comes from a vendor's data sheet and is not measured.
    pub estimate: bool,
    /// One step, by part.
    pub step: StepTime,
    /// One step.
    pub step_secs: f64,
    /// Time of a block besides its steps: loading, passes for targets and output, codes, and its shard.
    pub other_secs: f64,
    /// One block.
    pub block_secs: f64,
    /// Tuning all blocks together.
    pub tuning_secs: f64,
    /// Measuring the costs of widths, if widths are chosen.
    pub probing_secs: f64,
    /// All blocks, tuning, and the tensors outside the blocks.
    pub total_secs: f64,
}

/// Parts of a step, in seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct StepTime {
    /// Products in linears.
    pub products_secs: f64,
    /// Attention.
    pub attention_secs: f64,
    /// Passes over activations.
    pub activations_secs: f64,
    /// Passes over weights.
    pub weights_secs: f64,
    /// Overhead of operations.
    pub overhead_secs: f64,
    /// Messages between ranks, at [`BYTES_PER_SEC`](super::BYTES_PER_SEC).
    pub messages_secs: f64,
}

impl StepTime {
    fn total(&self) -> f64 {
        let computing = self.products_secs + self.attention_secs + self.activations_secs + self.weights_secs;
        computing + self.overhead_secs + self.messages_secs
    }
}

impl TimePlan {
    /// With several kinds of layers: the times per block are the largest kind's, and the total adds up each layer's own.
    pub(super) fn of_kinds(kinds: &[(Counts, u64)], profile: &Profile, on_device: bool) -> Self {
        let plans: Vec<(Self, f64)> =
            kinds.iter().map(|(counts, n)| (Self::new(counts, profile, on_device), *n as f64)).collect();
        let n_layers: f64 = plans.iter().map(|(_, n)| n).sum();
        let mean = |of: fn(&Self) -> f64| plans.iter().map(|(plan, n)| n * of(plan)).sum::<f64>() / n_layers;
        let (tuning_secs, probing_secs, total_secs) =
            (mean(|plan| plan.tuning_secs), mean(|plan| plan.probing_secs), mean(|plan| plan.total_secs));
        let (largest, _) = plans.into_iter().next().expect("a model has layers");
        Self { tuning_secs, probing_secs, total_secs, ..largest }
    }

    fn new(counts: &Counts, profile: &Profile, on_device: bool) -> Self {
        let rates = Rates::new(counts, profile, on_device);
        let step = if counts.steps > 0 { rates.step(counts) } else { StepTime::default() };
        let step_secs = step.total();
        let other_secs = rates.other(counts);
        let block_secs = counts.steps as f64 * step_secs + other_secs;
        let tuning_secs = counts.tuning_steps as f64 * rates.tuning_step(counts);
        let probing_secs = if counts.probed_tokens > 0 { rates.probing(counts) } else { 0.0 };
        // Checked for numbers that are not finite, then copied.
        let outer_secs = 2.0 * counts.outer_bytes as f64 / rates.disk;
        Self {
            profile: profile.name.clone(),
            estimate: profile.estimate,
            step,
            step_secs,
            other_secs,
            block_secs,
            tuning_secs,
            probing_secs,
            total_secs: counts.dims.n_layers as f64 * block_secs + tuning_secs + probing_secs + outer_secs,
        }
    }
}

/// Rates of a machine for this kind of work, per second.
struct Rates {
    products: f64,
    /// Products in f32.
    exact: f64,
    attention: f64,
    memory: f64,
    disk: f64,
    clip_bytes: f64,
    secs_per_op: f64,
}

impl Rates {
    fn new(counts: &Counts, profile: &Profile, on_device: bool) -> Self {
        let fit = if on_device { DEVICE } else { CPU };
        let reached = if profile.estimate { OF_DATA_SHEET } else { 1.0 };
        let (peak, products, attention) = if counts.product_bytes == F32 {
            (profile.f32_gflops, fit.products_f32, fit.attention_f32)
        } else {
            (profile.bf16_gflops, fit.products_bf16, fit.attention_bf16)
        };
        let peak = peak * 1e9 * reached;
        Self {
            products: peak * products,
            exact: profile.f32_gflops * 1e9 * reached * fit.products_f32,
            attention: peak * attention,
            memory: profile.memory_gb_per_s * 1e9 * reached * fit.memory,
            disk: profile.disk_gb_per_s * 1e9,
            clip_bytes: fit.clip_bytes,
            secs_per_op: fit.secs_per_op,
        }
    }

    fn step(&self, counts: &Counts) -> StepTime {
        let tokens = counts.batch_tokens as f64;
        let (weights, active) = (counts.weights as f64, counts.active as f64);
        // Outputs, gradients of weights, gradients of inputs.
        let flops = 2.0 * tokens * (3.0 * active - counts.first as f64);
        let clipped = self.clip_bytes * weights;
        let moved = TRANSFORM_BYTES * (counts.moved + counts.moved_twice) as f64;
        let ops = OPS_PER_BLOCK + OPS_PER_LINEAR * counts.linears as f64 + OPS_PER_SITE * counts.sites as f64;
        StepTime {
            products_secs: flops / self.products,
            attention_secs: (1.0 + ATTENTION_BACKWARD) * attention_flops(counts, tokens) / self.attention,
            activations_secs: tokens * activation_bytes(counts) / self.memory,
            weights_secs: (clipped + moved + OFFSET_BYTES * counts.offsets as f64) / self.memory,
            overhead_secs: ops * self.secs_per_op,
            messages_secs: messages::per_step(counts) as f64 / BYTES_PER_SEC,
        }
    }

    /// All blocks forward in full precision, forward quantized, and forward and backward; the predictions of both models, and their
    /// gradient.
    fn tuning_step(&self, counts: &Counts) -> f64 {
        let (tokens, weights) = (counts.batch_tokens as f64, counts.weights as f64);
        let block = 5.0 * 2.0 * tokens * counts.active as f64 / self.products
            + (3.0 + ATTENTION_BACKWARD) * attention_flops(counts, tokens) / self.attention
            + (1.0 + 2.0 * FORWARD_SHARE) * tokens * activation_bytes(counts) / self.memory
            + TUNING_BYTES * weights / self.memory
            + 2.0 * counts.block_bytes as f64 / self.disk
            + 2.0 * (OPS_PER_BLOCK + OPS_PER_LINEAR * counts.linears as f64) * self.secs_per_op;
        let predictions = tokens * counts.dims.vocab as f64;
        let head = 3.0 * 2.0 * predictions * counts.dims.hidden as f64 / self.products
            + PREDICTION_BYTES * predictions / self.memory;
        counts.dims.n_layers as f64 * block + head + messages::per_tuning_step(counts) as f64 / BYTES_PER_SEC
    }

    /// All blocks forward, and forward and backward; for each width the errors of weights, and their effect on outputs.
    fn probing(&self, counts: &Counts) -> f64 {
        let (tokens, weights, choices) = (counts.probed_tokens as f64, counts.weights as f64, counts.choices as f64);
        let block = (3.0 + choices) * 2.0 * tokens * counts.active as f64 / self.products
            + (2.0 + ATTENTION_BACKWARD) * attention_flops(counts, tokens) / self.attention
            + (1.0 + FORWARD_SHARE) * tokens * activation_bytes(counts) / self.memory
            // A search takes as long as the clipping of two steps. Then the weights are rounded in two ways.
            + 4.0 * choices * self.clip_bytes * weights / self.memory
            + 2.0 * F16 as f64 * weights / self.disk
            + messages::per_probed_block(counts) as f64 / BYTES_PER_SEC;
        let predictions = tokens * counts.dims.vocab as f64;
        let head = 2.0 * 2.0 * predictions * counts.dims.hidden as f64 / self.products
            + PREDICTION_BYTES * predictions / self.memory;
        counts.dims.n_layers as f64 * block + head
    }

    fn other(&self, counts: &Counts) -> f64 {
        let (tokens, weights) = (counts.tokens as f64, counts.weights as f64);
        // In full precision once per target, and once quantized.
        let passes = if counts.targets > 0 { 1.0 + counts.targets as f64 } else { 1.0 };
        let forward = 2.0 * tokens * counts.active as f64 / self.products
            + attention_flops(counts, tokens) / self.attention
            + FORWARD_SHARE * tokens * activation_bytes(counts) / self.memory;
        let stored = F16 as f64 * weights;
        let shard = counts.block_bytes as f64;
        let files = stored / self.disk + shard / self.disk + shard / HASH_BYTES_PER_SEC;
        // Linears are shared out to the ranks.
        let ranks = counts.ranks as f64;
        let compensation = (2.0 * tokens * counts.products as f64 + counts.compensation as f64 / ranks) / self.exact
            + OPS_PER_COLUMN * counts.columns as f64 / ranks * self.secs_per_op;
        let messages = messages::per_block(counts) as f64 / BYTES_PER_SEC;
        // Converting, casting and writing back: like clipping, about one or two passes over weights.
        passes * forward
            + compensation
            + messages
            + files
            + SECS_PER_CODE * weights
            + self.clip_bytes * weights / self.memory
    }
}

/// Of a forward pass: two products of `t` scores per token. Half of the scores lie in the future and are skipped, unless there is a
/// mask.
fn attention_flops(counts: &Counts, tokens: f64) -> f64 {
    let seen = if counts.mask_heads > 0 { 1.0 } else { 0.5 };
    4.0 * tokens * counts.seqlen as f64 * counts.heads() as f64 * seen
}

/// Bytes per token that a step moves.
fn activation_bytes(counts: &Counts) -> f64 {
    let quantized = if counts.quantizes_act { QUANTIZED_BYTES * counts.product_inputs() as f64 } else { 0.0 };
    HIDDEN_BYTES * counts.dims.hidden as f64
        + HEAD_BYTES * (counts.heads() + counts.kv_heads()) as f64
        + MLP_PASSES * (counts.product_bytes * counts.mlp_rows) as f64
        + quantized
}
