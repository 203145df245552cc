//! The first byte chooses how the model is quantized, by this program or another; the others are the only shard of a packed model.

use oq_formats::packed::quantization_config;
use oq_formats::{Matrix, PackedCheckpoint, inspect, packed_tensors};
use oq_quant_core::QuantSpec;
use serde_json::{Value, json};

use crate::files::{scratch, write};

/// All linears alike.
const SPECS: [&str; 6] = ["w4a16g8", "w3a16", "w2a16g4sym", "w8a8", "w4a4g32", "w5a16sym"];

/// `quantization_config` of other programs.
const OTHERS: [&str; 8] = [
    r#"{"quant_method": "gptq", "bits": 4, "group_size": 8}"#,
    r#"{"quant_method": "gptq", "bits": 3, "group_size": -1, "checkpoint_format": "gptq_v2"}"#,
    r#"{"quant_method": "awq", "bits": 4, "group_size": 8}"#,
    r#"{"quant_method": "auto-round", "packing_format": "auto_round", "bits": 2, "group_size": 8, "extra_config": {"m": {"bits": 8}}}"#,
    r#"{"bits": 4, "group_size": 8, "m": {"bits": 3}}"#,
    r#"{"quant_method": "fp8", "weight_block_size": [2, 16]}"#,
    r#"{"quant_method": "compressed-tensors", "format": "int-quantized", "config_groups": {"group_0":
        {"targets": ["Linear"], "weights": {"num_bits": 8, "strategy": "channel"}}}}"#,
    r#"{"quant_method": "compressed-tensors", "format": "nvfp4-pack-quantized", "config_groups": {"group_0":
        {"targets": ["Linear"], "weights": {"num_bits": 4, "type": "float", "group_size": 16}}}}"#,
];

/// `quantization_config` of a choice: those of [`SPECS`]; linears `l` and `m` of widths of their own, by name and by regular expression; a
/// model that is rotated while it runs; those of [`OTHERS`].
fn config(choice: usize) -> Value {
    let weights =
        |bits: u32| json!({"num_bits": bits, "type": "int", "symmetric": false, "strategy": "group", "group_size": 8});
    let groups = |targets: [Value; 2]| {
        let [first, second] = targets;
        json!({
            "quant_method": "compressed-tensors",
            "format": "pack-quantized",
            "ignore": ["lm_head"],
            "config_groups": {
                "group_0": {"targets": first, "weights": weights(4), "format": "pack-quantized"},
                "group_1": {"targets": second, "weights": weights(3), "format": "pack-quantized"},
            },
        })
    };
    let of_spec = |text: &str| quantization_config(&text.parse::<QuantSpec>().expect("a setting").into(), &["lm_head"]);
    let config = match choice % (SPECS.len() + 3 + OTHERS.len()) {
        6 => groups([json!(["l"]), json!(["m"])]),
        7 => groups([json!(["re:[kl]", "Linear"]), json!(["re:m"])]),
        8 => {
            let mut config = of_spec("w4a4g8");
            for format in ["/format", "/config_groups/group_0/format"] {
                *config.pointer_mut(format).expect("our own has both") = "pack-quantized-rotated".into();
            }
            config
        }
        other @ 9.. => serde_json::from_str(OTHERS[other - 9]).expect("it is JSON"),
        spec => of_spec(SPECS[spec]),
    };
    json!({"quantization_config": config})
}

/// Whether it is a packed model all of whose linears can be read.
pub fn read(bytes: &[u8]) -> bool {
    let Some((&choice, shard)) = bytes.split_first() else { return false };
    write("config.json", config(choice.into()).to_string().as_bytes());
    write("model.safetensors", shard);
    let _ = inspect(&scratch());
    let Ok(model) = PackedCheckpoint::open(&scratch()) else { return false };
    let mut are_all_read = true;
    for name in model.linear_names() {
        let Ok(matrix) = model.matrix(name) else {
            are_all_read = false;
            continue;
        };
        let [rows, cols] = model.linear_shape(name).expect("the linear was read");
        assert!(model.is_packed(name));
        if let Matrix::Codes(linear) = &matrix {
            assert_eq!(linear.shape(), [rows, cols]);
            let parts = packed_tensors(name, linear).len();
            assert!(linear.half().is_none() || parts == if linear.is_symmetric() { 3 } else { 4 });
        }
        let values = matrix.into_values();
        assert_eq!(values.len(), rows * cols);
        let last = model.rows(name, &[rows - 1]).expect("the linear was read");
        assert_eq!(last.len(), cols);
    }
    are_all_read
}
