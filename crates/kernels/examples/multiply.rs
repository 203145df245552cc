//! Multiplies by a packed matrix, and says how far the result is from the product with its decoded weights, and how fast it was.

#![allow(clippy::print_stdout, reason = "an example prints what it found")]

use std::time::Instant;

use oq_kernels::{Kernel, PackedLinear};
use oq_quant_core::{QuantSpec, QuantizedTensor};
use oq_random::SplitMix64;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let (out_features, in_features) = (1024, 2048);
    let mut random = SplitMix64::new(1);
    let mut some = |n: usize, size: f64| (0..n).map(|_| (size * random.normal()) as f32).collect::<Vec<f32>>();
    let (weight, x) = (some(out_features * in_features, 0.02), some(64 * in_features, 1.0));

    println!("kernel: {}", Kernel::chosen()?.name);
    for scheme in ["w4a16g128", "w3a16g64", "w2a16g64"] {
        let spec: QuantSpec = scheme.parse()?;
        let packed = QuantizedTensor::quantize(&weight, out_features, in_features, spec.weight)?;
        let linear = PackedLinear::new(&packed, None)?; // rearranged once, multiplied by many times
        let decoded = packed.dequantize(); // [out, in]
        for rows in [1, 64] {
            let x = &x[..rows * in_features];
            let mut y = vec![0.0f32; rows * out_features];
            linear.forward(x, rows, &mut y)?;
            let start = Instant::now();
            linear.forward(x, rows, &mut y)?;
            let time = start.elapsed();
            let last = &x[x.len() - in_features..];
            let expected = decoded.chunks(in_features).map(|w| w.iter().zip(last).map(|(w, x)| w * x).sum::<f32>());
            let differences = y[y.len() - out_features..].iter().zip(expected).map(|(y, e)| (y - e).abs());
            let largest = differences.fold(0.0, f32::max);
            println!("{scheme:<10} {rows:>3} rows: off by {largest:.4} at most, {:.0} us", 1e6 * time.as_secs_f64());
        }
        println!("{scheme:<10} {} KiB, {} KiB as f32", linear.bytes() >> 10, (4 * weight.len()) >> 10);
    }
    Ok(())
}
