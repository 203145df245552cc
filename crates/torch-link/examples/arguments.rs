//! Prints what the linker is told for the folder of a libtorch: `cargo run --example arguments -- /opt/libtorch/lib`.

#![allow(clippy::print_stdout, reason = "an example prints what it found")]

use std::path::PathBuf;

fn main() {
    let folder = std::env::args_os().nth(1).map_or_else(|| PathBuf::from("/opt/libtorch/lib"), PathBuf::from);
    println!("for this machine:   {}", oq_torch_link::arguments(&folder, &folder.display().to_string()).join(" "));
    println!("for other machines: {}", oq_torch_link::arguments(&folder, "$ORIGIN/lib").join(" "));
}
