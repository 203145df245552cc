//! The bytes are a GGUF file: header, metadata and tensors are read, then the model is converted, tokenizer and all.

#![no_main]

use libfuzzer_sys::fuzz_target;
use oq_formats::gguf::{Gguf, convert_to_hf};
use oq_formats::{Checkpoint, read_config};
use oq_fuzz::{read_all, scratch, write};

fuzz_target!(|bytes: &[u8]| {
    let path = write("model.gguf", bytes);
    let Ok(file) = Gguf::open(&path) else { return };
    for (key, value) in file.metadata().iter() {
        assert!(file.metadata().get(key).is_some());
        let _ = value.to_string();
    }
    for tensor in file.tensors() {
        assert_eq!(tensor.dequantize().len(), tensor.rows() * tensor.row_values());
        if tensor.rows() > 0 {
            tensor.dequantize_row(tensor.rows() - 1, &mut vec![0.0; tensor.row_values()]);
        }
    }
    let out = scratch().join("converted");
    if let Ok(converted) = convert_to_hf(&path, &out, &mut |_| {}) {
        let checkpoint = Checkpoint::open(&out).expect("the conversion wrote it");
        read_config(&out).expect("the conversion wrote it");
        assert_eq!(checkpoint.tensors().len(), converted.tensors);
        read_all(&checkpoint);
    }
});
