//! The bytes are a `pytorch_model.bin`: its archive and pickle are read, then every tensor.

use oq_formats::Checkpoint;

use crate::files::{read_all, write};

/// Whether it is a checkpoint.
pub fn read(bytes: &[u8]) -> bool {
    let checkpoint = Checkpoint::open_file(&write("pytorch_model.bin", bytes));
    checkpoint.iter().for_each(read_all);
    checkpoint.is_ok()
}
