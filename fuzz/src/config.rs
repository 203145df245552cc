//! The bytes are a `config.json`, then the index of a model's shards.

use oq_formats::packed::quantization_config;
use oq_formats::{Checkpoint, is_rotated_online, quantization_of, read_config};
use oq_recipe::ModelEntry;
use serde_json::json;

use crate::files::{read_all, scratch, write};

/// A safetensors file of one tensor `w`, for an index to name.
const SHARD: &[u8] =
    b"\x38\0\0\0\0\0\0\0{\"w\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}}  \0\0\0\0\0\0\0\0";

/// Whether it describes a model, and one that is quantized in a way that is known if at all; or is an index whose shards are there.
pub fn read(bytes: &[u8]) -> bool {
    write("config.json", bytes);
    let mut is_model = false;
    if let Ok(config) = read_config(&scratch()) {
        ModelEntry::of_directory(&scratch(), &config);
        let quantization = quantization_of(&config);
        is_model = config.get("model_type").is_some() && quantization.is_ok();
        if let Ok(Some(quantization)) = quantization {
            let ours = json!({"quantization_config": quantization_config(&quantization, &["lm_head"])});
            assert!(!is_rotated_online(&ours));
            assert_eq!(quantization_of(&ours).expect("our own is read"), Some(quantization));
        }
    }
    write("a.safetensors", SHARD);
    write("model.safetensors.index.json", bytes);
    let checkpoint = Checkpoint::open(&scratch());
    checkpoint.iter().for_each(read_all);
    is_model || checkpoint.is_ok()
}
