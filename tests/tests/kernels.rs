//! Products with packed weights match those with the same weights dequantized.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use oq_eval::logits;
use oq_formats::FormatError;
use oq_models::{Compute, Form, HeadKind, Kernels, Model, ModelError, Prefill};
use oq_quant_core::QuantSpec;
use oq_tests::{fixture, measure, relative_error};
use tch::{Device, Kind, Tensor};

/// Both multiply the same f32 numbers and sum them in different orders. The difference is like that of two libraries in the golden tests.
const F32_TOLERANCE: f64 = 1e-4;
/// Activations are rounded to 8 significant bits before each of some thirty products, and so are queries, keys, values and probabilities.
/// Each error is at most 2^-9 and random. Models with random weights and few channels average out little of it.
const BF16_TOLERANCE: f64 = 6e-2;
/// A perplexity averages over thousands of such errors. Quantized activations halfway between two codes may be rounded either way.
const F32_PERPLEXITY: f64 = 1e-3;
const BF16_PERPLEXITY: f64 = 5e-3;

/// Each activation is rounded by at most a 254th of the largest of 32, here a hundredth of a usual one.
const INT8_TOLERANCE: f64 = 1e-1;

const TINY: [&str; 4] = ["tiny-llama", "tiny-llama-256", "tiny-opt", "tiny-falcon"];

fn rounded(folder: &str, scheme: &str, kernels: Kernels, compute: Compute) -> Model {
    let model =
        Model::open(&fixture(folder)).unwrap().with_round_to_nearest(scheme.parse::<QuantSpec>().unwrap()).unwrap();
    model.with_form(Form::new(kernels, compute, HeadKind::Wide)).unwrap()
}

fn answer(model: &Model) -> Vec<f32> {
    let vocab = model.decoder().dims().vocab as i64;
    let ids = (Tensor::arange(2 * 24, (Kind::Int64, Device::Cpu)) * 37 + 11).remainder(vocab).view([2, 24]);
    Vec::try_from(logits(model, &ids, Device::Cpu).unwrap().view(-1)).unwrap()
}

#[track_caller]
fn check(folder: &str, scheme: &str) {
    let dense = answer(&rounded(folder, scheme, Kernels::Dense, Compute::F32));
    for (compute, tolerance) in [(Compute::F32, F32_TOLERANCE), (Compute::Bf16, BF16_TOLERANCE)] {
        let error = relative_error(&answer(&rounded(folder, scheme, Kernels::Packed, compute)), &dense);
        assert!(error <= tolerance, "{folder} {scheme} {}: relative error {error:.1e}", compute.name());
    }
}

#[test]
fn logits_of_every_scheme() {
    for folder in TINY {
        for bits in 2..=8 {
            check(folder, &format!("w{bits}a16g64"));
        }
        for scheme in ["w4a16", "w3a16g32", "w2a16g128", "w4a16g64sym", "w3a16sym"] {
            check(folder, scheme);
        }
    }
}

#[test]
fn logits_with_8_bit_activations() {
    for folder in TINY {
        for scheme in ["w2a16g64", "w3a16g32", "w4a16g64", "w4a16", "w8a16g64"] {
            for compute in [Compute::F32, Compute::Bf16] {
                let form = Form::new(Kernels::Packed, compute, HeadKind::Wide).with_prefill(Prefill::Int8);
                let model = match rounded(folder, scheme, Kernels::Packed, compute).with_form(form) {
                    Ok(model) => model,
                    Err(error) => {
                        assert!(error.to_string().contains("does not multiply 8-bit activations"), "{error}");
                        eprintln!("{error}: nothing is tested");
                        return;
                    }
                };
                let dense = answer(&rounded(folder, scheme, Kernels::Dense, Compute::F32));
                let error = relative_error(&answer(&model), &dense);
                assert!(error > F32_TOLERANCE, "{folder} {scheme}: activations are not rounded");
                assert!(error <= INT8_TOLERANCE, "{folder} {scheme} {}: relative error {error:.1e}", compute.name());
            }
        }
    }
}

#[test]
fn logits_of_every_family() {
    for folder in ["opt-prenorm", "opt-postnorm-proj", "falcon-7b-like", "falcon-40b-like"] {
        check(folder, "w4a16");
    }
    for name in ["attention-bias", "mlp-bias", "gqa-tied", "head-dim", "bf16"] {
        check(&format!("llama-variants/{name}"), "w3a16");
    }
    for name in ["mistral-window", "qwen2", "qwen3"] {
        check(&format!("llama-like-variants/{name}"), "w4a16");
    }
    for name in ["falcon-rw-like", "falcon-rw-six-heads", "falcon-11b-like", "opt-350m-like", "opt-no-affine"] {
        check(&format!("opt-falcon-variants/{name}"), "w4a16");
    }
}

#[test]
fn perplexity_is_that_of_decoded_weights() {
    for (folder, scheme) in TINY.into_iter().flat_map(|folder| [(folder, "w4a16g64"), (folder, "w6a6")]) {
        let dense = measure(&rounded(folder, scheme, Kernels::Dense, Compute::F32));
        for (compute, tolerance) in [(Compute::F32, F32_PERPLEXITY), (Compute::Bf16, BF16_PERPLEXITY)] {
            let packed = measure(&rounded(folder, scheme, Kernels::Packed, compute));
            let error = (packed / dense - 1.0).abs();
            assert!(error <= tolerance, "{folder} {scheme} {}: {packed}, {dense} dense", compute.name());
        }
    }
}

#[test]
fn a_head_of_8_bits_costs_nothing_visible() {
    // The error of 8 bits in groups of 64 is at most a 500th of a group's range.
    const TOLERANCE: f64 = 1e-3;
    for folder in TINY {
        let model = |head| {
            Model::open(&fixture(folder))
                .unwrap()
                .with_form(Form::new(Kernels::default(), Compute::default(), head))
                .unwrap()
        };
        let (wide, narrow) = (measure(&model(HeadKind::Wide)), measure(&model(HeadKind::W8)));
        assert!((narrow / wide - 1.0).abs() <= TOLERANCE, "{folder}: {narrow}, {wide} with a wide head");
        assert_eq!(measure(&model(HeadKind::Stored)), wide, "{folder}: widened as it is multiplied");
    }
}

#[test]
fn packed_products_need_packed_weights_and_a_cpu() {
    let packed = Form::new(Kernels::Packed, Compute::default(), HeadKind::default());
    let dense = || Model::open(&fixture("tiny-llama")).unwrap();
    assert!(matches!(dense().with_form(packed), Err(ModelError::Format(FormatError::NotPacked { .. }))));
    let in_8_bits = Form::default().with_prefill(Prefill::Int8);
    assert!(matches!(dense().with_form(in_8_bits), Err(ModelError::PrefillDense)));
    let rounded = rounded("tiny-llama", "w4a16g64", Kernels::Packed, Compute::F32);
    assert!(matches!(rounded.block(0, Device::Cuda(0)), Err(ModelError::PackedDevice { .. })));
}
