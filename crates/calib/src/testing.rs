//! What several tests need.

use std::path::Path;

use oq_models::Model;
use oq_random::SplitMix64;
use tch::Tensor;

/// Normally distributed numbers, f32. Not from libtorch's generator, which all threads of the tests share.
pub(crate) fn noise(seed: u64, shape: &[i64]) -> Tensor {
    let mut random = SplitMix64::new(seed);
    let values: Vec<f32> = (0..shape.iter().product()).map(|_: i64| random.normal() as f32).collect();
    Tensor::from_slice(&values).view(shape)
}

/// A model under `tests/fixtures`.
pub(crate) fn fixture(name: &str) -> Model {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures").join(name);
    Model::open(&dir).expect("fixtures are there")
}
