//! The table of implementations, and which of them is used.

use std::fmt;
use std::ops::Range;
use std::sync::OnceLock;

#[cfg(target_arch = "aarch64")]
use crate::aarch64::neon;
use crate::layout::{Layout, Segment, Tile, WordRow};
use crate::linear::KernelError;
use crate::scalar;
#[cfg(target_arch = "x86_64")]
use crate::x86_64::{avx2, avx512, avx512_bf16};

/// Environment variable that names the kernel to use, for tests and reports of faults.
pub const KERNEL_VARIABLE: &str = "OMNIQUANT_KERNEL";

/// What activations are rounded to before they are multiplied. Weights are always exact.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operands {
    /// Nothing.
    F32,
    /// bf16, 8 binary digits: half a unit in the last is at most 2^-8 of the number.
    Bf16,
    /// Steps of 1/32767 of the largest of their group, or of the 256 channels of a long group that are summed at a time.
    Int16,
}

/// One implementation of the products of this crate.
pub struct Kernel {
    /// Name, as the environment variable takes it.
    pub name: &'static str,
    /// Most rows that take the fused path.
    pub few_rows: usize,
    /// What the fused path multiplies.
    pub few: Operands,
    /// What the panel path multiplies.
    pub many: Operands,
    pub(crate) is_available: fn() -> bool,
    pub(crate) code: Code,
}

pub(crate) enum Code {
    /// `rows` of activations `[rows, padded channels]` times one strip.
    Plain(fn(layout: &Layout, strip: usize, x: &[f32], tiles: &mut [Tile])),
    Vector(Vector),
}

/// The parts of a vectorized kernel. Its operands are 32-bit words of a pair of 16-bit numbers or of one f32
/// number.
pub(crate) struct Vector {
    /// Channels of an operand word of the panel path.
    pub(crate) step: usize,
    /// Most rows of one call of `fused`.
    pub(crate) fused_rows: usize,
    /// Most rows of one call of `multiply`.
    pub(crate) tile_rows: usize,
    /// Channels unpacked at a time.
    pub(crate) depth: usize,
    /// A padded row to pairs of integers, and for each segment their sum and the size of a step.
    pub(crate) arrange: fn(layout: &Layout, x: &[f32], words: &mut [u32], sums: &mut [Sums]),
    /// A few rows times strips, straight from codes. `tiles` is `[strips, rows]`.
    pub(crate) fused: fn(input: &Fused<'_>, strips: Range<usize>, tiles: &mut [Tile]),
    /// A padded row to operand words of the panel path.
    pub(crate) narrow: fn(x: &[f32], words: &mut [u32]),
    /// Codes of some segments of a strip to operands `[channels / step, 32]`.
    pub(crate) unpack: fn(layout: &Layout, strip: usize, segments: &[Segment], panel: &mut [WordRow]),
    /// Adds a product of unpacked operands to tiles.
    pub(crate) multiply: fn(product: Product<'_>),
}

/// Of one segment of a row of integers: their sum, which zero points are multiplied with, and the size of a step.
pub(crate) type Sums = [f32; 2];

/// A few rows of activations, arranged for the fused path.
pub(crate) struct Fused<'a> {
    pub(crate) layout: &'a Layout,
    /// At most [`Vector::fused_rows`].
    pub(crate) rows: usize,
    /// Pairs of integers `[blocks, rows, block / 2]`.
    pub(crate) x: &'a [u32],
    /// `[segments, rows]`.
    pub(crate) sums: &'a [Sums],
}

/// One call of [`Vector::multiply`].
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code, reason = "kernels of f32 read no grids here"))]
pub(crate) struct Product<'a> {
    pub(crate) layout: &'a Layout,
    pub(crate) strip: usize,
    /// The segments that `x` and `panel` span.
    pub(crate) segments: &'a [Segment],
    /// Operand words `[channels / step, tiles]`.
    pub(crate) x: &'a [u32],
    /// Operands `[channels / step, 32]`.
    pub(crate) panel: &'a [WordRow],
    /// One tile for each row, at most [`Vector::tile_rows`].
    pub(crate) tiles: &'a mut [Tile],
}

/// All implementations built for this architecture, the fastest first; the last runs everywhere.
pub static KERNELS: &[&Kernel] = &[
    #[cfg(target_arch = "x86_64")]
    &avx512_bf16::KERNEL,
    #[cfg(target_arch = "x86_64")]
    &avx512::KERNEL,
    #[cfg(target_arch = "x86_64")]
    &avx2::KERNEL,
    #[cfg(target_arch = "aarch64")]
    &neon::KERNEL,
    &scalar::KERNEL,
];

impl Kernel {
    /// Whether this processor can run it.
    pub fn is_available(&self) -> bool {
        (self.is_available)()
    }

    /// The kernel of that name.
    ///
    /// # Errors
    /// When there is none in [`KERNELS`], or this processor cannot run it.
    pub fn named(name: &str) -> Result<&'static Self, KernelError> {
        let kernel = KERNELS.iter().find(|kernel| kernel.name == name).ok_or_else(|| KernelError::UnknownKernel {
            name: name.to_owned(),
            known: KERNELS.iter().map(|kernel| kernel.name).collect::<Vec<_>>().join(", "),
        })?;
        kernel.checked()
    }

    /// The kernel that `OMNIQUANT_KERNEL` names, else the fastest that this processor can run. The variable is read once.
    ///
    /// # Errors
    /// When the variable names a kernel that is unknown or not available.
    pub fn chosen() -> Result<&'static Self, KernelError> {
        static CHOSEN: OnceLock<Result<&'static Kernel, KernelError>> = OnceLock::new();
        let choose = || match std::env::var_os(KERNEL_VARIABLE) {
            Some(name) if !name.is_empty() => Self::named(&name.to_string_lossy()),
            _ => Ok(Self::fastest()),
        };
        CHOSEN.get_or_init(choose).clone()
    }

    /// The first of [`KERNELS`] that is available.
    pub fn fastest() -> &'static Self {
        KERNELS.iter().find(|kernel| kernel.is_available()).expect("the last one runs everywhere")
    }

    pub(crate) fn checked(&'static self) -> Result<&'static Self, KernelError> {
        if self.is_available() { Ok(self) } else { Err(KernelError::Unavailable { name: self.name }) }
    }
}

impl fmt::Debug for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Kernel({})", self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_are_found_by_name() {
        for kernel in KERNELS {
            match Kernel::named(kernel.name) {
                Ok(found) => assert_eq!(found.name, kernel.name),
                Err(error) => assert_eq!(error, KernelError::Unavailable { name: kernel.name }),
            }
        }
        let error = Kernel::named("mmx").expect_err("there is none").to_string();
        assert!(error.contains("`mmx`") && error.contains("scalar"), "{error}");
        assert!(KERNELS.last().unwrap().is_available());
    }
}
