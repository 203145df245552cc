//! One block: statistics of its inputs, its initial state, and how it learns.

pub(crate) mod compensate;
pub(crate) mod details;
pub(crate) mod graph;
pub(crate) mod inputs;
pub(crate) mod learn;
pub(crate) mod learned;
pub(crate) mod peak;
pub(crate) mod routing;
pub(crate) mod settled;
pub(crate) mod sites;
pub(crate) mod start;
pub(crate) mod student;
pub(crate) mod watch;
pub(crate) mod whole;
