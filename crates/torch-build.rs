//! Build script of every package that links libtorch: lets its binaries find the library at run time.
//!
//! torch-sys hands the library's folder to packages that depend on it directly (`links = "tch"`).

#![allow(clippy::print_stdout, reason = "printing is how a build script speaks to cargo")]

fn main() {
    println!("cargo:rerun-if-env-changed=LIBTORCH");
    let Ok(lib) = std::env::var("DEP_TCH_LIBTORCH_LIB") else { return };
    // The link named by .cargo/config.toml is resolved, so that a moved clone still runs.
    let lib = std::fs::canonicalize(&lib).unwrap_or_else(|_| lib.into());
    println!("cargo:rustc-link-arg=-Wl,-rpath,{}", lib.display());
    // libtorch_cuda registers itself when it is loaded and exports nothing that we name. The linker would drop it: rustc puts
    // these words after the libraries, so that it has to be named again.
    let cuda = lib.join("libtorch_cuda.so");
    if cuda.exists() {
        println!("cargo:rustc-link-arg=-Wl,--no-as-needed,{},--as-needed", cuda.display());
    }
}
