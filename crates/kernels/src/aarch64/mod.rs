//! Kernels of 64-bit ARM, one file per set of instructions, built as those of x86-64 are.

#![allow(
    unsafe_code,
    reason = "vector loads and stores take pointers, and functions of an instruction set need a check"
)]
#![allow(clippy::needless_range_loop, reason = "an index runs over registers of several arrays, and loops must unroll")]

pub(crate) mod neon;
