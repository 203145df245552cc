//! The settings of a run, complete and checked.

use std::fmt;
use std::path::Path;
use std::str::FromStr;

use oq_quant_core::{QuantSpec, RotateKind, SiteKind};
use serde::{Deserialize, Serialize};

use crate::parse::parse;
use crate::published::{default_rotation, default_sites, published};
use crate::{BitBudget, Family, ModelEntry, Overrides, RecipeError, RecipeFile, RotatePatch, TunePatch, bits};

/// Everything that decides what calibration computes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// What is quantized, to how many bits, in which groups.
    pub scheme: QuantSpec,
    /// How codes are found.
    pub method: Method,
    /// The text that blocks are run on; `rtn` reads none of it.
    pub calibration: Calibration,
    /// How clipping is learned; `rtn` and `smoothquant` read none of it.
    pub learn: Learn,
    /// `[let]`: the learnable equivalent transformation; `rtn` reads none of it.
    #[serde(rename = "let")]
    pub transform: Transform,
    /// What is learned after all blocks; only `omniquant` reads it.
    pub tune: Tune,
    /// Orthogonal matrices that are put into the model first.
    pub rotate: Rotate,
    /// An average of bits in place of the scheme's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bits: Option<BitBudget>,
}

/// How codes are found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Method {
    /// Clipping and an equivalent transformation, learned block by block (OmniQuant, arXiv 2308.13137).
    Omniquant,
    /// The transformation as learning would start with it, then round to nearest (SmoothQuant, arXiv 2211.10438):
    /// nothing is learned.
    Smoothquant,
    /// Round to nearest between minimum and maximum: nothing is learned or transformed.
    Rtn,
}

/// The text that blocks are run on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Calibration {
    /// A dataset's name such as `wikitext2`, or a text file.
    pub data: String,
    /// Segments, 1 or more.
    pub samples: usize,
    /// Tokens in a segment, 2 or more.
    pub seqlen: usize,
    /// Chooses the segments; at most 2^63 - 1, the largest integer of TOML.
    pub seed: u64,
    /// Segments in one optimizer step, 1 to `samples`.
    pub batch: usize,
}

/// How clipping is learned.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Learn {
    /// Passes over the segments, for each block; 1 or more.
    pub epochs: usize,
    /// AdamW's learning rate for the clipping strengths; positive.
    pub lwc_lr: f64,
    /// Adds the error against the full-precision block on the quantized model's own input.
    pub aug_loss: bool,
    /// What is minimized.
    pub loss: Loss,
    /// Where clipping and rounding start.
    pub start: Start,
    /// How weights are rounded.
    pub rounding: Rounding,
}

/// Where clipping and rounding start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Start {
    /// At 98 % of each group's range, as published; rounded to nearest.
    Whole,
    /// At the shares of each group's range with the least error of its weights, each weighed by the mean square of its input; rounded
    /// to nearest.
    Search,
    /// As `Search`, and each weight rounded so as to make good the errors of those before it (GPTQ, arXiv 2210.17323).
    Compensate,
}

/// How weights are rounded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Rounding {
    /// As they start.
    Fixed,
    /// Up or down as is learned, by the sign of the gradient (SignRound, arXiv 2309.05516).
    Learned,
}

/// Where and how channels are rescaled (OmniQuant, section 3.3).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Transform {
    /// Where; none means no transformation. No kind stands here twice.
    pub sites: Vec<SiteKind>,
    /// Also shifts channels, which takes linears with biases.
    pub shift: bool,
    /// AdamW's learning rate for scales and shifts; positive.
    pub lr: f64,
    /// Weight of activations against weights where scales start: `s = max|X|^alpha / max|W|^(1 - alpha)`; 0 to 1.
    pub alpha: f64,
}

/// Tuning of all blocks together: their scales, norms and biases, down the divergence of the quantized model's predictions from those of
/// the model in full precision (EfficientQAT, arXiv 2407.11062, section 3.3).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tune {
    /// Passes, each over as many segments as blocks learn from, of its own; 0 for none.
    pub epochs: usize,
    /// AdamW's learning rate at first, which falls linearly to 0: of the logarithms of scales and norms, and of biases in units of
    /// their root mean square; positive.
    pub lr: f64,
}

/// Orthogonal matrices that are put into the model before anything else (QuaRot, arXiv 2404.00456).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rotate {
    /// Where.
    pub kind: RotateKind,
    /// Decides the matrices; at most 2^63 - 1.
    pub seed: u64,
}

/// What is minimized.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Loss {
    /// Mean squared error of a block's output.
    Mse,
    /// The same with each token's error divided by the mean square of its target, so that the few tokens with massive activations
    /// are not all that is seen; scaled to be 1 where a token's error is as large as its target.
    Relative,
}

/// Settings of [`Learn`] that go together: what is learned, from where, by which loss, for how long.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Preset {
    /// The method as published: clipping alone, from 98 % of the range.
    Paper,
    /// [`Self::Default`] in half of its epochs.
    Fast,
    /// Clipping from a search, rounding from second-order compensation, both learned, in half of the paper's epochs.
    #[default]
    Default,
    /// [`Self::Default`] on four times as much text in an eighth of the paper's epochs, and then all blocks tuned together on as much again.
    Best,
}

impl Preset {
    /// Lays the preset over the paper's settings, but for what it takes a share of.
    fn apply_to(self, Recipe { learn, tune, .. }: &mut Recipe) {
        (learn.start, learn.rounding, learn.loss) = match self {
            Self::Paper => (Start::Whole, Rounding::Fixed, Loss::Mse),
            Self::Fast | Self::Default | Self::Best => (Start::Compensate, Rounding::Learned, Loss::Relative),
        };
        tune.epochs = usize::from(self == Self::Best);
    }

    /// Takes the preset's share of the text and the epochs of the paper or the model's settings.
    fn take_share(self, Recipe { calibration, learn, .. }: &mut Recipe) {
        let (text, share) = match self {
            Self::Paper => (1, 1),
            Self::Fast => (1, 4),
            Self::Default => (1, 2),
            Self::Best => (4, 8),
        };
        calibration.samples = calibration.samples.saturating_mul(text);
        learn.epochs = learn.epochs.div_ceil(share);
    }
}

/// More passes of tuning than anybody makes: each has text of its own.
const MAX_TUNE_EPOCHS: usize = 1000;

/// A choice by its name in recipes and on the command line.
macro_rules! choice {
    ($choice:ident { $($name:literal => $variant:ident),+ }) => {
        impl FromStr for $choice {
            type Err = String;

            fn from_str(text: &str) -> Result<Self, String> {
                match text {
                    $($name => Ok(Self::$variant),)+
                    _ => Err(format!("must be one of {}", [$($name),+].join(", "))),
                }
            }
        }
    };
}

choice!(Start { "whole" => Whole, "search" => Search, "compensate" => Compensate });
choice!(Rounding { "fixed" => Fixed, "learned" => Learned });
choice!(Loss { "mse" => Mse, "relative" => Relative });
choice!(Preset { "paper" => Paper, "fast" => Fast, "default" => Default, "best" => Best });

impl Method {
    /// Whether blocks are run on text.
    pub const fn reads_text(self) -> bool {
        !matches!(self, Self::Rtn)
    }

    /// Whether anything is learned.
    pub const fn learns(self) -> bool {
        matches!(self, Self::Omniquant)
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Omniquant => "omniquant",
            Self::Smoothquant => "smoothquant",
            Self::Rtn => "rtn",
        }
    }
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Method {
    type Err = RecipeError;

    fn from_str(text: &str) -> Result<Self, RecipeError> {
        let all = [Self::Omniquant, Self::Smoothquant, Self::Rtn];
        all.into_iter()
            .find(|method| method.name() == text)
            .ok_or_else(|| refused("method", format!("\"{text}\""), "omniquant, smoothquant or rtn"))
    }
}

impl Recipe {
    /// Settles every setting: the paper's for this scheme and family, under the preset, under the model's own defaults, under a
    /// recipe file, under the command line. Of the text and the epochs of the paper and the model the preset takes its share. Without a model
    /// the family is taken to be LLaMA.
    ///
    /// Rotations that nothing is said of are those that help the scheme, where a method learns and is not the paper's.
    /// A transformation that is asked for, by the command line or by `smoothquant`, gets the paper's sites where none
    /// are given.
    pub fn resolve(
        scheme: QuantSpec,
        model: Option<&ModelEntry>,
        file: Option<&RecipeFile>,
        overrides: &Overrides,
    ) -> Result<Self, RecipeError> {
        let (family, chat, post_norm) =
            model.map_or((Family::Llama, false, false), |m| (m.family, m.chat, m.post_norm));
        let mut recipe = published(scheme, family, chat, post_norm);
        let preset = overrides.preset.unwrap_or_default();
        preset.apply_to(&mut recipe);
        if let Some(model) = model {
            let (tune, rotate) = (TunePatch::default(), RotatePatch::default());
            recipe.apply(None, &model.calibration, &model.learn, &model.transform, &tune, &rotate);
        }
        let lay = |recipe: &mut Self, file: Option<&RecipeFile>| {
            if let Some(file) = file {
                recipe.apply(file.method, &file.calibration, &file.learn, &file.transform, &file.tune, &file.rotate);
                if let Some(crate::BitsPatch { average, choices }) = file.bits.clone() {
                    recipe.apply_bits(Some(average), choices);
                }
            }
        };
        if let Some(file) = file.filter(|file| file.scheme != scheme) {
            return Err(RecipeError::OtherScheme { in_file: file.scheme, asked: scheme });
        }
        lay(&mut recipe, file.filter(|file| file.is_published));
        preset.take_share(&mut recipe);
        lay(&mut recipe, file.filter(|file| !file.is_published));
        overrides.apply_to(&mut recipe);
        if let Some(choices) = overrides.bit_choices.as_ref().filter(|_| recipe.bits.is_none()) {
            return Err(refused("bits.choices", bits::list(choices), "given with bits.average (--bits)"));
        }
        let asked = overrides.rotate.or(file.and_then(|file| file.rotate.kind));
        if asked.is_none() && preset != Preset::Paper && recipe.method.learns() {
            recipe.rotate.kind = default_rotation(scheme, family);
        }
        if overrides.sites.is_none() {
            let wanted = overrides.transform.or((recipe.method == Method::Smoothquant).then_some(true));
            match wanted {
                Some(false) => recipe.transform.sites.clear(),
                Some(true) if recipe.transform.sites.is_empty() => {
                    recipe.transform.sites = default_sites(scheme, post_norm);
                }
                _ => {}
            }
        }
        recipe.validate()?;
        Ok(recipe)
    }

    /// Parses what [`Recipe::to_toml`] wrote: every key must be there. `file` is what errors call it.
    pub fn parse(text: &str, file: &Path) -> Result<Self, RecipeError> {
        let recipe: Self = parse(text, file)?;
        recipe.validate()?;
        Ok(recipe)
    }

    /// The recipe as TOML; refuses values that no run accepts.
    pub fn to_toml(&self) -> Result<String, RecipeError> {
        self.validate()?;
        Ok(toml::to_string(self).expect("strings, flags and numbers in TOML's range are all a recipe holds"))
    }

    /// Whether anything is measured on text.
    pub const fn reads_text(&self) -> bool {
        self.method.reads_text() || self.bits.is_some()
    }

    /// Segments of calibration text that a run reads: those of the blocks, and as many for each pass of tuning.
    pub const fn segments(&self) -> usize {
        let passes = if self.method.learns() { self.tune.epochs } else { 0 };
        if self.reads_text() { self.calibration.samples.saturating_mul(1 + passes) } else { 0 }
    }

    fn validate(&self) -> Result<(), RecipeError> {
        self.bits.as_ref().map_or(Ok(()), BitBudget::validate)?;
        let Calibration { data, samples, seqlen, seed, batch } = &self.calibration;
        let Learn { epochs, lwc_lr, .. } = &self.learn;
        let Transform { sites, shift: _, lr, alpha } = &self.transform;
        let Tune { epochs: tune_epochs, lr: tune_lr } = &self.tune;
        if data.trim().is_empty() {
            return Err(refused(
                "calibration.data",
                format!("{data:?}"),
                "a dataset such as wikitext2, or a text file",
            ));
        }
        let integers = [
            ("calibration.samples", *samples as u64),
            ("calibration.seqlen", *seqlen as u64),
            ("calibration.seed", *seed),
            ("learn.epochs", *epochs as u64),
            ("tune.epochs", *tune_epochs as u64),
            ("rotate.seed", self.rotate.seed),
        ];
        // The largest integer of TOML, in which recipes are kept.
        if let Some((key, value)) = integers.into_iter().find(|(_, value)| i64::try_from(*value).is_err()) {
            return Err(refused(key, value, format!("{} (2^63 - 1) or less", i64::MAX)));
        }
        if *samples == 0 {
            return Err(refused("calibration.samples", samples, "1 or more"));
        }
        if *seqlen < 2 {
            return Err(refused("calibration.seqlen", seqlen, "2 or more"));
        }
        if !(1..=*samples).contains(batch) {
            return Err(refused("calibration.batch", batch, format!("1 to calibration.samples, which is {samples}")));
        }
        if *epochs == 0 {
            return Err(refused("learn.epochs", epochs, "1 or more (to learn nothing, use method = \"rtn\")"));
        }
        if !(lwc_lr.is_finite() && *lwc_lr > 0.0) {
            return Err(refused("learn.lwc_lr", lwc_lr, "positive and finite, such as 1e-2"));
        }
        if sites.iter().enumerate().any(|(i, site)| sites[..i].contains(site)) {
            return Err(refused("let.sites", list(sites), "without repetition"));
        }
        if sites.is_empty() && self.method == Method::Smoothquant {
            let kinds = SiteKind::ALL.map(SiteKind::name).join(", ");
            let allowed = format!("one or more of {kinds} for smoothquant (to round only, use method = \"rtn\")");
            return Err(refused("let.sites", list(sites), allowed));
        }
        if !(lr.is_finite() && *lr > 0.0) {
            return Err(refused("let.lr", lr, "positive and finite, such as 5e-3"));
        }
        if !(0.0..=1.0).contains(alpha) {
            return Err(refused("let.alpha", alpha, "0 to 1"));
        }
        if !(tune_lr.is_finite() && *tune_lr > 0.0) {
            return Err(refused("tune.lr", tune_lr, "positive and finite, such as 3e-3"));
        }
        if *tune_epochs > MAX_TUNE_EPOCHS {
            return Err(refused("tune.epochs", tune_epochs, format!("{MAX_TUNE_EPOCHS} or less")));
        }
        Ok(())
    }
}

/// Sites as a recipe file writes them.
fn list(sites: &[SiteKind]) -> String {
    let quoted: Vec<String> = sites.iter().map(|site| format!("\"{site}\"")).collect();
    format!("[{}]", quoted.join(", "))
}

pub(crate) fn refused(key: &'static str, value: impl ToString, allowed: impl Into<String>) -> RecipeError {
    RecipeError::Value { key, value: value.to_string(), allowed: allowed.into() }
}

#[cfg(test)]
mod tests {
    use oq_quant_core::Bits;

    use super::*;
    use crate::{find, recipe_for};

    fn resolve(scheme: &str, model: Option<&str>, file: &str, overrides: Overrides) -> Result<Recipe, RecipeError> {
        let scheme = scheme.parse().unwrap();
        let file = RecipeFile::parse(&format!("scheme = \"{scheme}\"\n{file}"), Path::new("my.toml")).unwrap();
        Recipe::resolve(scheme, model.map(|name| find(name).unwrap()), Some(&file), &overrides)
    }

    #[test]
    fn later_layers_win() {
        let none = Overrides::default;
        let epochs = |model, file, overrides| resolve("w2a16g64", model, file, overrides).unwrap().learn.epochs;
        assert_eq!(epochs(None, "", none()), 20);
        assert_eq!(epochs(Some("smollm2-135m"), "", none()), 3);
        assert_eq!(epochs(Some("smollm2-135m"), "learn.epochs = 7", none()), 7);
        let typed = Overrides { epochs: Some(9), ..none() };
        assert_eq!(epochs(Some("smollm2-135m"), "learn.epochs = 7", typed.clone()), 9);
        assert_eq!(epochs(None, "", typed), 9);
    }

    #[test]
    fn presets_lie_between_the_paper_and_the_recipe() {
        #[track_caller]
        fn check(preset: Option<Preset>, file: &str, expected: (Start, Rounding, Loss, usize)) {
            let overrides = Overrides { preset, ..Overrides::default() };
            let Recipe { calibration, learn, tune, .. } =
                resolve("w4a16", Some("smollm2-135m"), file, overrides).unwrap();
            assert_eq!((learn.start, learn.rounding, learn.loss, learn.epochs), expected);
            let is_best = preset == Some(Preset::Best);
            assert_eq!((calibration.samples, tune.epochs), if is_best { (64, 1) } else { (16, 0) });
        }
        let ours = |epochs| (Start::Compensate, Rounding::Learned, Loss::Relative, epochs);
        check(None, "", ours(3));
        check(Some(Preset::Default), "", ours(3));
        check(Some(Preset::Fast), "", ours(2));
        check(Some(Preset::Best), "", ours(1));
        check(Some(Preset::Paper), "", (Start::Whole, Rounding::Fixed, Loss::Mse, 5));
        check(Some(Preset::Fast), "learn.epochs = 7", ours(7));
        check(None, "learn.start = \"search\"\nlearn.loss = \"mse\"", (Start::Search, Rounding::Learned, Loss::Mse, 3));
        let opt = recipe_for("opt-66b", "w4a16".parse().unwrap());
        let resolve = |preset| {
            let overrides = Overrides { preset: Some(preset), ..Overrides::default() };
            Recipe::resolve("w4a16".parse().unwrap(), find("opt-66b"), opt, &overrides).unwrap().learn.epochs
        };
        assert_eq!([Preset::Paper, Preset::Default, Preset::Fast, Preset::Best].map(resolve), [20, 10, 5, 3]);
        let typed = Overrides { preset: Some(Preset::Best), epochs: Some(4), ..Overrides::default() };
        let typed = self::resolve("w4a16", None, "", typed).unwrap();
        assert_eq!((typed.learn.epochs, typed.calibration.samples, typed.segments()), (4, 512, 1024));
        assert_eq!("slow".parse::<Preset>(), Err("must be one of paper, fast, default, best".to_owned()));
    }

    #[test]
    fn few_bits_of_activations_are_rotated_where_nothing_else_is_said() {
        #[track_caller]
        fn check(scheme: &str, model: Option<&str>, file: &str, overrides: Overrides, expected: RotateKind) {
            assert_eq!(resolve(scheme, model, file, overrides).unwrap().rotate, Rotate { kind: expected, seed: 0 });
        }
        use RotateKind::{Merged, Online};
        let none = Overrides::default;
        check("w4a4", None, "", none(), Online);
        check("w4a4", Some("llama2-7b"), "", none(), Online);
        check("w4a5", None, "", none(), RotateKind::None);
        check("w4a16", None, "", none(), RotateKind::None);
        check("w4a4", Some("opt-125m"), "", none(), RotateKind::None);
        check("w4a4", Some("opt-125m"), "", Overrides { rotate: Some(Online), ..none() }, Online);
        check("w4a4", Some("falcon-7b"), "", none(), RotateKind::None);
        check("w4a4", None, "", Overrides { preset: Some(Preset::Paper), ..none() }, RotateKind::None);
        check("w4a4", None, "", Overrides { preset: Some(Preset::Best), ..none() }, Online);
        check("w4a4", None, "", Overrides { method: Some(Method::Rtn), ..none() }, RotateKind::None);
        check("w4a4", None, "method = \"smoothquant\"", none(), RotateKind::None);
        check("w4a4", None, "rotate.kind = \"none\"", none(), RotateKind::None);
        check("w4a4", None, "rotate.kind = \"none\"", Overrides { rotate: Some(Merged), ..none() }, Merged);
        let paper = Overrides { preset: Some(Preset::Paper), rotate: Some(Merged), ..none() };
        check("w4a16", None, "", paper, Merged);
        let seeded = resolve("w4a4", None, "rotate.seed = 5", none()).unwrap().rotate;
        assert_eq!(seeded, Rotate { kind: Online, seed: 5 });
    }

    #[test]
    fn every_key_reaches_the_recipe() {
        let scheme: QuantSpec = "w3a16g64".parse().unwrap();
        let expected = Recipe {
            scheme,
            method: Method::Rtn,
            calibration: Calibration { data: "my text.txt".to_owned(), samples: 6, seqlen: 12, seed: 7, batch: 3 },
            learn: Learn {
                epochs: 11,
                lwc_lr: 0.25,
                aug_loss: true,
                loss: Loss::Mse,
                start: Start::Whole,
                rounding: Rounding::Fixed,
            },
            transform: Transform { sites: vec![SiteKind::Updown, SiteKind::Qk], shift: true, lr: 0.125, alpha: 0.0 },
            tune: Tune { epochs: 2, lr: 0.5 },
            rotate: Rotate { kind: RotateKind::Online, seed: 0 },
            bits: Some(BitBudget { average: 2.5, choices: vec![Bits::ALL[0], Bits::ALL[5]] }),
        };
        let typed = Overrides {
            method: Some(Method::Rtn),
            data: Some("my text.txt".to_owned()),
            samples: Some(6),
            seqlen: Some(12),
            epochs: Some(11),
            seed: Some(7),
            lwc_lr: Some(0.25),
            batch: Some(3),
            aug_loss: Some(true),
            loss: Some(Loss::Mse),
            start: Some(Start::Whole),
            rounding: Some(Rounding::Fixed),
            preset: None,
            transform: None,
            sites: Some(vec![SiteKind::Updown, SiteKind::Qk]),
            shift: Some(true),
            let_lr: Some(0.125),
            alpha: Some(0.0),
            tune_epochs: Some(2),
            tune_lr: Some(0.5),
            rotate: Some(RotateKind::Online),
            bits: Some(2.5),
            bit_choices: Some(vec![Bits::ALL[0], Bits::ALL[5]]),
        };
        assert_eq!(Recipe::resolve(scheme, None, None, &typed).unwrap(), expected);

        let text = expected.to_toml().unwrap();
        let file = RecipeFile::parse(&text, Path::new("recipe.toml")).unwrap();
        assert_eq!(Recipe::resolve(scheme, find("opt-125m"), Some(&file), &Overrides::default()).unwrap(), expected);
    }

    #[test]
    fn bad_values() {
        #[track_caller]
        fn check(overrides: Overrides, expected: &str) {
            let error = Recipe::resolve("w4a16".parse().unwrap(), None, None, &overrides).expect_err("must be refused");
            assert_eq!(error.to_string(), expected);
        }
        let none = Overrides::default;
        let data = "calibration.data = \" \": must be a dataset such as wikitext2, or a text file";
        check(Overrides { data: Some(" ".to_owned()), ..none() }, data);
        check(Overrides { samples: Some(0), ..none() }, "calibration.samples = 0: must be 1 or more");
        check(Overrides { seqlen: Some(1), ..none() }, "calibration.seqlen = 1: must be 2 or more");
        let too_large = |key| format!("{key} = 9223372036854775808: must be 9223372036854775807 (2^63 - 1) or less");
        check(Overrides { seed: Some(1 << 63), ..none() }, &too_large("calibration.seed"));
        check(Overrides { samples: Some(1 << 63), ..none() }, &too_large("calibration.samples"));
        check(Overrides { seqlen: Some(1 << 63), ..none() }, &too_large("calibration.seqlen"));
        check(Overrides { epochs: Some(1 << 63), ..none() }, &too_large("learn.epochs"));
        check(Overrides { tune_epochs: Some(1 << 63), ..none() }, &too_large("tune.epochs"));
        check(Overrides { tune_epochs: Some(1001), ..none() }, "tune.epochs = 1001: must be 1000 or less");
        let batch = |given| format!("calibration.batch = {given}: must be 1 to calibration.samples, which is 128");
        check(Overrides { batch: Some(0), ..none() }, &batch(0));
        check(Overrides { batch: Some(129), ..none() }, &batch(129));
        let epochs = "learn.epochs = 0: must be 1 or more (to learn nothing, use method = \"rtn\")";
        check(Overrides { epochs: Some(0), ..none() }, epochs);
        for lr in [0.0, -0.01, f64::NAN, f64::INFINITY] {
            let message = format!("learn.lwc_lr = {lr}: must be positive and finite, such as 1e-2");
            check(Overrides { lwc_lr: Some(lr), ..none() }, &message);
            let message = format!("let.lr = {lr}: must be positive and finite, such as 5e-3");
            check(Overrides { let_lr: Some(lr), ..none() }, &message);
            let message = format!("tune.lr = {lr}: must be positive and finite, such as 3e-3");
            check(Overrides { tune_lr: Some(lr), ..none() }, &message);
        }
        for alpha in [-0.5, 1.5, f64::NAN, f64::INFINITY] {
            check(Overrides { alpha: Some(alpha), ..none() }, &format!("let.alpha = {alpha}: must be 0 to 1"));
        }
        let twice = vec![SiteKind::Vo, SiteKind::Norm, SiteKind::Vo];
        let message = "let.sites = [\"vo\", \"norm\", \"vo\"]: must be without repetition";
        check(Overrides { sites: Some(twice), ..none() }, message);
        let empty = "let.sites = []: must be one or more of norm, vo, qk, updown for smoothquant (to round only, use \
                     method = \"rtn\")";
        let smoothquant = Some(Method::Smoothquant);
        check(Overrides { method: smoothquant, transform: Some(false), ..none() }, empty);
        check(Overrides { method: smoothquant, sites: Some(vec![]), ..none() }, empty);
    }

    #[test]
    fn sites_follow_what_is_asked_for() {
        #[track_caller]
        fn check(scheme: &str, model: Option<&str>, file: &str, overrides: Overrides, expected: &[SiteKind]) {
            let recipe = resolve(scheme, model, file, overrides).unwrap();
            assert_eq!(recipe.transform.sites, expected);
        }
        use SiteKind::{Norm, Qk, Updown, Vo};
        let none = Overrides::default;
        let on = || Overrides { transform: Some(true), ..none() };
        let off = || Overrides { transform: Some(false), ..none() };
        let method = |method| Overrides { method: Some(method), ..none() };
        let smoothquant = || method(Method::Smoothquant);

        check("w4a16", None, "", none(), &[]);
        check("w4a16", None, "", on(), &[Norm, Vo]);
        check("w4a16", None, "", smoothquant(), &[Norm, Vo]);
        check("w4a16", None, "method = \"smoothquant\"", none(), &[Norm, Vo]);
        check("w4a16", Some("opt-350m"), "let.sites = []", on(), &[Vo]);
        check("w4a4", None, "", off(), &[]);
        check("w4a4", None, "let.sites = []", none(), &[]);
        check("w4a4", None, "let.sites = []", on(), &[Norm, Vo, Qk]);
        check("w4a4", None, "let.sites = []", smoothquant(), &[Norm, Vo, Qk]);
        check("w4a4", None, "let.sites = [\"updown\"]", on(), &[Updown]);
        check("w4a4", None, "let.sites = [\"updown\"]", smoothquant(), &[Updown]);
        check("w4a4", None, "let.sites = [\"updown\"]", off(), &[]);
        let typed = Overrides { sites: Some(vec![Qk]), ..on() };
        check("w4a4", None, "let.sites = [\"updown\"]", typed, &[Qk]);
        // Kept as resolved, though nothing reads them.
        check("w4a4", None, "", method(Method::Rtn), &[Norm, Vo, Qk]);
    }

    #[test]
    fn refuses_a_file_for_another_scheme() {
        let file = RecipeFile::parse("scheme = \"w3a16\"", Path::new("my.toml")).unwrap();
        let error = Recipe::resolve("w4a16".parse().unwrap(), None, Some(&file), &Overrides::default());
        let expected =
            "the recipe file is for w3a16, but the scheme asked for is w4a16: give one of them, or make them equal";
        assert_eq!(error.expect_err("must be refused").to_string(), expected);
    }

    #[test]
    fn methods_have_names() {
        for method in [Method::Omniquant, Method::Smoothquant, Method::Rtn] {
            assert_eq!(method.to_string().parse::<Method>().unwrap(), method);
        }
        let error = "gptq".parse::<Method>().expect_err("must be refused");
        assert_eq!(error.to_string(), "method = \"gptq\": must be omniquant, smoothquant or rtn");
    }

    #[test]
    fn toml_round_trip() {
        let typed = Overrides {
            data: Some("a \"quoted\"\\path\n.txt".to_owned()),
            seed: Some(i64::MAX as u64),
            lwc_lr: Some(0.1 + 0.2), // needs all 17 digits
            ..Overrides::default()
        };
        let recipe = Recipe::resolve("w3a16g64sym".parse().unwrap(), None, None, &typed).unwrap();
        let text = recipe.to_toml().unwrap();
        assert_eq!(Recipe::parse(&text, Path::new("recipe.toml")).unwrap(), recipe);

        let incomplete = text.replace("batch = 1\n", "");
        let error = Recipe::parse(&incomplete, Path::new("recipe.toml")).expect_err("must be refused").to_string();
        assert!(error.contains("missing key `batch`"), "{error}");
        for (line, key) in [("sites = []\n", "sites"), ("shift = false\n", "shift"), ("alpha = 0.5\n", "alpha")] {
            let error = Recipe::parse(&text.replace(line, ""), Path::new("recipe.toml")).expect_err("must be refused");
            assert!(error.to_string().contains(&format!("missing key `{key}`")), "{error}");
        }
        let without = &text[..text.find("[let]").unwrap()];
        let error = Recipe::parse(without, Path::new("recipe.toml")).expect_err("must be refused").to_string();
        assert!(error.contains("missing key `let`"), "{error}");
        let hostile = text.replace("samples = 128", "samples = 0");
        assert!(matches!(Recipe::parse(&hostile, Path::new("recipe.toml")), Err(RecipeError::Value { .. })));
    }

    #[test]
    fn reading_says_which_file() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("absent.toml");
        let error = RecipeFile::read(&file).expect_err("must be refused").to_string();
        assert!(error.contains("absent.toml: cannot be read"), "{error}");
        std::fs::write(&file, "scheme = \"w4a16\"\n").unwrap();
        assert_eq!(RecipeFile::read(&file).unwrap().method, None);
    }
}
