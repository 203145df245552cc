//! Shared by several tests.

use std::path::Path;

use oq_models::Model;
use oq_random::SplitMix64;
use tch::Tensor;

/// Normally distributed f32 numbers. They do not use libtorch's generator, because all test threads share it.
pub(crate) fn noise(seed: u64, shape: &[i64]) -> Tensor {
    let mut random = SplitMix64::new(seed);
    let values: Vec<f32> = (0..shape.iter().product()).map(|_: i64| random.normal() as f32).collect();
    Tensor::from_slice(&values).view(shape)
}

/// A model of `tests/fixtures`.
pub(crate) fn fixture(name: &str) -> Model {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures").join(name);
    Model::open(&dir).expect("fixtures are there")
}
