//! The bytes are a safetensors file: its header is read, then every tensor.

#![no_main]

use libfuzzer_sys::fuzz_target;
use oq_formats::{Checkpoint, OutTensor, write_shard};
use oq_fuzz::{read_all, scratch, write};

fuzz_target!(|bytes: &[u8]| {
    let Ok(checkpoint) = Checkpoint::open_file(&write("model.safetensors", bytes)) else { return };
    read_all(&checkpoint);
    // What was read can be written, and comes back the same.
    let tensors: Vec<_> = checkpoint.tensors().map(OutTensor::copy_of).collect();
    let path = scratch().join("again.safetensors");
    write_shard(&path, &tensors).expect("names are unique and bytes fill shapes");
    let again = Checkpoint::open_file(&path).expect("it was just written");
    assert!(again.tensors().eq(checkpoint.tensors()));
});
