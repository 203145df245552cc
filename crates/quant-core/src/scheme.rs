//! Quantization settings such as `w3a16g64`, parsed once.
//!
//! A spec is written `w<bits>a<bits>[g<group>][sym|full|-int8]`: weight bits, activation bits (16 = not quantized), the number of input
//! channels in a group (none = one group per output channel), and `sym` for symmetric quantization, `full` for symmetric quantization that
//! uses all codes, or `-int8` for weights and 8-bit activations that are both symmetric. Types that have a name are written by it: `mxfp4`,
//! `nvfp4`, `q4_k_m` for a mixture of ggml's types ([`Mixture`]), and `q4_k_pure` for one of them in all linears.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::mixture::Mixture;
use crate::spec::{Bits, GroupSize, SpecError, Storage, Symmetry, WeightSpec};

/// How the inputs of linears (and Q, K, V) are quantized.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ActSpec {
    /// Not quantized: written `a16`.
    Float,
    /// Asymmetric and dynamic, with a scale and zero point per token.
    PerToken(Bits),
    /// Symmetric and dynamic, with a scale per token: what processors multiply as integers.
    PerTokenSymmetric(Bits),
}

impl ActSpec {
    /// Width of a code; none if activations are not quantized.
    pub fn bits(self) -> Option<Bits> {
        match self {
            Self::Float => None,
            Self::PerToken(bits) | Self::PerTokenSymmetric(bits) => Some(bits),
        }
    }
}

/// A whole setting; `FromStr` and `Display` are inverses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct QuantSpec {
    /// The weights; of a mixture, most of them.
    pub weight: WeightSpec,
    /// The activations.
    pub act: ActSpec,
    /// The mixture of types in which some linears have another one than `weight`, if there is one.
    pub mixture: Option<Mixture>,
}

impl QuantSpec {
    /// All linears alike.
    pub const fn uniform(weight: WeightSpec, act: ActSpec) -> Self {
        Self { weight, act, mixture: None }
    }
}

impl From<Mixture> for QuantSpec {
    fn from(mixture: Mixture) -> Self {
        Self { mixture: Some(mixture), ..Self::uniform(mixture.base().spec(), ActSpec::Float) }
    }
}

impl fmt::Display for QuantSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { weight, act, mixture } = self;
        if let Some(mixture) = mixture {
            return mixture.fmt(f);
        }
        match weight.storage {
            Storage::Half => {}
            Storage::E8m0 | Storage::E4m3 => return weight.fmt(f),
            Storage::HalfMin | Storage::Super => return write!(f, "{weight}{PURE}"),
        }
        let act_bits = act.bits().map_or(16, Bits::get);
        write!(f, "w{}a{act_bits}", weight.bits.get())?;
        match act {
            ActSpec::PerTokenSymmetric(_) => {
                WeightSpec { symmetry: Symmetry::Asymmetric, ..*weight }.fmt_group(f)?;
                f.write_str(INT8)
            }
            ActSpec::Float | ActSpec::PerToken(_) => weight.fmt_group(f),
        }
    }
}

/// Ending of the types that llama.cpp also uses as names of mixtures.
const PURE: &str = "_pure";
/// Ending of settings whose weights and activations are symmetric.
const INT8: &str = "-int8";

impl FromStr for QuantSpec {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Self, SpecError> {
        let syntax = |why| SpecError::Syntax { text: text.to_owned(), why };
        let lower = text.to_ascii_lowercase();
        let named = WeightSpec::named(lower.strip_suffix(PURE).unwrap_or(&lower));
        if let Some(weight) = named.filter(|weight| weight.storage.has_float_codes() != lower.ends_with(PURE)) {
            return Ok(Self::uniform(weight, ActSpec::Float));
        }
        if let Ok(mixture) = lower.parse::<Mixture>() {
            return Ok(mixture.into());
        }
        let mut rest = lower.as_str();
        let weight_bits = take_number(&mut rest, 'w').ok_or(syntax("no w<bits>"))?;
        let act_bits = take_number(&mut rest, 'a').ok_or(syntax("no a<bits>"))?;
        let group = match take_number(&mut rest, 'g') {
            Some(n) => GroupSize::channels(n)?,
            None => GroupSize::PerChannel,
        };
        let symmetry = match rest {
            "" => Symmetry::Asymmetric,
            "sym" | INT8 => Symmetry::Symmetric,
            "full" => Symmetry::FullRange,
            _ => return Err(syntax("what follows is neither g<group> nor sym, full or -int8")),
        };
        let act = match act_bits {
            8 if rest == INT8 => ActSpec::PerTokenSymmetric(Bits::new(act_bits)?),
            _ if rest == INT8 => return Err(syntax("-int8 needs a8")),
            16 => ActSpec::Float,
            bits => ActSpec::PerToken(Bits::new(bits)?),
        };
        Ok(Self::uniform(WeightSpec::integer(Bits::new(weight_bits)?, group, symmetry), act))
    }
}

/// Parses `<letter><digits>` at the front of `rest`.
pub(crate) fn take_number<N: FromStr>(rest: &mut &str, letter: char) -> Option<N> {
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
        check_refused("w4a16-int8", "-int8 needs a8");
        check_refused("mxfp4_pure", "no w<bits>");
        check_refused("w99999999999a16", "no w<bits>");
        check_refused("", "no w<bits>");
    }
}
