//! Writes the list of every file under `configs/`, so that the library embeds all of them without naming any.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::{env, fs};

/// From this crate's folder: the one place that says where they are.
const CONFIGS: &str = "configs";

/// A folder of [`CONFIGS`], and the constant that holds its files.
const FOLDERS: [(&str, &str); 3] = [("models", "MODELS"), ("recipes", "RECIPES"), ("machines", "MACHINES")];

fn main() {
    let manifest = env::var("CARGO_MANIFEST_DIR").expect("cargo sets CARGO_MANIFEST_DIR for build scripts");
    let configs =
        Path::new(&manifest).join(CONFIGS).canonicalize().expect("the crate has a folder configs, or a link to it");
    println!("cargo:rerun-if-changed={}", configs.display());

    let mut list = String::new();
    for (folder, constant) in FOLDERS {
        writeln!(list, "pub(crate) const {constant}: &[(&str, &str)] = &[").expect("a String can be written");
        for path in sorted(&configs.join(folder)) {
            let name = path.file_stem().and_then(|name| name.to_str()).expect("names under configs/ are UTF-8");
            let path = path.to_str().expect("the path of the repository is UTF-8");
            writeln!(list, "    ({name:?}, include_str!({path:?})),").expect("a String can be written");
        }
        list.push_str("];\n");
    }
    let out = env::var("OUT_DIR").expect("cargo sets OUT_DIR for build scripts");
    fs::write(Path::new(&out).join("configs.rs"), list).expect("OUT_DIR can be written");
}

/// What lies in a folder, by name.
fn sorted(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).expect("folders under configs/ can be read");
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.expect("configs/ can be listed").path()).collect();
    paths.sort_by(|a, b| a.file_stem().cmp(&b.file_stem()));
    paths
}
