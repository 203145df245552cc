//! Errors of opening, loading and rotating a model.

use std::path::PathBuf;

use oq_formats::{FormatError, Quantization};
use oq_kernels::KernelError;
use oq_quant_core::TensorError;
use tch::Device;

/// Why a model or a part of it could not be loaded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ModelError {
    /// A key of `config.json` is missing or has an invalid value.
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
        /// The `model_type` of the config.
        model_type: String,
        /// All supported values.
        known: String,
    },
    /// All tensor names have an unexpected prefix.
    #[error("{}: names of tensors begin with `{prefix}`, and `{tensor}` is not there; {mend}", dir.display())]
    Prefixed {
        /// The model.
        dir: PathBuf,
        /// The prefix.
        prefix: String,
        /// The tensor that is missing because of it.
        tensor: &'static str,
        /// Where such a prefix comes from, and what to do.
        mend: &'static str,
    },
    /// A tensor's shape does not match the config.
    #[error("{name}: shape {got:?} in the checkpoint, {expected:?} by config.json")]
    Shape {
        /// The tensor.
        name: String,
        /// The shape in the checkpoint.
        got: Vec<usize>,
        /// The shape that the config implies.
        expected: Vec<usize>,
    },
    /// The model is quantized already.
    #[error("{} is quantized already ({quantization}): give its full-precision original", dir.display())]
    AlreadyQuantized {
        /// The model.
        dir: PathBuf,
        /// How it is quantized.
        quantization: Box<Quantization>,
    },
    /// A linear cannot be quantized with this spec.
    #[error("{linear}: {source}")]
    Quantize {
        /// The linear.
        linear: String,
        /// Why.
        source: TensorError,
    },
    /// An override does not suit the model.
    #[error(transparent)]
    Override(#[from] OverrideError),
    /// The model cannot be rotated.
    #[error(transparent)]
    Rotate(#[from] RotateError),
    /// A token id is outside the vocabulary.
    #[error("token id {id} at position {index}: the vocabulary has {vocab} entries (is this the model's tokenizer?)")]
    TokenId {
        /// The id.
        id: i64,
        /// Its position in the sequence.
        index: usize,
        /// Size of the vocabulary.
        vocab: usize,
    },
    /// A sequence is longer than the table of learned positions.
    #[error("a sequence of {tokens} tokens: the model has learned {positions} positions (take a smaller --seqlen)")]
    TooLong {
        /// Tokens of the sequence.
        tokens: usize,
        /// Learned positions of the model.
        positions: usize,
    },
    /// Only packed products round activations to 8 bits.
    #[error(
        "8-bit activations are multiplied with packed weights on the CPU only: say --kernels packed, or leave out --prefill"
    )]
    PrefillDense,
    /// Packed products run on the CPU, and on a card where the process asked for kernels there.
    #[error(
        "these kernels multiply packed weights on the CPU, not on {device:?}: say --device cpu, or --kernels cuda or dense, and --head \
         stored"
    )]
    PackedDevice {
        /// The requested device.
        device: Device,
    },
    /// No kernel can run.
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
    /// Its architecture does not allow it.
    #[error("rotate: this model cannot be rotated: {reason}; say --rotate none")]
    Residual {
        /// The reason.
        reason: &'static str,
    },
    /// Online rotations need Hadamard matrices, and there is none for this width.
    #[error("rotate: no Hadamard matrix of {width} channels is known for {what}; say --rotate merged")]
    Width {
        /// Which channels.
        what: &'static str,
        /// Their number.
        width: usize,
    },
    /// A norm's bias cannot be rotated: the linears that read it have no bias to absorb it, and its weight contains zeros.
    #[error("rotate: {norm} has weights of 0, and a bias that its linears cannot absorb; say --rotate none")]
    Norm {
        /// The norm.
        norm: String,
    },
}

/// Why overrides of a scheme do not suit a model.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum OverrideError {
    /// No linear has such a name.
    #[error("override {asked} matches no linear; names near it: {near}")]
    Nothing {
        /// The override.
        asked: String,
        /// Names that are most like its pattern.
        near: String,
    },
    /// The model has fewer layers.
    #[error("override {asked}: there is no layer {layers}, only first (0) to last ({})", n_layers - 1)]
    Layers {
        /// The override.
        asked: String,
        /// What is missing.
        layers: String,
        /// Layers of the model.
        n_layers: usize,
    },
    /// The head has no matrix of its own.
    #[error("the head is the embedding, one table: --embed-bits quantizes both")]
    TiedHead,
    /// All linears stay in full precision.
    #[error("the overrides leave all linears in full precision, and nothing to quantize")]
    NothingLeft,
}
