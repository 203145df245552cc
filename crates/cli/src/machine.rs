//! The machine: devices, threads, memory and disk.

use std::path::{Path, PathBuf};

use oq_calib::{Accelerator, Machine};
use oq_models::Compute;
use oq_runtime::multiplies_bf16;
use sysinfo::System;
use tch::{Cuda, Device};

use crate::args::{ComputeArg, DeviceArg};
use crate::exit::CliError;
use crate::nvidia::card;

/// The requested device; for `auto`, a CUDA device if there is one.
pub fn device(wanted: DeviceArg) -> Result<Device, CliError> {
    let count = if Cuda::is_available() { Cuda::device_count() as usize } else { 0 };
    match wanted {
        DeviceArg::Cpu => Ok(Device::Cpu),
        DeviceArg::Auto if count == 0 => Ok(Device::Cpu),
        DeviceArg::Auto => Ok(Device::Cuda(0)),
        DeviceArg::Cuda(index) if index < count => Ok(Device::Cuda(index)),
        DeviceArg::Cuda(index) => Err(CliError::Usage(format!(
            "--device cuda:{index}: libtorch sees {count} CUDA devices (`cargo xtask setup --cuda` installs the CUDA library)"
        ))),
    }
}

/// The type to compute products in on a device; for `auto`, bf16 if the device is faster with it.
pub fn compute(wanted: ComputeArg, device: Device) -> Compute {
    match (wanted, device) {
        (ComputeArg::F32, _) => Compute::F32,
        (ComputeArg::Bf16, _) => Compute::Bf16,
        // A card that nvidia-smi does not tell of is more likely a new one.
        (ComputeArg::Auto, Device::Cuda(index)) if card(index).is_none_or(|card| card.multiplies_bf16()) => {
            Compute::Bf16
        }
        (ComputeArg::Auto, Device::Cuda(_)) => Compute::F32,
        (ComputeArg::Auto, _) if multiplies_bf16() => Compute::Bf16,
        (ComputeArg::Auto, _) => Compute::F32,
    }
}

/// Uses our CUDA kernels on the device of a run.
pub fn use_cuda_kernels(device: Device) -> Result<(), CliError> {
    let Device::Cuda(index) = device else {
        let message = "--kernels cuda: this run is on the CPU; say --device cuda:0 where there is a card";
        return Err(CliError::Usage(message.to_owned()));
    };
    oq_cuda::use_card(index).map_err(|error| CliError::Usage(format!("--kernels cuda: {error}")))
}

/// The device's name, as `--device` takes it.
pub fn device_name(device: Device) -> String {
    match device {
        Device::Cuda(index) => format!("cuda:{index}"),
        _ => "cpu".to_owned(),
    }
}

/// Sets the number of threads of libtorch and of our own loops.
pub fn set_threads(threads: u16) {
    tch::set_num_threads(i32::from(threads));
    // The pool is created here, before its first use.
    if rayon_pool(threads.into()).is_err() {
        tracing::warn!("the thread pool was running already");
    }
}

/// Cores of the machine, as far as this process may use them.
pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

fn rayon_pool(threads: usize) -> Result<(), rayon::ThreadPoolBuildError> {
    rayon::ThreadPoolBuilder::new().num_threads(threads).build_global()
}

/// Runs `work` on a thread of the rayon pool, so that loops in it do not have to wake the pool from outside.
pub fn in_pool<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    rayon::scope(|_| work())
}

/// Free memory, and free space on the disk that `out` is on.
pub fn machine(out: &Path) -> Machine {
    let mut system = System::new();
    system.refresh_memory();
    // The container's own figure also counts the page cache, which gives way to programs.
    let in_cgroup = system.cgroup_limits().map(|limits| limits.total_memory.saturating_sub(limits.rss));
    let free = Some(system.available_memory()).filter(|&bytes| bytes > 0);
    Machine {
        memory_bytes: free.map(|free| in_cgroup.map_or(free, |limit| limit.min(free))),
        disk_bytes: free_space(out),
        device: None,
    }
}

/// The accelerator, if blocks are not computed on the CPU.
pub fn accelerator(device: Device) -> Option<Accelerator> {
    match device {
        Device::Cuda(index) => Some(Accelerator { memory_bytes: card(index).map(|card| card.free_bytes) }),
        _ => None,
    }
}

/// Total memory in bytes.
pub fn total_memory() -> u64 {
    let mut system = System::new();
    system.refresh_memory();
    system.total_memory()
}

/// `path`, or the nearest directory above it that exists.
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

/// Peak resident memory of this process, if the system reports it.
pub fn peak_bytes() -> Option<u64> {
    status_bytes("VmHWM:")
}

fn status_bytes(name: &str) -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib * 1024)
}

/// Resident memory of this process now, if the system reports it.
pub fn resident_bytes() -> Option<u64> {
    status_bytes("VmRSS:")
}

/// The path of the loaded libtorch.
pub fn libtorch_path() -> Option<PathBuf> {
    let maps = std::fs::read_to_string("/proc/self/maps").ok()?;
    let path = maps.lines().find_map(|line| line.split_whitespace().last().filter(|p| p.contains("libtorch_cpu")))?;
    Some(PathBuf::from(path))
}
