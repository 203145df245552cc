//! Compiles the device against the headers of the libtorch that torch-sys found.

use std::path::PathBuf;

fn main() {
    oq_torch_link::link();
    println!("cargo:rerun-if-changed=src/device.cpp");
    let lib = PathBuf::from(std::env::var_os("DEP_TCH_LIBTORCH_LIB").expect("torch-sys names libtorch's folder"));
    let include = lib.parent().expect("libraries lie beside headers").join("include");
    let api = include.join("torch/csrc/api/include");
    // Optimized whatever the profile: the headers' own code is slow otherwise.
    cc::Build::new()
        .cpp(true)
        .std("c++20")
        .opt_level(1)
        .debug(false)
        .warnings(false)
        .includes([include, api])
        .file("src/device.cpp")
        .compile("oq_protected");
}
