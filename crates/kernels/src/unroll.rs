//! What vectorized kernels share: loops that are unrolled when they are compiled, and where in a word codes are multiplied.

use crate::layout::Width;

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

/// Calls `$function::<R>` for `R = $rows`, one of the listed.
macro_rules! for_rows {
    ($rows:expr, [$($value:literal)*], $function:ident $arguments:tt) => {
        match $rows {
            $($value => $function::<$value> $arguments,)*
            rows => unreachable!("{rows} rows of a block"),
        }
    };
}
pub(crate) use for_rows;

/// Calls `$function::<BITS>` for a width, or `$function::<BITS, R>` for a width and a number of rows.
macro_rules! for_width {
    ($width:expr, $function:ident $arguments:tt) => {
        match $width {
            $crate::layout::Width::W2 => $function::<2> $arguments,
            $crate::layout::Width::W3 => $function::<3> $arguments,
            $crate::layout::Width::W4 => $function::<4> $arguments,
            $crate::layout::Width::W8 => $function::<8> $arguments,
        }
    };
    ($width:expr, $rows:expr, [$($value:literal)*], $function:ident $arguments:tt) => {
        match ($width, $rows) {
            $(($crate::layout::Width::W2, $value) => $function::<2, $value> $arguments,)*
            $(($crate::layout::Width::W3, $value) => $function::<3, $value> $arguments,)*
            $(($crate::layout::Width::W4, $value) => $function::<4, $value> $arguments,)*
            $(($crate::layout::Width::W8, $value) => $function::<8, $value> $arguments,)*
            (_, rows) => unreachable!("{rows} rows on the fused path"),
        }
    };
}
pub(crate) use for_width;

/// The width whose codes have `bits`.
pub(crate) const fn width(bits: u32) -> Width {
    match bits {
        2 => Width::W2,
        3 => Width::W3,
        4 => Width::W4,
        _ => Width::W8,
    }
}

/// Where the codes of pair `j` are multiplied: the sum they go to, and how many bits a word is shifted to the right before.
pub(crate) const fn sum_and_shift(bits: u32, j: usize, in_place: bool) -> (usize, usize) {
    // Places 0, 3 and 6 at 3 bits, below 8 at others, before and after one shift. The last pair is put together at place 4.
    let (sum, shift) = match bits {
        2 => (j % 4, j / 4 * 8),
        3 if j == 15 => (3, 0),
        3 => (j % 5 % 3, j % 5 / 3 * 9),
        4 => (j % 2, j / 2 * 8),
        _ => (j % 2, j * 8),
    };
    if in_place { (sum, shift) } else { (0, shift + place(bits, sum)) }
}

/// Lowest bit of the codes that go to a sum.
pub(crate) const fn place(bits: u32, sum: usize) -> usize {
    match bits {
        2 => 2 * sum,
        3 => [0, 3, 6, 4][sum],
        4 => 4 * sum,
        _ => 0,
    }
}

/// Sums of a column. Each takes `vectors`, and half of the `registers` hold words, codes, masks and activations.
pub(crate) const fn sums_of(bits: u32, rows: usize, vectors: usize, registers: usize) -> usize {
    let sums = match bits {
        2 | 3 => 4,
        _ => 2,
    };
    if vectors * sums * rows <= registers / 2 { sums } else { 1 }
}
