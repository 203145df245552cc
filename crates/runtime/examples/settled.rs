//! Starts itself again with the settings, and prints them.

#![allow(clippy::print_stdout, reason = "an example prints what it found")]

fn main() -> std::io::Result<()> {
    oq_runtime::settle()?;
    for name in ["GOMP_SPINCOUNT", "GLIBC_TUNABLES"] {
        println!("{name}={}", std::env::var(name).unwrap_or_default());
    }
    println!("this processor multiplies bf16: {}", oq_runtime::multiplies_bf16());
    oq_runtime::trim_memory();
    Ok(())
}
