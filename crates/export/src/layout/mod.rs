//! One file per format: its row of the table, the tensors of a linear, and its part of `config.json`.

pub(crate) mod auto_round;
pub(crate) mod awq;
pub(crate) mod compressed;
pub(crate) mod dense;
pub(crate) mod gguf;
pub(crate) mod gptq;
pub(crate) mod mlx;
