//! What an implementation consists of.

use std::fmt;
use std::ops::Range;

use oq_isa::Isa;

#[cfg(target_arch = "x86_64")]
use crate::bytes;
use crate::dot::Dots;
use crate::fused::{self, Fused, Sums};
use crate::layout::{Layout, Segment, Tile, WordRow};
use crate::panel::{self, Piece, Product};
#[cfg(target_arch = "x86_64")]
use crate::vectors::Bytes;
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
    /// Steps of 1/127 of the largest of 32 channels of a group, or of what is left at its end.
    Int8,
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

/// The parts of a vectorized kernel.
pub(crate) struct Vector {
    /// Most rows of one call of `fused`.
    pub(crate) fused_rows: usize,
    pub(crate) arrange: fn(layout: &Layout, x: &[f32], words: &mut [u32], sums: &mut [Sums]),
    pub(crate) fused: fn(input: &Fused<'_>, strips: Range<usize>, tiles: &mut [Tile]),
    pub(crate) panel: Panels,
    /// The panel path in [`Operands::Int8`].
    pub(crate) int8: Option<Panels>,
}

/// The panel path. Its operands are 32-bit words of four 8-bit integers, a pair of 16-bit numbers or one f32 number.
pub(crate) struct Panels {
    pub(crate) piece: Piece,
    /// Most rows of one call of `multiply`.
    pub(crate) rows: usize,
    /// Channels unpacked at a time.
    pub(crate) depth: usize,
    pub(crate) narrow: fn(layout: &Layout, x: &[f32], words: &mut [u32]),
    pub(crate) unpack: fn(layout: &Layout, strip: usize, segments: &[Segment], panel: &mut [WordRow]),
    pub(crate) multiply: fn(product: Product<'_>),
}

impl Vector {
    /// The loops of this crate over an instruction set, which unpacks `depth` channels at a time.
    pub(crate) const fn of<I: InstructionSet>(depth: usize) -> Self {
        let panel = Panels {
            piece: Piece { channels: I::Panel::STEP, words: 1, rows: 1 },
            rows: I::PANEL_ROWS,
            depth,
            narrow: panel::narrow::<I>,
            unpack: panel::unpack::<I>,
            multiply: panel::multiply::<I>,
        };
        Self { fused_rows: I::FUSED_ROWS, arrange: fused::arrange::<I>, fused: fused::fused::<I>, panel, int8: None }
    }

    /// [`Self::of`], and the panel path in 8 bits.
    #[cfg(target_arch = "x86_64")]
    pub(crate) const fn with_int8<I: Bytes>(depth: usize) -> Self {
        let int8 = Panels {
            piece: bytes::PIECE,
            rows: I::BYTE_ROWS,
            depth,
            narrow: bytes::narrow::<I>,
            unpack: bytes::unpack::<I>,
            multiply: bytes::multiply::<I>,
        };
        Self { int8: Some(int8), ..Self::of::<I>(depth) }
    }
}

impl Kernel {
    /// Whether this processor can run it.
    pub fn is_available(&self) -> bool {
        self.isa.is_available()
    }

    /// Whether it can multiply many rows in [`Operands::Int8`].
    pub fn has_int8(&self) -> bool {
        self.int8().is_some()
    }

    pub(crate) fn int8(&self) -> Option<&Panels> {
        match &self.code {
            Code::Vector(vector) => vector.int8.as_ref(),
            Code::Plain(_) => None,
        }
    }
}

impl fmt::Debug for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Kernel({})", self.name)
    }
}
