//! Overrides: linears that a setting treats unlike all others.
//!
//! An override is written `<where>=<how>`, such as `*.down_proj=w8g128`. *Where* is a pattern that must match the linear's whole name in
//! the checkpoint (without `.weight`; `*` stands for any text, `?` for one character), or `layers:<list>` for the linears of some
//! layers, or both: `layers:first,-2..:*.down_proj`. *How* is `float` for full precision, a type with a name such as `q6_k`, or a width, a
//! group and a symmetry, each of which may be left out: `w8`, `g32`, `w4g64sym`.

use std::fmt;
use std::str::FromStr;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use wildmatch::WildMatch;

use crate::mixture::Block;
use crate::scheme::{QuantSpec, take_number};
use crate::spec::{Bits, GroupSize, SpecError, Symmetry, WeightSpec};

/// Prefix of a list of layers.
const LAYERS: &str = "layers:";
/// What is not quantized.
const FLOAT: &str = "float";

/// Linears with a treatment of their own. As a table it has the keys `names`, `layers` and `weight`; in place of `weight` it may have
/// `bits` and `group`.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(try_from = "Table")]
pub struct Override {
    names: WildMatch,
    layers: Option<Layers>,
    weight: OwnWeight,
}

/// How the linears of an override are quantized.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OwnWeight {
    /// Not at all.
    Float,
    /// By a type that has a name.
    Type(WeightSpec),
    /// With integer codes; what is not given is as without the override.
    Parts {
        /// Width of a code.
        bits: Option<Bits>,
        /// Which weights share a scale and zero point.
        group: Option<GroupSize>,
        /// Which code stands for zero.
        symmetry: Option<Symmetry>,
    },
}

impl OwnWeight {
    /// How a linear is quantized that would be quantized by `without`; none for full precision.
    pub fn over(self, without: WeightSpec) -> Option<WeightSpec> {
        match self {
            Self::Float => None,
            Self::Type(weight) => Some(weight),
            Self::Parts { bits, group, symmetry } => Some(WeightSpec::integer(
                bits.unwrap_or(without.bits),
                group.unwrap_or(without.group),
                symmetry.unwrap_or(without.symmetry),
            )),
        }
    }

    /// Whether it says how many bits a weight has.
    pub fn has_width(self) -> bool {
        !matches!(self, Self::Parts { bits: None, .. })
    }
}

/// Some layers of a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layers(Vec<Span>);

/// One layer or a run of layers. Negative numbers count from the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Span {
    One(i64),
    /// Up to but without `to`; without a `to`, all that follow.
    Run {
        from: i64,
        to: Option<i64>,
    },
}

impl Span {
    fn contains(self, layer: usize, n_layers: usize) -> bool {
        let from_start = |at: i64| if at < 0 { at + n_layers as i64 } else { at };
        let layer = layer as i64;
        match self {
            Self::One(at) => from_start(at) == layer,
            Self::Run { from, to } => layer >= from_start(from) && to.is_none_or(|to| layer < from_start(to)),
        }
    }
}

impl Layers {
    fn contain(&self, layer: usize, n_layers: usize) -> bool {
        self.0.iter().any(|span| span.contains(layer, n_layers))
    }
}

impl Override {
    /// Whether it covers a linear of a layer, by its name in the checkpoint without `.weight`.
    pub fn covers(&self, name: &str, layer: usize, n_layers: usize) -> bool {
        self.layers.as_ref().is_none_or(|layers| layers.contain(layer, n_layers)) && self.names.matches(name)
    }

    /// A part of its list of layers that no layer of the model is in.
    pub fn missing_layer(&self, n_layers: usize) -> Option<String> {
        let spans = self.layers.iter().flat_map(|layers| &layers.0);
        let is_empty = |span: &&Span| !(0..n_layers).any(|layer| span.contains(layer, n_layers));
        spans.copied().find(|span| is_empty(&span)).map(|span| span.to_string())
    }

    /// Its pattern.
    pub fn names(&self) -> String {
        self.names.to_string()
    }

    /// How its linears are quantized.
    pub fn weight(&self) -> OwnWeight {
        self.weight
    }
}

/// A setting with its overrides, of which the last that covers a linear counts.
#[derive(Clone, Copy, Debug)]
pub struct Scheme<'a> {
    /// The setting.
    pub spec: QuantSpec,
    /// Exceptions from it.
    pub overrides: &'a [Override],
}

impl From<QuantSpec> for Scheme<'_> {
    fn from(spec: QuantSpec) -> Self {
        Self { spec, overrides: &[] }
    }
}

impl Scheme<'_> {
    /// The own treatment of a linear of a layer, if it has one; see [`Override::covers`].
    pub fn own(&self, name: &str, layer: usize, n_layers: usize) -> Option<OwnWeight> {
        let last = self.overrides.iter().rev().find(|it| it.covers(name, layer, n_layers));
        last.map(Override::weight)
    }
}

impl FromStr for OwnWeight {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Self, SpecError> {
        let lower = text.to_ascii_lowercase();
        if lower == FLOAT {
            return Ok(Self::Float);
        }
        let block = Block::ALL.into_iter().find(|block| block.name() == lower).map(Block::spec);
        if let Some(weight) = WeightSpec::named(&lower).or(block) {
            return Ok(Self::Type(weight));
        }
        let syntax = |why| SpecError::Own { text: text.to_owned(), why };
        let mut rest = lower.as_str();
        let bits = take_number(&mut rest, 'w').map(Bits::new).transpose()?;
        let group = take_number(&mut rest, 'g').map(GroupSize::channels).transpose()?;
        let symmetry = match rest {
            "" => None,
            "sym" => Some(Symmetry::Symmetric),
            "full" => Some(Symmetry::FullRange),
            _ => return Err(syntax("what follows is neither sym nor full")),
        };
        if (bits, group, symmetry) == (None, None, None) {
            return Err(syntax("nothing is given"));
        }
        Ok(Self::Parts { bits, group, symmetry })
    }
}

impl fmt::Display for OwnWeight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Float => f.write_str(FLOAT),
            Self::Type(weight) => match Block::ALL.into_iter().find(|block| block.spec() == *weight) {
                Some(block) => block.fmt(f),
                None => weight.fmt(f),
            },
            Self::Parts { bits, group, symmetry } => {
                if let Some(bits) = bits {
                    write!(f, "w{bits}")?;
                }
                if let Some(GroupSize::Channels(n)) = group {
                    write!(f, "g{n}")?;
                }
                f.write_str(match symmetry {
                    None | Some(Symmetry::Asymmetric) => "",
                    Some(Symmetry::Symmetric) => "sym",
                    Some(Symmetry::FullRange) => "full",
                })
            }
        }
    }
}

impl FromStr for Layers {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Self, SpecError> {
        let wrong = || SpecError::Layers { text: text.to_owned() };
        let end = |text: &str| match text.trim() {
            "first" => Ok(0),
            "last" => Ok(-1),
            number => number.parse::<i64>().map_err(|_| wrong()),
        };
        let span = |part: &str| match part.split_once("..") {
            None => end(part).map(Span::One),
            Some((from, to)) => {
                let or_open = |text: &str| if text.trim().is_empty() { Ok(None) } else { end(text).map(Some) };
                Ok(Span::Run { from: or_open(from)?.unwrap_or(0), to: or_open(to)? })
            }
        };
        text.split(',').map(span).collect::<Result<_, _>>().map(Self)
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::One(0) => f.write_str("first"),
            Self::One(-1) => f.write_str("last"),
            Self::One(at) => at.fmt(f),
            Self::Run { from, to: None } => write!(f, "{from}.."),
            Self::Run { from, to: Some(to) } => write!(f, "{from}..{to}"),
        }
    }
}

impl fmt::Display for Layers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (idx, span) in self.0.iter().enumerate() {
            write!(f, "{}{span}", if idx > 0 { "," } else { "" })?;
        }
        Ok(())
    }
}

impl FromStr for Override {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Self, SpecError> {
        let whole = || SpecError::Override { text: text.to_owned() };
        let (place, weight) = text.split_once('=').ok_or_else(whole)?;
        let (layers, names) = match place.trim().strip_prefix(LAYERS) {
            None => (None, place.trim()),
            Some(rest) => {
                let (layers, names) = rest.split_once(':').unwrap_or((rest, "*"));
                (Some(layers.parse()?), names)
            }
        };
        if names.is_empty() {
            return Err(whole());
        }
        Ok(Self { names: WildMatch::new(names), layers, weight: weight.trim().parse()? })
    }
}

impl fmt::Display for Override {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.layers, self.names()) {
            (Some(layers), names) if names == "*" => write!(f, "{LAYERS}{layers}"),
            (Some(layers), names) => write!(f, "{LAYERS}{layers}:{names}"),
            (None, names) => f.write_str(&names),
        }?;
        write!(f, "={}", self.weight)
    }
}

/// An override in a recipe file.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Table {
    #[serde(skip_serializing_if = "Option::is_none")]
    names: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    layers: Option<Layers>,
    #[serde(skip_serializing_if = "Option::is_none")]
    weight: Option<OwnWeight>,
    #[serde(skip_serializing_if = "Option::is_none")]
    bits: Option<Bits>,
    #[serde(skip_serializing_if = "Option::is_none")]
    group: Option<usize>,
}

impl TryFrom<Table> for Override {
    type Error = SpecError;

    fn try_from(table: Table) -> Result<Self, SpecError> {
        let Table { names, layers, weight, bits, group } = table;
        if names.is_none() && layers.is_none() {
            return Err(SpecError::Table { why: "it needs names, layers or both" });
        }
        let weight = match (weight, bits.is_some() || group.is_some()) {
            (Some(weight), false) => weight,
            (None, true) => {
                OwnWeight::Parts { bits, group: group.map(GroupSize::channels).transpose()?, symmetry: None }
            }
            (None, false) => return Err(SpecError::Table { why: "it needs weight, or else bits, group or both" }),
            (Some(_), true) => return Err(SpecError::Table { why: "it has weight, and bits or group too" }),
        };
        Ok(Self { names: WildMatch::new(names.as_deref().unwrap_or("*")), layers, weight })
    }
}

impl Serialize for Override {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let names = Some(self.names()).filter(|names| names != "*" || self.layers.is_none());
        let (layers, weight) = (self.layers.clone(), Some(self.weight));
        Table { names, layers, weight, bits: None, group: None }.serialize(serializer)
    }
}

impl Serialize for OwnWeight {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for OwnWeight {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

impl Serialize for Layers {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Layers {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(text: &str) -> Override {
        text.parse().unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    #[track_caller]
    fn check_covers(text: &str, expected: &[(&str, usize)]) {
        let linears = (0..6).flat_map(|layer| ["self_attn.q_proj", "mlp.down_proj"].map(|name| (name, layer)));
        let at = |(name, layer): &(&str, usize)| read(text).covers(&format!("model.layers.{layer}.{name}"), *layer, 6);
        assert_eq!(linears.filter(at).collect::<Vec<_>>(), expected, "{text}");
    }

    #[test]
    fn names_and_layers_both_have_to_match() {
        let (q, down) = ("self_attn.q_proj", "mlp.down_proj");
        check_covers("*.mlp.down_proj=w8", &[(down, 0), (down, 1), (down, 2), (down, 3), (down, 4), (down, 5)]);
        check_covers("model.layers.1.*=w8", &[(q, 1), (down, 1)]);
        check_covers("mlp.down_proj=w8", &[]);
        check_covers("layers:first,last=float", &[(q, 0), (down, 0), (q, 5), (down, 5)]);
        check_covers("layers:-2..:*.q_proj=float", &[(q, 4), (q, 5)]);
        check_covers("layers:..2:*.q_proj=float", &[(q, 0), (q, 1)]);
        check_covers("layers:1..-3,5:*down*=float", &[(down, 1), (down, 2), (down, 5)]);
        check_covers("layers:7=w8", &[]);
    }

    #[test]
    fn layers_that_a_model_does_not_have_are_named() {
        let missing = |text: &str| read(text).missing_layer(6);
        assert_eq!(missing("layers:0,5,-6,2..4,4..=float"), None);
        assert_eq!(missing("layers:0,6=float"), Some("6".to_owned()));
        assert_eq!(missing("layers:-7=float"), Some("-7".to_owned()));
        assert_eq!(missing("layers:4..2=float"), Some("4..2".to_owned()));
        assert_eq!(missing("*=float"), None);
    }

    #[test]
    fn parts_that_are_left_out_are_as_without_the_override() {
        let over = |own: &str, scheme: &str| {
            let weight = scheme.parse::<QuantSpec>().unwrap().weight;
            own.parse::<OwnWeight>().unwrap().over(weight).map_or("float".to_owned(), |weight| weight.to_string())
        };
        assert_eq!(over("w8", "w2a16g64"), "w8g64");
        assert_eq!(over("g32", "w2a16g64sym"), "w2g32sym");
        assert_eq!(over("w8g32sym", "w2a16g64"), "w8g32sym");
        assert_eq!(over("float", "w2a16g64"), "float");
        assert_eq!(over("q6_k", "q2_k"), "q6_k");
        // Of types with scales of their own, what is left is an integer grid.
        assert_eq!(over("w8", "mxfp4"), "w8g32sym");
        assert!(!"g32".parse::<OwnWeight>().unwrap().has_width());
        assert!(["w8", "float", "q6_k"].iter().all(|text| text.parse::<OwnWeight>().unwrap().has_width()));
    }

    #[test]
    fn the_last_override_counts() {
        let overrides = ["*=w8", "layers:first=float", "*.0.b=w4"].map(read);
        let scheme = Scheme { overrides: &overrides, ..Scheme::from("w2a16".parse::<QuantSpec>().unwrap()) };
        let own = |name, layer| scheme.own(name, layer, 3).map(|own| own.to_string());
        assert_eq!(own("x.0.a", 0).as_deref(), Some("float"));
        assert_eq!(own("x.0.b", 0).as_deref(), Some("w4"));
        assert_eq!(own("x.1.a", 1).as_deref(), Some("w8"));
        assert_eq!(Scheme::from(scheme.spec).own("x.1.a", 1, 3), None);
    }

    #[test]
    fn mistakes_are_named() {
        #[track_caller]
        fn check(text: &str, part: &str) {
            let error = text.parse::<Override>().expect_err("must be refused").to_string();
            assert!(error.contains(part), "{error}");
        }
        check("*.down_proj", "`*.down_proj` is not an override: expected PATTERN=WEIGHT");
        check("=w8", "`=w8` is not an override");
        check("*=", "nothing is given");
        check("*=w9", "9 bits");
        check("*=g0", "group size 0");
        check("*=w8a16", "`w8a16` is not a width");
        check("*=int8", "`int8` is not a width");
        check("layers:middle=w8", "`middle` are not layers");
        check("layers:1..x=w8", "`1..x` are not layers");
    }

    #[test]
    fn tables_have_where_and_how() {
        let read =
            |json: serde_json::Value| serde_json::from_value::<Override>(json).map_err(|error| error.to_string());
        let table = serde_json::json!({"names": "*.down_proj", "bits": 8, "group": 32});
        assert_eq!(read(table).unwrap().to_string(), "*.down_proj=w8g32");
        let refused = |json| read(json).expect_err("must be refused");
        assert!(refused(serde_json::json!({"weight": "w8"})).contains("needs names, layers or both"));
        assert!(refused(serde_json::json!({"names": "*"})).contains("needs weight, or else bits"));
        assert!(
            refused(serde_json::json!({"names": "*", "weight": "w8", "bits": 8})).contains("and bits or group too")
        );
        assert!(refused(serde_json::json!({"names": "*", "group": 0})).contains("group size 0"));
        assert!(refused(serde_json::json!({"names": "*", "bit": 8})).contains("unknown field `bit`"));
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(
            names in "[a-z*?._]{1,12}",
            layers in "|layers:(first|last|[0-9]|-[1-9]|[0-9]\\.\\.|-[2-9]\\.\\.-1)(,[0-9])?:",
            weight in "float|q6_k|q8_0|q4_0|mxfp4|w[2-8]|g(8|32|128)|w[2-8]g64|w[2-8]sym|g64full|full",
        ) {
            let text = format!("{layers}{names}={weight}");
            let once: Override = text.parse().unwrap();
            prop_assert_eq!(once.to_string().parse::<Override>().unwrap(), once.clone());
            let table = serde_json::to_value(&once).unwrap();
            prop_assert_eq!(serde_json::from_value::<Override>(table).unwrap(), once);
        }
    }
}
