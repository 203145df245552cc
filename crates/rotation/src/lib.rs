//! Orthogonal matrices that channels are rotated by: [`Orthogonal`] ones, which are Hadamard matrices where the width has one, and
//! [`Rotation`]s, which are merged into weights. What of a model they stand in is decided elsewhere.

mod field;
mod hadamard;
mod orthogonal;

pub use orthogonal::{Orthogonal, Rotation, SLAB};

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
