//! Errors of a contest.

use std::io;
use std::path::{Path, PathBuf};

use crate::endpoint::EndpointError;
use crate::side::Side;

/// Why a contest cannot go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum JudgeError {
    /// A file cannot be read or written.
    #[error("{}: cannot {action}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// What the system says.
        source: io::Error,
    },
    /// The questions cannot be understood.
    #[error("{}: line {line}: {reason}", path.display())]
    Questions {
        /// The file.
        path: PathBuf,
        /// From 1.
        line: usize,
        /// What is wrong.
        reason: String,
    },
    /// There are no questions.
    #[error("{}: no questions", path.display())]
    NoQuestions {
        /// The file.
        path: PathBuf,
    },
    /// The record is not one of a contest.
    #[error("{}: line {line}: {reason}", path.display())]
    Record {
        /// The file.
        path: PathBuf,
        /// From 1.
        line: usize,
        /// What is wrong.
        reason: String,
    },
    /// The record is of another contest.
    #[error("{}: a contest with other {key}: {there} instead of {here}; choose another folder", path.display())]
    OtherContest {
        /// The file.
        path: PathBuf,
        /// What differs.
        key: &'static str,
        /// In the record.
        there: String,
        /// What was asked for.
        here: String,
    },
    /// A pair cannot be judged before both have answered.
    #[error("question {question}: {side} has not answered")]
    Unanswered {
        /// The question's name.
        question: String,
        /// Whose answer is missing.
        side: Side,
    },
    /// One of the two did not answer.
    #[error("question {question}: {side} gave no answer")]
    Answer {
        /// The question's name.
        question: String,
        /// Whose answer it is.
        side: Side,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The judge did not answer.
    #[error("question {question}: the judge gave no answer")]
    Judge {
        /// The question's name.
        question: String,
        /// Why.
        source: EndpointError,
    },
}

impl JudgeError {
    pub(crate) fn io(path: &Path, action: &'static str, source: io::Error) -> Self {
        Self::Io { path: path.to_owned(), action, source }
    }
}
