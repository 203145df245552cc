//! The bytes are a GGUF file: header, metadata and tensors are read, then the model is converted, tokenizer and all, and written again.

use oq_formats::gguf::{Gguf, WriteOptions, convert_to_hf, write_gguf};
use oq_formats::{Checkpoint, read_config};

use crate::files::{read_all, scratch, write};

/// Whether it is a GGUF file.
pub fn read(bytes: &[u8]) -> bool {
    let path = write("model.gguf", bytes);
    let Ok(file) = Gguf::open(&path) else { return false };
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
        let again = scratch().join("again.gguf");
        if let Ok(written) = write_gguf(&out, &again, &WriteOptions::default(), &mut |_| {}) {
            Gguf::open(&again).expect("what was written is read");
            assert!(written.tensors >= converted.tensors, "rope factors may be one more");
        }
    }
    true
}
