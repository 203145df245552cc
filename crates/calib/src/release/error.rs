//! Why parameters of the release do not fit a model.

use oq_formats::FormatError;
use oq_models::ModelError;
use oq_quant_core::QuantSpec;

/// Why parameters of the release were not merged.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReleaseError {
    /// The release has no such grid.
    #[error("{scheme} is no scheme of the release: it learns w<bits>a<bits>[g<group>][sym]")]
    Scheme {
        /// The scheme.
        scheme: QuantSpec,
    },
    /// The file has another number of blocks.
    #[error(
        "the parameters are those of {got} blocks, and the model has {expected}: they belong to another model, or to a run that was stopped"
    )]
    Blocks {
        /// Blocks of the file.
        got: usize,
        /// Blocks of the model.
        expected: usize,
    },
    /// A parameter is missing.
    #[error("`{tensor}` is missing: the parameters are those of another model")]
    Missing {
        /// The parameter.
        tensor: String,
    },
    /// A parameter that the model has no use for.
    #[error("`{tensor}` belongs to nothing in the model: the parameters are those of another one")]
    Unknown {
        /// The parameter.
        tensor: String,
    },
    /// The number of clipping strengths is not that of the groups.
    #[error(
        "`{tensor}` has {got} numbers, and {scheme} has {expected} groups there: give the scheme they were learned for"
    )]
    Groups {
        /// The parameter.
        tensor: String,
        /// Its numbers.
        got: usize,
        /// The groups of the linear.
        expected: usize,
        /// The scheme.
        scheme: QuantSpec,
    },
    /// The number of scales or shifts is not that of the channels.
    #[error(
        "`{tensor}` has {got} numbers, and the model has {expected} channels there: the parameters are those of another one"
    )]
    Channels {
        /// The parameter.
        tensor: String,
        /// Its numbers.
        got: usize,
        /// The channels.
        expected: usize,
    },
    /// The release does not transform such a model.
    #[error("the parameters have a transformation, which the release does not have for such a model: {reason}")]
    NoPlace {
        /// Why.
        reason: &'static str,
    },
    /// A scale that nothing can be divided by.
    #[error("`{tensor}`: scale {channel} is 0")]
    Zero {
        /// The parameter.
        tensor: String,
        /// The channel.
        channel: usize,
    },
    /// A shift that no bias can take up.
    #[error("`{tensor}` shifts channels, and the model has no biases that would take this up")]
    Shift {
        /// The parameter.
        tensor: String,
    },
    /// The model cannot be read or quantized.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// A file cannot be read or written.
    #[error(transparent)]
    Format(#[from] FormatError),
}
