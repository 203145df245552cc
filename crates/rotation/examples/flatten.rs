//! One channel that is much larger than the others, before and after a rotation.

#![allow(clippy::print_stdout, reason = "an example prints what it found")]

use oq_rotation::{Orthogonal, Rotation};
use tch::Tensor;

fn main() {
    let mut channels = [1.0f32; 576];
    channels[7] = 100.0;
    let x = Tensor::from_slice(&channels).view([1, 576]);
    let rotated = Rotation::new(576, 0, false).apply(&x);
    for (what, x) in [("as it is", &x), ("rotated", &rotated)] {
        let largest = x.abs().max().double_value(&[]);
        println!("{what}: largest {largest:.2}, length {:.2}", x.norm().double_value(&[]));
    }
    let known = (1..=64).filter(|&n| Orthogonal::has_hadamard(n)).map(|n| n.to_string());
    println!("Hadamard matrices up to 64: {}", known.collect::<Vec<_>>().join(" "));
}
