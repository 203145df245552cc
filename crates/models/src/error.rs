//! What can be wrong with a model on disk.

use std::path::PathBuf;

use oq_formats::{FormatError, Quantization};
use oq_kernels::KernelError;
use oq_quant_core::TensorError;
use tch::Device;

/// Why a model was not opened or a part of it not loaded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ModelError {
    /// A key of `config.json` is missing or has a value that no model can have.
    #[error("config.json: {key} is {value}: {expected}")]
    ConfigKey {
        /// The key.
        key: String,
        /// Its value, or `missing`.
        value: String,
        /// What it must be.
        expected: String,
    },
    /// No family reads this `model_type`.
    #[error("unknown architecture: model_type `{model_type}` is none of {known}")]
    UnknownArchitecture {
        /// What the config says.
        model_type: String,
        /// What there is.
        known: String,
    },
    /// All names of tensors stand behind a prefix.
    #[error("{}: names of tensors begin with `{prefix}`, and `{tensor}` is not there; {mend}", dir.display())]
    Prefixed {
        /// The model.
        dir: PathBuf,
        /// What names begin with.
        prefix: String,
        /// The tensor that was looked for.
        tensor: &'static str,
        /// Where such names come from, and what to do.
        mend: &'static str,
    },
    /// A tensor has another shape than the config implies.
    #[error("{name}: shape {got:?} in the checkpoint, {expected:?} by config.json")]
    Shape {
        /// The tensor.
        name: String,
        /// By the checkpoint.
        got: Vec<usize>,
        /// By the config.
        expected: Vec<usize>,
    },
    /// The model is packed already.
    #[error("{} is quantized already ({quantization}): give its full-precision original", dir.display())]
    AlreadyQuantized {
        /// The model.
        dir: PathBuf,
        /// Its setting.
        quantization: Quantization,
    },
    /// A linear cannot be quantized as asked.
    #[error("{linear}: {source}")]
    Quantize {
        /// The linear.
        linear: String,
        /// Why.
        source: TensorError,
    },
    /// It cannot be rotated.
    #[error(transparent)]
    Rotate(#[from] RotateError),
    /// A token id beyond the vocabulary.
    #[error("token id {id} at position {index}: the vocabulary has {vocab} entries (is this the model's tokenizer?)")]
    TokenId {
        /// The id.
        id: i64,
        /// Where it stands.
        index: usize,
        /// Entries of the vocabulary.
        vocab: usize,
    },
    /// A sequence beyond the last learned position.
    #[error("a sequence of {tokens} tokens: the model has learned {positions} positions (take a smaller --seqlen)")]
    TooLong {
        /// Tokens of the sequence.
        tokens: usize,
        /// Positions there are.
        positions: usize,
    },
    /// Packed products are for the CPU.
    #[error(
        "packed weights are multiplied on the CPU, not on {device:?}: say --device cpu, or --kernels dense --head stored"
    )]
    PackedDevice {
        /// What was asked for.
        device: Device,
    },
    /// The kernels do not run.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// The checkpoint cannot be read.
    #[error(transparent)]
    Format(#[from] FormatError),
}

/// Why a model cannot be rotated.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RotateError {
    /// Its residual stream has no place for it.
    #[error("rotate: this model cannot be rotated: {reason}; say --rotate none")]
    Residual {
        /// Why.
        reason: &'static str,
    },
    /// What is rotated while it runs is multiplied with a Hadamard matrix.
    #[error("rotate: no Hadamard matrix of {width} channels is known here for {what}; say --rotate merged")]
    Width {
        /// The channels.
        what: &'static str,
        /// How many.
        width: usize,
    },
    /// Its bias cannot be rotated.
    #[error("rotate: {norm} has weights of 0 beside a bias that no linear takes up; say --rotate none")]
    Norm {
        /// The norm.
        norm: String,
    },
}
