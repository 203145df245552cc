//! Compiles the few calls of libtorch's c10d against its headers. Where libtorch comes without it, the crate is built without ranks.

#![allow(clippy::print_stdout, reason = "printing is how a build script speaks to cargo")]

use std::path::PathBuf;

fn main() {
    oq_torch_link::link();
    for file in ["src/group.cpp", "stub"] {
        println!("cargo:rerun-if-changed={file}");
    }
    println!("cargo:rustc-check-cfg=cfg(has_gloo)");
    let [include, api] = oq_torch_link::headers();
    let is_linux = std::env::var("CARGO_CFG_TARGET_OS").is_ok_and(|os| os == "linux");
    // libtorch for other systems may be built without c10d's Gloo, whose headers are there nevertheless.
    if !is_linux || !include.join("torch/csrc/distributed/c10d/ProcessGroupGloo.hpp").is_file() {
        println!("cargo:warning=this libtorch has no ranks: a run is one process");
        return;
    }
    println!("cargo:rustc-cfg=has_gloo");
    cc::Build::new()
        .cpp(true)
        .std("c++20")
        // Optimized whatever the profile, so that what headers define and nobody calls is left out.
        .opt_level(1)
        .debug(false)
        .warnings(false)
        .define("USE_C10D_GLOO", None)
        // Gloo's own headers are not among libtorch's. See `stub/README.md`.
        .includes([PathBuf::from("stub"), include, api])
        .file("src/group.cpp")
        .compile("oq_ranks");
}
