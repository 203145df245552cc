//! What repeats where Rust has no loop or generic for it: constants that a body is compiled with, and one line for each operation.

/// Repeats `body` with the constant `$j` taking each value: shifts take constants.
macro_rules! for_each {
    ($j:ident in [$($value:literal)*] $body:block) => {
        $({
            const $j: usize = $value;
            $body
        })*
    };
}
pub(crate) use for_each;

/// Runs `$body` with the constant `$bits` that a width has.
macro_rules! with_bits {
    ($width:expr, $bits:ident => $body:expr) => {
        match $width {
            $crate::layout::Width::W2 => {
                const $bits: u32 = 2;
                $body
            }
            $crate::layout::Width::W3 => {
                const $bits: u32 = 3;
                $body
            }
            $crate::layout::Width::W4 => {
                const $bits: u32 = 4;
                $body
            }
            $crate::layout::Width::W8 => {
                const $bits: u32 = 8;
                $body
            }
        }
    };
}
pub(crate) use with_bits;

/// Runs `$body` with the constant `$r` that a number of rows from 1 to 12 is; what lies above `$most` is not compiled.
macro_rules! with_rows {
    (@one_of [$($value:literal)*], $rows:expr, $most:expr, $r:ident => $body:expr) => {
        match $rows {
            $($value if const { $value <= $most } => {
                const $r: usize = $value;
                $body
            })*
            rows => unreachable!("{rows} rows, {} at most", $most),
        }
    };
    ($rows:expr, at most $most:expr, $r:ident => $body:expr) => {
        $crate::macros::with_rows!(@one_of [1 2 3 4 5 6 7 8 9 10 11 12], $rows, $most, $r => $body)
    };
}
pub(crate) use with_rows;

/// Methods of a type that is only made where the processor has its instructions, out of functions of these instructions. Only folders where
/// the lint allows it can use this.
macro_rules! operations {
    ($($(#[$doc:meta])* fn $name:ident($($arguments:tt)*) $(-> $result:ty)? $body:block)*) => {
        $($(#[$doc])*
        #[inline(always)]
        fn $name($($arguments)*) $(-> $result)? {
            // SAFETY: the functions need instructions that the processor has, as `self` was made by a check for them; they take no
            // addresses.
            unsafe { $body }
        })*
    };
}
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
pub(crate) use operations;
