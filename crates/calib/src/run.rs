//! A run over all blocks.

mod bits;
mod passes;
mod tune;

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Instant;

use oq_let::{Transform, Values};
use oq_models::runtime::trim_memory;
use oq_models::{Compute, Context, LinearName, Model, ModelError};
use oq_quant_core::{QuantizedTensor, RotateKind, TensorError, WeightSpec};
use oq_recipe::{BlockRecord, Event, Loss, Recipe, Rotate, Transform as Transformation};
use tch::{Device, Tensor};

use self::passes::{Passed, States, forward_all};
pub(crate) use self::passes::{is_finite, load_block};
use crate::error::{CalibError, Nth};
use crate::identity::{Identity, Sources, Surroundings};
use crate::journal::{Finished, Header, Journal, JournalError};
use crate::learn::{Beat, Descent, LearnError, Task, error, learn_block};
use crate::peak::{F16_MAX, Peak};
use crate::sites::{Seen, check_sites, sites_of};
use crate::stages::Stages;
use crate::student::{Place, merge};
use crate::work::Work;

/// Where and how a run computes.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where blocks are learned.
    pub device: Device,
    /// What their products are computed in.
    pub compute: Compute,
    /// Bytes of memory for hidden states between blocks; those beyond lie in unnamed files on the disk of `out`. None: all that
    /// they need. The result has the same bytes either way.
    pub cache_memory: Option<u64>,
    /// Directory of the packed model.
    pub out: PathBuf,
    /// Go on with the run that is there.
    pub resume: bool,
}

/// What a run tells while it goes.
#[derive(Clone, Debug, PartialEq)]
pub enum Notice {
    /// Something for the record.
    Event(Event),
    /// Work done and to do: of the choice of widths first, where there is one, then of all the rest.
    Progress {
        /// In steps of a block or what takes as long; in blocks, where nothing is learned.
        done: usize,
        /// Of all.
        total: usize,
    },
}

/// What a run made.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// Every block, in order, those of resumed runs included.
    pub blocks: Vec<BlockRecord>,
    /// Mean divergence of each epoch of tuning, in nats.
    pub tuning: Vec<f64>,
    /// Blocks that an earlier run had finished.
    pub resumed_blocks: usize,
    /// Whether an earlier run had finished everything, and nothing was left to do.
    pub was_complete: bool,
}

/// Refuses a recipe that asks for what the model cannot have; reads no weights.
pub fn check(model: &Model, recipe: &Recipe) -> Result<(), CalibError> {
    model.check_quantizable(recipe.scheme.weight)?;
    check_sites(model.decoder(), recipe)
}

/// Quantizes `model` by `recipe` into a packed directory.
///
/// `segments` are token ids of equal length to learn from, [`Recipe::segments`] of them: those of the blocks, then those of each pass of
/// tuning; a recipe that reads no text ignores them. `on` hears of progress and can ask the run to stop, which it does within a
/// step; what is finished stays for [`Options::resume`].
pub fn quantize(
    model: &Model,
    recipe: &Recipe,
    segments: &[Vec<u32>],
    options: &Options,
    on: &mut dyn FnMut(Notice) -> ControlFlow<()>,
) -> Result<Outcome, CalibError> {
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
    let surroundings = Some(Surroundings::here(model, tokens, options.device, options.compute));
    let header = Header { identity, surroundings };
    let (sources, identity) = (Sources::new(model), &header.identity);
    let mut journal = Journal::open(&options.out, &header, options.resume)?;
    check_sources(&sources, &journal, (&options.out, model))?;
    let mut stages = Stages::create(&options.out, model, recipe)?;
    let was_complete = stages.are_complete(&journal)?;
    if !was_complete {
        if let Some(differences) = journal.moved() {
            tracing::warn!(%differences, "the run goes on elsewhere: what it ends in is as good, but not the same bytes");
        }
        stages.reopen()?;
        stages.forget_broken(&mut journal)?;
        if let Some(budget) = &recipe.bits {
            let sources = &sources;
            let subject = bits::Subject { model, recipe, budget, segments, options, identity, sources };
            stages.set_widths(&subject.widths(&mut journal, on)?);
        }
        stages.forget_tuning(&journal)?;
    }
    let resumed_blocks = journal.finished().len().min(n_blocks);
    if !was_complete {
        let work = Work::of(recipe, n_blocks, resumed_blocks);
        let (stages, sources) = (&stages, &sources);
        let mut run = Run { model, sources, recipe, options, stages, on, n_blocks, work };
        if journal.finished().len() < stages.n_shards() {
            run.all_blocks(&mut journal, segments)?;
        }
        stages.output.finish()?;
        warn_of_f16(&journal, n_blocks);
    }
    stages.clean_up();
    let (learned, tuned) = journal.finished().split_at(n_blocks);
    Ok(Outcome {
        blocks: learned.iter().map(|block| block.record.clone()).collect(),
        tuning: tuned.first().map_or_else(Vec::new, |block| block.record.losses.clone()),
        resumed_blocks,
        was_complete,
    })
}

/// Refuses blocks that were made from other weights than the model has now, before anything is written. All bytes of these are read for
/// it: replaying the blocks takes far longer, and a finished run, which replays none, may have been made from a file that was broken.
fn check_sources(sources: &Sources<'_>, journal: &Journal, (out, model): (&Path, &Model)) -> Result<(), CalibError> {
    let n_blocks = model.decoder().dims().n_layers;
    for finished in journal.finished() {
        let block = finished.record.index % n_blocks;
        if let Some(source) = &finished.source
            && source != sources.of(block)?
        {
            let (dir, block, model) = (out.to_owned(), Nth::new(block, n_blocks), model.dir().to_owned());
            return Err(JournalError::OtherSource { dir, block, model }.into());
        }
    }
    Ok(())
}

/// Says that loaders must not take the type that the packed model's `config.json` names, where they would overflow.
fn warn_of_f16(journal: &Journal, n_blocks: usize) {
    let blocks = journal.finished().iter().filter_map(|block| Some((block.record.index, block.record.beyond_f16?)));
    if let Some((block, value)) = blocks.max_by(|(_, a), (_, b)| a.total_cmp(b)) {
        tracing::warn!(
            "block {}: activations as large as {value:.3e} on the calibration text, and float16, the type in config.json, ends at \
             {F16_MAX}: load the model in bfloat16 or float32 (dtype in transformers and vLLM)",
            Nth::new(block, n_blocks)
        );
    }
}

/// The model with the matrices that the recipe puts into it.
fn rotated(model: &Model, recipe: &Recipe) -> Result<Option<Model>, ModelError> {
    let Rotate { kind, seed } = recipe.rotate;
    let rotated = || model.reopened()?.rotated(kind, seed);
    (kind != RotateKind::None).then(rotated).transpose()
}

struct Run<'a> {
    model: &'a Model,
    sources: &'a Sources<'a>,
    recipe: &'a Recipe,
    options: &'a Options,
    stages: &'a Stages<'a>,
    on: &'a mut dyn FnMut(Notice) -> ControlFlow<()>,
    n_blocks: usize,
    work: Work,
}

impl Run<'_> {
    fn all_blocks(&mut self, journal: &mut Journal, segments: &[Vec<u32>]) -> Result<(), CalibError> {
        let _no_grad = tch::no_grad_guard();
        let t = segments.first().map_or(0, Vec::len);
        let ctx = self.model.decoder().context(t, self.options.device);
        let (own, of_tuning) = segments.split_at(segments.len().min(self.recipe.calibration.samples));
        if self.work.resumed_blocks < self.n_blocks {
            let per_segment = t * self.model.decoder().dims().hidden;
            let cache = self.cache(self.recipe.calibration.batch * per_segment, own.len() * per_segment);
            let mut states = self.first_states(&cache, own)?;
            for block_idx in 0..self.n_blocks {
                let taken = self.take_block(block_idx, &ctx, &mut states, journal);
                taken.map_err(|error| error.in_block(Nth::new(block_idx, self.n_blocks)))?;
                self.progress(block_idx + 1)?;
            }
        }
        match self.stages.untuned() {
            Some(blocks) => self.tune(blocks, &ctx, of_tuning, journal),
            None => Ok(()),
        }
    }

    /// Takes the states through a block, and makes it where no earlier run did.
    fn take_block(
        &mut self,
        block_idx: usize,
        ctx: &Context,
        states: &mut States<'_>,
        journal: &mut Journal,
    ) -> Result<(), CalibError> {
        if block_idx < self.work.resumed_blocks {
            return self.replay_block(block_idx, ctx, states);
        }
        let finished = self.one_block(block_idx, ctx, states)?;
        journal.finish(finished.clone())?;
        self.tell(Event::BlockFinished(finished.record), block_idx + 1)
    }

    fn one_block(&mut self, block_idx: usize, ctx: &Context, states: &mut States<'_>) -> Result<Finished, CalibError> {
        let started = Instant::now();
        self.tell(Event::BlockStarted { block: block_idx }, block_idx)?;
        let decoder = self.model.decoder();
        // Before what it takes is added to what the block before has left.
        trim_memory();
        // Read from the disk once: what comes next is in the system's cache.
        let source = Some(self.sources.of(block_idx)?.to_owned());
        let mut weights = self.load_block(block_idx)?;
        let linears: Vec<LinearName> = decoder.layer(block_idx).linears.iter().map(|linear| linear.name).collect();
        let transform = Transform::new(sites_of(decoder, self.recipe, block_idx)?, self.options.device);
        let Passed { second, inputs, mut beyond_f16 } =
            self.pass_in_full(block_idx, &weights, (&linears, transform.sites()), ctx, states)?;
        let seen = Seen { weights: &weights, inputs: &inputs };
        let Transformation { shift, alpha, .. } = self.recipe.transform;
        let start = Values::smooth(transform.sites(), shift, alpha, &seen, self.options.device);

        let (mut merged, descent) = if self.recipe.method.learns() {
            let targets = [Some(&states.full), second.as_ref()].into_iter().flatten().collect();
            let task = Task {
                decoder,
                layer: block_idx,
                ctx,
                weights: &weights,
                linears: &linears,
                specs: &|name| self.stages.output.widths().of(block_idx, name),
                transform: &transform,
                start: &start,
                seen: &inputs,
                recipe: self.recipe,
                place: Place { device: self.options.device, compute: self.options.compute },
                inputs: &states.quantized,
                targets,
            };
            let learned = learn_block(&task, &mut |beat| self.on_beat(block_idx, beat));
            learned.map_err(|error| self.learn_error(block_idx, error))?
        } else {
            let widths = self.stages.output.widths();
            let round = |name, weight: &Tensor| round_to_nearest(weight, widths.of(block_idx, name));
            let merged = merge(&weights, &transform, &start, linears, round);
            (
                merged.map_err(|(name, error)| CalibError::of_linear(self.model, block_idx, name, error))?,
                Descent::default(),
            )
        };
        if self.model.is_rotated() {
            merged.keep_params(&weights, self.stages.learned().params(block_idx));
        }
        let mut final_loss = None;
        if self.recipe.method.learns() {
            merged.put_into(&mut weights);
            let cast = self.cast(block_idx, &weights);
            let ops = self.quantized(&cast);
            let peak = Peak::default();
            // What was learned is not thrown away for the sake of a pass.
            forward_all((decoder, block_idx), &peak.watch(&ops), ctx, &mut states.quantized, &mut || Ok(()))?;
            // In plain squares whatever was minimized, so that runs can be compared.
            let (mut sum, mut segments) = (0.0, 0.0);
            for (a, b) in states.quantized.iter().zip(states.full.iter()) {
                // The last batch may be a small one.
                peak.see(&a);
                let in_batch = a.size()[0] as f64;
                sum += in_batch * error(Loss::Mse, &a, &b).double_value(&[]);
                segments += in_batch;
            }
            final_loss = Some(sum / segments);
            beyond_f16 = peak.beyond_f16();
        }
        let (shard, sha256) = self.stages.learned().write_block(block_idx, &merged)?;
        let record = BlockRecord {
            index: block_idx,
            losses: descent.losses,
            final_loss,
            wall_secs: started.elapsed().as_secs_f64(),
            retries: descent.retries as usize,
            beyond_f16,
        };
        Ok(Finished { shard, sha256, source, surroundings: None, record })
    }

    fn on_beat(&mut self, block: usize, beat: Beat) -> ControlFlow<()> {
        let done = |epoch: usize, steps: usize| self.work.in_block(block, epoch, steps);
        match beat {
            Beat::Step { epoch, batch } => {
                let (done, total) = (done(epoch.index, batch.index + 1), self.work.total());
                (self.on)(Notice::Progress { done, total })
            }
            Beat::Epoch { epoch, loss, lr } => {
                let secs_left = self.work.secs_left(done(epoch.index + 1, 0));
                (self.on)(Notice::Event(Event::Epoch { block, epoch: epoch.index, loss, lr, secs_left }))
            }
            Beat::Retry { epoch, batch, lr } => {
                let shown = Nth::new(block, self.n_blocks);
                tracing::warn!(block = %shown, %epoch, %batch, lr, "the loss is not finite: the block starts again");
                (self.on)(Notice::Event(Event::Retry { block, epoch: epoch.index, batch: batch.index, lr }))
            }
        }
    }

    /// An error if it is asked to stop. `blocks`: finished ones.
    fn progress(&mut self, blocks: usize) -> Result<(), CalibError> {
        let (done, total) = (self.work.in_block(blocks, 0, 0), self.work.total());
        let flow = (self.on)(Notice::Progress { done, total });
        self.check(flow, blocks)
    }

    fn tell(&mut self, event: Event, block: usize) -> Result<(), CalibError> {
        let flow = (self.on)(Notice::Event(event));
        self.check(flow, block)
    }

    /// `block`: the first one that this run has not been through.
    fn check(&self, flow: ControlFlow<()>, block: usize) -> Result<(), CalibError> {
        let block = block.max(self.work.resumed_blocks);
        match flow {
            ControlFlow::Break(()) if block < self.n_blocks => Err(self.stopped(block)),
            _ => Ok(()),
        }
    }

    fn stopped(&self, block: usize) -> CalibError {
        CalibError::Stopped { block: Nth::new(block, self.n_blocks), out: self.options.out.clone() }
    }

    fn learn_error(&self, block: usize, error: LearnError) -> CalibError {
        match error {
            LearnError::Stopped => self.stopped(block),
            LearnError::Diverged { epoch, batch, attempts, lr } => {
                CalibError::Diverged { block: Nth::new(block, self.n_blocks), epoch, batch, attempts, lr }
            }
            LearnError::Linear { linear, source } => CalibError::of_linear(self.model, block, linear, source),
        }
    }
}

/// Codes of a weight `[out, in]` on the MinMax grids of its groups.
fn round_to_nearest(weight: &Tensor, spec: WeightSpec) -> Result<QuantizedTensor, TensorError> {
    let (rows, cols) = weight.size2().expect("a weight is [out, in]");
    let flat = Vec::<f32>::try_from(weight.contiguous().view(-1)).expect("blocks are loaded in f32");
    QuantizedTensor::quantize(&flat, rows as usize, cols as usize, spec)
}

/// `[b, t]` of equally long segments.
pub(crate) fn ids_of(segments: &[Vec<u32>]) -> Tensor {
    let flat: Vec<i64> = segments.iter().flatten().map(|&id| i64::from(id)).collect();
    Tensor::from_slice(&flat).view([segments.len() as i64, -1])
}

/// Refuses NaN and infinity outside the blocks, which are copied without being computed with.
fn check_outer(model: &Model) -> Result<(), CalibError> {
    let params = model.decoder().outer_params();
    Ok(params.iter().try_for_each(|param| model.checkpoint().check_finite(model.stored_name(param.name)))?)
}
