//! The sections of a run's page, each from what the run recorded.

pub(crate) mod clipping;
pub(crate) mod layers;
pub(crate) mod learning;
pub(crate) mod machine;
pub(crate) mod ranges;
pub(crate) mod settings;
pub(crate) mod widths;
