//! How each linear of a packed model is quantized.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use oq_quant_core::{ActSpec, QuantSpec, WeightSpec};
use regex::{Regex, RegexBuilder};
use serde::{Serialize, Serializer};

use crate::FormatError;

/// Prefix of patterns among targets.
const PATTERN: &str = "re:";
/// The module class that matches all linears.
const LINEAR: &str = "Linear";
/// Limits on the patterns of one config and on the size of each: 64 MiB in all.
const MOST_PATTERNS: usize = 256;
const PATTERN_BYTES: usize = 1 << 18;

/// How a packed model is quantized: all linears alike, or each by the group of `quantization_config` that targets it.
///
/// If several groups match a linear, the one that names it wins, else the one with the first pattern (in alphabetical order) that matches
/// from the beginning of its name, else the one for all linears. The `compressed-tensors` package does the same.
#[derive(Clone, Debug, PartialEq)]
pub struct Quantization {
    act: ActSpec,
    /// Without duplicates.
    specs: Vec<WeightSpec>,
    // Indices into `specs`.
    names: BTreeMap<String, usize>,
    patterns: BTreeMap<String, Pattern>,
    linears: Option<usize>,
    /// Linears of blocks that no group covers, whatever matches.
    left_out: BTreeSet<String>,
}

#[derive(Clone, Debug)]
struct Pattern {
    spec: usize,
    regex: Regex,
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        (self.spec, self.regex.as_str()) == (other.spec, other.regex.as_str())
    }
}

impl From<QuantSpec> for Quantization {
    /// All linears alike.
    fn from(spec: QuantSpec) -> Self {
        let mut all = Self::none(spec.act);
        all.linears = Some(all.place(spec.weight));
        all
    }
}

impl Quantization {
    /// Each linear by its name in the checkpoint, without `.weight`; those without a spec are not quantized. If all others are alike, the
    /// same as [`Self::from`] their spec, without the first.
    pub fn of_linears<W: Into<Option<WeightSpec>>>(
        act: ActSpec,
        linears: impl IntoIterator<Item = (String, W)>,
    ) -> Self {
        let mut each = Self::none(act);
        for (name, weight) in linears {
            match weight.into() {
                Some(weight) => {
                    let place = each.place(weight);
                    each.names.insert(name, place);
                }
                None => each.leave_out(name),
            }
        }
        match each.uniform() {
            Some(spec) => Self { left_out: each.left_out, ..Self::from(spec) },
            None => each,
        }
    }

    /// Adds matrices by name, beside linears that need none.
    pub fn with(mut self, matrices: impl IntoIterator<Item = (String, WeightSpec)>) -> Self {
        for (name, weight) in matrices {
            // A class of linears does not cover others that differ.
            let place = self.place(weight);
            self.names.insert(name, place);
        }
        self
    }

    /// Adds a linear that is not quantized.
    pub(crate) fn leave_out(&mut self, name: String) {
        self.left_out.insert(name);
    }

    /// Linears in blocks that are not quantized, sorted.
    pub fn left_out(&self) -> impl Iterator<Item = &str> {
        self.left_out.iter().map(String::as_str)
    }

    /// No linears yet.
    pub(crate) fn none(act: ActSpec) -> Self {
        Self {
            act,
            specs: Vec::new(),
            names: BTreeMap::new(),
            patterns: BTreeMap::new(),
            linears: None,
            left_out: BTreeSet::new(),
        }
    }

    fn place(&mut self, weight: WeightSpec) -> usize {
        self.specs.iter().position(|spec| *spec == weight).unwrap_or_else(|| {
            self.specs.push(weight);
            self.specs.len() - 1
        })
    }

    /// Adds a target as written in `quantization_config`: a name, `Linear`, or a pattern after `re:`.
    pub(crate) fn add(&mut self, target: &str, weight: WeightSpec) -> Result<(), FormatError> {
        let refused = |got, expected| FormatError::QuantConfig { field: "targets", got, expected };
        let place = self.place(weight);
        let before = match target.strip_prefix(PATTERN) {
            Some(text) => match self.patterns.get(text) {
                Some(before) => Some(before.spec),
                None if self.patterns.len() == MOST_PATTERNS => {
                    return Err(refused(format!("more than {MOST_PATTERNS} patterns"), "fewer"));
                }
                None => {
                    let regex = RegexBuilder::new(&format!(r"\A(?:{text})")).size_limit(PATTERN_BYTES).build();
                    let readable = "a regular expression without lookaround and references";
                    let regex = regex.map_err(|_| refused(format!("{target:?}"), readable))?;
                    self.patterns.insert(text.to_owned(), Pattern { spec: place, regex });
                    None
                }
            },
            None if target == LINEAR => self.linears.replace(place),
            None => self.names.insert(target.to_owned(), place),
        };
        match before {
            Some(before) if before != place => Err(refused(format!("{target:?} in two groups"), "one group for each")),
            _ => Ok(()),
        }
    }

    /// How a linear is quantized, by its name in the checkpoint, without `.weight`; none if no group covers it or it is left out.
    pub fn weight(&self, name: &str) -> Option<WeightSpec> {
        if self.left_out.contains(name) {
            return None;
        }
        let matching = || self.patterns.values().find(|pattern| pattern.regex.is_match(name)).map(|it| it.spec);
        let place = self.names.get(name).copied().or_else(matching).or(self.linears)?;
        Some(self.specs[place])
    }

    /// Whether it covers no linear.
    pub fn is_empty(&self) -> bool {
        self.specs.is_empty()
    }

    /// All ways in which linears are quantized, each once.
    pub fn weights(&self) -> &[WeightSpec] {
        &self.specs
    }

    /// How activations are quantized.
    pub fn act(&self) -> ActSpec {
        self.act
    }

    /// The spec of all linears, if they are alike.
    pub fn uniform(&self) -> Option<QuantSpec> {
        match self.specs[..] {
            [weight] => Some(QuantSpec::uniform(weight, self.act)),
            _ => None,
        }
    }

    /// Each spec with its targets, as written in `quantization_config`.
    pub(super) fn groups(&self) -> impl Iterator<Item = (WeightSpec, Vec<String>)> {
        self.specs.iter().enumerate().map(|(place, spec)| {
            let names = self.names.iter().filter(move |(_, at)| **at == place).map(|(name, _)| name.clone());
            let patterns = self.patterns.iter().filter(move |(_, pattern)| pattern.spec == place);
            let patterns = patterns.map(|(text, _)| format!("{PATTERN}{text}"));
            let linears = (self.linears == Some(place)).then(|| LINEAR.to_owned());
            (*spec, names.chain(patterns).chain(linears).collect())
        })
    }
}

impl fmt::Display for Quantization {
    /// All settings, the fewest bits first: `w2a16g64, w4a16g64`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut specs = self.specs.clone();
        specs.sort_by_key(|spec| spec.bits);
        for (idx, &weight) in specs.iter().enumerate() {
            let comma = if idx > 0 { ", " } else { "" };
            write!(f, "{comma}{}", QuantSpec::uniform(weight, self.act))?;
        }
        Ok(())
    }
}

impl Serialize for Quantization {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn weight(bits: u32) -> WeightSpec {
        format!("w{bits}a16g64").parse::<QuantSpec>().unwrap().weight
    }

    fn with(targets: &[(&str, u32)]) -> Result<Quantization, FormatError> {
        let mut found = Quantization::none(ActSpec::Float);
        targets.iter().try_for_each(|&(target, bits)| found.add(target, weight(bits)))?;
        Ok(found)
    }

    #[test]
    fn names_come_before_patterns_and_patterns_before_all() {
        let found = with(&[("Linear", 2), (r"re:.*\.o_proj$", 5), (r"re:.*_proj", 4), ("a.o_proj", 3)]).unwrap();
        let bits = |name| found.weight(name).map(|spec| spec.bits.get());
        assert_eq!(["a.o_proj", "b.o_proj", "b.o_proj_2", "b.fc"].map(bits), [Some(3), Some(5), Some(4), Some(2)]);
        // From the name's beginning, as Python's `re.match`.
        let found = with(&[("re:o_proj|layers", 3)]).unwrap();
        assert_eq!(
            ["layers.o_proj", "o_proj", "x.o_proj"].map(|name| found.weight(name).is_some()),
            [true, true, false]
        );
        assert_eq!(found.to_string(), "w3a16g64");
    }

    #[test]
    fn linears_that_are_alike_are_one_group() {
        let name = |idx: u32| format!("layers.{idx}");
        let alike = Quantization::of_linears(ActSpec::Float, (0..3).map(|idx| (name(idx), weight(3))));
        assert_eq!(alike, Quantization::from("w3a16g64".parse::<QuantSpec>().unwrap()));
        let mixed = Quantization::of_linears(ActSpec::Float, (0..3).map(|idx| (name(idx), weight(4 - idx / 2))));
        assert_eq!((mixed.uniform(), mixed.to_string()), (None, "w3a16g64, w4a16g64".to_owned()));
        assert_eq!((mixed.weight("layers.2"), mixed.weight("layers.3")), (Some(weight(3)), None));
    }

    #[test]
    fn linears_in_full_precision_are_left_out() {
        let name = |idx: u32| format!("layers.{idx}");
        let some = |idx: u32| (name(idx), (idx > 0).then(|| weight(3)));
        let found = Quantization::of_linears(ActSpec::Float, (0..3).map(some));
        assert_eq!(found.uniform(), Some("w3a16g64".parse().unwrap()));
        assert_eq!(["layers.0", "layers.1"].map(|name| found.weight(name)), [None, Some(weight(3))]);
        assert_eq!(found.left_out().collect::<Vec<_>>(), ["layers.0"]);
        assert_eq!(found.groups().map(|(_, targets)| targets).collect::<Vec<_>>(), [["Linear"]]);
    }

    #[test]
    fn refuses_what_cannot_be_told_apart() {
        #[track_caller]
        fn check(targets: &[(&str, u32)], part: &str) {
            let message = with(targets).unwrap_err().to_string();
            assert!(message.contains(part), "{message}");
        }
        check(&[("a", 2), ("a", 3)], "\"a\" in two groups");
        check(&[("Linear", 2), ("Linear", 3)], "\"Linear\" in two groups");
        check(&[("re:a", 2), ("re:a", 3)], "\"re:a\" in two groups");
        check(&[("re:(?=a)", 2)], "lookaround");
        check(&[("re:(((a{99}){99}){99}){99}", 2)], "targets is");
        let many: Vec<String> = (0..=MOST_PATTERNS).map(|idx| format!("re:{idx}")).collect();
        check(&many.iter().map(|target| (target.as_str(), 2)).collect::<Vec<_>>(), "more than 256 patterns");
        assert!(with(&[("a", 2), ("a", 2), ("re:a", 2), ("re:a", 2)]).is_ok());
    }
}
