//! GGUF, the file format of llama.cpp, in both directions.
//!
//! [`Gguf::open`] maps a file, validates its header against the file's size, and gives access to metadata and tensors.
//! [`Tensor::dequantize`] decodes blocks. [`convert_to_hf`] writes a model as f16 safetensors with its `config.json` and `tokenizer.json`, so
//! that the rest of the workspace has to support one kind of input only.
//!
//! [`write_gguf`] writes a Hugging Face directory, packed or in full precision, as a file that llama.cpp runs. Codes are moved into blocks
//! without rounding anything again.
//!
//! Both know the architectures `llama` (Mistral and Mixtral too), `mistral3` (Ministral 3; Mistral Small is read as LLaMA), `qwen2`,
//! `qwen2moe`, `qwen3`, `qwen3moe`, `falcon`, `gemma`, `gemma2`, `gemma3` (text), `phi3`, `olmo2` (OLMo 3 too), `olmoe`, `smollm3`, `granite`,
//! `granitemoe`, `gpt-oss`, `glm4` and `seed_oss`. Layouts follow the specification, `docs/gguf.md` of the ggml project, versions 2 and 3,
//! little-endian.
//!
//! llama.cpp rounds the ends of YaRN's ramp, which GPT-OSS does not. So it rotates a few channels a little otherwise, whoever wrote the file.
//!
//! | quantized as | rows or groups of | blocks | bits per weight |
//! |---|---|---|---|
//! | `q2_k` .. `q6_k`, `q4_1`, `q5_1`, `mxfp4` | | the same | |
//! | 2 bits; 3 bits symmetric | 256 | Q2_K; Q3_K | 2.625; 3.4375 |
//! | 2 and 3 bits; 4 bits symmetric | 32 | Q4_0 | 4.5 |
//! | 4 bits; 5 bits | 256 | Q4_K; Q5_K | 4.5; 5.5 |
//! | 4 bits; 5 bits symmetric | 32 | Q5_0 | 5.5 |
//! | 6 bits symmetric | 256 | Q6_K | 6.5625 |
//! | 5 to 7 bits; 8 bits symmetric | 32 | Q8_0 | 8.5 |
//!
//! What stands in the middle is a divisor of the group size. 8 bits asymmetric and `nvfp4` have no block here.
//!
//! ```no_run
//! use oq_formats::gguf::{Gguf, WriteOptions, convert_to_hf, write_gguf};
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
//! let written = write_gguf(Path::new("model"), Path::new("out"), &WriteOptions::default(), &mut |_| {})?;
//! println!("{}", written.path.display()); // out/model-F16.gguf
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
mod row_order;
mod sentencepiece;
mod shape;
mod slots;
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
pub use write::{WriteOptions, Written, kind_of, write_gguf};
