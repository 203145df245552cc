//! The instruction sets of this architecture, and which of them this process uses.

#![allow(clippy::print_stdout, reason = "an example prints what it found")]

use oq_isa::{Isa, IsaError, VARIABLE};

fn main() -> Result<(), IsaError> {
    for isa in Isa::ALL {
        println!("{isa:<12} available: {}", isa.is_available());
    }
    println!("chosen: {} ({VARIABLE} names another)", Isa::chosen()?);
    Ok(())
}
