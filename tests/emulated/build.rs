//! Compiles the kernels' own sources for the host.

fn main() {
    let kernels = "../../crates/cuda/src";
    for file in [
        "src/emulated.cpp",
        &format!("{kernels}/numbers.cu"),
        &format!("{kernels}/clip.cu"),
        &format!("{kernels}/packed.cu"),
    ] {
        println!("cargo:rerun-if-changed={file}");
    }
    cc::Build::new()
        .cpp(true)
        .std("c++17")
        .opt_level(2)
        .debug(false)
        // Products and sums stay apart, as NVRTC is told too.
        .flag("-ffp-contract=off")
        .flag_if_supported("-Wno-unknown-pragmas")
        // Of arguments that threads use only while their launch lasts.
        .flag_if_supported("-Wno-dangling-pointer")
        .include(kernels)
        .file("src/emulated.cpp")
        .compile("oq_emulated");
}
