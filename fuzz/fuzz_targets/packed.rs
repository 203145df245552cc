//! The first byte chooses how the model is quantized; the others are the only shard of a packed model.

#![no_main]

use libfuzzer_sys::fuzz_target;
use oq_formats::packed::quantization_config;
use oq_formats::{PackedCheckpoint, inspect, packed_tensors};
use oq_fuzz::{scratch, write};
use oq_quant_core::QuantSpec;
use serde_json::json;

const SPECS: [&str; 6] = ["w4a16g8", "w3a16", "w2a16g4sym", "w8a8", "w4a4g32", "w5a16sym"];

fuzz_target!(|bytes: &[u8]| {
    let Some((&choice, shard)) = bytes.split_first() else { return };
    let spec: QuantSpec = SPECS[usize::from(choice) % SPECS.len()].parse().expect("a setting");
    let config = json!({"quantization_config": quantization_config(&spec.into(), &["lm_head"])});
    write("config.json", config.to_string().as_bytes());
    write("model.safetensors", shard);
    let _ = inspect(scratch());
    let Ok(model) = PackedCheckpoint::open(scratch()) else { return };
    for name in model.linear_names() {
        let Ok(linear) = model.linear(name) else { continue };
        let [rows, cols] = linear.shape();
        assert_eq!(model.linear_shape(name).expect("the linear was read"), [rows, cols]);
        assert_eq!(linear.dequantize().len(), rows * cols);
        assert_eq!(packed_tensors(name, &linear).len(), if linear.is_symmetric() { 3 } else { 4 });
    }
});
