//! What a run will do and whether it fits, before a weight is read.

use oq_let::Site;
use oq_models::Decoder;
use oq_quant_core::{ActSpec, SiteKind, packed_words};
use oq_recipe::Recipe;
use serde::Serialize;

use crate::sites::sites_of;

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

/// One site of a block under the recipe.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SitePlan {
    /// What is rescaled.
    pub kind: SiteKind,
    /// Modules that write the channels.
    pub writers: Vec<&'static str>,
    /// Modules that read them; queries and keys have none.
    pub readers: Vec<&'static str>,
    /// Scales; channels that are tied have one between them.
    pub n_scales: usize,
    /// Shifts.
    pub n_shifts: usize,
}

impl SitePlan {
    fn new(site: &Site, shift: bool) -> Self {
        let mut writers: Vec<&str> = site.writers().map(|port| port.module).collect();
        // One module may hold queries and keys.
        writers.dedup();
        Self {
            kind: site.kind,
            writers,
            readers: site.readers().map(|port| port.module).collect(),
            n_scales: site.n_scales,
            n_shifts: if shift && site.can_shift { site.n_scales } else { 0 },
        }
    }
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
    /// Where channels are rescaled.
    pub sites: Vec<SitePlan>,
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
        let sites = sites_of(decoder, recipe).unwrap_or_else(|error| {
            problems.push(error.to_string());
            Vec::new()
        });
        let sites: Vec<SitePlan> = sites.iter().map(|site| SitePlan::new(site, recipe.transform.shift)).collect();
        let (learns, reads_text) = (recipe.method.learns(), recipe.method.reads_text());
        let memory = if reads_text {
            let state = (calibration.samples * calibration.seqlen * dims.hidden) as u64 * F32;
            let caches = match (learns, recipe.learn.aug_loss) {
                (true, true) => 3,
                (true, false) => 2,
                (false, _) => 1,
            };
            // The weights, their fake-quantized copy, its gradient, and what the allocator keeps between them, in halves. Transformed
            // weights are two more copies, the ones scaled along rows between them.
            let copies = if sites.is_empty() { 7 } else { 11 };
            MemoryPlan {
                program_bytes: PROGRAM_BYTES,
                block_bytes: copies * weights * F32 / 2,
                cache_bytes: caches * state,
                step_bytes: step_bytes(decoder, calibration.batch * calibration.seqlen, recipe.scheme.act),
            }
        } else {
            MemoryPlan { program_bytes: PROGRAM_BYTES, block_bytes: 2 * weights * F32, ..MemoryPlan::default() }
        };
        let output_bytes = (dims.n_layers as u64).saturating_mul(packed_bytes + params * F16) + outer * F16;
        if let Some(free) = machine.memory_bytes.filter(|free| *free < memory.peak_bytes()) {
            let mend = if reads_text { ": take fewer --samples or a smaller --seqlen" } else { "" };
            problems.push(format!("needs {} of memory, {} is free{mend}", gib(memory.peak_bytes()), gib(free)));
        }
        if let Some(free) = machine.disk_bytes.filter(|free| *free < output_bytes) {
            let needed = gib(output_bytes);
            problems.push(format!("needs {needed} on disk, {} is free: choose another --out", gib(free)));
        }
        let per_epoch = calibration.samples.div_ceil(calibration.batch);
        Self {
            n_layers: dims.n_layers,
            learned_per_block: if learns {
                let strengths: usize = linears.iter().map(|linear| 2 * linear.n_groups).sum();
                strengths + sites.iter().map(|site| site.n_scales + site.n_shifts).sum::<usize>()
            } else {
                0
            },
            steps_per_block: if learns { recipe.learn.epochs * per_epoch } else { 0 },
            calibration_tokens: if reads_text { calibration.samples * calibration.seqlen } else { 0 },
            linears,
            sites,
            memory,
            output_bytes,
            problems,
        }
    }
}

/// What the backward pass of one block keeps for `tokens` tokens: inputs of norms and linears, Q, K, V before and after the
/// rotation, the attention's output, the parts of the gated product, and the gradients that are alive beside them. Counted, then
/// fitted to measured peaks of blocks from 512 to 2048 wide: within 10 % above them.
fn step_bytes(decoder: &dyn Decoder, tokens: usize, act: ActSpec) -> u64 {
    let dims = decoder.dims();
    let heads = dims.n_heads * dims.head_dim;
    let per_token = 24 * dims.hidden + 16 * heads + 12 * dims.intermediate;
    // Quantized inputs and heads beside those they are made from.
    let quantized = 2 * dims.hidden + 6 * heads + 2 * dims.intermediate;
    let per_token = if act == ActSpec::Float { per_token } else { per_token + 2 * quantized };
    (tokens * per_token) as u64 * F32
}

fn gib(bytes: u64) -> String {
    format!("{:.2} GiB", bytes as f64 / f64::from(1 << 30))
}
