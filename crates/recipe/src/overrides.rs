//! What the command line sets.

use crate::choices::{Method, Preset};
use crate::error::{RecipeError, refused};
use crate::setting::Setting;
use crate::tables::{Overrides, Recipe, keys};

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
        self.outer.apply_to(&mut recipe.outer);
        recipe.overrides.extend_from_slice(&self.overrides);
        match &self.bits.choices {
            Some(choices) if recipe.bits.is_none() => {
                Err(refused("bits.choices", choices.show(), "given with bits.average (--bits)"))
            }
            _ => Ok(()),
        }
    }
}
