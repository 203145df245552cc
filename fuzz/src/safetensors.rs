//! The bytes are a safetensors file: its header is read, then every tensor.

use oq_formats::{Checkpoint, OutTensor, write_shard};

use crate::files::{read_all, scratch, write};

/// Whether it is a checkpoint.
pub fn read(bytes: &[u8]) -> bool {
    let Ok(checkpoint) = Checkpoint::open_file(&write("model.safetensors", bytes)) else { return false };
    read_all(&checkpoint);
    // What was read can be written, and comes back the same.
    let tensors: Vec<_> = checkpoint.tensors().map(OutTensor::copy_of).collect();
    let path = scratch().join("again.safetensors");
    write_shard(&path, &tensors).expect("names are unique and bytes fill shapes");
    let again = Checkpoint::open_file(&path).expect("it was just written");
    assert!(again.tensors().eq(checkpoint.tensors()));
    true
}
