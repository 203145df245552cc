//! Errors of measuring.

use std::io;
use std::path::PathBuf;

use oq_data::DataError;
use oq_models::ModelError;

/// Why a model could not be measured.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EvalError {
    /// The text is shorter than one window.
    #[error("the text has {tokens} tokens, less than one window of {seqlen}: give a longer text or a smaller --seqlen")]
    TooShort {
        /// Tokens in the text.
        tokens: usize,
        /// Tokens per window.
        seqlen: usize,
    },
    /// A window of one token.
    #[error("a window of {seqlen} has no next token to predict: --seqlen must be at least 2")]
    NothingToPredict {
        /// Tokens per window.
        seqlen: usize,
    },
    /// The model produced NaN or infinity.
    #[error("window or choice {}: the loss is {value}, so the model's activations overflow", window + 1)]
    NotFinite {
        /// Index of the window or choice, from 0; the message counts from 1.
        window: usize,
        /// Its loss.
        value: f64,
    },
    /// Two models that predict different tokens.
    #[error(
        "the models have vocabularies of {full} and {quantized} tokens: only models of one vocabulary can be compared"
    )]
    Vocabulary {
        /// Tokens of the model in full precision.
        full: usize,
        /// Tokens of the quantized model.
        quantized: usize,
    },
    /// A choice and its context are a single token, so there is nothing to predict it from.
    #[error("{text:?} is one token: a choice needs a token of context before it")]
    OneToken {
        /// Context and choice.
        text: String,
    },
    /// What models are to be compared with cannot be stored.
    #[error("{}: cannot store the full-precision model's predictions, {bytes} bytes: {source}; free some space or measure fewer --windows", dir.display())]
    Reference {
        /// Directory of the file.
        dir: PathBuf,
        /// Its size.
        bytes: u64,
        /// The cause.
        source: io::Error,
    },
    /// The caller stopped it.
    #[error("stopped")]
    Stopped,
    /// A text cannot be tokenized.
    #[error(transparent)]
    Data(#[from] DataError),
    /// The model cannot be read.
    #[error(transparent)]
    Model(#[from] ModelError),
}

impl EvalError {
    /// The same where `first` windows or items come before those that were measured here.
    #[must_use]
    pub fn after(self, first: usize) -> Self {
        match self {
            Self::NotFinite { window, value } => Self::NotFinite { window: first + window, value },
            other => other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_is_counted_from_the_first_of_the_text() {
        let error = EvalError::NotFinite { window: 1, value: f64::NAN }.after(3);
        assert!(error.to_string().starts_with("window or choice 5: "), "{error}");
    }
}
