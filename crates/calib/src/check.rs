//! What is refused before a weight is read.

use oq_models::{Decoder, Model, ModelError, Rotator, check_groups};
use oq_recipe::Recipe;

use crate::block::sites::{SiteError, sites_of};
use crate::error::CalibError;

/// Refuses a recipe that asks for what the model cannot have; reads no weights.
///
/// # Errors
/// When groups do not divide a linear's inputs, or a site or rotation is not there.
pub fn check(model: &Model, recipe: &Recipe) -> Result<(), CalibError> {
    model.check_quantizable(recipe.scheme.weight)?;
    check_sites(model.decoder(), recipe)
}

/// An error where a recipe asks for what a model of this shape cannot have.
pub(crate) fn check_sites(decoder: &dyn Decoder, recipe: &Recipe) -> Result<(), CalibError> {
    check_groups(decoder, recipe.scheme.weight)?;
    Rotator::check(decoder, recipe.rotate.kind).map_err(ModelError::from)?;
    let (mut is_any, mut can_shift) = (false, false);
    for layer in 0..decoder.dims().n_layers {
        let sites = sites_of(decoder, recipe, layer)?;
        is_any |= !sites.is_empty();
        can_shift |= sites.iter().any(|site| site.can_shift);
    }
    if recipe.transform.shift && is_any && !can_shift {
        return Err(SiteError::Shift.into());
    }
    Ok(())
}
