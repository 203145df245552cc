//! Text generation: a model in memory ([`Loaded`]), the state of one sequence ([`Session`]), sampling ([`Sampler`]) and streamed text
//! ([`TextStream`]). [`generate`] combines them; [`Continuation`] does so step by step.
//!
//! The forward is that of the model's family. A session only adds the earlier keys and values in [`oq_models::BlockOps::attention`].
//!
//! A token takes hundreds of small products, each shared by the threads of the current rayon pool. Callers should enter the pool once,
//! around everything, so that threads are not woken for each product.

mod cache;
mod error;
mod generate;
mod loaded;
mod sampler;
mod session;
mod stream;

pub use error::GenerateError;
pub use generate::{Continuation, End, Generated, Settings, Step, generate};
pub use loaded::Loaded;
pub use sampler::{Choice, Sampler, Sampling};
pub use session::Session;
pub use stream::{Piece, TextStream};

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
