//! Continues a text: a model in memory ([`Loaded`]), the state of one sequence ([`Session`]), how a token is chosen ([`Sampler`]) and
//! how tokens become text that can be shown as it comes ([`TextStream`]); [`generate`] joins them.
//!
//! The forward is the families' own: a session lets [`oq_models::BlockOps::attention`] see what came before.
//!
//! A token is hundreds of small products, each shared by the threads of the rayon pool that the call is made in. Callers enter the
//! pool once, around everything, so that threads are not woken for each product.

mod cache;
mod error;
mod generate;
mod loaded;
mod sampler;
mod session;
mod stream;

pub use error::GenerateError;
pub use generate::{End, Generated, Settings, generate};
pub use loaded::Loaded;
pub use sampler::{Choice, Sampler, Sampling};
pub use session::Session;
pub use stream::{Piece, TextStream};
