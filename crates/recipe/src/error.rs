//! Why a recipe was refused.

use std::path::PathBuf;

use oq_quant_core::QuantSpec;

/// Why a recipe or setting was refused.
#[derive(Debug, thiserror::Error)]
pub enum RecipeError {
    /// A file could not be read.
    #[error("{}: cannot be read: {source}", file.display())]
    Read {
        /// The file.
        file: PathBuf,
        /// The system's message.
        source: std::io::Error,
    },
    /// Invalid TOML, an unknown key, or a value of the wrong type.
    #[error("{}:{line}:{column}: {message}\n{snippet}", file.display())]
    Toml {
        /// The file, or the name to use for it.
        file: PathBuf,
        /// Counted from 1.
        line: usize,
        /// Counted from 1, in characters.
        column: usize,
        /// What is wrong, and what is allowed.
        message: String,
        /// The offending line, with carets below.
        snippet: String,
    },
    /// A value out of range.
    #[error("{key} = {value}: must be {allowed}")]
    Value {
        /// The key as written in a recipe file, such as `calibration.samples`.
        key: &'static str,
        /// The value that was given.
        value: String,
        /// The allowed values.
        allowed: String,
    },
    /// A recipe file for a different scheme.
    #[error(
        "the recipe file is for {in_file}, but the requested scheme is {asked}: give one of them, or make them equal"
    )]
    OtherScheme {
        /// `scheme` of the file.
        in_file: QuantSpec,
        /// The scheme of the run.
        asked: QuantSpec,
    },
}

/// [`RecipeError::Value`].
pub(crate) fn refused(key: &'static str, value: impl ToString, allowed: impl Into<String>) -> RecipeError {
    RecipeError::Value { key, value: value.to_string(), allowed: allowed.into() }
}
