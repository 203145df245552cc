//! How weights are quantized: bits, groups, zeros, and the storage of scales.

use std::fmt;
use std::num::NonZeroUsize;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Width of a code, 2 to 8 bits; a plain number in files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct Bits(u8);

impl TryFrom<u32> for Bits {
    type Error = SpecError;

    fn try_from(bits: u32) -> Result<Self, SpecError> {
        Self::new(bits)
    }
}

impl From<Bits> for u32 {
    fn from(bits: Bits) -> Self {
        bits.get()
    }
}

impl fmt::Display for Bits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for Bits {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bits: u32 = text.parse().map_err(|_| format!("`{text}` is not a number of bits"))?;
        Self::new(bits).map_err(|error| error.to_string())
    }
}

impl Bits {
    /// All supported widths.
    pub const ALL: [Bits; 7] = [Bits(2), Bits(3), Bits(4), Bits(5), Bits(6), Bits(7), Bits(8)];

    /// Accepts 2 to 8.
    pub fn new(bits: u32) -> Result<Self, SpecError> {
        match bits {
            2..=8 => Ok(Self(bits as u8)),
            _ => Err(SpecError::Bits { bits }),
        }
    }

    /// The number of bits.
    pub fn get(self) -> u32 {
        u32::from(self.0)
    }

    /// Largest code, `2^bits - 1` (`Q` of the paper).
    pub fn max_code(self) -> u8 {
        (u16::MAX >> (16 - self.0)) as u8
    }

    /// Code of zero in symmetric quantization, `2^(bits-1)`.
    pub fn centre(self) -> u8 {
        1 << (self.0 - 1)
    }
}

/// How many input channels of one output channel share a scale and zero point.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum GroupSize {
    /// One group per output channel.
    PerChannel,
    /// One group per this many consecutive input channels.
    Channels(NonZeroUsize),
}

impl GroupSize {
    /// A group of `n` channels; `n` must not be 0.
    pub fn channels(n: usize) -> Result<Self, SpecError> {
        NonZeroUsize::new(n).map(Self::Channels).ok_or(SpecError::EmptyGroup)
    }

    /// Channels of one group in a row of `in_features`.
    pub fn len(self, in_features: usize) -> usize {
        match self {
            Self::PerChannel => in_features,
            Self::Channels(n) => n.get(),
        }
    }

    /// Whether a row of `in_features` splits into whole groups.
    pub fn divides(self, in_features: usize) -> bool {
        in_features > 0 && in_features.is_multiple_of(self.len(in_features))
    }

    /// Groups in a row of `in_features`, which they must divide.
    pub fn count(self, in_features: usize) -> usize {
        in_features / self.len(in_features).max(1)
    }
}

/// Which code stands for zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Symmetry {
    /// The codes span minimum to maximum; an integer zero point says which code is zero.
    Asymmetric,
    /// The range is symmetric around zero: code `2^(bits-1)` is zero.
    Symmetric,
    /// Code `2^(bits-1)` is zero, and code 0 is the largest weight: the scale has the sign that makes it so. All codes are used, where
    /// [`Self::Symmetric`] leaves one out.
    FullRange,
}

/// How the scales of groups are stored, and with them what codes stand for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Storage {
    /// An f16 scale and an integer zero point per group.
    #[default]
    Half,
    /// An f16 scale and an f16 minimum per group (ggml's Q4_1 and Q5_1, MLX).
    HalfMin,
    /// A scale, and with [`Symmetry::Asymmetric`] a minimum, of few bits per group, in units of f16 numbers per super-block of 256 input
    /// channels (ggml's K types).
    Super,
    /// Codes are e2m1 numbers, the scale is a power of two (MXFP4).
    E8m0,
    /// Codes are e2m1 numbers, the scale is an e4m3 number in units of one f32 number per matrix (NVFP4).
    E4m3,
}

impl Storage {
    /// Input channels of a super-block of [`Self::Super`].
    pub const SUPER: usize = 256;

    /// Whether scales take few values, instead of all that f16 has.
    pub fn has_coarse_scales(self) -> bool {
        !matches!(self, Self::Half | Self::HalfMin)
    }

    /// Whether codes are e2m1 numbers instead of integers.
    pub fn has_float_codes(self) -> bool {
        matches!(self, Self::E8m0 | Self::E4m3)
    }
}

/// How weights are quantized.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct WeightSpec {
    /// Width of a code.
    pub bits: Bits,
    /// Which weights share a scale and zero point.
    pub group: GroupSize,
    /// Which code stands for zero.
    pub symmetry: Symmetry,
    /// How scales are stored.
    pub storage: Storage,
}

impl WeightSpec {
    /// Integer codes with an f16 scale and an integer zero point per group.
    pub const fn integer(bits: Bits, group: GroupSize, symmetry: Symmetry) -> Self {
        Self { bits, group, symmetry, storage: Storage::Half }
    }

    /// The spec of a type that is known by a name of its own: `q4_k`, `q4_1`, `mxfp4`. (Types such as `q4_0` are those of
    /// [`Self::integer`]: 4 bits, groups of 32, full range.)
    pub fn named(name: &str) -> Option<Self> {
        NAMED.iter().find(|named| named.0 == name).map(Self::of_row)
    }

    fn of_row(&(_, bits, group, symmetry, storage): &Named) -> Self {
        let group = NonZeroUsize::new(group).expect("no group of the table is empty");
        Self { bits: Bits(bits), group: GroupSize::Channels(group), symmetry, storage }
    }

    /// Whether there is such a grid: any with [`Storage::Half`], those of the table otherwise.
    pub fn exists(self) -> bool {
        self.storage == Storage::Half || NAMED.iter().any(|named| Self::of_row(named) == self)
    }

    /// Groups whose scales are stored together: those of a super-block, else one.
    pub fn groups_of_unit(self) -> usize {
        match self.storage {
            Storage::Super => Storage::SUPER / self.group.len(Storage::SUPER),
            _ => 1,
        }
    }
}

type Named = (&'static str, u8, usize, Symmetry, Storage);

/// Types with a name of their own: name, bits, group, zero, scales.
const NAMED: [Named; 9] = [
    ("q2_k", 2, 16, Symmetry::Asymmetric, Storage::Super),
    ("q3_k", 3, 16, Symmetry::FullRange, Storage::Super),
    ("q4_k", 4, 32, Symmetry::Asymmetric, Storage::Super),
    ("q5_k", 5, 32, Symmetry::Asymmetric, Storage::Super),
    ("q6_k", 6, 16, Symmetry::FullRange, Storage::Super),
    ("q4_1", 4, 32, Symmetry::Asymmetric, Storage::HalfMin),
    ("q5_1", 5, 32, Symmetry::Asymmetric, Storage::HalfMin),
    ("mxfp4", 4, 32, Symmetry::Symmetric, Storage::E8m0),
    ("nvfp4", 4, 16, Symmetry::Symmetric, Storage::E4m3),
];

impl fmt::Display for WeightSpec {
    /// The name of a type that has one, else `w4g64sym`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(named) = NAMED.iter().find(|named| Self::of_row(named) == *self) {
            return f.write_str(named.0);
        }
        write!(f, "w{}", self.bits.get())?;
        self.fmt_group(f)
    }
}

impl WeightSpec {
    pub(crate) fn fmt_group(self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let GroupSize::Channels(n) = self.group {
            write!(f, "g{n}")?;
        }
        f.write_str(match self.symmetry {
            Symmetry::Asymmetric => "",
            Symmetry::Symmetric => "sym",
            Symmetry::FullRange => "full",
        })
    }
}

/// Why a setting was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SpecError {
    /// Width out of range.
    #[error("{bits} bits: codes have 2 to 8 bits (16 for activations means not quantized)")]
    Bits {
        /// The width that was requested.
        bits: u32,
    },
    /// `g0`.
    #[error("group size 0: leave `g` out for one group per output channel")]
    EmptyGroup,
    /// Neither a name nor of the form `w<bits>a<bits>[g<group>][sym|full|-int8]`.
    #[error(
        "`{text}` is not a setting: expected w<bits>a<bits>[g<group>][sym|full|-int8], such as w4a16g128, w3a16 or w8a8, or a name such as \
         q4_k_m or mxfp4 ({why})"
    )]
    Syntax {
        /// What was given.
        text: String,
        /// Where it violates the syntax.
        why: &'static str,
    },
    /// No override.
    #[error(
        "`{text}` is not an override: expected PATTERN=WEIGHT, such as *.down_proj=w8g128, or layers:LIST=WEIGHT, such as \
         layers:first,last=float"
    )]
    Override {
        /// What was given.
        text: String,
    },
    /// No list of layers.
    #[error(
        "`{text}` are not layers: expected numbers (from 0; negative from the end), first, last, or ranges such as 2..6 and -2.."
    )]
    Layers {
        /// What was given.
        text: String,
    },
    /// Not how a linear can be quantized.
    #[error(
        "`{text}` is not a width: expected [w<bits>][g<group>][sym|full], such as w8g128, float for full precision, or a type such as q6_k \
         ({why})"
    )]
    Own {
        /// What was given.
        text: String,
        /// Where it violates the syntax.
        why: &'static str,
    },
    /// A table of an override in which something is missing or said twice.
    #[error("an override: {why}")]
    Table {
        /// What is wrong.
        why: &'static str,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_bounds() {
        let codes: Vec<u8> = Bits::ALL.iter().map(|b| b.max_code()).collect();
        assert_eq!(codes, [3, 7, 15, 31, 63, 127, 255]);
        assert_eq!(Bits::new(8).unwrap().centre(), 128);
    }
}
