//! Causal attention in bf16 on the CPU: of whole sequences, forward and backward, and of a sequence that grows ([`Cache`]).
//!
//! ```text
//! S = scale Q Kᵀ     P = softmax(S), each row over the positions up to its own     O = P V
//! ```
//!
//! Products take bf16 and sum in f32; scores, softmax and the sums of gradients are f32. Nothing of the size `t x t` is kept: the
//! forward keeps the logarithm of each row's sum, from which the backward makes `P` again (Dao et al. 2022, arXiv 2205.14135). Work
//! is cut by heads, and every sum has one order, so that the result does not depend on the number of threads.
//!
//! The inner loops are those of the instruction set that [`oq_isa::Isa::chosen`] returns; where it does not multiply bf16, they are plain
//! Rust.
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
