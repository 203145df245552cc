//! Writing GGUF files.

mod blocks;
mod config;
mod description;
mod encode;
mod families;
mod file;
mod file_type;
mod keys;
mod model;
mod pairs;
mod rope;
mod scores;
mod source;
mod tokenizer;

pub use encode::kind_of;
pub use model::{WriteOptions, Written, write_gguf};
