//! A run over all blocks.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Instant;

use oq_formats::{Checkpoint, OutTensor, PackedWriter, packed_linear, packed_tensors, sha256_file};
use oq_models::{BlockWeights, Context, Decoder, DenseOps, LinearName, Model};
use oq_quant_core::QuantizedTensor;
use oq_recipe::{BlockRecord, Event, Method, Recipe};
use sha2::{Digest, Sha256};
use tch::{Device, Tensor};

use crate::error::CalibError;
use crate::journal::{Finished, Identity, Journal};
use crate::learn::{Beat, Descent, LearnError, Task, learn_block, squared_error};

/// Where and how a run computes.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where blocks are learned.
    pub device: Device,
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
    /// Steps done and to do, over the whole run.
    Progress {
        /// Optimizer steps done (blocks, where nothing is learned).
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
    /// Blocks that an earlier run had finished.
    pub resumed_blocks: usize,
    /// Whether an earlier run had finished everything, and nothing was left to do.
    pub was_complete: bool,
}

/// Quantizes `model` by `recipe` into a packed directory.
///
/// `segments` are token ids of equal length to learn from; a method that learns nothing ignores them. `on` hears of progress and
/// can ask the run to stop, which it does within a step; what is finished stays for [`Options::resume`].
pub fn quantize(
    model: &Model,
    recipe: &Recipe,
    segments: &[Vec<u32>],
    options: &Options,
    on: &mut dyn FnMut(Notice) -> ControlFlow<()>,
) -> Result<Outcome, CalibError> {
    model.check_quantizable(recipe.scheme.weight)?;
    if recipe.method == Method::Omniquant && segments.is_empty() {
        return Err(CalibError::NoSegments);
    }
    check_outer(model)?;
    let n_blocks = model.decoder().dims().n_layers;
    let identity = identity_of(model, recipe, segments);
    let mut journal = Journal::open(&options.out, &identity, options.resume)?;
    let writer = PackedWriter::create(&options.out, model.dir(), n_blocks)?;
    if let Some(bad) = journal.finished().iter().position(|block| !is_intact(&writer, block)) {
        tracing::warn!(block = bad, "a finished shard is not what the journal says: its block is made again");
        journal.truncate(bad)?;
    }
    let resumed_blocks = journal.finished().len();
    let was_complete = resumed_blocks == n_blocks && writer.is_finished() && is_rest_intact(model, &options.out);
    let blocks = |journal: &Journal| journal.finished().iter().map(|block| block.record.clone()).collect();
    if was_complete {
        return Ok(Outcome { blocks: blocks(&journal), resumed_blocks, was_complete });
    }
    let mut run = Run { model, recipe, options, writer, on, n_blocks, started: Instant::now(), resumed_blocks };
    match recipe.method {
        _ if resumed_blocks == n_blocks => {}
        Method::Omniquant => run.learn_all(&mut journal, segments)?,
        Method::Rtn => run.round_all(&mut journal)?,
    }
    run.finish()?;
    Ok(Outcome { blocks: blocks(&journal), resumed_blocks, was_complete })
}

/// Hidden states of the calibration segments between blocks, per batch `[b, t, hidden]`.
struct States {
    /// After the full-precision blocks.
    full: Vec<Tensor>,
    /// After the quantized blocks.
    quantized: Vec<Tensor>,
}

struct Run<'a> {
    model: &'a Model,
    recipe: &'a Recipe,
    options: &'a Options,
    writer: PackedWriter,
    on: &'a mut dyn FnMut(Notice) -> ControlFlow<()>,
    n_blocks: usize,
    started: Instant,
    resumed_blocks: usize,
}

impl Run<'_> {
    fn learn_all(&mut self, journal: &mut Journal, segments: &[Vec<u32>]) -> Result<(), CalibError> {
        let _no_grad = tch::no_grad_guard();
        let decoder = self.model.decoder();
        let device = self.options.device;
        let outer = self.model.outer(device);
        let mut full = Vec::new();
        for batch in segments.chunks(self.recipe.calibration.batch) {
            full.push(decoder.embed(&outer, &ids_of(batch))?);
        }
        let mut states = States { quantized: full.iter().map(Tensor::shallow_clone).collect(), full };
        let ctx = decoder.context(segments[0].len(), device);
        for block_idx in 0..self.n_blocks {
            let weights = self.model.load_block(block_idx, device)?;
            if block_idx < self.resumed_blocks {
                self.replay_block(block_idx, weights, &ctx, &mut states)?;
            } else {
                let finished = self.learn_one(block_idx, weights, &ctx, &mut states)?;
                self.finish_block(journal, finished)?;
            }
        }
        Ok(())
    }

    /// Takes the states through a block that an earlier run finished.
    fn replay_block(
        &mut self,
        block_idx: usize,
        mut weights: BlockWeights,
        ctx: &Context,
        states: &mut States,
    ) -> Result<(), CalibError> {
        let decoder = self.model.decoder();
        forward_all(decoder, &weights, ctx, &mut states.full);
        let shard = Checkpoint::open_file(&self.writer.block_path(block_idx))?;
        let prefix = decoder.block_prefix(block_idx);
        for linear in decoder.block_layout().linears {
            let name = format!("{prefix}{}", linear.name.0);
            let packed = packed_linear(&shard, &name, self.recipe.scheme.weight)?;
            set_quantized(&mut weights, linear.name, &packed);
        }
        forward_all(decoder, &weights, ctx, &mut states.quantized);
        self.progress((block_idx + 1) * self.steps_per_block(states.full.len()), block_idx, states.full.len())
    }

    fn learn_one(
        &mut self,
        block_idx: usize,
        mut weights: BlockWeights,
        ctx: &Context,
        states: &mut States,
    ) -> Result<Finished, CalibError> {
        let started = Instant::now();
        self.tell(Event::BlockStarted { block: block_idx }, block_idx)?;
        let decoder = self.model.decoder();
        let linears: Vec<LinearName> = decoder.block_layout().linears.iter().map(|linear| linear.name).collect();
        // With the second loss: what the full-precision block makes of the quantized blocks' output.
        let mut second = match self.recipe.learn.aug_loss {
            true => states.quantized.iter().map(Tensor::shallow_clone).collect(),
            false => Vec::new(),
        };
        forward_all(decoder, &weights, ctx, &mut second);
        forward_all(decoder, &weights, ctx, &mut states.full);
        if let Some(batch) = states.full.iter().position(|x| !is_finite(x)) {
            return Err(CalibError::Overflow { block: block_idx, batch });
        }
        let mut targets = vec![&states.full[..]];
        if self.recipe.learn.aug_loss {
            targets.push(&second);
        }
        let task = Task {
            decoder,
            ctx,
            weights: &weights,
            linears: &linears,
            spec: self.recipe.scheme.weight,
            learn: &self.recipe.learn,
            device: self.options.device,
            inputs: &states.quantized,
            targets,
        };
        let learned = learn_block(&task, &mut |beat| self.on_beat(block_idx, task.inputs.len(), beat));
        let learned = learned.map_err(|error| self.learn_error(block_idx, error))?;
        for (&name, packed) in &learned.codes {
            set_quantized(&mut weights, name, packed);
        }
        forward_all(decoder, &weights, ctx, &mut states.quantized);
        let losses = states.quantized.iter().zip(&states.full).map(|(a, b)| squared_error(a, b).double_value(&[]));
        let final_loss = losses.sum::<f64>() / states.full.len() as f64;
        self.write_block(block_idx, &learned.codes, learned.descent, Some(final_loss), started)
    }

    fn round_all(&mut self, journal: &mut Journal) -> Result<(), CalibError> {
        let decoder = self.model.decoder();
        for block_idx in self.resumed_blocks..self.n_blocks {
            let started = Instant::now();
            self.tell(Event::BlockStarted { block: block_idx }, block_idx)?;
            let weights = self.model.load_block(block_idx, Device::Cpu)?;
            let mut codes = BTreeMap::new();
            for linear in decoder.block_layout().linears {
                let weight =
                    Vec::<f32>::try_from(weights.weight(linear.name).view(-1)).expect("blocks are loaded in f32");
                let spec = self.recipe.scheme.weight;
                let packed = QuantizedTensor::quantize(&weight, linear.out_features, linear.in_features, spec);
                codes.insert(linear.name, packed.map_err(|e| self.linear_error(block_idx, linear.name, e))?);
            }
            let finished = self.write_block(block_idx, &codes, Descent::default(), None, started)?;
            self.finish_block(journal, finished)?;
            self.progress(block_idx + 1, block_idx, 0)?;
        }
        Ok(())
    }

    /// Writes a block's shard: packed linears, and the other tensors as they are in the checkpoint.
    fn write_block(
        &self,
        block_idx: usize,
        codes: &BTreeMap<LinearName, QuantizedTensor>,
        descent: Descent,
        final_loss: Option<f64>,
        started: Instant,
    ) -> Result<Finished, CalibError> {
        let checkpoint = self.model.checkpoint();
        let prefix = self.model.decoder().block_prefix(block_idx);
        let mut tensors = Vec::new();
        for (name, packed) in codes {
            tensors.extend(packed_tensors(&format!("{prefix}{}", name.0), packed));
        }
        let layout = self.model.decoder().block_layout();
        let biases = layout.linears.iter().filter(|linear| linear.bias).map(|linear| format!("{}.bias", linear.name.0));
        let params = layout.params.iter().map(|param| param.name.to_owned());
        for name in params.chain(biases) {
            tensors.push(OutTensor::copy_of(checkpoint.tensor(&format!("{prefix}{name}"))?));
        }
        self.writer.write_block(block_idx, &tensors)?;
        let path = self.writer.block_path(block_idx);
        Ok(Finished {
            shard: path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default(),
            sha256: sha256_file(&path)?,
            record: BlockRecord {
                index: block_idx,
                losses: descent.losses,
                final_loss,
                wall_secs: started.elapsed().as_secs_f64(),
                retries: descent.retries as usize,
            },
        })
    }

    fn finish_block(&mut self, journal: &mut Journal, finished: Finished) -> Result<(), CalibError> {
        let block_idx = finished.record.index;
        journal.finish(finished.clone())?;
        self.tell(Event::BlockFinished(finished.record), block_idx + 1)
    }

    /// Writes what lies outside the blocks, the index and the config.
    fn finish(&self) -> Result<(), CalibError> {
        let checkpoint = self.model.checkpoint();
        let params = self.model.decoder().outer_params();
        let mut tensors = Vec::new();
        for param in &params {
            tensors.push(OutTensor::copy_of(checkpoint.tensor(param.name)?));
        }
        self.writer.write_rest(&tensors)?;
        checkpoint.release();
        // Embeddings, projections, head: a head that shares the embedding's weights has no tensor of its own.
        let matrices = params.iter().filter(|param| param.shape.len() == 2);
        let mut ignore = vec!["lm_head"];
        ignore.extend(matrices.map(|param| param.name.trim_end_matches(".weight")).filter(|name| *name != "lm_head"));
        Ok(self.writer.finish(self.model.config(), self.recipe.scheme, &ignore)?)
    }

    fn on_beat(&mut self, block: usize, batches: usize, beat: Beat) -> ControlFlow<()> {
        let before = block * self.steps_per_block(batches);
        let done = |epoch: usize, steps: usize| before + epoch * batches + steps;
        let total = self.n_blocks * self.steps_per_block(batches);
        match beat {
            Beat::Step { epoch, batch } => (self.on)(Notice::Progress { done: done(epoch, batch + 1), total }),
            Beat::Epoch { epoch, loss, lr } => {
                let secs_left = self.secs_left(done(epoch + 1, 0), batches);
                (self.on)(Notice::Event(Event::Epoch { block, epoch, loss, lr, secs_left }))
            }
            Beat::Retry { epoch, batch, lr } => {
                tracing::warn!(block, epoch, batch, lr, "the loss is not finite: the block starts again");
                (self.on)(Notice::Event(Event::Retry { block, epoch, batch, lr }))
            }
        }
    }

    /// Seconds to the end at the pace of this run's own steps.
    fn secs_left(&self, done: usize, batches: usize) -> Option<f64> {
        let per_block = self.steps_per_block(batches);
        let own = done.checked_sub(self.resumed_blocks * per_block).filter(|&own| own > 0)?;
        let left = self.n_blocks * per_block - done;
        Some(self.started.elapsed().as_secs_f64() * left as f64 / own as f64)
    }

    fn steps_per_block(&self, batches: usize) -> usize {
        match self.recipe.method {
            Method::Omniquant => self.recipe.learn.epochs * batches,
            Method::Rtn => 1,
        }
    }

    fn progress(&mut self, done: usize, block: usize, batches: usize) -> Result<(), CalibError> {
        let total = self.n_blocks * self.steps_per_block(batches);
        let flow = (self.on)(Notice::Progress { done, total });
        self.check(flow, block + 1)
    }

    fn tell(&mut self, event: Event, block: usize) -> Result<(), CalibError> {
        let flow = (self.on)(Notice::Event(event));
        self.check(flow, block)
    }

    /// `block`: the first one that is not finished.
    fn check(&self, flow: ControlFlow<()>, block: usize) -> Result<(), CalibError> {
        match flow {
            ControlFlow::Break(()) if block < self.n_blocks => Err(self.stopped(block)),
            _ => Ok(()),
        }
    }

    fn stopped(&self, block: usize) -> CalibError {
        CalibError::Stopped { block, n_blocks: self.n_blocks, out: self.options.out.clone() }
    }

    fn learn_error(&self, block: usize, error: LearnError) -> CalibError {
        match error {
            LearnError::Stopped => self.stopped(block),
            LearnError::Diverged { epoch, batch, attempts, lr } => {
                CalibError::Diverged { block, epoch, batch, attempts, lr }
            }
            LearnError::Linear { linear, source } => self.linear_error(block, linear, source),
        }
    }

    fn linear_error(&self, block: usize, linear: LinearName, error: impl ToString) -> CalibError {
        let linear = format!("{}{}", self.model.decoder().block_prefix(block), linear.0);
        CalibError::Linear { linear, reason: error.to_string() }
    }
}

/// Takes all batches through a block, in place.
fn forward_all(decoder: &dyn Decoder, weights: &BlockWeights, ctx: &Context, states: &mut [Tensor]) {
    for x in states {
        *x = decoder.block(&DenseOps(weights), ctx, x);
    }
}

fn set_quantized(weights: &mut BlockWeights, linear: LinearName, packed: &QuantizedTensor) {
    let like = weights.weight(linear);
    let weight = Tensor::from_slice(&packed.dequantize()).view_as(like).to_device(like.device());
    weights.set_weight(linear, weight);
}

fn is_finite(x: &Tensor) -> bool {
    x.isfinite().all().int64_value(&[]) != 0
}

/// `[b, t]` of equally long segments.
fn ids_of(segments: &[Vec<u32>]) -> Tensor {
    let flat: Vec<i64> = segments.iter().flatten().map(|&id| i64::from(id)).collect();
    Tensor::from_slice(&flat).view([segments.len() as i64, -1])
}

fn is_intact(writer: &PackedWriter, block: &Finished) -> bool {
    sha256_file(&writer.block_path(block.record.index)).is_ok_and(|sha256| sha256 == block.sha256)
}

/// Whether a finished directory has its index, and what lies outside the blocks as it is in the model.
fn is_rest_intact(model: &Model, out: &Path) -> bool {
    let Ok(written) = Checkpoint::open(out) else { return false };
    let original = model.checkpoint();
    model.decoder().outer_params().iter().all(|param| {
        let tensors = (original.tensor(param.name), written.tensor(param.name));
        let is_same = matches!(tensors, (Ok(tensor), Ok(copy)) if tensor == copy);
        original.release();
        written.release();
        is_same
    })
}

/// Refuses NaN and infinity outside the blocks, which are copied without being computed with.
fn check_outer(model: &Model) -> Result<(), CalibError> {
    for param in model.decoder().outer_params() {
        model.checkpoint().tensor(param.name)?.check_finite()?;
        model.checkpoint().release();
    }
    Ok(())
}

/// What decides the bytes of the result.
fn identity_of(model: &Model, recipe: &Recipe, segments: &[Vec<u32>]) -> Identity {
    let mut of_model = Sha256::new();
    of_model.update(model.config().to_string());
    for tensor in model.checkpoint().tensors() {
        of_model.update(format!("{} {:?} {:?}\n", tensor.name, tensor.dtype, tensor.shape));
    }
    for shard in model.checkpoint().shards() {
        of_model.update(format!("{}\n", shard.bytes()));
    }
    let mut of_ids = Sha256::new();
    for id in segments.iter().flatten() {
        of_ids.update(id.to_le_bytes());
    }
    Identity {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        recipe: serde_json::to_string(recipe).expect("a recipe is plain data"),
        model: hex(&of_model.finalize()),
        calibration: hex(&of_ids.finalize()),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
