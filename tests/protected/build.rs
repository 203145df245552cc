//! Compiles the device against the headers of the libtorch that torch-sys found.

fn main() {
    oq_torch_link::link();
    println!("cargo:rerun-if-changed=src/device.cpp");
    let [include, api] = oq_torch_link::headers();
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
