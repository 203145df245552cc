//! Tensors out of slices, without a copy that libtorch would make.

#![allow(clippy::print_stdout, reason = "an example prints what it found")]

use half::bf16;
use oq_slices::{filled, overlap, tensor};

fn main() {
    let numbers = [1.0, -2.5, 1e30, 0.0].map(bf16::from_f32);
    println!("{:?}", tensor(&numbers, &[2, 2]));

    // Two tensors of their own memory, written by a loop in Rust.
    let [squares, roots] = filled([&[5], &[5]], |[squares, roots]: [&mut [f32]; 2]| {
        for (i, (square, root)) in squares.iter_mut().zip(roots).enumerate() {
            (*square, *root) = ((i * i) as f32, (i as f32).sqrt());
        }
    });
    squares.print();
    roots.print();
    println!(
        "share memory: {}, a view of one: {}",
        overlap(&squares, &roots),
        overlap(&squares, &squares.narrow(0, 1, 2))
    );
}
