//! Products of activations with packed weights on a CPU: `y [rows, out] = x [rows, in] * W^T + b`, where `W` has 2 to 8 bits.
//!
//! [`PackedLinear::new`] rearranges a [`QuantizedTensor`](oq_quant_core::QuantizedTensor) once; [`PackedLinear::forward`] takes f32
//! or bf16 activations, any number of rows, and writes f32 or bf16. Nothing here knows of tensors or of libtorch.
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
//! A few rows take the *fused path*: codes are multiplied where they are unpacked, in registers, so that a row costs what reading
//! the packed weights from memory costs. More rows take the *panel path*: codes of a part of the matrix are unpacked into a buffer
//! that stays in the first-level cache, and a register-blocked product runs over all rows. [`Kernel::few_rows`] says where the one
//! takes over from the other: where passes over the packed weights cost as much as unpacking them.
//!
//! Work is split over the threads of the rayon pool that the call is made in, by output channels. Buffers are kept by each thread:
//! once it has had a task of a size it allocates nothing. Calls from outside the pool wake a sleeping thread each; a program that
//! makes many enters the pool once (`ThreadPool::install`). Weights lie in large pages where the system has them.
//!
//! # Which implementation
//!
//! [`KERNELS`] lists them, the fastest first; [`Kernel::chosen`] is that of the instruction set which [`oq_isa::Isa::chosen`] returns: the
//! fastest that the processor has, or the one that `OMNIQUANT_KERNEL=<name>` in the environment names. [`PackedLinear::with_kernel`] takes
//! one from the program.
//!
//! | name | few rows | many rows |
//! |---|---|---|
//! | `avx512-bf16` | 16-bit integers | bf16 |
//! | `avx512` | 16-bit integers | f32 |
//! | `avx2` | 16-bit integers | f32 |
//! | `neon` | 16-bit integers | f32 |
//! | `scalar` | f32 | f32 |
//!
//! Loops are written once, over the operations of an instruction set's vectors (`vectors.rs`): the fused path, the panel path, dot products
//! of 16-bit numbers. `scalar` alone has loops of its own: it is the definition. To add an instruction set: its operations, in a file below
//! the architecture's folder, and a row of the table.
//!
//! `neon` has run under emulation only: its results are tested, its speed is not known.
//!
//! No kernel multiplies activations of 8 bits. One did for many rows, with a step of 1/127 of the largest in each group: it was 1.66 times
//! as fast as `avx512-bf16` (665 and 400 GFLOP/s, 512 rows, W4 in groups of 128, 2 cores of Zen 4). But perplexity shows it, where it does
//! not show bf16: SmolLM2-135M rounded to nearest, 8 windows of WikiText-2, went from 25.49 to 25.58 at w4a16g64 (bf16: 25.49) and from
//! 19.11 to 19.37 at w8a16.
//!
//! # What is exact
//!
//! Weights are: codes, zero points and scales enter as they are, whatever the path and the kernel. Activations are rounded to what
//! the table says ([`Operands`]): to integers by about 2^-16 of the largest in the group, to bf16 by 2^-8 of the number itself,
//! so that bf16 activations are exact there. Integers are summed exactly, other sums are f32: each is over 256 channels at most
//! before it is scaled and joins a total.
//!
//! A result that an infinity or NaN takes part in is not a number or infinite; other rows are not touched by it.
//!
//! # How it is tested
//!
//! `tests/agreement.rs` holds every kernel that the processor can run to the product in f64 and to `scalar`, within the bounds above.
//! The same under AddressSanitizer:
//!
//! ```text
//! RUSTC_BOOTSTRAP=1 RUSTFLAGS=-Zsanitizer=address cargo test --release -p oq-kernels --lib --tests \
//!     --target x86_64-unknown-linux-gnu
//! ```
//!
//! And `neon` under emulation (`rustup target add aarch64-unknown-linux-musl`; `qemu-aarch64` is in Debian's package `qemu-user`):
//!
//! ```text
//! export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_MUSL_LINKER=rust-lld CARGO_TARGET_AARCH64_UNKNOWN_LINUX_MUSL_RUNNER=qemu-aarch64
//! cargo test --release -p oq-kernels --lib --test agreement --test allocation --target aarch64-unknown-linux-musl
//! ```

#![deny(unsafe_op_in_unsafe_fn)]
#![cfg_attr(not(target_arch = "x86_64"), allow(dead_code, reason = "some loops have no instruction set here"))]

#[cfg(target_arch = "aarch64")]
mod aarch64;
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
