//! Causal attention in bf16 on the CPU: forward and backward over whole sequences, and over a cache of keys and values ([`Cache`]).
//!
//! ```text
//! S = scale Q Kᵀ     P = softmax(S), each row over the positions up to its own     O = P V
//! ```
//!
//! Products multiply bf16 and sum in f32; scores, softmax and sums of gradients are f32. Nothing of size `t x t` is stored: the forward pass
//! keeps the logarithm of each row's sum, from which the backward pass recomputes `P` (Dao et al. 2022, arXiv 2205.14135). Work is divided by
//! heads, and every sum has a fixed order, so the result does not depend on the number of threads.
//!
//! The inner loops use the instruction set that [`oq_isa::Isa::chosen`] returns; if it cannot multiply bf16, they are plain Rust.
//!
//! ```
//! use half::bf16;
//! use oq_attention::{Shape, forward};
//!
//! let shape = Shape { batch: 1, heads: 4, kv_heads: 2, tokens: 3, head_dim: 8 };
//! let q = vec![bf16::ONE; shape.q_len()];
//! let kv = vec![bf16::ONE; shape.kv_len()];
//! let kept = forward(shape, &q, &kv, &kv);
//! assert_eq!(kept.out, q); // a mean of ones
//! ```

#[cfg(target_arch = "x86_64")]
mod avx512_bf16;
mod backward;
mod cache;
mod choice;
mod forward;
mod loops;
mod pack;
mod plain;
mod shape;

pub use backward::{Grads, backward};
pub use cache::Cache;
pub use choice::is_fast;
pub use forward::{Kept, forward};
pub use shape::Shape;

#[cfg(test)]
mod tests;

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
