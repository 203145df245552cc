//! Learning one block (OmniQuant, eq. 1): clipping, transformation and rounding that minimize the distance between the outputs of the
//! full-precision block and of the fake-quantized block.

use std::ops::ControlFlow;

use oq_let::{Transform, Values};
use oq_lwc::LwcError;
use oq_models::{BlockOps, BlockWeights, Context, Decoder, LinearName};
use oq_quant_core::WeightSpec;
use oq_ranks::{Ranks, RanksError};
use oq_recipe::{Loss, Recipe, Rounding};
use oq_runtime::trim_memory;
use tch::{Kind, Tensor};

use crate::block::inputs::Inputs;
use crate::block::learned::Learned;
use crate::block::start::StartError;
use crate::block::student::{Rates, Student};
use crate::compute::Place;
use crate::disk::states::Store;
use crate::merged::Merged;
use crate::nth::Nth;
use crate::optim::AdamW;

/// Attempts at a block, each at half the learning rate of the one before, before the run fails.
pub(crate) const ATTEMPTS: u32 = 5;

/// What a block learns from.
pub(crate) struct Task<'a> {
    pub(crate) decoder: &'a dyn Decoder,
    pub(crate) layer: usize,
    pub(crate) ctx: &'a Context,
    pub(crate) weights: &'a BlockWeights,
    pub(crate) linears: &'a [LinearName],
    /// How each linear is quantized.
    pub(crate) specs: &'a dyn Fn(LinearName) -> WeightSpec,
    pub(crate) transform: &'a Transform,
    /// Linears that stay as they start.
    pub(crate) fixed: &'a [LinearName],
    /// Initial scales and shifts.
    pub(crate) start: &'a Values,
    /// Statistics of the linears' inputs, if clipping starts from them.
    pub(crate) seen: &'a Inputs,
    pub(crate) recipe: &'a Recipe,
    pub(crate) place: Place,
    /// Outputs of the quantized blocks before this one: `[b, t, hidden]` per batch.
    pub(crate) inputs: &'a Store<'a>,
    /// The block's outputs in full precision, for each reference input: that of the full-precision blocks before it and, with the
    /// second loss, also that of the quantized ones.
    pub(crate) targets: Vec<&'a Store<'a>>,
    /// The processes that learn the block together, each on its part of every batch.
    pub(crate) ranks: &'a Ranks,
    /// The share of each batch that this rank has.
    pub(crate) shares: Vec<f64>,
}

/// How learning went.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Descent {
    /// Mean loss of each epoch.
    pub(crate) losses: Vec<f64>,
    /// Attempts that ended in a loss that was not finite.
    pub(crate) retries: u32,
}

/// Progress of learning a block.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum LearnEvent {
    /// A step is done.
    Step { epoch: Nth, batch: Nth },
    /// An epoch is done.
    Epoch { epoch: Nth, loss: f64, lr: f64 },
    /// The loss was not finite; the block restarts at this learning rate.
    Retry { epoch: Nth, batch: Nth, lr: f64 },
}

/// Why a block was not learned.
#[derive(Debug)]
pub(crate) enum LearnError {
    /// The callback asked to stop.
    Stopped,
    /// The loss was not finite in any attempt.
    Diverged { epoch: Nth, batch: Nth, attempts: u32, lr: f64 },
    /// The quantizer refused a linear.
    Linear { linear: LinearName, source: LwcError },
    /// Another rank failed, or is gone.
    Ranks(RanksError),
}

/// Learns one block.
pub(crate) fn learn_block(
    task: &Task<'_>,
    watch: &mut dyn FnMut(LearnEvent) -> ControlFlow<()>,
) -> Result<(Merged, Descent, Learned), LearnError> {
    let learn = &task.recipe.learn;
    let plan = Plan { epochs: learn.epochs, batches: task.inputs.len(), lr: learn.lwc_lr };
    let start = |fraction| task.begin(fraction);
    let step = |(student, optimizer): &mut (Student<'_>, _), batch: usize| {
        student.step(optimizer, |ops| task.loss(ops, batch)).map_err(LearnError::Ranks)
    };
    let ((student, _), descent) = descend(plan, start, step, watch)?;
    // What steps leave, in pieces of other sizes than codes and the quantized weights need.
    trim_memory();
    let merged = student.merge().map_err(LearnError::of_linear)?;
    Ok((merged, descent, student.into_learned()))
}

impl LearnError {
    fn of_linear((linear, source): (LinearName, LwcError)) -> Self {
        Self::Linear { linear, source }
    }
}

impl From<StartError> for LearnError {
    fn from(error: StartError) -> Self {
        match error {
            StartError::Linear { linear, source } => Self::Linear { linear, source },
            StartError::Ranks(error) => Self::Ranks(error),
        }
    }
}

impl<'a> Task<'a> {
    /// The initial state, with all learning rates at a `fraction` of the recipe's.
    pub(crate) fn begin(&self, fraction: f64) -> Result<(Student<'a>, AdamW), LearnError> {
        let Recipe { scheme, learn, transform, .. } = self.recipe;
        let start = (self.transform, self.start.copy());
        let (specs, place) = ((self.specs, scheme.act), (self.place, self.ranks));
        let mut student = Student::new(self.weights, self.linears, specs, start, self.seen, place)?;
        student.fix(self.fixed);
        if learn.rounding == Rounding::Learned {
            student.round_within(learn.epochs * self.inputs.len(), fraction);
        }
        let optimizer = student.optimizer(Rates { clip: fraction * learn.lwc_lr, transform: fraction * transform.lr });
        Ok((student, optimizer))
    }

    /// This rank's part of the error of one batch, summed over the targets.
    pub(crate) fn loss(&self, ops: &dyn BlockOps, batch: usize) -> Tensor {
        let output = self.decoder.block(self.layer, ops, self.ctx, &self.inputs.get(batch));
        let own: Tensor =
            self.targets.iter().map(|target| error(self.recipe.learn.loss, &output, &target.get(batch))).sum();
        let share = self.shares[batch];
        if share < 1.0 { own * share } else { own }
    }
}

/// Error of `a` relative to its target `b`, both `[b, t, hidden]`, in f32: see [`Loss`].
pub(crate) fn error(loss: Loss, a: &Tensor, b: &Tensor) -> Tensor {
    let squares = (a - b).square();
    match loss {
        Loss::Mse => squares.mean(Kind::Float),
        Loss::Relative => {
            let sizes = b.square().mean_dim(-1, true, Kind::Float).clamp_min(f64::from(f32::MIN_POSITIVE)); // [b, t, 1]
            (squares / sizes).mean(Kind::Float)
        }
    }
}

/// Number of steps, and learning rate.
#[derive(Clone, Copy)]
struct Plan {
    epochs: usize,
    batches: usize,
    /// The learning rate that events report.
    lr: f64,
}

/// Runs epochs of steps from a fresh start. If a step's loss is not finite, it restarts at half of all rates; `start` gets the
/// remaining fraction of them.
fn descend<S>(
    plan: Plan,
    start: impl Fn(f64) -> Result<S, LearnError>,
    step: impl Fn(&mut S, usize) -> Result<f64, LearnError>,
    watch: &mut dyn FnMut(LearnEvent) -> ControlFlow<()>,
) -> Result<(S, Descent), LearnError> {
    let mut fraction = 1.0;
    let mut retries = 0;
    'attempt: loop {
        let lr = fraction * plan.lr;
        let mut state = start(fraction)?;
        let mut losses = Vec::with_capacity(plan.epochs);
        for epoch in 0..plan.epochs {
            let epoch = Nth::new(epoch, plan.epochs);
            let mut sum = 0.0;
            for batch in 0..plan.batches {
                let loss = step(&mut state, batch)?;
                let batch = Nth::new(batch, plan.batches);
                if !loss.is_finite() {
                    retries += 1;
                    if retries == ATTEMPTS {
                        return Err(LearnError::Diverged { epoch, batch, attempts: ATTEMPTS, lr });
                    }
                    fraction /= 2.0;
                    emit(watch, LearnEvent::Retry { epoch, batch, lr: fraction * plan.lr })?;
                    continue 'attempt;
                }
                sum += loss;
                emit(watch, LearnEvent::Step { epoch, batch })?;
            }
            let loss = sum / plan.batches as f64;
            losses.push(loss);
            emit(watch, LearnEvent::Epoch { epoch, loss, lr })?;
        }
        return Ok((state, Descent { losses, retries }));
    }
}

fn emit(watch: &mut dyn FnMut(LearnEvent) -> ControlFlow<()>, event: LearnEvent) -> Result<(), LearnError> {
    match watch(event) {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(()) => Err(LearnError::Stopped),
    }
}

#[cfg(test)]
mod tests {
    use oq_models::Compute;
    use oq_recipe::{Loss, Overrides};
    use tch::Device;

    use super::*;
    use crate::testing::fixture;
    use crate::{Options, quantize};

    #[test]
    fn relative_loss_divides_each_tokens_error_by_its_size() {
        let target = Tensor::from_slice(&[1.0f32, 1.0, 100.0, 100.0]).view([1, 2, 2]);
        let of = |loss, off: [f32; 4]| {
            error(loss, &(&target + Tensor::from_slice(&off).view([1, 2, 2])), &target).double_value(&[])
        };
        // An error of a tenth of each token, and of the small token alone.
        let (both, small) = ([0.1, 0.1, 10.0, 10.0], [0.1, 0.1, 0.0, 0.0]);
        let close = |got: f64, expected: f64| assert!((got / expected - 1.0).abs() < 1e-4, "{got} for {expected}");
        close(of(Loss::Relative, both), 0.01);
        close(of(Loss::Relative, small), 0.005);
        close(of(Loss::Mse, both), 50.005);
        close(of(Loss::Mse, small), 0.005);
        // A target of zero: any error is very large, but finite.
        let nothing = target.zeros_like();
        assert!(error(Loss::Relative, &(&nothing + 1e-30), &nothing).double_value(&[]).is_finite());
    }

    #[test]
    fn the_second_target_is_the_full_precision_block_on_the_quantized_input() {
        let model = fixture("tiny-llama");
        let losses = |aug_loss| {
            let out = tempfile::tempdir().unwrap();
            let overrides = Overrides::default().samples(1).seqlen(32).epochs(1).tune_epochs(0).aug_loss(aug_loss);
            let recipe = Recipe::resolve("w2a16g64".parse().unwrap(), None, None, &overrides).unwrap();
            let (device, compute) = (Device::Cpu, Compute::F32);
            let options = Options { device, compute, ..Options::new(out.path()) };
            let segments = [(0..32).map(|i| (i * i * 31 + 7) % 1024).collect()];
            let outcome = quantize(&model, &recipe, &segments, &options, &mut |_| ControlFlow::Continue(()));
            outcome.unwrap().blocks.into_iter().map(|block| block.losses[0]).collect::<Vec<_>>()
        };
        let (one, both) = (losses(false), losses(true));
        // The first block has the embeddings for both inputs. In later blocks the inputs differ, and the second error is smaller than
        // the first.
        assert_eq!(both[0], 2.0 * one[0]);
        assert!(both[1..].iter().zip(&one[1..]).all(|(both, one)| *both < 1.9 * one), "{both:?} for {one:?}");
    }

    const PLAN: Plan = Plan { epochs: 2, batches: 3, lr: 0.5 };

    /// A value that each step multiplies by `1 - lr`. At batch 1 it fails if `lr` exceeds `stable_lr`.
    fn run(stable_lr: f64) -> (Result<(f64, Descent), LearnError>, Vec<LearnEvent>) {
        let mut events = Vec::new();
        let start = |fraction| Ok((1.0, fraction * PLAN.lr));
        let step = |(value, lr): &mut (f64, f64), batch: usize| {
            if *lr > stable_lr && batch == 1 {
                return Ok(f64::NAN);
            }
            let loss = *value;
            *value *= 1.0 - *lr;
            Ok(loss)
        };
        let result = descend(PLAN, start, step, &mut |event| {
            events.push(event);
            ControlFlow::Continue(())
        });
        (result.map(|((value, _), descent)| (value, descent)), events)
    }

    #[test]
    fn a_stable_descent_makes_every_step() {
        let (result, events) = run(1.0);
        let (value, descent) = result.expect("it is stable");
        assert_eq!(value, 0.5f64.powi(6));
        assert_eq!(descent.retries, 0);
        assert_eq!(descent.losses, [(1.0 + 0.5 + 0.25) / 3.0, (0.125 + 0.0625 + 0.03125) / 3.0]);
        assert_eq!(events.len(), 6 + 2);
    }

    #[test]
    fn a_loss_that_is_not_finite_restarts_at_half_the_rate() {
        let (result, events) = run(0.2);
        let (value, descent) = result.expect("0.125 is stable");
        assert_eq!(value, (1.0f64 - 0.125).powi(6), "nothing of the failed attempts is left");
        assert_eq!(descent.retries, 2);
        let retries: Vec<f64> =
            events.iter().filter_map(|b| if let LearnEvent::Retry { lr, .. } = b { Some(*lr) } else { None }).collect();
        assert_eq!(retries, [0.25, 0.125]);
    }

    #[test]
    fn divergence_is_bounded_and_says_where() {
        let (result, _) = run(1e-9);
        match result {
            Err(LearnError::Diverged { epoch, batch, attempts: ATTEMPTS, lr }) => {
                assert_eq!([epoch, batch], [Nth::new(0, 2), Nth::new(1, 3)]);
                assert_eq!(lr, 0.5 / 2f64.powi(ATTEMPTS as i32 - 1));
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn stops_when_asked() {
        let start = |_| Ok(());
        let mut steps = 0;
        let result = descend(PLAN, start, |(), _| Ok(1.0), &mut |_| {
            steps += 1;
            if steps == 2 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        assert!(matches!(result, Err(LearnError::Stopped)));
    }
}
