//! The machine and the options that a run is planned for.

use oq_models::Compute;
use oq_recipe::Profile;
use serde::Serialize;

/// Resources of the machine; `None` if unknown.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Machine {
    /// Available memory of the host.
    pub memory_bytes: Option<u64>,
    /// Free disk space for the output.
    pub disk_bytes: Option<u64>,
    /// The accelerator that computes blocks; none if that is the CPU.
    pub device: Option<Accelerator>,
}

/// An accelerator.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Accelerator {
    /// Free memory.
    pub memory_bytes: Option<u64>,
}

/// Where and how a run is planned.
#[derive(Clone, Copy, Debug)]
pub struct Setting<'a> {
    /// The type of its products.
    pub compute: Compute,
    /// The machine's resources.
    pub machine: Machine,
    /// The machine's speed, if known.
    pub profile: Option<&'a Profile>,
    /// Size of the calibration text.
    pub text_bytes: u64,
    /// As in [`crate::Options`].
    pub cache_memory: Option<u64>,
    /// Number of processes that share the run, each with a machine like this one to itself.
    pub ranks: usize,
}
