//! Presets, and the paper's settings below them: the files of `configs/recipes`, embedded in the library.

use std::path::Path;
use std::str::FromStr;
use std::sync::LazyLock;

use oq_quant_core::SiteKind;
use serde::Deserialize;

use crate::embedded::{RECIPES, parsed};
use crate::parse::parse;
use crate::when::Case;
use crate::{Calibration, Family, Learn, Method, Recipe, RecipeFile, Rotate, Transform, Tune};

/// A named set of settings: a file of `configs/recipes`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Preset {
    /// The method as published: clipping from 98 % of the range, the transformation where the paper has it, rounding to nearest.
    Paper,
    /// [`Self::Default`] in half of its epochs.
    Fast,
    /// Clipping starts from a search, rounding from second-order compensation; both are learned, in half of the paper's epochs.
    #[default]
    Default,
    /// [`Self::Default`] with four times as much text and an eighth of the paper's epochs. Then all blocks are tuned together, on as much
    /// text again.
    Best,
}

impl Preset {
    const ALL: [Self; 4] = [Self::Paper, Self::Fast, Self::Default, Self::Best];

    const fn name(self) -> &'static str {
        match self {
            Self::Paper => "paper",
            Self::Fast => "fast",
            Self::Default => "default",
            Self::Best => "best",
        }
    }

    /// Its settings.
    pub(crate) fn file(self) -> &'static RecipeFile {
        &FILES[self as usize]
    }
}

impl FromStr for Preset {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|preset| preset.name() == text);
        found.ok_or_else(|| format!("must be one of {}", Self::ALL.map(Self::name).join(", ")))
    }
}

/// In the order of [`Preset`].
static FILES: LazyLock<[RecipeFile; 4]> =
    LazyLock::new(|| Preset::ALL.map(|preset| embedded(preset, RecipeFile::parse)));

fn embedded<T>(preset: Preset, read: impl Fn(&str, &Path) -> Result<T, crate::RecipeError>) -> T {
    let name = preset.name();
    let (_, text) = RECIPES.iter().find(|(file, _)| *file == name).expect("each preset has its file");
    parsed(read(text, &Path::new("configs/recipes").join(format!("{name}.toml"))))
}

/// `paper.toml` without what depends on models and schemes. It has every key of a recipe.
#[derive(Deserialize)]
struct Complete {
    method: Method,
    calibration: Calibration,
    learn: Learn,
    #[serde(rename = "let")]
    transform: Transform,
    tune: Tune,
    rotate: Rotate,
}

static PAPER: LazyLock<Complete> = LazyLock::new(|| embedded(Preset::Paper, parse));

/// The default method.
pub(crate) fn usual_method() -> Method {
    PAPER.method
}

/// The paper's number of tokens per segment.
pub(crate) fn usual_seqlen() -> usize {
    PAPER.calibration.seqlen
}

/// The paper's settings.
pub(crate) fn of_paper(case: &Case) -> Recipe {
    let Complete { method, calibration, learn, transform, tune, rotate } = &*PAPER;
    let mut recipe = Recipe {
        scheme: case.scheme,
        method: *method,
        calibration: calibration.clone(),
        learn: learn.clone(),
        transform: transform.clone(),
        tune: tune.clone(),
        rotate: *rotate,
        bits: None,
    };
    recipe.apply_when(&Preset::Paper.file().when, case);
    recipe
}

/// The sites that the paper would use for a model that it does not transform: those of OPT, which it always transforms.
pub(crate) fn sites_of_paper(case: &Case) -> Vec<SiteKind> {
    of_paper(&Case { family: Family::Opt, ..*case }).transform.sites
}

#[cfg(test)]
mod tests;
