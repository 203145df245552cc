//! The bytes are a `config.json`, then the index of a model's shards.

#![no_main]

use libfuzzer_sys::fuzz_target;
use oq_formats::packed::quantization_config;
use oq_formats::{Checkpoint, quantization_of, read_config};
use oq_fuzz::{read_all, scratch, write};
use oq_recipe::ModelEntry;
use serde_json::json;

/// A safetensors file of one tensor `w`, for an index to name.
const SHARD: &[u8] =
    b"\x38\0\0\0\0\0\0\0{\"w\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}}  \0\0\0\0\0\0\0\0";

fuzz_target!(init: drop(write("a.safetensors", SHARD)), |bytes: &[u8]| {
    write("config.json", bytes);
    if let Ok(config) = read_config(scratch()) {
        ModelEntry::of_directory(scratch(), &config);
        if let Ok(Some(spec)) = quantization_of(&config) {
            let ours = json!({"quantization_config": quantization_config(&spec, &["lm_head"])});
            assert_eq!(quantization_of(&ours).expect("our own is read"), Some(spec));
        }
    }
    write("model.safetensors.index.json", bytes);
    if let Ok(checkpoint) = Checkpoint::open(scratch()) {
        read_all(&checkpoint);
    }
});
