//! A run over all blocks.

mod bits;
mod block;
mod options;
mod passes;
mod running;
mod starved;
mod tune;
mod work;

use std::ops::ControlFlow;
use std::path::Path;

use oq_models::{Model, ModelError};
use oq_quant_core::RotateKind;
use oq_recipe::{Recipe, Rotate};

use self::running::Run;
use self::work::Work;
use crate::block::peak::F16_MAX;
use crate::check::check;
use crate::disk::details::DetailsFile;
use crate::disk::identity::{Identity, Sources, Surroundings};
use crate::disk::journal::{Header, Journal, JournalError};
use crate::disk::stages::Stages;
use crate::error::CalibError;
use crate::nth::Nth;
use crate::split::check_ranks;

pub use self::options::{Notice, Options, Outcome};

/// Quantizes `model` by `recipe` into a packed directory.
///
/// `segments` are token ids of equal length, [`Recipe::segments`] of them: first those that blocks learn from, then those of each epoch
/// of tuning. A recipe that reads no text ignores them. `on` receives progress and can ask the run to stop, which it does within a
/// step, on all ranks if one is asked. Finished blocks are kept for [`Options::resume`].
pub fn quantize(
    model: &Model,
    recipe: &Recipe,
    segments: &[Vec<u32>],
    options: &Options,
    on: &mut dyn FnMut(Notice) -> ControlFlow<()>,
) -> Result<Outcome, CalibError> {
    let ranks = &options.ranks;
    let mut lost = None;
    let mut on_all = |notice| {
        let any = ranks.any(on(notice).is_break());
        let stops = any.unwrap_or_else(|error| {
            lost = Some(error);
            true
        });
        if stops { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    let result = quantize_here(model, recipe, segments, options, &mut on_all);
    let result = lost.map_or(result, |error| Err(error.into()));
    match &result {
        // All ranks stop, or see the same.
        Ok(_) | Err(CalibError::Stopped { .. } | CalibError::TuningStopped { .. } | CalibError::Ranks(_)) => {}
        Err(error) => ranks.fail(&error.to_string()),
    }
    result
}

/// [`quantize`] on this rank.
fn quantize_here(
    model: &Model,
    recipe: &Recipe,
    segments: &[Vec<u32>],
    options: &Options,
    on: &mut dyn FnMut(Notice) -> ControlFlow<()>,
) -> Result<Outcome, CalibError> {
    let ranks = &options.ranks;
    check_ranks(recipe, ranks.size())?;
    check(model, recipe)?;
    let rotated = rotated(model, recipe)?;
    let model = rotated.as_ref().unwrap_or(model);
    let segments = if recipe.reads_text() { segments } else { &[] };
    if segments.len() != recipe.segments() {
        return Err(CalibError::Segments { given: segments.len(), wanted: recipe.segments() });
    }
    check_outer(model)?;
    let n_blocks = model.decoder().dims().n_layers;
    let identity = Identity::of(model, recipe, segments, options.compute)?;
    let tokens = segments.first().map_or(0, Vec::len);
    let surroundings = Some(Surroundings::here(model, tokens, (options.device, options.compute), ranks.size()));
    let header = Header { identity, surroundings };
    let (sources, identity) = (Sources::new(model), &header.identity);
    let opened = ranks.is_first().then(|| open(model, recipe, options, (&header, &sources)));
    let opened = opened.transpose()?;
    // The others look at what the first one has opened.
    let was_complete = ranks.any(opened.as_ref().is_some_and(|(.., was_complete)| *was_complete))?;
    let (mut journal, mut stages) = match opened {
        Some((journal, stages, _)) => (journal, stages),
        None => (Journal::read(&options.out, &header, n_blocks)?, Stages::create(&options.out, model, recipe)?),
    };
    // Creating stages removes unfinished files, and the first one writes some soon.
    ranks.barrier()?;
    if !was_complete {
        if let Some(budget) = &recipe.bits {
            let sources = &sources;
            let subject = bits::Subject { model, recipe, budget, segments, options, identity, sources };
            stages.output.set_widths(subject.widths(&mut journal, on)?);
        }
        if ranks.is_first() {
            stages.forget_tuning(&journal)?;
        }
    }
    let resumed_blocks = journal.learned().len();
    if !was_complete {
        let work = Work::of(recipe, n_blocks, resumed_blocks);
        let (stages, sources) = (&stages, &sources);
        let details = ranks.is_first().then(|| DetailsFile::open(&options.out, resumed_blocks)).transpose()?;
        let mut run = Run { model, sources, recipe, options, stages, details, on, n_blocks, work };
        if !stages.has_all(&journal) {
            run.all_blocks(&mut journal, segments)?;
        }
        if ranks.is_first() {
            stages.output.finish()?;
            warn_of_f16(&journal, n_blocks);
        }
    }
    ranks.barrier()?;
    if ranks.is_first() {
        stages.clean_up();
    } else {
        // With the blocks that the first one has recorded.
        journal = Journal::read(&options.out, &header, n_blocks)?;
    }
    Ok(Outcome {
        blocks: journal.learned().iter().map(|block| block.record.clone()).collect(),
        tuning: journal.tuned().first().map_or_else(Vec::new, |block| block.record.divergences.clone()),
        resumed_blocks,
        was_complete,
    })
}

/// Opens the journal and the output directory, and drops what is broken there. Also returns whether nothing is left to do.
fn open<'a>(
    model: &'a Model,
    recipe: &Recipe,
    options: &Options,
    (header, sources): (&Header, &Sources<'_>),
) -> Result<(Journal, Stages<'a>, bool), CalibError> {
    let n_blocks = model.decoder().dims().n_layers;
    let mut journal = Journal::open(&options.out, header, n_blocks, options.resume)?;
    check_sources(sources, &journal, (&options.out, model))?;
    let stages = Stages::create(&options.out, model, recipe)?;
    let was_complete = stages.are_complete(&journal)?;
    if !was_complete {
        if let Some(differences) = journal.moved() {
            tracing::warn!(%differences, "the run resumes in other surroundings: the result is as good, but not identical to the byte");
        }
        stages.reopen()?;
        stages.forget_broken(&mut journal)?;
    }
    Ok((journal, stages, was_complete))
}

/// Refuses blocks that were made from different weights than the model has now, before anything is written. This reads all bytes of
/// those weights. Replaying the blocks takes far longer, and a finished run, which replays none, may have been made from a damaged
/// file.
fn check_sources(sources: &Sources<'_>, journal: &Journal, (out, model): (&Path, &Model)) -> Result<(), CalibError> {
    let n_blocks = model.decoder().dims().n_layers;
    let learned = journal.learned().iter().map(|block| (block.record.index, &block.source));
    let tuned = journal.tuned().iter().map(|block| (block.record.tuned, &block.source));
    for (block, source) in learned.chain(tuned) {
        if let Some(source) = source
            && source != sources.of(block)?
        {
            let (dir, block, model) = (out.to_owned(), Nth::new(block, n_blocks), model.dir().to_owned());
            return Err(JournalError::OtherSource { dir, block, model }.into());
        }
    }
    Ok(())
}

/// Warns if activations exceed float16, which the packed model's `config.json` asks loaders to use.
fn warn_of_f16(journal: &Journal, n_blocks: usize) {
    let blocks = journal.learned().iter().filter_map(|block| Some((block.record.index, block.record.beyond_f16?)));
    if let Some((block, value)) = blocks.max_by(|(_, a), (_, b)| a.total_cmp(b)) {
        tracing::warn!(
            "block {}: activations on the calibration text reach {value:.3e}, but float16, the type in config.json, ends at \
             {F16_MAX}: load the model in bfloat16 or float32 (dtype in transformers and vLLM)",
            Nth::new(block, n_blocks)
        );
    }
}

/// The model with the recipe's rotation, if there is one.
fn rotated(model: &Model, recipe: &Recipe) -> Result<Option<Model>, ModelError> {
    let Rotate { kind, seed } = recipe.rotate;
    let rotated = || model.reopened()?.rotated(kind, seed);
    (kind != RotateKind::None).then(rotated).transpose()
}

/// Refuses NaN and infinity in the tensors outside the blocks, which are copied without being used in a computation.
fn check_outer(model: &Model) -> Result<(), CalibError> {
    let params = model.decoder().outer_params();
    Ok(params.iter().try_for_each(|param| model.checkpoint().check_finite(model.stored_name(param.name)))?)
}
