//! Instruction sets of 64-bit ARM, as those of x86-64 are.

#![allow(unsafe_code, reason = "functions of an instruction set need a check")]

mod neon;

pub(crate) use neon::Neon;
