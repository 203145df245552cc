//! Hidden states of the calibration segments between blocks: in memory, and beyond a budget in a file.
//!
//! They are f32 in both places. A narrower type would lose the small differences that learning depends on, because a few channels of
//! the residual stream are a thousand times larger than the others.

use std::io;
use std::ops::Range;
use std::path::PathBuf;

use oq_formats::Scratch;
use tch::{Device, Kind, Tensor};

const F32: usize = size_of::<f32>();
/// Why the file exists if a batch is in it.
const MADE: &str = "it is created with the first batch in it";

/// Hidden states that exceed the budget cannot be stored on disk.
#[derive(Debug, thiserror::Error)]
#[error(
    "{}: cannot store the hidden states that exceed --cache-memory, {bytes} bytes: {source}; free some space or raise \
     --cache-memory",
    dir.display()
)]
pub struct StatesError {
    /// Directory of the files.
    pub dir: PathBuf,
    /// Size of all these hidden states.
    pub bytes: u64,
    /// The cause.
    pub source: io::Error,
}

/// How the stores of a run hold their batches.
#[derive(Clone, Debug)]
pub(crate) struct Cache {
    /// Where blocks are computed.
    pub(crate) device: Device,
    /// Bytes of memory for all stores together; none means no limit.
    pub(crate) budget: Option<u64>,
    /// Elements of a batch; the last one may have fewer.
    pub(crate) batch: usize,
    /// Elements of this store.
    pub(crate) len: usize,
    /// Elements of all stores that exist at the same time, including this one.
    pub(crate) total: usize,
    /// Directory of the files.
    pub(crate) dir: PathBuf,
}

impl Cache {
    /// Bytes of a store that are held in memory: its share of the budget, by length.
    fn in_memory(&self) -> usize {
        let whole = self.len * F32;
        let portion = |budget: u64| u128::from(budget) * self.len as u128 / self.total.max(1) as u128;
        self.budget.map_or(whole, |budget| portion(budget).min(whole as u128) as usize)
    }

    /// Device of the batches in memory: that of the blocks if there is no budget, else the CPU.
    fn home(&self) -> Device {
        if self.budget.is_none() { self.device } else { Device::Cpu }
    }

    /// A copy of a batch in memory of its own, which can be overwritten.
    fn held(&self, x: &Tensor) -> Tensor {
        let mut held = Tensor::empty(x.size(), (Kind::Float, self.home()));
        held.copy_(x);
        held
    }

    fn error(&self, source: io::Error) -> StatesError {
        StatesError {
            dir: self.dir.clone(),
            bytes: ((self.total * F32) as u64).saturating_sub(self.budget.unwrap_or(u64::MAX)),
            source,
        }
    }
}

/// A sequence of batches `[b, t, hidden]`.
#[derive(Debug)]
pub(crate) struct Store<'a> {
    cache: &'a Cache,
    batches: Vec<Batch>,
    /// Bytes of the batches that are in memory.
    in_memory: usize,
    file: Option<Scratch>,
}

/// A batch in memory, or in its slot of the file, which may be larger.
#[derive(Debug)]
enum Batch {
    Memory(Tensor),
    File { shape: Vec<i64>, part: Range<usize> },
}

impl<'a> Store<'a> {
    /// A store without batches.
    pub(crate) fn new(cache: &'a Cache) -> Self {
        Self { cache, batches: Vec::new(), in_memory: 0, file: None }
    }

    /// Number of batches.
    pub(crate) fn len(&self) -> usize {
        self.batches.len()
    }

    /// Whether there are no batches.
    pub(crate) fn is_empty(&self) -> bool {
        self.batches.is_empty()
    }

    /// A batch, on the device of the blocks. It must not be changed in place.
    pub(crate) fn get(&self, index: usize) -> Tensor {
        let tensor = match &self.batches[index] {
            Batch::Memory(tensor) => tensor.shallow_clone(),
            Batch::File { shape, part } => {
                let file = self.file.as_ref().expect(MADE);
                let len = shape.iter().product::<i64>() as usize * F32;
                file.read(part.start..part.start + len, |bytes| Tensor::from_data_size(bytes, shape, Kind::Float))
            }
        };
        tensor.to_device(self.cache.device)
    }

    /// All batches in order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = Tensor> {
        (0..self.len()).map(|index| self.get(index))
    }

    /// Replaces a batch.
    pub(crate) fn set(&mut self, index: usize, x: &Tensor) -> Result<(), StatesError> {
        match &mut self.batches[index] {
            // In place: allocating and freeing between long-lived tensors would fragment memory.
            Batch::Memory(tensor) if tensor.size() == x.size() => tensor.copy_(x),
            Batch::Memory(tensor) => *tensor = self.cache.held(x),
            Batch::File { shape, part } => {
                let (file, bytes) = (self.file.as_mut().expect(MADE), bytes_of(x));
                assert!(bytes.len() <= part.len(), "{} bytes in the place of {}", bytes.len(), part.len());
                *shape = x.size();
                file.write(part.start, &bytes).map_err(|source| self.cache.error(source))?;
            }
        }
        Ok(())
    }

    /// Replaces the batch at `index`, or appends one at the end.
    pub(crate) fn put(&mut self, index: usize, x: &Tensor) -> Result<(), StatesError> {
        if index < self.len() { self.set(index, x) } else { self.push(x) }
    }

    /// Appends a batch. It reserves room for a whole one, if that much is left, so that a longer batch can replace it.
    pub(crate) fn push(&mut self, x: &Tensor) -> Result<(), StatesError> {
        let in_file = match self.batches.last() {
            Some(Batch::File { part, .. }) => part.end,
            _ => 0,
        };
        let left = (self.cache.len * F32).saturating_sub(self.in_memory + in_file);
        let bytes = (self.cache.batch * F32).min(left).max(x.numel() * F32);
        let start = match self.batches.last() {
            Some(Batch::File { .. }) => in_file,
            _ if self.in_memory + bytes <= self.cache.in_memory() => {
                self.in_memory += bytes;
                self.batches.push(Batch::Memory(self.cache.held(x)));
                return Ok(());
            }
            _ => {
                let rest = self.cache.len * F32 - self.in_memory;
                let file = Scratch::create(&self.cache.dir, rest as u64).map_err(|source| self.cache.error(source))?;
                self.file = Some(file);
                0
            }
        };
        self.batches.push(Batch::File { shape: x.size(), part: start..start + bytes });
        self.set(self.len() - 1, x)
    }

    /// A store without batches, with the same settings.
    pub(crate) fn empty(&self) -> Self {
        Self::new(self.cache)
    }

    /// A copy of all batches in a new store.
    pub(crate) fn copy(&self) -> Result<Self, StatesError> {
        let mut copy = self.empty();
        self.iter().try_for_each(|x| copy.push(&x))?;
        Ok(copy)
    }
}

/// The bytes of a tensor's elements.
fn bytes_of(x: &Tensor) -> Vec<u8> {
    let mut bytes = vec![0; x.numel() * F32];
    x.to_kind(Kind::Float).to_device(Device::Cpu).contiguous().copy_data_u8(&mut bytes, x.numel());
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;
    use proptest::sample::Index;

    const SHAPE: [i64; 3] = [2, 3, 5];
    const BATCH: usize = 30;

    fn values(x: &Tensor) -> Vec<f32> {
        Vec::try_from(x.contiguous().view(-1)).unwrap()
    }

    fn batch(seed: f32) -> Vec<f32> {
        (0..BATCH).map(|i| seed * 1e3 + i as f32 / 7.0).collect()
    }

    proptest! {
        /// Compared with a list of lists; with all, some or none of the batches in memory.
        #[test]
        fn returns_what_was_set_last(
            n in 0..6usize,
            short in any::<bool>(),
            budget in prop_oneof![Just(None), (0..2000u64).prop_map(Some)],
            changes in vec((any::<Index>(), -9f32..9.0), 0..20),
        ) {
            let dir = tempfile::tempdir().unwrap();
            // The last batch may be a partial one.
            let shape = |i: usize| if short && i + 1 == n { [1, 3, 5] } else { SHAPE };
            let len_of = |i: usize| shape(i).iter().product::<i64>() as usize;
            let len = (0..n).map(len_of).sum();
            let cache = Cache { device: Device::Cpu, budget, batch: BATCH, len, total: 2 * len, dir: dir.path().to_owned() };
            let tensor = |values: &[f32], i: usize| Tensor::from_slice(&values[..len_of(i)]).view(shape(i));
            let mut expected: Vec<Vec<f32>> = (0..n).map(|i| batch(i as f32)).collect();
            let mut store = Store::new(&cache);
            for (i, values) in expected.iter().enumerate() {
                store.push(&tensor(values, i)).unwrap();
            }
            let copy = store.copy().unwrap();
            for (index, seed) in changes.into_iter().filter(|_| n > 0) {
                let i = index.index(n);
                expected[i] = batch(seed);
                // Not contiguous, as outputs of blocks may be.
                let x = tensor(&expected[i], i).transpose(0, 2).contiguous().transpose(0, 2);
                store.set(i, &x).unwrap();
                prop_assert_eq!(values(&store.get(i)), &expected[i][..len_of(i)]);
            }
            prop_assert_eq!((store.len(), copy.len()), (n, n));
            for (i, (x, y)) in store.iter().zip(copy.iter()).enumerate() {
                prop_assert_eq!(values(&x), &expected[i][..len_of(i)]);
                prop_assert_eq!(x.size(), shape(i));
                prop_assert_eq!(values(&y), &batch(i as f32)[..len_of(i)]);
            }
            let in_memory = store.batches.iter().filter(|batch| matches!(batch, Batch::Memory(_))).count();
            prop_assert!(budget.is_none_or(|budget| 2 * in_memory * BATCH * F32 <= budget as usize + BATCH * F32));
            prop_assert!(budget.is_some() || in_memory == n);
            prop_assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        }
    }

    #[test]
    fn a_shorter_batch_can_replace_a_longer_one() {
        let dir = tempfile::tempdir().unwrap();
        for budget in [None, Some(0)] {
            let dir = dir.path().to_owned();
            let cache = Cache { device: Device::Cpu, budget, batch: BATCH, len: 2 * BATCH, total: 2 * BATCH, dir };
            let mut store = Store::new(&cache);
            let [first, second, third] = [0.0, 1.0, 2.0].map(|seed| Tensor::from_slice(&batch(seed)).view(SHAPE));
            let short = third.narrow(0, 0, 1);
            for (index, x) in [(0, &first), (1, &second), (0, &short), (0, &third), (0, &short)] {
                store.put(index, x).unwrap();
                assert_eq!(store.get(index), *x);
            }
            assert_eq!(store.get(1), second);
        }
    }

    #[test]
    fn a_longer_batch_can_replace_a_shorter_one() {
        let dir = tempfile::tempdir().unwrap();
        for budget in [None, Some(0), Some(4 * BATCH as u64)] {
            let dir = dir.path().to_owned();
            let cache = Cache { device: Device::Cpu, budget, batch: BATCH, len: 2 * BATCH, total: 2 * BATCH, dir };
            let mut store = Store::new(&cache);
            let [first, second] = [0.0, 1.0].map(|seed| Tensor::from_slice(&batch(seed)).view(SHAPE));
            let pairs = [[first.narrow(0, 0, 1), second.narrow(0, 0, 1)], [first, second]];
            for pair in &pairs {
                pair.iter().enumerate().for_each(|(index, x)| store.put(index, x).unwrap());
                assert!(store.iter().zip(pair).all(|(got, x)| got == *x) && store.len() == 2);
            }
            let in_memory = store.batches.iter().filter(|batch| matches!(batch, Batch::Memory(_))).count();
            assert_eq!(
                in_memory,
                match budget {
                    None => 2,
                    Some(0) => 0,
                    Some(_) => 1,
                }
            );
        }
    }

    #[test]
    fn a_budget_is_shared_by_length() {
        let cache =
            |budget, len, total| Cache { device: Device::Cpu, budget, batch: 10, len, total, dir: PathBuf::new() };
        let in_memory = |budget, len| cache(budget, len, 100).in_memory();
        assert_eq!([in_memory(None, 90), in_memory(Some(400), 90), in_memory(Some(u64::MAX), 90)], [360; 3]);
        assert_eq!([in_memory(Some(200), 90), in_memory(Some(200), 10), in_memory(Some(0), 90)], [180, 20, 0]);
    }

    #[test]
    fn a_directory_that_cannot_be_written_is_named() {
        let dir = tempfile::tempdir().unwrap().path().join("gone");
        let cache = Cache { device: Device::Cpu, budget: Some(0), batch: BATCH, len: BATCH, total: BATCH, dir };
        let error = Store::new(&cache).push(&Tensor::from_slice(&batch(0.0)).view(SHAPE)).unwrap_err().to_string();
        assert!(error.contains("gone") && error.contains("120 bytes"), "{error}");
    }
}
