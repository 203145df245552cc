//! One of several, for messages.

use std::fmt;

/// One of several blocks, epochs or batches. Its index counts from 0 here and in records; it is shown counting from 1, such as `3 of
/// 30`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Nth {
    /// The index, from 0.
    pub index: usize,
    /// The total.
    pub of: usize,
}

impl Nth {
    pub(crate) fn new(index: usize, of: usize) -> Self {
        Self { index, of }
    }
}

impl fmt::Display for Nth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {}", self.index + 1, self.of)
    }
}
