//! The splits that a dataset is published in.

use std::fmt;
use std::str::FromStr;

/// A split of a dataset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Split {
    /// The training split.
    Train,
    /// The validation split, held out for choosing settings.
    Validation,
    /// The test split, held out for reporting.
    Test,
}

impl Split {
    pub(crate) const ALL: [Self; 3] = [Self::Train, Self::Validation, Self::Test];

    /// The split's name in parquet files.
    pub(crate) fn parquet_name(self) -> &'static str {
        match self {
            Self::Train => "train",
            Self::Validation => "validation",
            Self::Test => "test",
        }
    }
}

/// `train`, `valid` or `test`.
impl fmt::Display for Split {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Train => "train",
            Self::Validation => "valid",
            Self::Test => "test",
        })
    }
}

/// The inverse of [`Display`](fmt::Display); also accepts `validation`.
impl FromStr for Split {
    type Err = ();

    fn from_str(s: &str) -> Result<Self, ()> {
        Self::ALL.into_iter().find(|split| s == split.to_string() || s == split.parquet_name()).ok_or(())
    }
}
