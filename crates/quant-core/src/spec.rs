//! Quantization settings such as `w3a16g64`, parsed once.
//!
//! A spec is written `w<bits>a<bits>[g<group>][sym]`: weight bits, activation bits (16 = not quantized), the number of input channels in a
//! group (none = one group per output channel), and `sym` for symmetric quantization.

use std::fmt;
use std::num::NonZeroUsize;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

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
}

/// How the inputs of linears (and Q, K, V) are quantized.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ActSpec {
    /// Not quantized: written `a16`.
    Float,
    /// Asymmetric and dynamic, with a scale and zero point per token.
    PerToken(Bits),
}

/// A whole setting; `FromStr` and `Display` are inverses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct QuantSpec {
    /// The weights.
    pub weight: WeightSpec,
    /// The activations.
    pub act: ActSpec,
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
    /// Not of the form `w<bits>a<bits>[g<group>][sym]`.
    #[error(
        "`{text}` is not a setting: expected w<bits>a<bits>[g<group>][sym], such as w4a16g128, w3a16 or w8a8 ({why})"
    )]
    Syntax {
        /// What was given.
        text: String,
        /// Where it violates the syntax.
        why: &'static str,
    },
}

impl fmt::Display for QuantSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let act = match self.act {
            ActSpec::Float => 16,
            ActSpec::PerToken(bits) => bits.get(),
        };
        write!(f, "w{}a{act}", self.weight.bits.get())?;
        if let GroupSize::Channels(n) = self.weight.group {
            write!(f, "g{n}")?;
        }
        match self.weight.symmetry {
            Symmetry::Asymmetric => Ok(()),
            Symmetry::Symmetric => f.write_str("sym"),
        }
    }
}

impl FromStr for QuantSpec {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Self, SpecError> {
        let syntax = |why| SpecError::Syntax { text: text.to_owned(), why };
        let lower = text.to_ascii_lowercase();
        let mut rest = lower.as_str();
        let weight_bits = take_number(&mut rest, 'w').ok_or(syntax("no w<bits>"))?;
        let act_bits = take_number(&mut rest, 'a').ok_or(syntax("no a<bits>"))?;
        let group = match take_number(&mut rest, 'g') {
            Some(n) => GroupSize::channels(n)?,
            None => GroupSize::PerChannel,
        };
        let symmetry = match rest {
            "" => Symmetry::Asymmetric,
            "sym" => Symmetry::Symmetric,
            _ => return Err(syntax("what follows is neither g<group> nor sym")),
        };
        let act = match act_bits {
            16 => ActSpec::Float,
            bits => ActSpec::PerToken(Bits::new(bits)?),
        };
        Ok(Self { weight: WeightSpec { bits: Bits::new(weight_bits)?, group, symmetry }, act })
    }
}

/// Parses `<letter><digits>` at the front of `rest`.
fn take_number<N: FromStr>(rest: &mut &str, letter: char) -> Option<N> {
    let tail = rest.strip_prefix(letter)?;
    let end = tail.find(|c: char| !c.is_ascii_digit()).unwrap_or(tail.len());
    let number = tail[..end].parse().ok()?;
    *rest = &tail[end..];
    Some(number)
}

impl Serialize for QuantSpec {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for QuantSpec {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check_refused(text: &str, part: &str) {
        let error = text.parse::<QuantSpec>().expect_err("must be refused").to_string();
        assert!(error.contains(part), "{error}");
    }

    #[test]
    fn refuses_what_it_cannot_hold() {
        check_refused("w1a16", "1 bits");
        check_refused("w9a16", "9 bits");
        check_refused("w16a16", "16 bits");
        check_refused("w4a17", "17 bits");
        check_refused("w4a16g0", "group size 0");
        check_refused("w4", "no a<bits>");
        check_refused("a16w4", "no w<bits>");
        check_refused("w4a16g", "neither g<group> nor sym");
        check_refused("w4a16g128x", "neither g<group> nor sym");
        check_refused("w99999999999a16", "no w<bits>");
        check_refused("", "no w<bits>");
    }

    #[test]
    fn bits_bounds() {
        let codes: Vec<u8> = Bits::ALL.iter().map(|b| b.max_code()).collect();
        assert_eq!(codes, [3, 7, 15, 31, 63, 127, 255]);
        assert_eq!(Bits::new(8).unwrap().centre(), 128);
    }
}
