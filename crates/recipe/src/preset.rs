//! Presets, and the paper's settings below them: the files of `configs/recipes`, embedded in the library.

use std::path::Path;
use std::sync::LazyLock;

use oq_quant_core::SiteKind;
use serde::Deserialize;

use crate::choices::{Family, Method, Preset};
use crate::embedded::{RECIPES, parsed};
use crate::error::RecipeError;
use crate::parse::parse;
use crate::patch::RecipeFile;
use crate::tables::{Calibration, Learn, Outer, Recipe, Rotate, Transform, Tune};
use crate::when::Case;

/// In the order of [`Preset`].
static FILES: LazyLock<[RecipeFile; 4]> =
    LazyLock::new(|| Preset::ALL.map(|preset| embedded(preset, RecipeFile::parse)));

fn embedded<T>(preset: Preset, read: impl Fn(&str, &Path) -> Result<T, RecipeError>) -> T {
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

/// The settings of a preset.
pub(crate) fn settings_of(preset: Preset) -> &'static RecipeFile {
    &FILES[preset as usize]
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
        outer: Outer::default(),
        overrides: Vec::new(),
    };
    recipe.apply_when(&settings_of(Preset::Paper).when, case);
    recipe
}

/// The sites that the paper would use for a model that it does not transform: those of OPT, which it always transforms.
pub(crate) fn sites_of_paper(case: &Case) -> Vec<SiteKind> {
    of_paper(&Case { family: Family::Opt, ..*case }).transform.sites
}

#[cfg(test)]
mod tests;
