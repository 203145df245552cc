//! The tensors of a model's directory: `cargo run --example read_checkpoint -- MODEL`. Without a directory it writes a small one first.

#![allow(clippy::print_stdout, reason = "an example prints what it found")]

use std::path::PathBuf;

use oq_formats::{Checkpoint, Dtype, FormatError, OutTensor, write_shard};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let own = tempfile::tempdir()?;
    let dir = match std::env::args_os().nth(1) {
        Some(dir) => PathBuf::from(dir),
        None => {
            write_small(own.path())?;
            own.path().to_owned()
        }
    };
    let checkpoint = Checkpoint::open(&dir)?;
    println!("{} tensors in {} files", checkpoint.names().len(), checkpoint.shards().len());
    for tensor in checkpoint.tensors() {
        // Values are read where they lie in the mapped file; other types than floating point are named and passed over.
        let what = match tensor.to_finite_f32_vec() {
            Ok(values) => format!("largest {:.3}", values.iter().fold(0.0f32, |largest, x| largest.max(x.abs()))),
            Err(error @ FormatError::NotFloat { .. }) => error.to_string(),
            Err(error) => return Err(error.into()),
        };
        println!("{:<48} {:<5} {:?}: {what}", tensor.name, tensor.dtype.to_string(), tensor.shape);
        checkpoint.release();
    }
    Ok(())
}

fn write_small(dir: &std::path::Path) -> Result<(), FormatError> {
    let waves: Vec<f32> = (0..4 * 8).map(|i| (i as f32 * 0.7).sin()).collect();
    let tensors = [
        OutTensor::from_f32("model.embed_tokens.weight", &[4, 8], &waves, Dtype::BF16)?,
        OutTensor::from_f32("model.norm.weight", &[8], &[1.0; 8], Dtype::F16)?,
    ];
    write_shard(&dir.join("model.safetensors"), &tensors)
}
