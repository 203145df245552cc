//! Why a model was not exported.

use std::path::PathBuf;

use oq_formats::FormatError;
use oq_formats::gguf::GgufError;

use crate::refusal::Refusal;

/// Why a model was not exported.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ExportError {
    /// The format cannot hold the model.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// A linear has values that the format cannot hold.
    #[error("{linear}: {why}")]
    Linear {
        /// Name of the linear.
        linear: String,
        /// What cannot be held.
        why: String,
    },
    /// The output directory holds something else.
    #[error("{}: the directory is not empty, and holds no unfinished export: empty it, or choose another", dir.display())]
    Used {
        /// The directory.
        dir: PathBuf,
    },
    /// The GGUF file could not be written.
    #[error(transparent)]
    Gguf(#[from] GgufError),
    /// A file could not be read or written.
    #[error(transparent)]
    Format(#[from] FormatError),
}
