//! One matrix by several schemes: how far the restored weights are off, and what the packed ones take.

#![allow(clippy::print_stdout, reason = "an example prints what it found")]

use oq_quant_core::{QuantSpec, QuantizedTensor};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let (rows, cols) = (64, 256);
    // A sum of two waves, [64, 256]; every seventh column is four times as large.
    let value = |i: usize| {
        let x = i as f32;
        ((0.37 * x).sin() + (0.011 * x).cos()) * if (i % cols).is_multiple_of(7) { 0.4 } else { 0.1 }
    };
    let weight: Vec<f32> = (0..rows * cols).map(value).collect();
    println!("{:<12} {:>10} {:>10}", "scheme", "rms error", "bytes");
    for scheme in ["w8a16", "w4a16", "w4a16g64", "w4a16g64sym", "w4a16g64full", "w3a16g64", "w2a16g32"] {
        let spec: QuantSpec = scheme.parse()?;
        let packed = QuantizedTensor::quantize(&weight, rows, cols, spec.weight)?;
        let squares = weight.iter().zip(packed.dequantize()).map(|(w, restored)| (w - restored).powi(2));
        let error = (squares.sum::<f32>() / weight.len() as f32).sqrt();
        // Codes in 32-bit words; a scale of f16 and a zero point of a byte for each group.
        let (scales, zero_points) = packed.half().ok_or("the schemes above have f16 scales")?;
        let bytes = 4 * packed.words().len() + 2 * scales.len() + zero_points.len();
        println!("{scheme:<12} {error:>10.5} {bytes:>10}");
    }
    Ok(())
}
