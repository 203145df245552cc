//! `cargo xtask dist`: a folder that runs on another machine without Rust, Python or a libtorch of its own.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::{bundle, locate};

/// Libraries that every machine with glibc and a C++ runtime has.
const OF_THE_SYSTEM: [&str; 9] = [
    "ld-linux-x86-64.so.2",
    "libc.so.6",
    "libdl.so.2",
    "libgcc_s.so.1",
    "libm.so.6",
    "libpthread.so.0",
    "librt.so.1",
    "libstdc++.so.6",
    "libutil.so.1",
];

/// Of a libtorch for CUDA.
const CUDA: &str = "libtorch_cuda.so";

/// Makes the folder, in the place of an earlier one, and says where it is.
pub fn dist() -> Result<()> {
    let libtorch = bundle::libtorch()?;
    let libraries = libtorch.join("lib");
    let kind = if libraries.join(CUDA).exists() { "-cuda" } else { "" };
    let name = format!("omniquant-{}-{}-{}{kind}", bundle::VERSION, std::env::consts::ARCH, std::env::consts::OS);
    let folder = locate::repository().join("out/dist").join(name);
    if folder.exists() {
        fs::remove_dir_all(&folder).with_context(|| format!("cannot remove {}", folder.display()))?;
    }
    fs::create_dir_all(folder.join("lib"))?;
    bundle::write_licenses(&folder.join("licenses"), Some(&libtorch))?;
    let program = folder.join("omniquant");
    bundle::build("$ORIGIN/lib", &[], &program)?;
    let chosen = if kind.is_empty() { needed_of(&program, &libraries)? } else { all(&libraries)? };
    for library in &chosen {
        let to = folder.join("lib").join(library.file_name().expect("libraries have names"));
        fs::copy(library, &to).with_context(|| format!("cannot copy {}", library.display()))?;
    }
    eprintln!("dist: {} with {} libraries", folder.display(), chosen.len());
    Ok(())
}

/// The libraries of `from` that a program needs, and those that they need.
fn needed_of(program: &Path, from: &Path) -> Result<BTreeSet<PathBuf>> {
    let (mut found, mut open) = (BTreeSet::new(), vec![program.to_owned()]);
    while let Some(file) = open.pop() {
        for name in bundle::needed(&file)? {
            let library = from.join(&name);
            if library.exists() {
                if found.insert(library.clone()) {
                    open.push(library);
                }
            } else if !OF_THE_SYSTEM.contains(&&*name) {
                bail!("{} needs {name}, which {} does not have", file.display(), from.display());
            }
        }
    }
    Ok(found)
}

/// All libraries: those for CUDA open others by name while they run.
fn all(from: &Path) -> Result<BTreeSet<PathBuf>> {
    let paths = fs::read_dir(from)?.map(|entry| Ok(entry?.path()));
    let is_library = |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().contains(".so"));
    paths.filter(|path: &Result<PathBuf>| path.as_ref().map_or(true, is_library)).collect()
}
