//! What the command line sets.

use crate::recipe::refused;
use crate::setting::Setting;
use crate::{
    BitsPatch, CalibrationPatch, LearnPatch, Method, Preset, Recipe, RecipeError, RotatePatch, TransformPatch,
    TunePatch, keys,
};

/// What the command line sets; it has the last word. Keys are set by methods named like their options, such as
/// `Overrides::default().samples(64).epochs(5)`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Overrides {
    /// How codes are found.
    pub method: Option<Method>,
    /// The default one where there is none.
    pub preset: Option<Preset>,
    /// Asks for the equivalent transformation, or for none; sites overrule it.
    pub use_let: Option<bool>,
    /// `[calibration]`
    pub calibration: CalibrationPatch,
    /// `[learn]`
    pub learn: LearnPatch,
    /// `[let]`
    pub transform: TransformPatch,
    /// `[tune]`
    pub tune: TunePatch,
    /// `[rotate]`
    pub rotate: RotatePatch,
    /// `[bits]`
    pub bits: BitsPatch,
}

impl Overrides {
    /// With a method.
    #[must_use]
    pub fn method(self, method: Method) -> Self {
        Self { method: Some(method), ..self }
    }

    /// With a preset.
    #[must_use]
    pub fn preset(self, preset: Preset) -> Self {
        Self { preset: Some(preset), ..self }
    }

    /// With the equivalent transformation, or without: see [`Self::use_let`].
    #[must_use]
    pub fn use_let(self, wanted: bool) -> Self {
        Self { use_let: Some(wanted), ..self }
    }

    /// The settings among these that a run by `recipe`, which they made, does not read.
    pub fn unread(&self, recipe: &Recipe) -> Vec<&'static str> {
        // Whoever asks for the transformation asks for its sites.
        let asks = |path| path == "let.sites" && self.use_let == Some(true);
        let unread = keys().filter(|key| ((key.is_asked_for)(self) || asks(key.path)) && !(key.is_read)(recipe));
        unread.map(|key| key.path).collect()
    }

    /// Lays the command line over a recipe, but for [`Self::preset`], [`Self::method`] and [`Self::use_let`].
    pub(crate) fn apply_to(&self, recipe: &mut Recipe) -> Result<(), RecipeError> {
        recipe.apply(&self.calibration, &self.learn, &self.transform, &self.tune, &self.rotate);
        recipe.apply_bits(&self.bits);
        match &self.bits.choices {
            Some(choices) if recipe.bits.is_none() => {
                Err(refused("bits.choices", choices.show(), "given with bits.average (--bits)"))
            }
            _ => Ok(()),
        }
    }
}
