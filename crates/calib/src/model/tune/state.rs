//! The state of tuning, in a file beside the learned blocks.

use std::path::{Path, PathBuf};

use oq_formats::{Checkpoint, Dtype, FormatError, OutTensor, write_shard};
use oq_models::{LinearName, tensor_of};
use tch::Tensor;

use super::{Changes, Progress, Tuner};
use crate::block::learn::ATTEMPTS;
use crate::model::error::PassError;

/// A tensor of numbers: the learning rate; the steps, the segments and the sum of divergences of the current epoch; then the mean
/// divergence of each finished epoch.
const PROGRESS: &str = "progress";

/// Why tuning cannot resume from a file.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StateError {
    /// Its numbers do not fit this run.
    #[error("{}: {part} {fault}", path.display())]
    Unfit {
        /// The file.
        path: PathBuf,
        /// A tensor in it, or one of the numbers.
        part: String,
        /// The fault: what it is, and what it should be.
        fault: String,
    },
    /// It cannot be read.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// The learned blocks cannot be read.
    #[error(transparent)]
    Pass(#[from] PassError),
}

impl Tuner<'_> {
    /// Writes the state of tuning atomically.
    pub(crate) fn save(&self, path: &Path) -> Result<(), FormatError> {
        let Progress { steps, segments, sum } = self.epoch;
        let numbers = [&[self.lr, steps as f64, segments as f64, sum], &self.divergences[..]].concat();
        let shape = [numbers.len()];
        let numbers: Vec<u8> = numbers.into_iter().flat_map(f64::to_le_bytes).collect();
        let mut tensors = vec![OutTensor::new(PROGRESS, Dtype::F64, &shape, numbers)?];
        for (block, changes) in self.blocks.iter().enumerate() {
            for (name, [change, first, second]) in changes.parts() {
                for (part, tensor) in [("change", change), ("first", first), ("second", second)] {
                    let values = Vec::<f32>::try_from(tensor.contiguous().view(-1)).expect("f32");
                    let name = format!("{block}.{name}.{part}");
                    tensors.push(OutTensor::from_f32(name, &[values.len()], &values, Dtype::F32)?);
                }
            }
        }
        for (block, changes) in self.blocks.iter().enumerate() {
            for (linear, places) in changes.places.parts() {
                let bytes: Vec<u8> = places.iter().map(|place| place.cast_unsigned()).collect();
                tensors.push(OutTensor::new(places_of(block, linear), Dtype::U8, &[places.len()], bytes)?);
            }
        }
        write_shard(path, &tensors)
    }

    /// Restores the state written by [`Self::save`], if the file exists. After an error, tuning has to be restarted.
    pub(crate) fn restore(&mut self, path: &Path) -> Result<(), StateError> {
        if !path.is_file() {
            return Ok(());
        }
        let saved = Checkpoint::open_file(path)?;
        let unfit =
            |part: &str, fault: String| StateError::Unfit { path: path.to_owned(), part: part.to_owned(), fault };
        let (lr, epoch, divergences) = self.progress(&saved, unfit)?;
        self.start(lr)?;
        (self.epoch, self.divergences) = (epoch, divergences);
        let steps = self.divergences.len() * self.subject.batches + self.epoch.steps;
        for (block, changes) in self.blocks.iter_mut().enumerate() {
            for (name, parts) in changes.parts_mut() {
                for (part, tensor) in ["change", "first", "second"].into_iter().zip(parts) {
                    let name = format!("{block}.{name}.{part}");
                    let stored = saved.tensor(&name)?;
                    let wanted = [tensor.numel()];
                    if (stored.dtype, stored.shape) != (Dtype::F32, &wanted[..]) {
                        let fault = format!("is {:?} {:?}, not F32 {wanted:?}", stored.dtype, stored.shape);
                        return Err(unfit(&name, fault));
                    }
                    let values = tensor_of(&stored, tensor.device()).map_err(PassError::from)?;
                    tensor.copy_(&values.view_as(tensor));
                }
            }
            changes.optimizer.set_steps(steps);
            for (linear, places) in changes.places.parts_mut() {
                let name = places_of(block, linear);
                let stored = saved.tensor(&name)?;
                let wanted = [places.len()];
                if (stored.dtype, stored.shape) != (Dtype::U8, &wanted[..]) {
                    return Err(unfit(&name, format!("is {:?} {:?}, not U8 {wanted:?}", stored.dtype, stored.shape)));
                }
                places.iter_mut().zip(stored.bytes).for_each(|(place, byte)| *place = byte.cast_signed());
            }
        }
        self.schedule.skip(steps);
        Ok(())
    }

    /// The learning rate, the progress of the current epoch and the divergences of the finished ones, if this run can have produced
    /// them.
    fn progress(
        &self,
        saved: &Checkpoint,
        unfit: impl Fn(&str, String) -> StateError,
    ) -> Result<(f64, Progress, Vec<f64>), StateError> {
        let stored = saved.tensor(PROGRESS)?;
        let (numbers, rest) = stored.bytes.as_chunks::<8>();
        let numbers: Vec<f64> = numbers.iter().map(|bytes| f64::from_le_bytes(*bytes)).collect();
        let (Dtype::F64, [], Some((&[lr, steps, segments, sum], divergences))) =
            (stored.dtype, rest, numbers.split_first_chunk())
        else {
            return Err(unfit(
                PROGRESS,
                format!("is {:?} {:?}, not F64 of 4 numbers or more", stored.dtype, stored.shape),
            ));
        };
        let (batches, tune) = (self.subject.batches, self.subject.tune);
        // Each restart halves the learning rate, which is exact.
        if !(0..ATTEMPTS).any(|halved| lr == tune.lr / f64::from(1u32 << halved)) {
            return Err(unfit("the learning rate", format!("is {lr}, not {} or that repeatedly halved", tune.lr)));
        }
        let epochs = divergences.len();
        if epochs > tune.epochs {
            return Err(unfit("the number of epochs", format!("is {epochs}, not 0 to {}", tune.epochs)));
        }
        // After its last step, an epoch counts as finished.
        let most = if epochs < tune.epochs { batches.saturating_sub(1) } else { 0 };
        let is_count = |number: f64| number.fract() == 0.0 && number >= 0.0;
        if !(is_count(steps) && steps <= most as f64) {
            return Err(unfit("the number of steps", format!("is {steps}, not 0 to {most}")));
        }
        if !(is_count(segments) && segments >= steps && (steps > 0.0 || segments == 0.0)) {
            return Err(unfit("the number of segments", format!("is {segments} after {steps} steps")));
        }
        if let Some(number) = std::iter::once(&sum).chain(divergences).find(|number| !number.is_finite()) {
            return Err(unfit("a divergence", format!("is {number}")));
        }
        let epoch = Progress { steps: steps as usize, segments: segments as usize, sum };
        Ok((lr, epoch, divergences.to_vec()))
    }
}

/// The name of a linear's places in the file.
fn places_of(block: usize, linear: LinearName) -> String {
    format!("{block}.{}.places", linear.weight())
}

impl Changes {
    /// Each change with its moments.
    fn parts(&self) -> impl Iterator<Item = (&String, [&Tensor; 3])> {
        let moments = self.optimizer.moments();
        self.tensors.iter().zip(moments).map(|((name, change), [first, second])| (name, [change, first, second]))
    }

    fn parts_mut(&mut self) -> impl Iterator<Item = (&String, [&mut Tensor; 3])> {
        let moments = self.optimizer.moments_mut();
        self.tensors.iter_mut().zip(moments).map(|((name, change), [first, second])| (name, [change, first, second]))
    }
}
