//! Checks that need no weights.

use oq_models::{Decoder, Model, ModelError, Rotator, quantization_by};
use oq_recipe::{BitBudget, Recipe};

use crate::block::sites::{SiteError, sites_of};
use crate::error::CalibError;
use crate::widths::{Open, outer_specs};

/// Refuses a recipe that does not suit the model, without reading weights.
///
/// # Errors
/// If groups do not divide a linear's inputs, or if the model lacks a site or a rotation that the recipe asks for.
pub fn check(model: &Model, recipe: &Recipe) -> Result<(), CalibError> {
    model.check_quantizable(recipe.quantization())?;
    check_sites(model.decoder(), recipe)
}

/// Refuses a recipe that does not suit a model of this shape.
pub(crate) fn check_sites(decoder: &dyn Decoder, recipe: &Recipe) -> Result<(), CalibError> {
    quantization_by(decoder, recipe.quantization())?;
    outer_specs(decoder, recipe)?;
    check_bits(&Open::of(decoder, recipe)?, recipe)?;
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

/// Refuses an average of bits if overrides leave nothing to choose.
fn check_bits(open: &Open, recipe: &Recipe) -> Result<(), CalibError> {
    let Some(BitBudget { average, choices }) = &recipe.bits else { return Ok(()) };
    let refused = |why| Err(CalibError::Bits { average: *average, why });
    if open.linears.is_empty() {
        return refused("the overrides set the width of every linear, and leave none to choose".to_owned());
    }
    let (share, least) = (open.share(*average), choices.first().map_or(0, |bits| bits.get()));
    if share < f64::from(least) {
        let why =
            format!("the overrides leave {share:.3} bits to each of the other weights, which take {least} or more");
        return refused(why);
    }
    Ok(())
}
