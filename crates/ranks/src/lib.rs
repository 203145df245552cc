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

use std::ops::Range;
use std::rc::Rc;
use std::time::{Duration, Instant};

use tch::{Device, Kind, Tensor};

use self::group::Group;
use self::message::{Form, Message, messages, restored};

pub use error::RanksError;
pub use place::Place;

/// How long a rank that sees that another one has failed waits for the others to say so too, and the first for them to read it.
const FAREWELL: Duration = Duration::from_secs(5);
/// Time between looks at what they say.
const POLL: Duration = Duration::from_millis(20);

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
        let ranks = Self { rank: place.rank, size: place.size, group: Some(Rc::new(Group::join(place)?)) };
        // One that ended now would break the connections that others are still making.
        ranks.barrier()?;
        Ok(ranks)
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
        &items[self.range(items.len())]
    }

    /// Where [`Self::part`] of `n` items lies among them.
    pub fn range(&self, n: usize) -> Range<usize> {
        let (each, more) = (n / self.size, n % self.size);
        let first = self.rank * each + self.rank.min(more);
        first..first + each + usize::from(self.rank < more)
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

    /// The numbers of all ranks, those of the first one first.
    ///
    /// # Errors
    /// If another rank failed or is gone.
    pub fn gathered(&self, own: &[f64]) -> Result<Vec<f64>, RanksError> {
        if self.group.is_none() {
            return Ok(own.to_vec());
        }
        let mut lens = vec![0.0; self.size];
        lens[self.rank] = own.len() as f64;
        let lens = numbers(&self.sum(vec![Tensor::from_slice(&lens)])?[0]);
        let before: f64 = lens[..self.rank].iter().sum();
        let mut all = vec![0.0; lens.iter().sum::<f64>() as usize];
        all[before as usize..][..own.len()].copy_from_slice(own);
        // Each number is added to zeros.
        Ok(numbers(&self.sum(vec![Tensor::from_slice(&all)])?[0]))
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

    /// Says to the other ranks that this one ends with an error. All that is asked of them after this is an error.
    pub fn fail(&self, message: &str) {
        let Some(group) = &self.group else { return };
        // What cannot be told any more has ended.
        let _ = group.set(&failed_key(self.rank), message);
        group.hang_up();
        self.leave(group, (0..self.size).filter(|&rank| rank != self.rank).collect());
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
        // The first rank keeps the notes.
        let Ok(notes) = noted.and_then(|()| self.notes(group)) else {
            return RanksError::Lost { ranks: vec![0], cause };
        };
        let (mut failed, mut gone, mut there) = (None, Vec::new(), Vec::new());
        for (rank, note) in notes {
            match note {
                Note::Nothing => gone.push(rank),
                Note::Seen => there.push(rank),
                Note::Failed(message) => failed = failed.or(Some(RanksError::Failed { rank, message })),
            }
        }
        self.leave(group, there);
        match failed {
            Some(error) => error,
            None if gone.is_empty() => RanksError::Exchange(cause),
            None => RanksError::Lost { ranks: gone, cause },
        }
    }

    /// What the other ranks have to say, once one has failed, all have said something, or time is up.
    fn notes(&self, group: &Group) -> Result<Vec<(usize, Note)>, String> {
        let started = Instant::now();
        loop {
            let others = (0..self.size).filter(|&rank| rank != self.rank);
            let notes = others.map(|rank| {
                let note = match group.get(&failed_key(rank))? {
                    Some(message) => Note::Failed(message),
                    None if group.get(&seen_key(rank))?.is_some() => Note::Seen,
                    None => Note::Nothing,
                };
                Ok((rank, note))
            });
            let notes = notes.collect::<Result<Vec<_>, String>>()?;
            let is_known = notes.iter().any(|(_, note)| matches!(note, Note::Failed(_)))
                || !notes.iter().any(|(_, note)| matches!(note, Note::Nothing));
            if is_known || started.elapsed() > FAREWELL {
                return Ok(notes);
            }
            std::thread::sleep(POLL);
        }
    }

    /// Ends. The first rank, which keeps the notes, waits a moment until the others have read them.
    fn leave(&self, group: &Group, mut others: Vec<usize>) {
        let _ = group.set(&read_key(self.rank), "");
        let started = Instant::now();
        while self.is_first() && !others.is_empty() && started.elapsed() < FAREWELL {
            others.retain(|&rank| !matches!(group.get(&read_key(rank)), Ok(Some(_))));
            std::thread::sleep(POLL);
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

/// A rank has read the notes.
fn read_key(rank: usize) -> String {
    format!("read/{rank}")
}

fn seen_key(rank: usize) -> String {
    format!("seen/{rank}")
}

fn numbers(tensor: &Tensor) -> Vec<f64> {
    Vec::try_from(tensor).expect("a vector of f64")
}

/// The bytes of a contiguous tensor, in the same memory. c10d takes these whatever the type is.
fn bytes_of(tensor: &Tensor) -> Tensor {
    tensor.view(-1).view_dtype(Kind::Uint8)
}

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
