//! Exports a packed model: `cargo run --example hand_over -- MODEL FORMAT OUT`. Without arguments it lists which formats hold which schemes.

#![allow(clippy::print_stdout, reason = "a program that prints")]

use std::path::Path;

use oq_export::{FORMATS, Options, check, export, find};
use oq_formats::PackedCheckpoint;
use oq_quant_core::QuantSpec;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [model, format, out] = &args[..] else { return list() };
    let format = find(format).ok_or("no such format")?;
    let model = PackedCheckpoint::open(Path::new(model))?;
    let exported = export(&model, format, Path::new(out), &Options::default(), &mut |_| {})?;
    println!("{}: {} tensors, {} bytes", exported.dir.display(), exported.tensors, exported.bytes);
    Ok(())
}

fn list() -> Result<(), Box<dyn std::error::Error>> {
    for scheme in ["w4a16g128", "w3a16g64", "w8a8sym"] {
        let spec: QuantSpec = scheme.parse()?;
        println!("{scheme}");
        for format in &FORMATS {
            match check(format, &spec.into()) {
                Ok(()) => println!("  {}: yes", format.name),
                Err(refusal) => println!("  {}: no, {}", format.name, refusal.why),
            }
        }
    }
    Ok(())
}
