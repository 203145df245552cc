//! One of several, as people count.

use std::fmt;

/// One of several blocks, epochs or batches. Counted from 0 here and in records; shown counted from 1, such as `3 of 30`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Nth {
    /// Which, from 0.
    pub index: usize,
    /// How many there are.
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
