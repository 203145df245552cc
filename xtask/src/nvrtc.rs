//! NVRTC for the tests, which compile the CUDA kernels on machines without a GPU too.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::{libtorch, locate, pins};

/// The library: libtorch's, if that is for CUDA, else one that is downloaded once per user. None where there are no wheels for the system.
pub fn library() -> Result<Option<PathBuf>> {
    let name = pins::NVRTC.take[0].to;
    let of_libtorch = locate::libtorch_link().join(name);
    if of_libtorch.exists() {
        return Ok(Some(of_libtorch));
    }
    if (std::env::consts::OS, std::env::consts::ARCH) != ("linux", "x86_64") {
        return Ok(None);
    }
    let (cache, part) = (locate::cache_dir()?, pins::NVRTC);
    let ready = cache.join(format!("nvrtc-{}", part.wheel.version));
    if !ready.join(name).exists() {
        fs::create_dir_all(&cache).with_context(|| format!("cannot create the cache {}", cache.display()))?;
        let staging = tempfile::Builder::new().prefix(libtorch::STAGING).tempdir_in(&cache)?;
        let fresh = staging.path().join("nvrtc");
        libtorch::fetch(&part, "nvrtc:", staging.path(), &fresh)?;
        // Another process may have been faster.
        if let Err(error) = fs::rename(&fresh, &ready)
            && !ready.join(name).exists()
        {
            return Err(error).with_context(|| format!("cannot move NVRTC to {}", ready.display()));
        }
    }
    Ok(Some(ready.join(name)))
}
