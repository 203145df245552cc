//! All blocks together: how much each linear's width costs the predictions, the choice of widths, and tuning after the last block.

pub(crate) mod allocate;
pub(crate) mod chain;
pub(crate) mod choice;
pub(crate) mod error;
pub(crate) mod sensitivity;
pub(crate) mod tune;
