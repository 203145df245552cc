//! Recipe files, whose settings may be absent, laid over what is beneath.

use std::path::Path;

use oq_quant_core::{Override, QuantSpec};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer};

use crate::choices::Method;
use crate::error::{RecipeError, refused};
use crate::parse::parse;
use crate::tables::{
    BitBudget, BitsPatch, CalibrationPatch, LearnPatch, OuterPatch, Recipe, RotatePatch, TransformPatch, TunePatch,
};
use crate::when::{Case, When};

/// A recipe as a file writes it: everything may be left out.
///
/// A [`Recipe`] that was written by [`Recipe::to_toml`] is such a file too, and so are the presets in `configs/recipes`.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RecipeFile {
    /// The scheme that the file is for; none for any.
    pub scheme: Option<QuantSpec>,
    /// How codes are found.
    pub method: Option<Method>,
    /// `[calibration]`
    #[serde(default)]
    pub calibration: CalibrationPatch,
    /// `[learn]`
    #[serde(default)]
    pub learn: LearnPatch,
    /// `[let]`
    #[serde(default, rename = "let")]
    pub transform: TransformPatch,
    /// `[tune]`
    #[serde(default)]
    pub tune: TunePatch,
    /// `[rotate]`
    #[serde(default)]
    pub rotate: RotatePatch,
    /// `[bits]`, in which the average must be there.
    #[serde(default, deserialize_with = "with_average")]
    pub bits: BitsPatch,
    /// `[outer]`
    #[serde(default)]
    pub outer: OuterPatch,
    /// Each `[[override]]`.
    #[serde(default, rename = "override")]
    pub overrides: Vec<Override>,
    /// `[share]`
    #[serde(default)]
    pub share: SharePatch,
    /// Each `[[when]]`.
    #[serde(default)]
    pub when: Vec<When>,
}

impl RecipeFile {
    /// Parses the text of a recipe file; `file` is what errors call it.
    pub fn parse(text: &str, file: &Path) -> Result<Self, RecipeError> {
        parse(text, file)
    }

    /// Reads and parses a recipe file.
    pub fn read(file: &Path) -> Result<Self, RecipeError> {
        let text =
            std::fs::read_to_string(file).map_err(|source| RecipeError::Read { file: file.to_owned(), source })?;
        Self::parse(&text, file)
    }
}

/// What is taken of the text and the epochs that the paper or the model's own settings have, where nothing sets a number.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SharePatch {
    /// Of [`crate::Calibration::samples`]; positive.
    pub samples: Option<f64>,
    /// Of [`crate::Learn::epochs`]; positive.
    pub epochs: Option<f64>,
}

impl Recipe {
    /// Lays a patch over the recipe.
    pub(crate) fn apply(
        &mut self,
        calibration: &CalibrationPatch,
        learn: &LearnPatch,
        transform: &TransformPatch,
        tune: &TunePatch,
        rotate: &RotatePatch,
    ) {
        calibration.apply_to(&mut self.calibration);
        learn.apply_to(&mut self.learn);
        transform.apply_to(&mut self.transform);
        tune.apply_to(&mut self.tune);
        rotate.apply_to(&mut self.rotate);
    }

    /// Lays a file over the recipe, but for what it says of [`RecipeFile::scheme`], [`RecipeFile::method`] and [`RecipeFile::share`].
    pub(crate) fn apply_file(&mut self, file: &RecipeFile, case: &Case) {
        self.apply(&file.calibration, &file.learn, &file.transform, &file.tune, &file.rotate);
        self.apply_bits(&file.bits);
        file.outer.apply_to(&mut self.outer);
        self.overrides.extend_from_slice(&file.overrides);
        self.apply_when(&file.when, case);
    }

    /// Takes a file's shares of text and epochs, or else those of `beneath`. Both are rounded up.
    pub(crate) fn apply_share(&mut self, file: &SharePatch, beneath: &SharePatch) -> Result<(), RecipeError> {
        let of = |key, number: &mut usize, share: Option<f64>| match share {
            // Numbers above 2^53 stay what they are.
            None | Some(1.0) => Ok(()),
            Some(share) if share.is_finite() && share > 0.0 => {
                *number = (*number as f64 * share).ceil() as usize;
                Ok(())
            }
            Some(share) => Err(refused(key, share, "positive and finite, such as 0.5")),
        };
        of("share.samples", &mut self.calibration.samples, file.samples.or(beneath.samples))?;
        of("share.epochs", &mut self.learn.epochs, file.epochs.or(beneath.epochs))
    }

    /// Lays a budget of bits over the recipe; choices alone go to the budget that is there.
    pub(crate) fn apply_bits(&mut self, patch: &BitsPatch) {
        if let Some(average) = patch.average {
            self.bits.get_or_insert_with(|| BitBudget::new(average));
        }
        if let Some(bits) = &mut self.bits {
            patch.apply_to(bits);
        }
    }
}

/// A table of bits that says how many.
fn with_average<'de, D: Deserializer<'de>>(deserializer: D) -> Result<BitsPatch, D::Error> {
    let patch = BitsPatch::deserialize(deserializer)?;
    if patch.average.is_none() { Err(D::Error::missing_field("average")) } else { Ok(patch) }
}
