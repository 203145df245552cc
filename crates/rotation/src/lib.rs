//! Orthogonal matrices for rotating channels. [`Orthogonal`] is the matrix: a Hadamard matrix where the width has one, else a random one.
//! [`Rotation`] is a randomized matrix that is merged into weights. Which tensors of a model are rotated is decided in `oq-models`.

mod field;
mod hadamard;
mod orthogonal;

pub use orthogonal::{Orthogonal, Rotation, SLAB};

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
