//! Writing GGUF files.

mod blocks;
mod config;
mod description;
mod encode;
mod file;
mod file_type;
mod model;
mod pairs;
mod scores;
mod source;
mod tokenizer;

pub use encode::kind_of;
pub use model::{WriteOptions, Written, write_gguf};
