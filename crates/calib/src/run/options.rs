//! What a run is asked for, what it says on its way, and what it made.

use std::path::PathBuf;

use oq_models::Compute;
use oq_recipe::{BlockRecord, Event};
use tch::Device;

/// Where and how a run computes: [`Options::new`], and its fields as they should be.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Options {
    /// Where blocks are learned.
    pub device: Device,
    /// What their products are computed in.
    pub compute: Compute,
    /// Bytes of memory for hidden states between blocks; those beyond lie in unnamed files on the disk of `out`. None: all that
    /// they need. The result has the same bytes either way.
    pub cache_memory: Option<u64>,
    /// Directory of the packed model.
    pub out: PathBuf,
    /// Go on with the run that is there.
    pub resume: bool,
}

impl Options {
    /// A run on the CPU, in f32, with all hidden states in memory, into a directory `out` where no run has begun.
    pub fn new(out: impl Into<PathBuf>) -> Self {
        let (device, compute) = (Device::Cpu, Compute::F32);
        Self { device, compute, cache_memory: None, out: out.into(), resume: false }
    }
}

/// What a run reports while it goes.
#[derive(Clone, Debug, PartialEq)]
pub enum Notice {
    /// Something for the record.
    Event(Event),
    /// Work done and to do: of the choice of widths first, where there is one, then of all the rest.
    Progress {
        /// In steps of a block or what takes as long; in blocks, where nothing is learned.
        done: usize,
        /// Of all.
        total: usize,
    },
}

/// What a run made.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Outcome {
    /// Every block, in order, those of resumed runs included.
    pub blocks: Vec<BlockRecord>,
    /// Mean divergence of each epoch of tuning, in nats.
    pub tuning: Vec<f64>,
    /// Blocks that an earlier run had finished.
    pub resumed_blocks: usize,
    /// Whether an earlier run had finished everything, and nothing was left to do.
    pub was_complete: bool,
}
