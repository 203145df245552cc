//! Times many rows times packed weights, with activations as the kernel takes them and in 8 bits, which take turns: GFLOP/s of the best
//! pass, on one thread.

#![allow(clippy::print_stdout, reason = "an example prints what it found")]

use std::time::Instant;

use half::bf16;
use oq_kernels::{Kernel, PackedLinear};
use oq_quant_core::{QuantSpec, QuantizedTensor};
use oq_random::SplitMix64;

const FEATURES: usize = 2048;
const ROWS: usize = 512;
const PASSES: usize = 40;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut random = SplitMix64::new(1);
    let mut some = |n: usize| (0..n).map(|_| random.normal() as f32).collect::<Vec<f32>>();
    let weight = some(FEATURES * FEATURES);
    let x: Vec<bf16> = some(ROWS * FEATURES).into_iter().map(bf16::from_f32).collect();
    let mut y = vec![bf16::ZERO; ROWS * FEATURES];
    let operations = (2 * FEATURES * FEATURES * ROWS) as f64;

    println!("kernel: {}", Kernel::chosen()?.name);
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build()?;
    for scheme in ["w4a16g32", "w4a16g64", "w4a16g128", "w3a16g64", "w2a16g64", "w8a16g64"] {
        let spec: QuantSpec = scheme.parse()?;
        let packed = QuantizedTensor::quantize(&weight, FEATURES, FEATURES, spec.weight)?;
        let linear = PackedLinear::new(&packed, None)?;
        let linears = [linear.clone(), linear.with_int8()?];
        let mut best = [0.0f64; 2];
        for _ in 0..PASSES {
            for (linear, best) in linears.iter().zip(&mut best) {
                let start = Instant::now();
                pool.install(|| linear.forward(&x, ROWS, &mut y))?;
                *best = best.max(operations / start.elapsed().as_secs_f64() / 1e9);
            }
        }
        println!("{scheme:<10} {:.0}, in 8 bits {:.0} GFLOP/s: {:.2} times", best[0], best[1], best[1] / best[0]);
    }
    Ok(())
}
