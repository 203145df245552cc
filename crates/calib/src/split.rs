//! How segments are split over ranks: each takes its part of every batch, so that a step of all ranks is a step on the whole batch.

use oq_ranks::Ranks;
use oq_recipe::Recipe;

use crate::error::CalibError;

/// Refuses more ranks than a batch has segments for.
///
/// # Errors
/// [`CalibError::TooManyRanks`], or [`CalibError::NothingToSplit`] for a recipe that reads no text.
pub fn check_ranks(recipe: &Recipe, ranks: usize) -> Result<(), CalibError> {
    if ranks <= 1 {
        return Ok(());
    }
    if !recipe.reads_text() {
        return Err(CalibError::NothingToSplit { ranks });
    }
    let (samples, batch) = (recipe.calibration.samples, recipe.calibration.batch);
    // The last batch of a pass has what is left.
    let smallest = if samples.is_multiple_of(batch) { batch } else { samples % batch };
    if smallest < ranks {
        return Err(CalibError::TooManyRanks { ranks, smallest, samples, batch });
    }
    Ok(())
}

/// This rank's part of each batch of `segments`, the segments of a pass.
pub(crate) fn own_parts<'s>(
    ranks: &Ranks,
    segments: &'s [Vec<u32>],
    batch: usize,
) -> impl Iterator<Item = &'s [Vec<u32>]> {
    segments.chunks(batch).map(|batch| ranks.part(batch))
}

/// The share of each batch of a pass that this rank has.
pub(crate) fn shares(ranks: &Ranks, segments: &[Vec<u32>], batch: usize) -> Vec<f64> {
    let share = |batch: &[Vec<u32>]| ranks.part(batch).len() as f64 / batch.len() as f64;
    segments.chunks(batch).map(share).collect()
}
