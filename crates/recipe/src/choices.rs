//! Choices by name: methods, presets, families, and the values of keys that are words.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::{RecipeError, refused};

/// How codes are found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Method {
    /// Clipping and an equivalent transformation, learned block by block (OmniQuant, arXiv 2308.13137), rounding beside them where
    /// [`Learn::rounding`](crate::Learn::rounding) says so, and all blocks tuned together after that where [`Tune::epochs`](crate::Tune::epochs) does.
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
    /// Whether blocks are run on text; for all that a run reads see [`Recipe::reads_text`](crate::Recipe::reads_text).
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

/// A named set of settings: a file of `configs/recipes`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Preset {
    /// The method as published: clipping from 98 % of the range, the transformation where the paper has it, rounding to nearest.
    Paper,
    /// [`Self::Default`] in half of its epochs.
    Fast,
    /// Clipping starts from a search, rounding from second-order compensation; both are learned, in a quarter of the paper's epochs; then
    /// all blocks are tuned together, on as much text again.
    #[default]
    Default,
    /// [`Self::Default`] with four times as much text and an eighth of the paper's epochs. Then all blocks are tuned together, on as much
    /// text again.
    Best,
}

impl Preset {
    pub(crate) const ALL: [Self; 4] = [Self::Paper, Self::Fast, Self::Default, Self::Best];

    /// As the command line writes it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Paper => "paper",
            Self::Fast => "fast",
            Self::Default => "default",
            Self::Best => "best",
        }
    }
}

impl FromStr for Preset {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|preset| preset.name() == text);
        found.ok_or_else(|| format!("must be one of {}", Self::ALL.map(Self::name).join(", ")))
    }
}

/// An architecture.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Family {
    /// LLaMA and models that share its structure, such as SmolLM2.
    Llama,
    /// OPT.
    Opt,
    /// Falcon.
    Falcon,
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Llama => "llama",
            Self::Opt => "opt",
            Self::Falcon => "falcon",
        })
    }
}
