//! Tests: the fused loops against the composed operations, the closed form against autograd and differences, the final
//! codes against learning.

mod codes;
mod fused;
mod gradients;
mod search;

use tch::{Kind, Tensor};

/// Numbers of about unit size and both signs, none the same as another. Not from libtorch's generator, which all threads of
/// the tests share.
fn noise(seed: u64, size: [i64; 2], kind: Kind) -> Tensor {
    let mut state = seed;
    let mut uniform = || {
        // Weyl sequence and two rounds of mixing.
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (state ^ (state >> 29)).wrapping_mul(0xd6e8_feb8_6659_fd93);
        let mixed = (mixed ^ (mixed >> 32)).wrapping_mul(0xd6e8_feb8_6659_fd93);
        (mixed >> 11) as f64 / (1u64 << 53) as f64
    };
    // Three uniform numbers, centred, have variance 1/4.
    let values: Vec<f64> = (0..size[0] * size[1]).map(|_| 2.0 * (uniform() + uniform() + uniform() - 1.5)).collect();
    Tensor::from_slice(&values).reshape(size).to_kind(kind)
}
