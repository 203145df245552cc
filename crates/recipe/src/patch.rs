//! Settings that may be absent: recipe files, a model's defaults and the command line, each laid over what is beneath.

use std::path::Path;

use oq_quant_core::{Bits, QuantSpec, RotateKind, SiteKind};
use serde::Deserialize;

use crate::parse::parse;
use crate::recipe::refused;
use crate::when::{Case, When};
use crate::{
    BitBudget, CalibrationPatch, LearnPatch, Loss, Method, Preset, Recipe, RecipeError, RotatePatch, Rounding, Start,
    TransformPatch, TunePatch,
};

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
    /// `[bits]`
    pub bits: Option<BitsPatch>,
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

/// [`BitBudget`], whose average must be there.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "every field is explained in BitBudget")]
pub struct BitsPatch {
    pub average: f64,
    pub choices: Option<Vec<Bits>>,
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

/// What the command line sets; it has the last word.
#[derive(Clone, Debug, Default, PartialEq)]
#[expect(missing_docs, reason = "every other field is explained in Recipe and its sections")]
pub struct Overrides {
    pub method: Option<Method>,
    pub data: Option<String>,
    pub samples: Option<usize>,
    pub seqlen: Option<usize>,
    pub epochs: Option<usize>,
    pub seed: Option<u64>,
    pub lwc_lr: Option<f64>,
    pub batch: Option<usize>,
    pub aug_loss: Option<bool>,
    pub loss: Option<Loss>,
    pub start: Option<Start>,
    pub rounding: Option<Rounding>,
    /// The default one where there is none.
    pub preset: Option<Preset>,
    /// Asks for the equivalent transformation, or for none; `sites` overrules it.
    pub transform: Option<bool>,
    pub sites: Option<Vec<SiteKind>>,
    pub shift: Option<bool>,
    /// [`crate::Transform::lr`]
    pub let_lr: Option<f64>,
    pub alpha: Option<f64>,
    /// [`crate::Tune::epochs`]
    pub tune_epochs: Option<usize>,
    /// [`crate::Tune::lr`]
    pub tune_lr: Option<f64>,
    /// [`crate::Rotate::kind`]
    pub rotate: Option<RotateKind>,
    /// [`BitBudget::average`]
    pub bits: Option<f64>,
    /// [`BitBudget::choices`]
    pub bit_choices: Option<Vec<Bits>>,
}

impl Overrides {
    /// The settings among these that a run by `recipe`, which they made, does not read.
    pub fn unread(&self, recipe: &Recipe) -> Vec<&'static str> {
        let learns = recipe.method.learns();
        let transforms = recipe.method.reads_text() && !recipe.transform.sites.is_empty();
        let reads_text = recipe.reads_text();
        let settings = [
            ("calibration.data", self.data.is_some(), reads_text),
            ("calibration.samples", self.samples.is_some(), reads_text),
            ("calibration.seqlen", self.seqlen.is_some(), reads_text),
            ("calibration.seed", self.seed.is_some(), reads_text),
            ("calibration.batch", self.batch.is_some(), recipe.method.reads_text()),
            ("learn.epochs", self.epochs.is_some(), learns),
            ("learn.lwc_lr", self.lwc_lr.is_some(), learns),
            ("learn.aug_loss", self.aug_loss.is_some(), learns),
            ("learn.loss", self.loss.is_some(), learns),
            ("learn.start", self.start.is_some(), learns),
            ("learn.rounding", self.rounding.is_some(), learns),
            ("let.sites", self.sites.is_some() || self.transform == Some(true), recipe.method.reads_text()),
            ("let.shift", self.shift == Some(true), transforms),
            ("let.lr", self.let_lr.is_some(), transforms && learns),
            ("let.alpha", self.alpha.is_some(), transforms),
            ("tune.epochs", self.tune_epochs.is_some_and(|epochs| epochs > 0), learns),
            ("tune.lr", self.tune_lr.is_some(), learns && recipe.tune.epochs > 0),
        ];
        settings.into_iter().filter(|(_, is_set, is_read)| *is_set && !is_read).map(|(key, ..)| key).collect()
    }
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
        if let Some(BitsPatch { average, choices }) = file.bits.clone() {
            self.apply_bits(Some(average), choices);
        }
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
    pub(crate) fn apply_bits(&mut self, average: Option<f64>, choices: Option<Vec<Bits>>) {
        if let Some(average) = average {
            self.bits.get_or_insert_with(|| BitBudget::new(average)).average = average;
        }
        if let (Some(bits), Some(choices)) = (&mut self.bits, choices) {
            bits.choices = choices;
        }
    }
}

impl Overrides {
    /// Lays the command line over a recipe, but for [`Overrides::preset`], [`Overrides::method`] and [`Overrides::transform`].
    pub(crate) fn apply_to(&self, recipe: &mut Recipe) {
        let Self { data, samples, seqlen, epochs, seed, lwc_lr, batch, aug_loss, .. } = self.clone();
        let Self { loss, start, rounding, sites, shift, let_lr, alpha, tune_epochs, tune_lr, rotate, .. } =
            self.clone();
        let calibration = CalibrationPatch { data, samples, seqlen, seed, batch };
        let learn = LearnPatch { epochs, lwc_lr, aug_loss, loss, start, rounding };
        let transform = TransformPatch { sites, shift, lr: let_lr, alpha };
        let tune = TunePatch { epochs: tune_epochs, lr: tune_lr };
        let rotate = RotatePatch { kind: rotate, seed: None };
        recipe.apply(&calibration, &learn, &transform, &tune, &rotate);
        recipe.apply_bits(self.bits, self.bit_choices.clone());
    }
}
