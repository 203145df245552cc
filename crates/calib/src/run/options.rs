//! Options, progress and result of a run.

use std::path::PathBuf;

use oq_models::Compute;
use oq_ranks::Ranks;
use oq_recipe::{BlockRecord, Event};
use tch::Device;

/// Where and how a run computes. Start from [`Options::new`], and set the fields that differ.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Options {
    /// The device on which blocks are learned.
    pub device: Device,
    /// The type that products are computed in.
    pub compute: Compute,
    /// Bytes of memory for hidden states between blocks. Those beyond are kept in unnamed files on the disk of `out`. None means no
    /// limit. The result has the same bytes either way.
    pub cache_memory: Option<u64>,
    /// Directory of the packed model.
    pub out: PathBuf,
    /// Resume the run in `out`.
    pub resume: bool,
    /// The processes that share the run. All of them make it with the same model, recipe, segments and `out`, and the first one writes.
    pub ranks: Ranks,
}

impl Options {
    /// A run of one process on the CPU, in f32, with all hidden states in memory, into a directory `out` without an earlier run.
    pub fn new(out: impl Into<PathBuf>) -> Self {
        let (device, compute) = (Device::Cpu, Compute::F32);
        Self { device, compute, cache_memory: None, out: out.into(), resume: false, ranks: Ranks::alone() }
    }
}

/// A report of a run in progress.
#[derive(Clone, Debug, PartialEq)]
pub enum Notice {
    /// An event for the record.
    Event(Event),
    /// Progress: first of choosing widths, if there is a choice, then of all the rest.
    Progress {
        /// Work done, in optimizer steps or equivalent; in blocks if nothing is learned.
        done: usize,
        /// All work.
        total: usize,
    },
}

/// The result of a run.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Outcome {
    /// All blocks in order, including those of earlier runs.
    pub blocks: Vec<BlockRecord>,
    /// Mean divergence of each epoch of tuning, in nats.
    pub tuning: Vec<f64>,
    /// Blocks that an earlier run finished.
    pub resumed_blocks: usize,
    /// Whether an earlier run finished everything, so that nothing was left to do.
    pub was_complete: bool,
}
