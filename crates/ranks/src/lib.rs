//! Processes that compute one thing together, each on its part of the data: their ranks, and sums of tensors over them.
//!
//! A sum is taken in the order of the ranks, each element by one of them, so that all ranks have the same bits and every run has them
//! again. Messages do not grow with the number of ranks. The engine is libtorch's own c10d, with Gloo, between CPUs: tensors of other devices
//! are copied to the host and back.
//!
//! What it is not: a way to start processes. torchrun, srun, mpirun or the caller does that, and [`Place::of_environment`] reads what they say.

#[cfg(not(has_gloo))]
#[path = "absent.rs"]
mod group;
#[cfg(has_gloo)]
mod group;

mod error;
mod message;
mod place;

use std::rc::Rc;
use std::time::{Duration, Instant};

use tch::{Device, Kind, Tensor};

use self::group::Group;
use self::message::{Form, Message, messages, restored};

pub use error::RanksError;
pub use place::Place;

/// How long a rank that failed, or that sees that another one has, waits for the others to say so too.
const FAREWELL: Duration = Duration::from_secs(5);

/// The processes of a job, of which this is one. All of them call the same functions in the same order, with tensors of the same
/// shapes and types. A clone is the same connection.
#[derive(Clone, Debug)]
pub struct Ranks {
    rank: usize,
    size: usize,
    group: Option<Rc<Group>>,
}

impl Ranks {
    /// A single process. All functions return at once.
    pub const fn alone() -> Self {
        Self { rank: 0, size: 1, group: None }
    }

    /// Meets the other ranks, which takes until all of them are there.
    ///
    /// # Errors
    /// If they are not within five minutes.
    pub fn join(place: &Place) -> Result<Self, RanksError> {
        Ok(Self { rank: place.rank, size: place.size, group: Some(Rc::new(Group::join(place)?)) })
    }

    /// This process's rank, from 0.
    pub const fn rank(&self) -> usize {
        self.rank
    }

    /// Number of ranks.
    pub const fn size(&self) -> usize {
        self.size
    }

    /// Whether this is rank 0, which alone writes and prints.
    pub const fn is_first(&self) -> bool {
        self.rank == 0
    }

    /// This rank's contiguous part of `items`; parts differ by one item at most, and the first are the longer ones.
    pub fn part<'a, T>(&self, items: &'a [T]) -> &'a [T] {
        let (each, more) = (items.len() / self.size, items.len() % self.size);
        let first = self.rank * each + self.rank.min(more);
        &items[first..][..each + usize::from(self.rank < more)]
    }

    /// The sums of tensors over all ranks, in the order of the ranks. Those in 16 bits are added in f32 and rounded once.
    ///
    /// # Errors
    /// If another rank failed or is gone.
    pub fn sum(&self, tensors: Vec<Tensor>) -> Result<Vec<Tensor>, RanksError> {
        self.folded(tensors, |mut sum, next| sum.g_add_(next))
    }

    /// The largest elements over all ranks.
    ///
    /// # Errors
    /// If another rank failed or is gone.
    pub fn max(&self, tensors: Vec<Tensor>) -> Result<Vec<Tensor>, RanksError> {
        self.folded(tensors, |largest, next| largest.maximum(next))
    }

    /// The sum of one number over all ranks.
    ///
    /// # Errors
    /// If another rank failed or is gone.
    pub fn total(&self, number: f64) -> Result<f64, RanksError> {
        if self.group.is_none() {
            return Ok(number);
        }
        Ok(self.sum(vec![Tensor::from_slice(&[number])])?[0].double_value(&[0]))
    }

    /// Whether it holds on any rank.
    ///
    /// # Errors
    /// If another rank failed or is gone.
    pub fn any(&self, holds: bool) -> Result<bool, RanksError> {
        Ok(self.total(f64::from(u8::from(holds)))? > 0.0)
    }

    /// Waits until all ranks are here.
    ///
    /// # Errors
    /// If another rank failed or is gone.
    pub fn barrier(&self) -> Result<(), RanksError> {
        self.total(0.0).map(drop)
    }

    /// Overwrites tensors with those of the rank `root`.
    ///
    /// # Errors
    /// If another rank failed or is gone.
    pub fn broadcast(&self, root: usize, tensors: &[&Tensor]) -> Result<(), RanksError> {
        let Some(group) = &self.group else { return Ok(()) };
        for tensor in tensors {
            let host = tensor.detach().to_device(Device::Cpu).contiguous();
            group.broadcast(&mut bytes_of(&host), root).map_err(|cause| self.why(cause))?;
            // In place, whatever the handle.
            if host.data_ptr() != tensor.data_ptr() {
                tensor.detach().copy_(&host);
            }
        }
        Ok(())
    }

    /// Says to the other ranks that this one ends with an error, and waits a moment until they know. All that is asked of them after this
    /// is an error.
    pub fn fail(&self, message: &str) {
        let Some(group) = &self.group else { return };
        let noted = group.set(&failed_key(self.rank), message);
        group.hang_up();
        if noted.is_ok() {
            // What cannot be asked any more has ended.
            let _ = self.others(group, |_| false);
        }
    }

    /// Folds tensors over the ranks, in their order.
    fn folded(
        &self,
        tensors: Vec<Tensor>,
        fold: impl Fn(Tensor, &Tensor) -> Tensor,
    ) -> Result<Vec<Tensor>, RanksError> {
        let Some(group) = &self.group else { return Ok(tensors) };
        let forms: Vec<Form> = tensors.iter().map(Form::of).collect();
        let folded = messages(tensors).map(|Message { flat, parts }| {
            let flat = self.fold_message(group, &flat, &fold).map_err(|cause| self.why(cause))?;
            Ok(Message { flat, parts })
        });
        Ok(restored(folded.collect::<Result<_, RanksError>>()?, &forms))
    }

    /// Each rank folds its share of the elements, and then all have all of them.
    fn fold_message(
        &self,
        group: &Group,
        flat: &Tensor,
        fold: impl Fn(Tensor, &Tensor) -> Tensor,
    ) -> Result<Tensor, String> {
        let (n, size) = (flat.size()[0], self.size as i64);
        let share = (n + size - 1) / size;
        let padded = flat.constant_pad_nd([0, share * size - n]);
        let came = padded.empty_like();
        group.exchange(&mut bytes_of(&came), &bytes_of(&padded))?;
        let wide = if matches!(flat.kind(), Kind::Half | Kind::BFloat16) { Kind::Float } else { flat.kind() };
        let mut of_ranks = came.split(share, 0).into_iter();
        let first = of_ranks.next().expect("there is a rank").to_kind(wide);
        let folded = of_ranks.fold(first, |folded, next| fold(folded, &next.to_kind(wide))).to_kind(flat.kind());
        // Every rank has its part of the padded message, which is not needed any more.
        group.gather(&mut bytes_of(&padded), &bytes_of(&folded.contiguous()))?;
        Ok(padded.narrow(0, 0, n))
    }

    /// Who is to blame for a message that did not come through. Those who still run say so, and the rest is gone.
    fn why(&self, cause: String) -> RanksError {
        let Some(group) = &self.group else { return RanksError::Exchange(cause) };
        let noted = group.set(&seen_key(self.rank), "");
        // Somebody may wait for this rank and not for the one to blame.
        group.hang_up();
        if noted.is_err() {
            return RanksError::Lost { ranks: vec![0], cause };
        }
        match self.others(group, |notes| notes.iter().any(|note| matches!(note, Note::Failed(_)))) {
            Err(_) => RanksError::Lost { ranks: vec![0], cause },
            Ok(notes) => {
                let failed = notes.iter().find_map(|(rank, note)| match note {
                    Note::Failed(message) => Some(RanksError::Failed { rank: *rank, message: message.clone() }),
                    _ => None,
                });
                let gone: Vec<usize> =
                    notes.iter().filter(|(_, note)| matches!(note, Note::Nothing)).map(|(rank, _)| *rank).collect();
                match failed {
                    Some(error) => error,
                    None if gone.is_empty() => RanksError::Exchange(cause),
                    None => RanksError::Lost { ranks: gone, cause },
                }
            }
        }
    }

    /// What the other ranks have to say, once all have said something or `is_enough` or time is up. An error means that the first rank is
    /// gone, which keeps the notes.
    fn others(&self, group: &Group, is_enough: impl Fn(&[Note]) -> bool) -> Result<Vec<(usize, Note)>, String> {
        let others: Vec<usize> = (0..self.size).filter(|&rank| rank != self.rank).collect();
        let started = Instant::now();
        loop {
            let notes = others.iter().map(|&rank| {
                Ok(match group.get(&failed_key(rank))? {
                    Some(message) => Note::Failed(message),
                    None if group.get(&seen_key(rank))?.is_some() => Note::Seen,
                    None => Note::Nothing,
                })
            });
            let notes = notes.collect::<Result<Vec<_>, String>>()?;
            let all_spoke = !notes.iter().any(|note| matches!(note, Note::Nothing));
            if all_spoke || is_enough(&notes) || started.elapsed() > FAREWELL {
                return Ok(others.into_iter().zip(notes).collect());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

/// What a rank says at the end of a job that failed.
enum Note {
    Nothing,
    /// It runs, and sees that something failed.
    Seen,
    /// It failed itself.
    Failed(String),
}

fn failed_key(rank: usize) -> String {
    format!("failed/{rank}")
}

fn seen_key(rank: usize) -> String {
    format!("seen/{rank}")
}

/// The bytes of a contiguous tensor, in the same memory. c10d takes these whatever the type is.
fn bytes_of(tensor: &Tensor) -> Tensor {
    tensor.view(-1).view_dtype(Kind::Uint8)
}

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
