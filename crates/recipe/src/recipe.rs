//! The settings of a run, complete and checked.

use std::fmt;
use std::path::Path;
use std::str::FromStr;

use oq_quant_core::QuantSpec;
use serde::{Deserialize, Serialize};

use crate::parse::parse;
use crate::preset::{of_paper, sites_of_paper, usual_method};
use crate::when::Case;
use crate::{
    BitBudget, Calibration, Family, Learn, ModelEntry, Overrides, RecipeError, RecipeFile, Rotate, Transform, Tune,
    keys,
};

/// Everything that decides what calibration computes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// What is quantized, to how many bits, in which groups.
    pub scheme: QuantSpec,
    /// How codes are found.
    pub method: Method,
    /// The text that blocks are run on; `rtn` reads none of it, unless an average of bits is to be measured.
    pub calibration: Calibration,
    /// How clipping and rounding are learned; `rtn` and `smoothquant` read none of it.
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
    /// Clipping and an equivalent transformation, learned block by block (OmniQuant, arXiv 2308.13137), rounding beside them where
    /// [`Learn::rounding`] says so, and all blocks tuned together after that where [`Tune::epochs`] does.
    Omniquant,
    /// The transformation as learning would start with it, then round to nearest (SmoothQuant, arXiv 2211.10438):
    /// nothing is learned.
    Smoothquant,
    /// Round to nearest between minimum and maximum: nothing is learned or transformed.
    Rtn,
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

        impl fmt::Display for $choice {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(match self {
                    $(Self::$variant => $name,)+
                })
            }
        }
    };
}

choice!(Start { "whole" => Whole, "search" => Search, "compensate" => Compensate });
choice!(Rounding { "fixed" => Fixed, "learned" => Learned });
choice!(Loss { "mse" => Mse, "relative" => Relative });

impl Method {
    /// Whether blocks are run on text; for all that a run reads see [`Recipe::reads_text`].
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
    /// Settles every setting: the paper's for this scheme and family, under the preset, under the model's own, under a recipe file, under
    /// the command line. Of the text and the epochs of the paper and the model a share is taken, which the file or else the preset
    /// says. Without a model the family is taken to be LLaMA.
    ///
    /// A transformation that is asked for, by the command line or by `smoothquant`, gets the paper's sites where none
    /// are given.
    pub fn resolve(
        scheme: QuantSpec,
        model: Option<&ModelEntry>,
        file: Option<&RecipeFile>,
        overrides: &Overrides,
    ) -> Result<Self, RecipeError> {
        if let Some(in_file) = file.and_then(|file| file.scheme).filter(|in_file| *in_file != scheme) {
            return Err(RecipeError::OtherScheme { in_file, asked: scheme });
        }
        let preset = overrides.preset.unwrap_or_default().file();
        let (family, chat, post_norm) =
            model.map_or((Family::Llama, false, false), |m| (m.family, m.chat, m.post_norm));
        let method = overrides.method.or(file.and_then(|file| file.method)).or(preset.method).unwrap_or(usual_method());
        let case = Case { scheme, method, family, chat, post_norm };

        let mut recipe = Self { method, ..of_paper(&case) };
        recipe.apply_file(preset, &case);
        if let Some(model) = model {
            recipe.apply_model(model, &case);
        }
        recipe.apply_share(file.map_or(&preset.share, |file| &file.share), &preset.share)?;
        if let Some(file) = file {
            recipe.apply_file(file, &case);
        }
        overrides.apply_to(&mut recipe)?;
        if overrides.transform.sites.is_none() {
            let wanted = overrides.use_let.or((recipe.method == Method::Smoothquant).then_some(true));
            match wanted {
                Some(false) => recipe.transform.sites.clear(),
                Some(true) if recipe.transform.sites.is_empty() => {
                    recipe.transform.sites = sites_of_paper(&case);
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
        if self.reads_text() { self.calibration.samples.saturating_mul(1 + self.tune_epochs()) } else { 0 }
    }

    /// Passes of tuning that a run makes.
    pub const fn tune_epochs(&self) -> usize {
        if self.method.learns() { self.tune.epochs } else { 0 }
    }

    /// Targets that each block is learned towards.
    pub const fn targets(&self) -> usize {
        if self.method.learns() { 1 + self.learn.aug_loss as usize } else { 0 }
    }

    /// Whether rounding starts from second-order compensation.
    pub const fn compensates(&self) -> bool {
        self.method.learns() && matches!(self.learn.start, Start::Compensate)
    }

    fn validate(&self) -> Result<(), RecipeError> {
        keys().try_for_each(|key| (key.check)(self))
    }
}

pub(crate) fn refused(key: &'static str, value: impl ToString, allowed: impl Into<String>) -> RecipeError {
    RecipeError::Value { key, value: value.to_string(), allowed: allowed.into() }
}

#[cfg(test)]
mod tests;
