//! What this machine has.

use std::path::{Path, PathBuf};

use oq_calib::{Accelerator, Machine};
use oq_models::Compute;
use oq_models::runtime::multiplies_bf16;
use sysinfo::System;
use tch::{Cuda, Device};

use crate::args::{ComputeArg, DeviceArg};
use crate::exit::CliError;

/// The device asked for, or the best there is.
pub fn device(wanted: DeviceArg) -> Result<Device, CliError> {
    let count = if Cuda::is_available() { Cuda::device_count() as usize } else { 0 };
    match wanted {
        DeviceArg::Cpu => Ok(Device::Cpu),
        DeviceArg::Auto if count == 0 => Ok(Device::Cpu),
        DeviceArg::Auto => Ok(Device::Cuda(0)),
        DeviceArg::Cuda(index) if index < count => Ok(Device::Cuda(index)),
        DeviceArg::Cuda(index) => Err(CliError::Usage(format!(
            "--device cuda:{index}: libtorch sees {count} CUDA devices (`cargo xtask setup --cuda` brings the CUDA library)"
        ))),
    }
}

/// What products are computed in on a device: where `auto` is asked for, bf16 if it is the faster one there.
pub fn compute(wanted: ComputeArg, device: Device) -> Compute {
    match (wanted, device) {
        (ComputeArg::F32, _) => Compute::F32,
        (ComputeArg::Bf16, _) | (ComputeArg::Auto, Device::Cuda(_)) => Compute::Bf16,
        (ComputeArg::Auto, _) if multiplies_bf16() => Compute::Bf16,
        (ComputeArg::Auto, _) => Compute::F32,
    }
}

/// The name that `--device` takes.
pub fn device_name(device: Device) -> String {
    match device {
        Device::Cuda(index) => format!("cuda:{index}"),
        _ => "cpu".to_owned(),
    }
}

/// Threads of libtorch and of our own loops.
pub fn set_threads(threads: u16) {
    tch::set_num_threads(i32::from(threads));
    // Read by rayon when its pool is first used, which is after this.
    if rayon_pool(threads.into()).is_err() {
        tracing::warn!("the thread pool was running already");
    }
}

fn rayon_pool(threads: usize) -> Result<(), rayon::ThreadPoolBuildError> {
    rayon::ThreadPoolBuilder::new().num_threads(threads).build_global()
}

/// Runs `work` on a thread of the pool that our own loops use: what it shares out then wakes nobody.
pub fn in_pool<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    rayon::scope(|_| work())
}

/// Free memory, and free space on the disk that `out` is on.
pub fn machine(out: &Path) -> Machine {
    let mut system = System::new();
    system.refresh_memory();
    // What the container counts besides is mostly the cache of files, which gives way.
    let in_cgroup = system.cgroup_limits().map(|limits| limits.total_memory.saturating_sub(limits.rss));
    let free = Some(system.available_memory()).filter(|&bytes| bytes > 0);
    Machine {
        memory_bytes: free.map(|free| in_cgroup.map_or(free, |limit| limit.min(free))),
        disk_bytes: free_space(out),
        device: None,
    }
}

/// What blocks are computed on beside the CPU.
pub fn accelerator(device: Device) -> Option<Accelerator> {
    match device {
        Device::Cuda(index) => Some(Accelerator { memory_bytes: free_cuda_memory(index) }),
        _ => None,
    }
}

/// Free memory of a CUDA device, where the driver's own tool knows which card that is. CUDA counts the fastest card first, the tool by
/// their places on the bus; `tch` tells neither which card a device is nor how much of it is free.
fn free_cuda_memory(index: usize) -> Option<u64> {
    if std::env::var_os("CUDA_VISIBLE_DEVICES").is_some() {
        tracing::debug!(index, "free memory of the device is unknown: CUDA_VISIBLE_DEVICES renumbers cards");
        return None;
    }
    let by_bus = std::env::var_os("CUDA_DEVICE_ORDER").is_some_and(|order| order == "PCI_BUS_ID");
    let query = ["--query-gpu=memory.free", "--format=csv,noheader,nounits"];
    let output = std::process::Command::new("nvidia-smi").args(query).output().ok()?;
    let free = free_memory(&String::from_utf8_lossy(&output.stdout), index, by_bus);
    if free.is_none() {
        tracing::debug!(
            index,
            by_bus,
            "free memory of the device is unknown: nvidia-smi does not tell which card it is"
        );
    }
    free
}

/// Free bytes of a device, from a line in MiB for each card. Which card it is, is known if there is but one or if `by_bus` CUDA counts as
/// the tool does.
fn free_memory(listed: &str, index: usize, by_bus: bool) -> Option<u64> {
    let lines: Vec<&str> = listed.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let line = lines.get(index).filter(|_| by_bus || lines.len() == 1)?;
    line.parse::<u64>().ok()?.checked_mul(1 << 20)
}

/// Total memory in bytes.
pub fn total_memory() -> u64 {
    let mut system = System::new();
    system.refresh_memory();
    system.total_memory()
}

/// The nearest folder above `path`, or `path` itself, that is there.
pub fn existing(path: &Path) -> Option<PathBuf> {
    let absolute = std::path::absolute(path).ok()?;
    absolute.ancestors().find_map(|ancestor| ancestor.canonicalize().ok())
}

fn free_space(path: &Path) -> Option<u64> {
    #[cfg(unix)]
    return rustix::fs::statvfs(existing(path)?).ok().map(|disk| disk.f_bavail.saturating_mul(disk.f_frsize));
    #[cfg(not(unix))]
    None
}

/// Most memory that this process has had resident, where the system says so.
pub fn peak_bytes() -> Option<u64> {
    status_bytes("VmHWM:")
}

fn status_bytes(name: &str) -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib * 1024)
}

/// Memory that this process has resident now, where the system says so.
pub fn resident_bytes() -> Option<u64> {
    status_bytes("VmRSS:")
}

/// The libtorch that is loaded.
pub fn libtorch_path() -> Option<PathBuf> {
    let maps = std::fs::read_to_string("/proc/self/maps").ok()?;
    let path = maps.lines().find_map(|line| line.split_whitespace().last().filter(|p| p.contains("libtorch_cpu")))?;
    Some(PathBuf::from(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_card_is_known_by_its_place_or_when_it_is_alone() {
        const MIB: u64 = 1 << 20;
        // As `nvidia-smi --query-gpu=memory.free --format=csv,noheader,nounits` prints them.
        let (one, two) = ("143167\n", "23831\n80994\n");
        assert_eq!(free_memory(one, 0, false), Some(143_167 * MIB));
        assert_eq!(free_memory(one, 0, true), Some(143_167 * MIB));
        assert_eq!(free_memory(one, 1, false), None);
        assert_eq!(
            [0, 1, 2].map(|index| free_memory(two, index, true)),
            [Some(23_831 * MIB), Some(80_994 * MIB), None]
        );
        // Which of them CUDA's first is, is not known.
        assert_eq!([0, 1].map(|index| free_memory(two, index, false)), [None, None]);
        for other in
            ["", "[N/A]\n", "[Insufficient Permissions]\n", "No devices were found\n", "99999999999999999999\n"]
        {
            assert_eq!(free_memory(other, 0, true), None, "{other}");
        }
    }
}
