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

/// What the driver's own tool says, where it is there and counts devices as libtorch does.
fn free_cuda_memory(index: usize) -> Option<u64> {
    if std::env::var_os("CUDA_VISIBLE_DEVICES").is_some() {
        return None;
    }
    let query = ["--query-gpu=memory.free", "--format=csv,noheader,nounits", "--id"];
    let output = std::process::Command::new("nvidia-smi").args(query).arg(index.to_string()).output().ok()?;
    String::from_utf8(output.stdout).ok()?.trim().parse::<u64>().ok().map(|mib| mib << 20)
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
