//! GGUF: a file for llama.cpp, which `oq_formats` writes.

use oq_formats::gguf::kind_of;

use crate::format::{Container, Format};
use crate::limits::float_activations;
use crate::subject::Subject;

/// The row of the table.
pub(crate) const FORMAT: Format = Format {
    name: "gguf",
    about: "types of ggml and their mixtures; 2 to 5 bits in groups of 32 or more, 6 to 8 bits if symmetric; mxfp4",
    holds,
    fits: |weight, [_, in_features]| match kind_of(weight, in_features, false) {
        Some(_) => Ok(()),
        None => Err("no block type holds its rows".to_owned()),
    },
    container: Container::Gguf,
};

/// Architectures that the writer describes to llama.cpp.
const ARCHITECTURES: [&str; 22] = [
    "llama",
    "mistral",
    "ministral3",
    "qwen2",
    "qwen3",
    "falcon",
    "gemma",
    "gemma2",
    "gemma3_text",
    "phi3",
    "olmo2",
    "olmo3",
    "smollm3",
    "granite",
    "granitemoe",
    "glm4",
    "seed_oss",
    "mixtral",
    "qwen2_moe",
    "qwen3_moe",
    "olmoe",
    "gpt_oss",
];
/// Of a row that all blocks divide.
const ROW: usize = 4096;

fn holds(subject: &Subject) -> Result<(), String> {
    float_activations(subject)?;
    if let Some(architecture) = subject.architecture()
        && !ARCHITECTURES.contains(&architecture)
    {
        return Err(format!("it is written of {}, not {architecture}", ARCHITECTURES.join(", ")));
    }
    match subject.all_weights().find(|weight| kind_of(*weight, ROW, false).is_none()) {
        Some(weight) => Err(format!("it has no block type that holds {weight} exactly")),
        None => Ok(()),
    }
}
