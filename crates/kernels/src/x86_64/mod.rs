//! Instruction sets of x86-64, one file each: what their vectors do.
//!
//! All is safe but two things: functions of an instruction set need a check that the processor has it, and prefetches take addresses.

#![allow(unsafe_code, reason = "functions of an instruction set need a check, and prefetches take addresses")]

mod avx2;
mod avx512;
mod avx512_bf16;
mod prefetch;

pub(crate) use avx2::Avx2;
pub(crate) use avx512::Avx512;
pub(crate) use avx512_bf16::Avx512Bf16;
