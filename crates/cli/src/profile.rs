//! The speed of this machine, measured once and kept in the cache.

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

/// Rows and columns of the product that is timed, and of a smaller one that shows whether the large one is fast enough to wait for.
const PRODUCT: i64 = 3072;
const SMALL_PRODUCT: i64 = 1024;
/// If the small product takes longer than this, its speed is the result.
const SMALL_PRODUCT_SECS: f64 = 0.1;
/// The fastest of so many runs counts, or of those that fit into this time.
const TRIES: usize = 6;
const TRIES_SECS: f64 = 2.5;
/// Size of the tensors that are added, and of the file that is written.
const STREAM_BYTES: usize = 256 << 20;

/// The stored profile of this machine's device, if it was measured.
pub fn stored(device: Device) -> Result<Option<Profile>> {
    // Without a cache directory nothing is stored.
    let Ok(path) = path(device) else { return Ok(None) };
    match std::fs::read_to_string(&path) {
        Ok(text) => {
            let profile = Profile::parse(&text, &path, &machine::device_name(device));
            Ok(Some(
                profile
                    .context("this machine's profile is broken: measure again with `omniquant plan .. --measure`")?,
            ))
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(RecipeError::Read { file: path, source }.into()),
    }
}

/// Measures a device of this machine and the disk of `out`, and stores the profile.
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
    std::fs::create_dir_all(folder).with_context(|| format!("{}: cannot be created", folder.display()))?;
    atomic_write(&path, profile.to_toml().as_bytes())?;
    Ok(profile)
}

fn path(device: Device) -> Result<PathBuf> {
    let name = machine::device_name(device).replace(':', "-");
    Ok(cache_dir()?.join("machines").join(format!("{name}.toml")))
}

/// Speed of a square product, the best of a few runs.
fn product_gflops(kind: Kind, device: Device) -> f64 {
    let of_size = |n: i64| {
        let a = Tensor::randn([n, n], (Kind::Float, device)).to_kind(kind);
        let secs = fastest(device, || a.matmul(&a));
        (2.0 * (n as f64).powi(3) / secs / 1e9, secs)
    };
    let (small, secs) = of_size(SMALL_PRODUCT);
    if secs > SMALL_PRODUCT_SECS { small } else { of_size(PRODUCT).0 }
}

/// Two tensors are read, and a new one is written.
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

/// Writes a file until it is synced to the disk. Reading cannot be measured apart from the page cache, and is assumed to be as fast.
fn disk_gb_per_s(out: &Path) -> Result<f64> {
    let folder = machine::existing(out).filter(|path| path.is_dir());
    let folder = folder.ok_or_else(|| CliError::Missing(format!("{}: no folder to measure in", out.display())))?;
    let path = folder.join(format!(".omniquant-measure-{}", std::process::id()));
    // Some disks compress zeros, so other bytes are written.
    let bytes: Vec<u8> =
        (0..STREAM_BYTES as u32 / 4).flat_map(|i| i.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    let started = Instant::now();
    let written = atomic_write(&path, &bytes);
    let secs = started.elapsed().as_secs_f64();
    // The file does not exist if it could not be written.
    let _ = std::fs::remove_file(&path);
    written.with_context(|| "the speed of --out's disk cannot be measured")?;
    Ok(STREAM_BYTES as f64 / secs / 1e9)
}
