//! All blocks together: what predictions suffer from each linear's width, which widths that gives, and tuning after the last block.

pub(crate) mod allocate;
pub(crate) mod chain;
pub(crate) mod choice;
pub(crate) mod error;
pub(crate) mod sensitivity;
pub(crate) mod tune;
