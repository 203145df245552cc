//! What an implementation consists of.

use std::fmt;
use std::ops::Range;

use oq_isa::Isa;

use crate::dot::Dots;
use crate::fused::{self, Fused, Sums};
use crate::layout::{Layout, Segment, Tile, WordRow};
use crate::panel::{self, Product};
use crate::vectors::{InstructionSet, Panel};

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
    pub(crate) isa: Isa,
    pub(crate) code: Code,
    pub(crate) dots: Dots,
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
    pub(crate) panel_rows: usize,
    /// Channels unpacked at a time.
    pub(crate) depth: usize,
    pub(crate) arrange: fn(layout: &Layout, x: &[f32], words: &mut [u32], sums: &mut [Sums]),
    pub(crate) fused: fn(input: &Fused<'_>, strips: Range<usize>, tiles: &mut [Tile]),
    pub(crate) narrow: fn(x: &[f32], words: &mut [u32]),
    pub(crate) unpack: fn(layout: &Layout, strip: usize, segments: &[Segment], panel: &mut [WordRow]),
    pub(crate) multiply: fn(product: Product<'_>),
}

impl Vector {
    /// The loops of this crate over an instruction set, which unpacks `depth` channels at a time.
    pub(crate) const fn of<I: InstructionSet>(depth: usize) -> Self {
        Self {
            step: I::Panel::STEP,
            fused_rows: I::FUSED_ROWS,
            panel_rows: I::PANEL_ROWS,
            depth,
            arrange: fused::arrange::<I>,
            fused: fused::fused::<I>,
            narrow: panel::narrow::<I>,
            unpack: panel::unpack::<I>,
            multiply: panel::multiply::<I>,
        }
    }
}

impl Kernel {
    /// Whether this processor can run it.
    pub fn is_available(&self) -> bool {
        self.isa.is_available()
    }
}

impl fmt::Debug for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Kernel({})", self.name)
    }
}
