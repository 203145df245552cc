//! Writes a model directory, packed or in full precision, as a GGUF file.
//!
//! ```text
//! cargo run --release -p oq-formats --example write_gguf -- MODEL OUT [MIXTURE] [near]
//! ```

#![allow(clippy::print_stdout, reason = "it is what the example is for")]

use std::path::Path;

use oq_formats::gguf::{WriteOptions, write_gguf};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [model, out, rest @ ..] = &args[..] else { return Err("MODEL OUT [MIXTURE] [near]".into()) };
    let mut options = WriteOptions::default();
    for option in rest {
        match option.as_str() {
            "near" => options = options.with_near(true),
            mixture => options = options.with_mixture(mixture.parse()?),
        }
    }
    let written = write_gguf(Path::new(model), Path::new(out), &options, &mut |_| {})?;
    let bits = 8.0 * written.bytes as f64 / written.values as f64;
    println!("{}: {} bytes, {bits:.2} bits per weight", written.path.display(), written.bytes);
    Ok(())
}
