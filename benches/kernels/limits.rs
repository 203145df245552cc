//! The machine's limits: reading memory, and multiplying.

#![allow(unsafe_code, reason = "reading fastest takes prefetches, which take pointers")]

use std::hint::black_box;

use rayon::prelude::*;
use tch::{Device, Kind, Tensor};

use crate::timing::{median, secs_of};

/// 64-bit numbers: 256 MiB, more than any last-level cache here.
const LEN: usize = 32 << 20;

/// Numbers per task, 1 MiB: small enough that one delayed thread does not delay the others.
const TASK: usize = 1 << 17;

/// A loop that reads all of the memory.
type Loop = fn(&[u64]) -> u64;

/// Reading loops, by how far ahead they prefetch and into which cache.
const LOOPS: [(&str, Loop); 6] = [
    ("plain", read::<0, 0>),
    ("4 KiB ahead into L1", read::<3, 4096>),
    ("8 KiB ahead into L1", read::<3, 8192>),
    ("4 KiB ahead into L2", read::<2, 4096>),
    ("8 KiB ahead into L2", read::<2, 8192>),
    ("4 KiB ahead past caches", read::<0, 4096>),
];

/// Memory bandwidth, measured by several loops.
pub struct Reads {
    memory: Vec<u64>,
    floats: Tensor,
    /// GB/s of every round, by loop; the last one is libtorch's.
    speeds: Vec<Vec<f64>>,
}

impl Reads {
    pub fn new() -> Self {
        Self {
            memory: (0..LEN as u64).collect(),
            floats: Tensor::ones([2 * LEN as i64], (Kind::Float, Device::Cpu)),
            speeds: vec![Vec::new(); LOOPS.len() + 1],
        }
    }

    pub fn measure(&mut self) {
        let gb = (8 * LEN) as f64 / 1e9;
        for ((_, read), speeds) in LOOPS.iter().zip(&mut self.speeds) {
            speeds.push(gb / secs_of(|| read(&self.memory)));
        }
        self.speeds[LOOPS.len()].push(gb / secs_of(|| self.floats.max()));
    }

    /// The rounds of the loop with the highest median.
    pub fn best(&self) -> &[f64] {
        let by_median = |a: &&Vec<f64>, b: &&Vec<f64>| median((*a).clone()).total_cmp(&median((*b).clone()));
        self.speeds.iter().max_by(by_median).expect("there are loops")
    }

    pub fn describe(&self) -> String {
        let names = LOOPS.iter().map(|(name, _)| *name).chain(["libtorch's maximum"]);
        let each = names.zip(&self.speeds).map(|(name, speeds)| format!("{name} {:.1}", median(speeds.clone())));
        format!("{} GB/s", each.collect::<Vec<_>>().join(", "))
    }
}

/// Reads all of `memory`, prefetching what lies `AHEAD` bytes ahead.
fn read<const HINT: i32, const AHEAD: usize>(memory: &[u64]) -> u64 {
    let part = |part: &[u64]| {
        // Four cache lines.
        let mut sum = [0u64; 32];
        for values in part.as_chunks::<32>().0 {
            for line in values.as_chunks::<8>().0 {
                prefetch::<HINT>(line, AHEAD);
            }
            sum.iter_mut().zip(values).for_each(|(sum, value)| *sum ^= value);
        }
        black_box(sum).into_iter().fold(0, |a, b| a ^ b)
    };
    memory.par_chunks(TASK).with_max_len(1).map(part).reduce(|| 0, |a, b| a ^ b)
}

#[inline(always)]
fn prefetch<const HINT: i32>(line: &[u64; 8], ahead: usize) {
    #[cfg(target_arch = "x86_64")]
    if ahead != 0 {
        // SAFETY: a prefetch has no effect that the program can observe, whatever the address.
        unsafe { std::arch::x86_64::_mm_prefetch::<HINT>(line.as_ptr().cast::<i8>().wrapping_add(ahead)) }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (line, ahead);
}

/// The faster of two square products, GFLOP/s.
pub fn square_gflops(kind: Kind) -> f64 {
    const N: i64 = 2048;
    let a = Tensor::randn([N, N], (Kind::Float, Device::Cpu)).to_kind(kind);
    let secs = (0..2).map(|_| secs_of(|| a.matmul(&a)));
    2.0 * (N as f64).powi(3) / secs.fold(f64::INFINITY, f64::min) / 1e9
}
