//! All formats.

use crate::format::Format;
use crate::layout::{auto_round, awq, compressed, dense, gguf, gptq, mlx};

/// All formats, in the order in which they are shown.
pub static FORMATS: [Format; 9] = [
    compressed::FORMAT,
    gptq::FORMAT,
    awq::FORMAT,
    auto_round::FORMAT,
    mlx::FORMAT,
    gguf::FORMAT,
    dense::F16,
    dense::BF16,
    dense::F32,
];

/// The format of this name.
pub fn find(name: &str) -> Option<&'static Format> {
    FORMATS.iter().find(|format| format.name == name)
}
