//! Why a recipe was refused.

use std::path::PathBuf;

use oq_quant_core::QuantSpec;

/// Why a recipe or a setting was refused.
#[derive(Debug, thiserror::Error)]
pub enum RecipeError {
    /// A file could not be read.
    #[error("{}: cannot be read: {source}", file.display())]
    Read {
        /// The file.
        file: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Not TOML, a key nobody knows, or a value of the wrong kind.
    #[error("{}:{line}:{column}: {message}\n{snippet}", file.display())]
    Toml {
        /// The file, or the name that stands for it.
        file: PathBuf,
        /// Counted from 1.
        line: usize,
        /// Counted from 1, in characters.
        column: usize,
        /// What is wrong and what is allowed.
        message: String,
        /// The offending line, with carets beneath.
        snippet: String,
    },
    /// A value out of its range.
    #[error("{key} = {value}: must be {allowed}")]
    Value {
        /// The key as a recipe file writes it, such as `calibration.samples`.
        key: &'static str,
        /// The value that was given.
        value: String,
        /// The values it may have.
        allowed: String,
    },
    /// A recipe file made for another scheme.
    #[error(
        "the recipe file is for {in_file}, but the scheme asked for is {asked}: give one of them, or make them equal"
    )]
    OtherScheme {
        /// `scheme` of the file.
        in_file: QuantSpec,
        /// The scheme of the run.
        asked: QuantSpec,
    },
}
