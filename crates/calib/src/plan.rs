//! What a run will do and whether it fits, before a weight is read.

use oq_models::Decoder;
use oq_quant_core::packed_words;
use oq_recipe::{Method, Recipe};
use serde::Serialize;

/// libtorch itself, its thread pools and the program: measured as 150 MiB on x86-64 with the CPU library.
const PROGRAM_BYTES: u64 = 160 << 20;
/// f32, in which a block is held and learns.
const F32: u64 = 4;
/// f16, in which what is not quantized is kept on disk; the width of scales too.
const F16: u64 = 2;

/// What the machine has; `None` where it cannot be found out.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Machine {
    /// Memory that can be taken without swapping.
    pub memory_bytes: Option<u64>,
    /// Free space where the output goes.
    pub disk_bytes: Option<u64>,
}

/// One linear of a block under the recipe.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LinearPlan {
    /// Name below the block.
    pub name: &'static str,
    /// Rows.
    pub out_features: usize,
    /// Columns.
    pub in_features: usize,
    /// Grids, each with a clipping strength for its maximum and one for its minimum.
    pub n_groups: usize,
}

/// Memory by part, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct MemoryPlan {
    /// The program and libtorch.
    pub program_bytes: u64,
    /// A block's weights, fake-quantized copy and gradient.
    pub block_bytes: u64,
    /// Hidden states of the calibration tokens between blocks.
    pub cache_bytes: u64,
    /// What a step keeps for its backward pass.
    pub step_bytes: u64,
}

impl MemoryPlan {
    /// All of it.
    pub fn peak_bytes(&self) -> u64 {
        self.program_bytes + self.block_bytes + self.cache_bytes + self.step_bytes
    }
}

/// What a run will do.
#[derive(Clone, Debug, Serialize)]
pub struct Plan {
    /// Number of blocks.
    pub n_layers: usize,
    /// The linears of each.
    pub linears: Vec<LinearPlan>,
    /// Numbers learned per block.
    pub learned_per_block: usize,
    /// Optimizer steps per block.
    pub steps_per_block: usize,
    /// Calibration tokens.
    pub calibration_tokens: usize,
    /// Memory by part.
    pub memory: MemoryPlan,
    /// Size of the packed model.
    pub output_bytes: u64,
    /// What does not fit, and what would.
    pub problems: Vec<String>,
}

impl Plan {
    /// Plans a run of `recipe` on a model of this shape.
    ///
    /// A group size that does not divide is listed as a problem like too little memory.
    pub fn new(decoder: &dyn Decoder, recipe: &Recipe, machine: Machine) -> Self {
        let dims = decoder.dims();
        let layout = decoder.block_layout();
        let spec = recipe.scheme.weight;
        let mut problems = Vec::new();
        let mut linears = Vec::new();
        let (mut weights, mut packed_bytes) = (0, 0);
        for linear in &layout.linears {
            let (rows, cols) = (linear.out_features, linear.in_features);
            if !spec.group.divides(cols) {
                let group = spec.group.len(cols);
                problems.push(format!("{}: group {group} does not divide in_features {cols}", linear.name.0));
            }
            let n_groups = rows * spec.group.count(cols);
            weights += (rows * cols) as u64;
            let zero_bytes = (packed_words(rows, spec.bits) * spec.group.count(cols)) as u64 * 4;
            packed_bytes += (rows * packed_words(cols, spec.bits)) as u64 * 4 + n_groups as u64 * F16 + zero_bytes;
            packed_bytes += if linear.bias { rows as u64 * F16 } else { 0 };
            linears.push(LinearPlan { name: linear.name.0, out_features: rows, in_features: cols, n_groups });
        }
        let params: u64 = layout.params.iter().map(|p| p.shape.iter().product::<usize>() as u64).sum();
        let outer: u64 = decoder.outer_params().iter().map(|p| p.shape.iter().product::<usize>() as u64).sum();
        let calibration = &recipe.calibration;
        let learns = recipe.method == Method::Omniquant;
        let memory = if learns {
            let state = (calibration.samples * calibration.seqlen * dims.hidden) as u64 * F32;
            let caches = if recipe.learn.aug_loss { 3 } else { 2 };
            MemoryPlan {
                program_bytes: PROGRAM_BYTES,
                // The weights, their fake-quantized copy, its gradient, and what the allocator keeps between them.
                block_bytes: 7 * weights * F32 / 2,
                cache_bytes: caches * state,
                step_bytes: step_bytes(decoder, calibration.batch * calibration.seqlen),
            }
        } else {
            MemoryPlan { program_bytes: PROGRAM_BYTES, block_bytes: 2 * weights * F32, ..MemoryPlan::default() }
        };
        let output_bytes = (dims.n_layers as u64).saturating_mul(packed_bytes + params * F16) + outer * F16;
        if let Some(free) = machine.memory_bytes.filter(|free| *free < memory.peak_bytes()) {
            let mend = if learns { ": take fewer --samples or a smaller --seqlen" } else { "" };
            problems.push(format!("needs {} of memory, {} is free{mend}", gib(memory.peak_bytes()), gib(free)));
        }
        if let Some(free) = machine.disk_bytes.filter(|free| *free < output_bytes) {
            let needed = gib(output_bytes);
            problems.push(format!("needs {needed} on disk, {} is free: choose another --out", gib(free)));
        }
        let per_epoch = calibration.samples.div_ceil(calibration.batch);
        Self {
            n_layers: dims.n_layers,
            learned_per_block: if learns { linears.iter().map(|l| 2 * l.n_groups).sum() } else { 0 },
            steps_per_block: if learns { recipe.learn.epochs * per_epoch } else { 0 },
            calibration_tokens: if learns { calibration.samples * calibration.seqlen } else { 0 },
            linears,
            memory,
            output_bytes,
            problems,
        }
    }
}

/// What the backward pass of one block keeps for `tokens` tokens: inputs of norms and linears, Q, K, V before and after the
/// rotation, the attention's output, the parts of the gated product, and the gradients that are alive beside them. Counted, then
/// fitted to measured peaks of blocks from 512 to 2048 wide: within 10 % above them.
fn step_bytes(decoder: &dyn Decoder, tokens: usize) -> u64 {
    let dims = decoder.dims();
    let heads = dims.n_heads * dims.head_dim;
    let per_token = 24 * dims.hidden + 16 * heads + 12 * dims.intermediate;
    (tokens * per_token) as u64 * F32
}

fn gib(bytes: u64) -> String {
    format!("{:.2} GiB", bytes as f64 / f64::from(1 << 30))
}
