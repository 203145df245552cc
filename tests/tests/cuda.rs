//! Results on a CUDA device match those on the CPU.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test fails by panicking and says what it skipped")]

use std::ops::ControlFlow;

use oq_calib::{Options, quantize};
use oq_models::{Compute, Form, HeadKind, Kernels, Model};
use oq_quant_core::QuantSpec;
use oq_recipe::{Overrides, Recipe, find};
use oq_tests::fixture;
use tch::{Cuda, Device, Kind, Tensor};

/// For f32 sums in a different order through four blocks, relative to the largest logit.
const LOGITS: f64 = 1e-4;
/// For losses of two optimizations that differ in the last bits of every step, relative.
const LOSS: f64 = 0.02;

fn skipped() -> bool {
    let absent = !Cuda::is_available();
    if absent {
        println!("skipped: no CUDA");
    }
    absent
}

#[test]
fn logits_equal_the_cpus() {
    if skipped() {
        return;
    }
    let model = Model::open(&fixture("tiny-llama")).unwrap();
    let ids = Tensor::arange(128, (Kind::Int64, Device::Cpu)).view([2, 64]);
    let cpu = oq_eval::logits(&model, &ids, Device::Cpu).unwrap();
    let cuda = oq_eval::logits(&model, &ids, Device::Cuda(0)).unwrap();
    let error = ((&cpu - cuda).abs().max() / cpu.abs().max()).double_value(&[]);
    assert!(error < LOGITS, "{error}");
}

/// Final losses and tuning divergences of a short run with the recipe of `configs/`.
fn losses(model: &str, scheme: &str, device: Device, compute: Compute) -> Vec<f64> {
    let few = Overrides::default().samples(4).seqlen(64).epochs(4);
    let overrides = few.tune_epochs(2);
    let recipe = Recipe::resolve(scheme.parse().unwrap(), find(model), None, &overrides).unwrap();
    let segments: Vec<Vec<u32>> = (0..12).map(|i| (0..64).map(|t| (t * 7 + i * 131) % 1024).collect()).collect();
    let out = tempfile::tempdir().unwrap();
    let mut options = Options::new(out.path().join("out"));
    (options.device, options.compute) = (device, compute);
    let model = Model::open(&fixture(model)).unwrap();
    let outcome = quantize(&model, &recipe, &segments, &options, &mut |_| ControlFlow::Continue(())).unwrap();
    outcome.blocks.iter().map(|block| block.final_loss.unwrap()).chain(outcome.tuning).collect()
}

fn learns_alike(model: &str, scheme: &str) {
    let cpu = losses(model, scheme, Device::Cpu, Compute::F32);
    let cuda = losses(model, scheme, Device::Cuda(0), Compute::F32);
    for (cpu, cuda) in cpu.into_iter().zip(cuda) {
        assert!((cpu - cuda).abs() <= LOSS * cpu, "{model} {scheme}: {cpu} {cuda}");
    }
}

#[test]
fn blocks_learn_alike() {
    if skipped() {
        return;
    }
    // Clipping only, and with scales, shifts and quantized activations.
    for (model, scheme) in [("tiny-llama", "w3a16g64"), ("tiny-opt", "w4a8"), ("tiny-falcon", "w4a8")] {
        learns_alike(model, scheme);
        for loss in losses(model, scheme, Device::Cuda(0), Compute::Bf16) {
            assert!(loss.is_finite(), "{model} {scheme} in bf16: {loss}");
        }
    }
}

#[test]
fn our_kernels_learn_and_multiply_alike() {
    if skipped() {
        return;
    }
    oq_cuda::use_card(0).unwrap();
    for (model, scheme) in [("tiny-llama", "w3a16g64"), ("tiny-opt", "w4a8")] {
        learns_alike(model, scheme);
    }
    // A few tokens, which are multiplied with the codes, and a prompt, whose weights are decoded.
    for (scheme, tokens) in [("w2a16g64", 3), ("w3a16g64", 8), ("w4a16g64", 1), ("w4a16g64", 64)] {
        let ids = Tensor::arange(tokens, (Kind::Int64, Device::Cpu)).view([1, tokens]);
        let logits = |kernels, device| {
            let model = Model::open(&fixture("tiny-llama")).unwrap();
            let model = model.with_round_to_nearest(scheme.parse::<QuantSpec>().unwrap()).unwrap();
            let model = model.with_form(Form::new(kernels, Compute::F32, HeadKind::Wide)).unwrap();
            oq_eval::logits(&model, &ids, device).unwrap()
        };
        let (cpu, cuda) = (logits(Kernels::Dense, Device::Cpu), logits(Kernels::Packed, Device::Cuda(0)));
        let error = ((&cpu - cuda).abs().max() / cpu.abs().max()).double_value(&[]);
        assert!(error < LOGITS, "{scheme} {tokens}: {error}");
    }
}
