//! The bytes are a `pytorch_model.bin`: its archive and pickle are read, then every tensor.

#![no_main]

use libfuzzer_sys::fuzz_target;
use oq_formats::Checkpoint;
use oq_fuzz::{read_all, write};

fuzz_target!(|bytes: &[u8]| {
    if let Ok(checkpoint) = Checkpoint::open_file(&write("pytorch_model.bin", bytes)) {
        read_all(&checkpoint);
    }
});
