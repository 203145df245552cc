//! CUDA kernels of our own: learned clipping in one pass over the weights, values of packed weights, and products of a few rows of
//! activations with weights of 2, 3 and 4 bits.
//!
//! Nothing here needs CUDA to be built. NVRTC compiles the sources for a card when a process asks for them ([`use_card`]); from then on
//! [`of`] has kernels for tensors on that card. Processes that do not ask use what they used before.
//!
//! Kernels run in the stream that libtorch uses by default, in order with its operations, so nothing waits for them. Like libtorch's
//! operations they panic where the card fails.
//!
//! [`Launch`] is what kernels run on: a [`Card`], or in tests the host, on which the same sources run.

#![allow(unsafe_code, reason = "kernels read and write tensors by their addresses")]

mod card;
mod chosen;
mod clip;
mod error;
mod kernels;
mod nvrtc;
mod packed;

pub use card::Card;
pub use chosen::{of, use_card, use_host};
pub use clip::{Grid, Moves, Weight, Zero};
pub use error::CudaError;
pub use kernels::{Kernels, Launch, THREADS};
pub use nvrtc::{NVRTC, SOURCE, compile};
pub use packed::{FEW, Packed};

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
