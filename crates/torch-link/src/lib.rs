//! For the build script of a package that links libtorch through `tch`: lets its programs, tests and examples find the library at run
//! time. Nothing of libtorch is needed to build this crate.
//!
//! cargo knows where libtorch lies while it links, and forgets it afterwards. torch-sys hands the folder to the build scripts of packages
//! that depend on it directly, by `DEP_TCH_LIBTORCH_LIB` (its manifest has `links = "tch"`); [`link`] makes linker arguments of it. They hold for
//! the package that the script belongs to, not for others that depend on it: each package with programs of its own has such a script.

#![allow(clippy::print_stdout, reason = "printing is how a build script speaks to cargo")]

use std::path::{Path, PathBuf};

/// Where torch-sys says that libtorch's libraries lie.
const FOLDER: &str = "DEP_TCH_LIBTORCH_LIB";

/// Tells cargo to link so that libtorch is looked for where it lay when the program was built. Says nothing where the package does not
/// depend on torch-sys directly.
pub fn link() {
    println!("cargo:rerun-if-env-changed=LIBTORCH");
    let Some(folder) = std::env::var_os(FOLDER) else { return };
    // A link is resolved, so that the program still runs when what the link stands in is moved.
    let folder = std::fs::canonicalize(&folder).unwrap_or_else(|_| folder.into());
    for argument in arguments(&folder, &folder.display().to_string()) {
        println!("cargo:rustc-link-arg={argument}");
    }
}

/// Tells cargo to link so that libtorch is looked for in `run_path`: a folder, or several with colons between. `$ORIGIN` stands for
/// the folder of the program. For programs that are built on one machine and run on others.
pub fn link_for(run_path: &str) {
    let Some(folder) = std::env::var_os(FOLDER) else { return };
    for argument in arguments(Path::new(&folder), run_path) {
        println!("cargo:rustc-link-arg={argument}");
    }
}

/// Where the headers of libtorch lie that torch-sys found: its own folder, and that of the C++ interface. For packages that compile C++
/// against them.
///
/// # Panics
/// Where the package does not depend on torch-sys directly.
pub fn headers() -> [PathBuf; 2] {
    let folder = PathBuf::from(std::env::var_os(FOLDER).expect("torch-sys names libtorch's folder"));
    let include = folder.parent().expect("libraries lie beside headers").join("include");
    let api = include.join("torch/csrc/api/include");
    [include, api]
}

/// What the linker is told: to look for libraries in `run_path` at run time, and to keep libtorch's CUDA library where `folder`, with
/// libtorch's libraries, has one.
pub fn arguments(folder: &Path, run_path: &str) -> Vec<String> {
    let mut arguments = vec![format!("-Wl,-rpath,{run_path}")];
    // libtorch_cuda registers itself when it is loaded and exports nothing that anybody names. The linker would drop it: rustc puts
    // these words after the libraries, so that it has to be named again.
    let cuda = folder.join("libtorch_cuda.so");
    if cuda.exists() {
        arguments.push(format!("-Wl,--no-as-needed,{},--as-needed", cuda.display()));
    }
    arguments
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cuda_library_is_kept_where_there_is_one() {
        let folder = std::env::temp_dir().join(format!("oq-torch-link-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        assert_eq!(arguments(&folder, "$ORIGIN/lib"), ["-Wl,-rpath,$ORIGIN/lib"]);
        std::fs::write(folder.join("libtorch_cuda.so"), "").unwrap();
        let [path, cuda] = arguments(&folder, "/opt/libtorch/lib").try_into().unwrap();
        assert_eq!(path, "-Wl,-rpath,/opt/libtorch/lib");
        assert!(cuda.starts_with("-Wl,--no-as-needed,") && cuda.ends_with("/libtorch_cuda.so,--as-needed"), "{cuda}");
        std::fs::remove_dir_all(&folder).unwrap();
    }
}

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
