//! What the fuzz targets do: each module has a function `read`, which gives bytes to a reader of files and holds what was read to a
//! property. It returns whether the bytes were accepted.
//!
//! They are functions of a library so that the seeds can be read without a fuzzer: `cargo test --manifest-path fuzz/Cargo.toml --lib`.

pub mod config;
mod files;
pub mod gguf;
pub mod packed;
pub mod parquet;
pub mod pickle;
pub mod recipe;
pub mod safetensors;
pub mod spec;
pub mod state_dict;
pub mod tokenizer;
pub mod vocabulary;

#[cfg(test)]
mod tests;
