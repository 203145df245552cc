//! Products of activations with packed weights on a CPU: `y [rows, out] = x [rows, in] * W^T + b`, where `W` has 2 to 8 bits.
//!
//! [`PackedLinear::new`] rearranges a [`QuantizedTensor`](oq_quant_core::QuantizedTensor) once; [`PackedLinear::forward`] takes f32
//! or bf16 activations with any number of rows, and writes f32 or bf16. The crate does not use libtorch.
//!
//! ```
//! use oq_kernels::PackedLinear;
//! use oq_quant_core::{QuantSpec, QuantizedTensor};
//!
//! let spec: QuantSpec = "w4a16g32".parse()?;
//! let weight: Vec<f32> = (0..3 * 64).map(|i| (i as f32 * 0.37).sin()).collect(); // [out 3, in 64]
//! let packed = QuantizedTensor::quantize(&weight, 3, 64, spec.weight)?;
//! let linear = PackedLinear::new(&packed, Some(&[0.5, 0.0, -0.5]))?;
//!
//! let x = [0.25f32; 2 * 64]; // [rows 2, in 64]
//! let mut y = [0.0f32; 2 * 3];
//! linear.forward(&x, 2, &mut y)?;
//! let expected = 0.25 * packed.dequantize()[..64].iter().sum::<f32>() + 0.5;
//! assert!((y[0] - expected).abs() < 1e-3);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Two paths
//!
//! A few rows take the *fused path*: codes are unpacked in registers and multiplied there, so that a row costs as much as reading the
//! packed weights from memory. More rows take the *panel path*: codes of a part of the matrix are unpacked into a buffer that stays in the
//! first-level cache, and a register-blocked product runs over all rows. [`Kernel::few_rows`] is the number of rows up to which the fused
//! path is faster.
//!
//! Work is split by output channels over the threads of the current rayon pool. Each thread keeps its buffers, so repeated calls of a size
//! allocate nothing. A call from outside the pool has to wake a thread; a program that makes many calls enters the pool once
//! (`ThreadPool::install`). Weights lie in large pages where the system has them.
//!
//! # Which implementation
//!
//! [`KERNELS`] lists them, fastest first. [`Kernel::chosen`] is the kernel of the instruction set that [`oq_isa::Isa::chosen`] returns: the
//! fastest that the processor supports, or the one that the environment variable `OMNIQUANT_KERNEL` names. [`PackedLinear::with_kernel`]
//! uses a kernel of your choice.
//!
//! | name | few rows | many rows |
//! |---|---|---|
//! | `avx512-bf16` | 16-bit integers | bf16, or 8-bit integers where asked for |
//! | `avx512` | 16-bit integers | f32 |
//! | `avx2` | 16-bit integers | f32 |
//! | `neon` | 16-bit integers | f32 |
//! | `scalar` | f32 | f32 |
//!
//! The loops (the fused path, the panel path, dot products of 16-bit numbers) are written once, over the vector operations of an instruction
//! set (`vectors.rs`). Only `scalar` has its own loops, since it is the definition. To add an instruction set, write its operations in a file
//! in the architecture's folder, and add a row to the table.
//!
//! `neon` has only run under emulation: its results are tested, but its speed is unknown.
//!
//! Only [`PackedLinear::with_int8`] rounds activations to 8 bits, for many rows, with a scale of 1/127 of the largest of each 32 channels of
//! a group. It is some 1.7 times as fast as bf16: 287, 312 and 323 GFLOP/s in place of 171, 183 and 191 at W4 in groups of 32, 64 and 128
//! (2048 x 2048 weights, 512 rows, one thread of Zen 4 beside other programs, the best of 77 passes in turn). It costs accuracy, which bf16
//! does not. An earlier kernel had one scale for each group: with it SmolLM2-135M, rounded to nearest, went from 25.49 to 25.58 at w4a16g64
//! and from 19.11 to 19.37 at w8a16 (8 windows of WikiText-2). `avx2` has no such path: it multiplies bytes into sums of 16 bits, which codes
//! of 8 bits overflow. [`KernelError::Int8`] says so.
//!
//! # What is exact
//!
//! Weights are exact: every path of every kernel uses codes, zero points and scales as they are stored. Activations are rounded to the type
//! in the table ([`Operands`]): to integers with an error of about 2^-16 of the largest value in the group, or to bf16 with a relative error
//! of 2^-8, so bf16 activations stay exact there. 8-bit integers, where asked for, err by at most a 254th of the largest of their 32
//! channels. Integers are summed exactly. Other sums are f32, over at most 256 channels before they are scaled and added to the total.
//!
//! If an infinity or NaN takes part in a row, that row's results are NaN or infinite; other rows are unaffected.
//!
//! # How it is tested
//!
//! `tests/agreement.rs` compares every kernel that the processor supports with the product in f64 and with `scalar`, within the bounds above.
//! The same tests under AddressSanitizer:
//!
//! ```text
//! RUSTC_BOOTSTRAP=1 RUSTFLAGS=-Zsanitizer=address cargo test --release -p oq-kernels --lib --tests \
//!     --target x86_64-unknown-linux-gnu
//! ```
//!
//! `neon` under emulation (`rustup target add aarch64-unknown-linux-musl`; `qemu-aarch64` is in Debian's package `qemu-user`):
//!
//! ```text
//! export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_MUSL_LINKER=rust-lld CARGO_TARGET_AARCH64_UNKNOWN_LINUX_MUSL_RUNNER=qemu-aarch64
//! cargo test --release -p oq-kernels --lib --test agreement --test allocation --target aarch64-unknown-linux-musl
//! ```

#![deny(unsafe_op_in_unsafe_fn)]
#![cfg_attr(not(target_arch = "x86_64"), allow(dead_code, reason = "some loops have no instruction set here"))]

#[cfg(target_arch = "aarch64")]
mod aarch64;
mod bytes;
mod dense;
mod dot;
mod element;
mod error;
mod fused;
mod kernel;
mod layout;
mod linear;
mod macros;
mod memory;
mod panel;
mod places;
mod prepare;
mod scalar;
mod scratch;
mod table;
mod vectors;
#[cfg(target_arch = "x86_64")]
mod x86_64;

pub use dense::{Half, multiply_dense};
pub use element::Element;
pub use error::KernelError;
pub use kernel::{Kernel, Operands};
pub use linear::PackedLinear;
pub use table::KERNELS;

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
