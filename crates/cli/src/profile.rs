//! How fast this machine is: measured once, and kept in the cache.

use std::hint::black_box;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result};
use oq_formats::atomic_write;
use oq_recipe::{Profile, RecipeError};
use tch::{Cuda, Device, Kind, Tensor};

use crate::exit::CliError;
use crate::machine;
use crate::resolve::cache_dir;

/// Rows and columns of the product that is timed, and of a first one that tells whether it can be waited for.
const PRODUCT: i64 = 3072;
const SMALL_PRODUCT: i64 = 1024;
/// A small product that takes longer says all.
const SMALL_PRODUCT_SECS: f64 = 0.1;
/// The best of so many, or of those that this time has room for.
const TRIES: usize = 6;
const TRIES_SECS: f64 = 2.5;
/// Of the tensors that are added, and of the file that is written.
const STREAM_BYTES: usize = 256 << 20;

/// The profile that was measured of this machine's device, where it was.
pub fn stored(device: Device) -> Result<Option<Profile>> {
    // Without a cache there is nothing in it.
    let Ok(path) = path(device) else { return Ok(None) };
    match std::fs::read_to_string(&path) {
        Ok(text) => {
            let profile = Profile::parse(&text, &path, &machine::device_name(device));
            Ok(Some(
                profile
                    .context("the profile of this machine is broken: measure again, `omniquant plan .. --measure`")?,
            ))
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(RecipeError::Read { file: path, source }.into()),
    }
}

/// Measures a device of this machine and the disk that `out` is on, and keeps the profile.
pub fn measure(device: Device, out: &Path) -> Result<Profile> {
    let threads = tch::get_num_threads();
    let profile = Profile {
        name: machine::device_name(device),
        description: format!("this machine, measured with {threads} threads"),
        estimate: false,
        cores: std::thread::available_parallelism().ok().map(usize::from),
        host_memory_gib: None,
        device_memory_gib: None,
        f32_gflops: product_gflops(Kind::Float, device),
        bf16_gflops: product_gflops(Kind::BFloat16, device),
        memory_gb_per_s: stream_gb_per_s(device),
        disk_gb_per_s: disk_gb_per_s(out)?,
    };
    let path = path(device)?;
    let folder = path.parent().expect("profiles lie in a folder of the cache");
    std::fs::create_dir_all(folder).with_context(|| format!("{}: cannot be made", folder.display()))?;
    atomic_write(&path, profile.to_toml().as_bytes())?;
    Ok(profile)
}

fn path(device: Device) -> Result<PathBuf> {
    let name = machine::device_name(device).replace(':', "-");
    Ok(cache_dir()?.join("machines").join(format!("{name}.toml")))
}

/// The fastest of a few square products.
fn product_gflops(kind: Kind, device: Device) -> f64 {
    let of_size = |n: i64| {
        let a = Tensor::randn([n, n], (Kind::Float, device)).to_kind(kind);
        let secs = fastest(device, || a.matmul(&a));
        (2.0 * (n as f64).powi(3) / secs / 1e9, secs)
    };
    let (small, secs) = of_size(SMALL_PRODUCT);
    if secs > SMALL_PRODUCT_SECS { small } else { of_size(PRODUCT).0 }
}

/// Two tensors are read and a new one is written.
fn stream_gb_per_s(device: Device) -> f64 {
    let a = Tensor::ones([STREAM_BYTES as i64 / 4], (Kind::Float, device));
    let b = a.ones_like();
    3.0 * STREAM_BYTES as f64 / fastest(device, || &a + &b) / 1e9
}

/// Seconds of the fastest of a few runs of `work`, after one that warms up.
fn fastest(device: Device, work: impl Fn() -> Tensor) -> f64 {
    let once = || {
        let started = Instant::now();
        let _ = black_box(work());
        if let Device::Cuda(index) = device {
            Cuda::synchronize(index as i64);
        }
        started.elapsed().as_secs_f64()
    };
    once();
    let started = Instant::now();
    let tries = (0..TRIES).take_while(|&done| done == 0 || started.elapsed().as_secs_f64() < TRIES_SECS);
    tries.map(|_| once()).fold(f64::INFINITY, f64::min)
}

/// A file that is written until the disk has it. Reading cannot be told from reading what the system has kept in memory, and is
/// taken to be as fast.
fn disk_gb_per_s(out: &Path) -> Result<f64> {
    let folder = machine::existing(out).filter(|path| path.is_dir());
    let folder = folder.ok_or_else(|| CliError::Missing(format!("{}: no folder to measure in", out.display())))?;
    let path = folder.join(format!(".omniquant-measure-{}", std::process::id()));
    // No disk writes zeros faster than other bytes, but some compress them.
    let bytes: Vec<u8> =
        (0..STREAM_BYTES as u32 / 4).flat_map(|i| i.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    let started = Instant::now();
    let written = atomic_write(&path, &bytes);
    let secs = started.elapsed().as_secs_f64();
    // Not there where it could not be written.
    let _ = std::fs::remove_file(&path);
    written.with_context(|| "the disk of --out cannot be measured")?;
    Ok(STREAM_BYTES as f64 / secs / 1e9)
}
