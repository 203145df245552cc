//! Lets the program find libtorch at run time: where it lies now, or where `OMNIQUANT_RUN_PATH` says, for a program that is to be copied.

#![allow(clippy::print_stdout, reason = "printing is how a build script speaks to cargo")]

/// Set by `cargo xtask dist` and `cargo xtask wheel`.
const RUN_PATH: &str = "OMNIQUANT_RUN_PATH";

fn main() {
    println!("cargo:rerun-if-env-changed={RUN_PATH}");
    match std::env::var(RUN_PATH) {
        Ok(run_path) => oq_torch_link::link_for(&run_path),
        Err(_) => oq_torch_link::link(),
    }
}
