//! Numbers that activations and results are made of.

use half::bf16;
use oq_quant_core::{from_bf16, to_bf16};

/// A number that activations or results are made of: f32 or bf16.
pub trait Element: Copy + Send + Sync + private::Sealed {
    #[doc(hidden)]
    fn widen(self) -> f32;
    /// The nearest; of two the even one.
    #[doc(hidden)]
    fn narrow(value: f32) -> Self;
    /// The numbers as they are, if they are f32.
    #[doc(hidden)]
    fn as_f32(values: &[Self]) -> Option<&[f32]>;
}

mod private {
    pub trait Sealed {}
    impl Sealed for f32 {}
    impl Sealed for half::bf16 {}
}

impl Element for f32 {
    #[inline(always)]
    fn widen(self) -> f32 {
        self
    }

    #[inline(always)]
    fn narrow(value: f32) -> Self {
        value
    }

    fn as_f32(values: &[Self]) -> Option<&[f32]> {
        Some(values)
    }
}

impl Element for bf16 {
    #[inline(always)]
    fn widen(self) -> f32 {
        from_bf16(self)
    }

    #[inline(always)]
    fn narrow(value: f32) -> Self {
        to_bf16(value)
    }

    fn as_f32(_: &[Self]) -> Option<&[f32]> {
        None
    }
}
