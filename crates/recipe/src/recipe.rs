//! The settings of a run, complete and checked.

use std::path::Path;

use oq_quant_core::{QuantSpec, Scheme, Storage};

use crate::choices::{Family, Method, Start};
use crate::error::{RecipeError, refused};
use crate::model::ModelEntry;
use crate::parse::parse;
use crate::patch::RecipeFile;
use crate::preset::{of_paper, settings_of, sites_of_paper, usual_method};
use crate::tables::{Calibration, Overrides, Recipe, keys};
use crate::when::Case;

/// Tokens of the shortest segments that longer ones are replaced by.
const SHORTEST: usize = 256;

/// The segments of one pass over the calibration text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Text {
    /// How many.
    pub segments: usize,
    /// Tokens of each.
    pub tokens: usize,
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
        let preset = settings_of(overrides.preset.unwrap_or_default());
        let (family, chat, post_norm) =
            model.map_or((Family::Llama, false, false), |m| (m.family(), m.chat, m.post_norm()));
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

    /// The scheme with its overrides.
    pub fn quantization(&self) -> Scheme<'_> {
        Scheme { spec: self.scheme, overrides: &self.overrides }
    }

    /// Whether anything is measured on text.
    pub const fn reads_text(&self) -> bool {
        self.method.reads_text() || self.bits.is_some()
    }

    /// The text of one pass: `samples` segments of `seqlen` tokens, or as much text in more and shorter segments, if a pass of learning
    /// would have fewer steps than [`Calibration::steps`]. A step on a quarter of the text teaches nearly as much. Larger batches are
    /// left alone: they are asked for where steps should be large.
    pub const fn text(&self) -> Text {
        let Calibration { mut samples, mut seqlen, batch, steps, .. } = self.calibration;
        while self.method.learns()
            && batch == 1
            && samples < steps
            && seqlen.is_multiple_of(2)
            && seqlen >= 2 * SHORTEST
        {
            (samples, seqlen) = (2 * samples, seqlen / 2);
        }
        Text { segments: samples, tokens: seqlen }
    }

    /// Segments of calibration text that a run reads: those of the blocks, and as many for each pass of tuning.
    pub const fn segments(&self) -> usize {
        if self.reads_text() { self.text().segments.saturating_mul(1 + self.tune_epochs()) } else { 0 }
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
        keys().try_for_each(|key| (key.check)(self))?;
        let QuantSpec { weight, mixture, .. } = self.scheme;
        match &self.bits {
            Some(budget) if mixture.is_some() || weight.storage != Storage::Half => {
                let allowed = format!("left out with {}, whose types have widths of their own", self.scheme);
                Err(refused("bits.average", budget.average, allowed))
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests;
