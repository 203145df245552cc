//! `[[when]]`: settings for some models and schemes, in any file of settings.

use oq_quant_core::{ActSpec, Bits, QuantSpec, SpecError};
use serde::Deserialize;

use crate::choices::{Family, Method};
use crate::tables::{CalibrationPatch, LearnPatch, Recipe, RotatePatch, TransformPatch, TunePatch};

/// A run before its settings are known, which conditions are evaluated on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Case {
    pub scheme: QuantSpec,
    pub method: Method,
    pub family: Family,
    pub chat: bool,
    pub post_norm: bool,
}

/// One `[[when]]` table: conditions, all of which must hold, and the settings that then apply. A list holds if one of its entries does.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct When {
    /// Whole schemes.
    scheme: Option<Vec<QuantSpec>>,
    /// Widths of the scheme's weights.
    weight_bits: Option<Vec<Bits>>,
    /// Widths of its activations.
    act_bits: Option<Vec<ActBits>>,
    family: Option<Vec<Family>>,
    /// [`crate::ModelEntry::chat`]
    chat: Option<bool>,
    /// [`crate::ModelEntry::post_norm`]
    post_norm: Option<bool>,
    method: Option<Vec<Method>>,
    #[serde(default)]
    calibration: CalibrationPatch,
    #[serde(default)]
    learn: LearnPatch,
    #[serde(default, rename = "let")]
    transform: TransformPatch,
    #[serde(default)]
    tune: TunePatch,
    #[serde(default)]
    rotate: RotatePatch,
}

/// Activation bits as in a scheme: 2 to 8, or 16 if activations are not quantized.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "u32")]
struct ActBits(Option<Bits>);

impl ActBits {
    fn of(act: ActSpec) -> Self {
        Self(act.bits())
    }
}

impl TryFrom<u32> for ActBits {
    type Error = SpecError;

    fn try_from(bits: u32) -> Result<Self, SpecError> {
        Ok(Self(if bits == 16 { None } else { Some(Bits::new(bits)?) }))
    }
}

impl When {
    fn holds(&self, case: &Case) -> bool {
        fn one_of<T: PartialEq>(list: &Option<Vec<T>>, value: T) -> bool {
            list.as_ref().is_none_or(|list| list.contains(&value))
        }
        one_of(&self.scheme, case.scheme)
            && one_of(&self.weight_bits, case.scheme.weight.bits)
            && one_of(&self.act_bits, ActBits::of(case.scheme.act))
            && one_of(&self.family, case.family)
            && one_of(&self.method, case.method)
            && self.chat.is_none_or(|chat| chat == case.chat)
            && self.post_norm.is_none_or(|post_norm| post_norm == case.post_norm)
    }
}

impl Recipe {
    /// Layers the settings of all tables that hold over the recipe, one after the other.
    pub(crate) fn apply_when(&mut self, list: &[When], case: &Case) {
        for When { calibration, learn, transform, tune, rotate, .. } in list.iter().filter(|when| when.holds(case)) {
            self.apply(calibration, learn, transform, tune, rotate);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::{Overrides, RecipeFile, find};

    /// Whether a run obeys settings under that condition.
    #[track_caller]
    fn check(condition: &str, scheme: &str, model: &str, method: Option<Method>, holds: bool) {
        let text = format!("[[when]]\n{condition}\ncalibration.seed = 77\n");
        let file = RecipeFile::parse(&text, Path::new("my.toml")).unwrap();
        let overrides = Overrides { method, ..Overrides::default() };
        let recipe = Recipe::resolve(scheme.parse().unwrap(), find(model), Some(&file), &overrides).unwrap();
        assert_eq!(recipe.calibration.seed == 77, holds);
    }

    #[test]
    fn all_conditions_must_hold_and_one_entry_of_a_list() {
        check("", "w4a16", "llama-7b", None, true);
        check("scheme = [\"w4a4\", \"w4a16\"]", "w4a16", "llama-7b", None, true);
        check("scheme = [\"w4a4\", \"w4a16\"]", "w4a16g64", "llama-7b", None, false);
        check("weight_bits = [2, 4]", "w4a16g64", "llama-7b", None, true);
        check("weight_bits = [2, 3]", "w4a16g64", "llama-7b", None, false);
        check("act_bits = [16]", "w4a16", "llama-7b", None, true);
        check("act_bits = [16]", "w4a8", "llama-7b", None, false);
        check("act_bits = [4, 8]", "w4a8", "llama-7b", None, true);
        check("family = [\"opt\", \"falcon\"]", "w4a16", "opt-125m", None, true);
        check("family = [\"opt\", \"falcon\"]", "w4a16", "llama-7b", None, false);
        check("chat = true", "w4a16", "llama2-7b-chat", None, true);
        check("chat = false", "w4a16", "llama2-7b-chat", None, false);
        check("post_norm = true", "w4a16", "opt-350m", None, true);
        check("post_norm = true", "w4a16", "opt-125m", None, false);
        check("method = [\"omniquant\"]", "w4a16", "opt-125m", None, true);
        check("method = [\"omniquant\"]", "w4a16", "opt-125m", Some(Method::Rtn), false);
        check("method = [\"rtn\"]", "w4a16", "opt-125m", Some(Method::Rtn), true);
        check("family = [\"opt\"]\nweight_bits = [3]", "w4a16", "opt-125m", None, false);
        check("weight_bits = []", "w4a16", "opt-125m", None, false);
    }

    #[test]
    fn the_last_one_wins() {
        let text =
            "calibration.seed = 1\n[[when]]\ncalibration.seed = 2\n[[when]]\ncalibration.seed = 3\nweight_bits = [4]";
        let file = RecipeFile::parse(text, Path::new("my.toml")).unwrap();
        let seed = |scheme: &str, overrides| {
            Recipe::resolve(scheme.parse().unwrap(), None, Some(&file), &overrides).unwrap().calibration.seed
        };
        assert_eq!([seed("w3a16", Overrides::default()), seed("w4a16", Overrides::default())], [2, 3]);
        assert_eq!(seed("w4a16", Overrides::default().seed(4)), 4);
    }

    #[test]
    fn bad_conditions() {
        #[track_caller]
        fn check(text: &str, expected: &str) {
            let text = format!("[[when]]\n{text}");
            let error = RecipeFile::parse(&text, Path::new("my.toml")).expect_err("must be refused").to_string();
            assert!(error.contains(expected), "{error}");
        }
        check(
            "act_bits = [9]",
            "my.toml:2:12: 9 bits: codes have 2 to 8 bits (16 for activations means not quantized)",
        );
        check("weight_bits = [16]", "16 bits: codes have 2 to 8 bits");
        check("weight_bits = 4", "expected a list such as");
        check("family = [\"lama\"]", "unknown value `lama`; allowed here: llama, opt, falcon; did you mean `llama`?");
        check("scheme = [\"int4\"]", "`int4` is not a setting");
        check(
            "epochs = 4",
            "unknown key `epochs`; allowed here: scheme, weight_bits, act_bits, family, chat, post_norm, method,",
        );
    }
}
