//! GGUF, the file format of llama.cpp: reading it, and converting it to a Hugging Face directory.
//!
//! [`Gguf::open`] maps a file, validates its header against the file's size, and gives access to metadata and tensors.
//! [`Tensor::dequantize`] decodes blocks. [`convert_to_hf`] writes a LLaMA model as f16 safetensors with its `config.json` and
//! `tokenizer.json`, so that the rest of the workspace has to support one kind of input only.
//!
//! GGUF cannot be written. Layouts follow the specification, `docs/gguf.md` of the ggml project, versions 2 and 3, little-endian.
//!
//! ```no_run
//! use oq_formats::gguf::{Gguf, convert_to_hf};
//! use std::path::Path;
//!
//! let file = Gguf::open(Path::new("model.gguf"))?;
//! for tensor in file.tensors() {
//!     println!("{} {} {:?}", tensor.name(), tensor.kind(), tensor.shape());
//! }
//! let converted = convert_to_hf(Path::new("model.gguf"), Path::new("model"), &mut |p| {
//!     println!("{}/{} {}", p.done, p.total, p.tensor);
//! })?;
//! println!("{} tensors", converted.tensors);
//! # Ok::<(), oq_formats::gguf::GgufError>(())
//! ```

mod architecture;
mod bpe;
mod convert;
mod cursor;
mod error;
mod file;
mod from_metadata;
mod hf_config;
mod k_quants;
mod kind;
mod metadata;
mod sentencepiece;
mod shape;
mod split;
mod splitter;
mod tables;
mod tensors;
mod tokenizer;
mod vocabulary;
mod write;

pub use convert::{Converted, Progress, convert_to_hf};
pub use error::GgufError;
pub use file::{Gguf, Tensor};
pub use kind::TensorKind;
pub use metadata::{Array, Metadata, Value};
pub use write::{WriteOptions, Written, write_gguf};
