//! Numbers of a seed: in order, one alone, and in a range. They are the same on every machine and in every version.

#![allow(clippy::print_stdout, reason = "an example prints what it found")]

use oq_random::SplitMix64;

fn main() {
    let mut random = SplitMix64::new(7);
    let in_order: Vec<u64> = (0..4).map(|_| random.bits()).collect();
    println!("the first four:          {in_order:x?}");
    println!("the fourth alone:        {:x}", SplitMix64::at(7, 3));

    let mut random = SplitMix64::new(7);
    let throws: Vec<u64> = (0..10).map(|_| 1 + random.below(6)).collect();
    println!("throws of a die:         {throws:?}");

    let mean = (0..100_000).map(|_| random.normal()).sum::<f64>() / 100_000.0;
    println!("mean of 100 000 normals: {mean:.4}");
}
