//! Memory that a run needs but the machine does not have.

use super::memory::{MemoryPlan, Parts};
use super::setting::Machine;

/// A memory that is too small.
pub(super) struct Shortage {
    of: &'static str,
    needed: u64,
    there: u64,
}

impl Shortage {
    pub(super) fn of(memory: &MemoryPlan, machine: Machine) -> Vec<Self> {
        let host = ("memory", Some(memory.host), machine.memory_bytes);
        let device = ("device memory", memory.device, machine.device.and_then(|device| device.memory_bytes));
        let short = |(of, parts, there): (_, Option<Parts>, Option<u64>)| {
            let (needed, there) = (parts?.total(), there?);
            (needed > there).then_some(Self { of, needed, there })
        };
        [host, device].into_iter().filter_map(short).collect()
    }

    pub(super) fn text(&self) -> String {
        format!("needs {} of {}, but {} is free", gib(self.needed), self.of, gib(self.there))
    }
}

pub(super) fn gib(bytes: u64) -> String {
    format!("{:.2} GiB", bytes as f64 / f64::from(1 << 30))
}
