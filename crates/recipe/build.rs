//! Writes the list of every file under `configs/`, so that the library embeds all of them without naming any.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::{env, fs};

fn main() {
    let manifest = env::var("CARGO_MANIFEST_DIR").expect("cargo sets CARGO_MANIFEST_DIR for build scripts");
    let configs = Path::new(&manifest).join("../../configs").canonicalize().expect("configs/ lies beside crates/");
    println!("cargo:rerun-if-changed={}", configs.display());

    let mut list = String::from("&[\n");
    let machines = configs.join("machines");
    for folder in sorted(&configs).iter().filter(|path| path.is_dir() && **path != machines) {
        let recipes = sorted(folder).into_iter().filter(|path| {
            path.extension().is_some_and(|e| e == "toml") && path.file_stem().is_some_and(|s| s != "model")
        });
        writeln!(
            list,
            "    Embedded {{ name: {:?}, model: {}, recipes: &[",
            name(folder),
            embed(&folder.join("model.toml"))
        )
        .expect("writing to a String does not fail");
        for path in recipes {
            writeln!(list, "        ({:?}, {}),", name(&path), embed(&path))
                .expect("writing to a String does not fail");
        }
        list.push_str("    ] },\n");
    }
    list.push_str("]\n");

    let out = env::var("OUT_DIR").expect("cargo sets OUT_DIR for build scripts");
    fs::write(Path::new(&out).join("configs.rs"), list).expect("OUT_DIR can be written");

    let files = sorted(&machines);
    let profiles: Vec<String> =
        files.iter().map(|path| format!("    ({:?}, {}),\n", name(path), embed(path))).collect();
    let profiles = format!("&[\n{}]\n", profiles.concat());
    fs::write(Path::new(&out).join("machines.rs"), profiles).expect("OUT_DIR can be written");
}

/// What lies in a folder, by name.
fn sorted(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).expect("folders under configs/ can be read");
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.expect("configs/ can be listed").path()).collect();
    paths.sort();
    paths
}

fn name(path: &Path) -> &str {
    path.file_name().and_then(|name| name.to_str()).expect("names under configs/ are UTF-8")
}

fn embed(path: &Path) -> String {
    format!("include_str!({:?})", path.to_str().expect("the path of the repository is UTF-8"))
}
