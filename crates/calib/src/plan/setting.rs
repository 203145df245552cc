//! The machine and the options that a run is planned for.

use oq_models::Compute;
use oq_recipe::Profile;
use serde::Serialize;

/// What the machine has; `None` where it cannot be found out.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Machine {
    /// Memory of the host that can be taken without swapping.
    pub memory_bytes: Option<u64>,
    /// Free space where the output goes.
    pub disk_bytes: Option<u64>,
    /// The accelerator that blocks are computed on; none where that is the CPU.
    pub device: Option<Accelerator>,
}

/// An accelerator.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Accelerator {
    /// Free memory.
    pub memory_bytes: Option<u64>,
}

/// Where and how a run would go.
#[derive(Clone, Copy, Debug)]
pub struct Setting<'a> {
    /// What its products are computed in.
    pub compute: Compute,
    /// What there is.
    pub machine: Machine,
    /// How fast it is, where that is known.
    pub profile: Option<&'a Profile>,
    /// Size of the calibration text.
    pub text_bytes: u64,
    /// As in [`crate::Options`].
    pub cache_memory: Option<u64>,
}
