//! Compiles the kernels for the first card, or says what is missing. With an argument, such as sm_90, for that architecture.

#![allow(clippy::print_stdout, reason = "an example prints what it found")]

fn main() {
    if let Some(architecture) = std::env::args().nth(1) {
        match oq_cuda::compile(&architecture) {
            Ok(code) => println!("kernels for {architecture}: {} bytes", code.len()),
            Err(error) => println!("no kernels: {error}"),
        }
        return;
    }
    match oq_cuda::Card::new(0) {
        Ok(card) => println!("kernels for {}", card.name()),
        Err(error) => println!("no kernels: {error}"),
    }
}
