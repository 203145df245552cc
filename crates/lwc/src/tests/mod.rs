//! Tests: the fused loops against the composed operations, the closed form against autograd and differences, the final
//! codes against learning.

mod codes;
mod fused;
mod gradients;
mod search;

use oq_random::SplitMix64;
use tch::{Kind, Tensor};

/// Types that have a name.
const NAMED: [&str; 9] = ["q2_k", "q3_k", "q4_k", "q5_k", "q6_k", "q4_1", "q5_1", "mxfp4", "nvfp4"];

/// Numbers of about unit size and both signs, none the same as another. Not from libtorch's generator, which all threads of
/// the tests fraction.
fn noise(seed: u64, size: [i64; 2], kind: Kind) -> Tensor {
    let mut random = SplitMix64::new(seed);
    let mut uniform = || random.unit();
    // Three uniform numbers, centred, have variance 1/4.
    let values: Vec<f64> = (0..size[0] * size[1]).map(|_| 2.0 * (uniform() + uniform() + uniform() - 1.5)).collect();
    Tensor::from_slice(&values).reshape(size).to_kind(kind)
}
