//! The CUDA kernels' own sources, run on the host (`oq-emulated`), beside what computes the same there.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::ops::ControlFlow;
use std::sync::OnceLock;

use half::bf16;
use oq_calib::{Options, quantize};
use oq_cuda::FEW;
use oq_lwc::Lwc;
use oq_models::{Compute, Form, HeadKind, Kernels, Model, dequantized, sent};
use oq_quant_core::{QuantSpec, QuantizedTensor, WeightSpec};
use oq_random::SplitMix64;
use oq_recipe::{Overrides, Recipe, find};
use oq_tests::{fixture, relative_error};
use tch::{Device, Kind, Tensor};

/// For sums of up to 1,100 gradients in f32 in another order, relative to the largest of a matrix.
const SUMS: f64 = 1e-5;
/// For losses of two runs whose gradients differ in last bits, relative.
const LOSS: f64 = 1e-3;
/// For logits of f32 products in another order through four blocks, relative to the largest.
const LOGITS: f64 = 1e-5;

/// Schemes and shapes: groups of a part of a warp, of more, of whole rows; rows that end within a warp and a word.
const MATRICES: &[(&str, usize, usize)] = &[
    ("w4a16g64", 5, 128),
    ("w3a16g64", 3, 192),
    ("w2a16g128", 4, 256),
    ("w3a16", 7, 1100),
    ("w4a16", 1, 33),
    ("w4a16g8", 3, 40),
    ("w2a16g20", 2, 60),
    ("w3a16g32sym", 3, 96),
    ("w4a16g64full", 3, 128),
    ("w2a16g64full", 2, 64),
    ("w8a16g64", 2, 64),
    ("q4_1", 2, 64),
];

fn numbers(seed: u64, n: usize, size: f32) -> Vec<f32> {
    let mut random = SplitMix64::new(seed);
    (0..n).map(|_| (random.below(20_001) as f32 / 10_000.0 - 1.0) * size).collect()
}

fn matrix(seed: u64, [rows, cols]: [usize; 2], size: f32) -> Tensor {
    Tensor::from_slice(&numbers(seed, rows * cols, size)).view([rows as i64, cols as i64])
}

fn spec(scheme: &str) -> WeightSpec {
    scheme.parse::<QuantSpec>().unwrap().weight
}

/// What clipping computes: the quantized weight, gradients, the weight's gradient, moved offsets.
struct Clipped {
    what: String,
    exact: Vec<Vec<f32>>,
    sums: Vec<Vec<f32>>,
}

fn values(x: &Tensor) -> Vec<f32> {
    Vec::try_from(x.to_kind(Kind::Float).contiguous().view(-1)).unwrap()
}

fn clipped() -> Vec<Clipped> {
    let mut found = Vec::new();
    for &(scheme, rows, cols) in MATRICES {
        for (has_offsets, kind) in [(false, Kind::Float), (true, Kind::Float), (true, Kind::BFloat16)] {
            let spec = spec(scheme);
            let mut lwc = Lwc::new(rows, cols, spec, Device::Cpu).unwrap();
            let groups = [rows, spec.group.count(cols)];
            // Some groups are clipped far, and some ends are not clipped at all.
            (lwc.gamma, lwc.beta) = (matrix(1, groups, 4.0), matrix(2, groups, 4.0));
            lwc.offsets = has_offsets.then(|| matrix(3, [rows, cols], 1.5));
            let weight = matrix(4, [rows, cols], 0.1);
            // Both ends alike, a group of zeros, and ties for the extremes.
            weight.narrow(1, 0, 2).copy_(&Tensor::from_slice(&[0.1f32, -0.1]));
            let _ = weight.get(0).narrow(0, 0, 8).fill_(0.1);
            if groups[0] * groups[1] > 2 {
                let _ = weight.get(rows as i64 - 1).narrow(0, 0, (cols / groups[1]) as i64).fill_(0.0);
            }
            let grad = matrix(5, [rows, cols], 1.0).to_kind(kind);
            let quantized = lwc.fake_quantize_as(kind, &weight);
            let alone = lwc.gradients(&weight, &grad);
            let (grads, of_weight) = lwc.gradients_with_weight(&weight, &grad);
            lwc.move_offsets(&weight, &grad, 0.3);
            found.push(Clipped {
                what: format!("{scheme} [{rows}, {cols}] {has_offsets} {kind:?}"),
                exact: [quantized, lwc.offsets.unwrap()].iter().map(values).collect(),
                sums: [alone.gamma, alone.beta, grads.gamma, grads.beta, of_weight].iter().map(values).collect(),
            });
        }
    }
    found
}

/// Losses of a short run, and divergences of its tuning.
fn losses(scheme: &str, compute: Compute) -> Vec<f64> {
    let few = Overrides::default().samples(2).seqlen(32).batch(2).epochs(1).tune_epochs(1);
    let recipe = Recipe::resolve(scheme.parse().unwrap(), find("tiny-llama"), None, &few).unwrap();
    let model = Model::open(&fixture("tiny-llama")).unwrap();
    let segments: Vec<Vec<u32>> =
        (0..recipe.segments()).map(|i| (0..32).map(|t| (t * 7 + i as u32 * 131) % 1024).collect()).collect();
    let out = tempfile::tempdir().unwrap();
    let mut options = Options::new(out.path());
    options.compute = compute;
    let outcome = quantize(&model, &recipe, &segments, &options, &mut |_| ControlFlow::Continue(())).unwrap();
    outcome.blocks.iter().map(|block| block.final_loss.unwrap()).chain(outcome.tuning).collect()
}

const RUNS: [(&str, Compute); 2] = [("w3a16g64", Compute::F32), ("w4a8", Compute::Bf16)];

/// What the loops compute. From then on kernels take their place.
fn by_loops() -> &'static (Vec<Clipped>, Vec<Vec<f64>>) {
    static FOUND: OnceLock<(Vec<Clipped>, Vec<Vec<f64>>)> = OnceLock::new();
    FOUND.get_or_init(|| {
        let found = (clipped(), RUNS.map(|(scheme, compute)| losses(scheme, compute)).into());
        oq_emulated::use_emulation();
        found
    })
}

#[test]
fn clipping_is_that_of_the_loops() {
    let (loops, _) = by_loops();
    for (kernels, loops) in clipped().iter().zip(loops) {
        for (idx, (found, expected)) in kernels.exact.iter().zip(&loops.exact).enumerate() {
            let differ = found.iter().zip(expected).position(|(found, expected)| found.to_bits() != expected.to_bits());
            assert_eq!(differ, None, "{} {idx}", kernels.what);
        }
        for (idx, (found, expected)) in kernels.sums.iter().zip(&loops.sums).enumerate() {
            // An end without a gradient has none in either way.
            let is_zero = found.iter().chain(expected).all(|&gradient| gradient == 0.0);
            let error = relative_error(found, expected);
            assert!(is_zero || error <= SUMS, "{} {idx}: {error:e}", kernels.what);
        }
    }
}

#[test]
fn blocks_learn_and_are_tuned_alike() {
    let (_, loops) = by_loops();
    for ((scheme, compute), loops) in RUNS.into_iter().zip(loops) {
        let kernels = losses(scheme, compute);
        assert_eq!(kernels.len(), loops.len());
        for (kernels, loops) in kernels.iter().zip(loops) {
            assert!((kernels - loops).abs() <= LOSS * loops, "{scheme}: {kernels} {loops}");
        }
    }
}

#[test]
fn values_of_codes_are_the_same_to_the_last_bit() {
    by_loops();
    let noise = numbers(6, 6 * 768, 0.5);
    for scheme in ["w2a16", "w3a16g32sym", "w3a16g64", "w4a16g128", "w5a16", "w6a16g32", "w8a16g64", "w4a16g64full"]
        .into_iter()
        .chain(["q2_k_s", "q3_k_s", "q4_k_s", "q5_k_s", "q6_k", "q4_0", "q4_1", "q5_0", "q8_0", "mxfp4", "nvfp4"])
    {
        let packed = QuantizedTensor::quantize(&noise, 6, 768, spec(scheme)).unwrap();
        let found = values(&dequantized(&packed, Device::Cpu));
        assert!(found == packed.dequantize(), "{scheme}");
        // In bf16: the nearest.
        let kernels = oq_cuda::of(Device::Cpu).unwrap();
        let nearest: Vec<f32> = found.iter().map(|&value| bf16::from_f32(value).to_f32()).collect();
        assert!(values(&kernels.decode(&sent(&packed, Device::Cpu), Kind::BFloat16)) == nearest, "{scheme} in bf16");
    }
}

#[test]
fn products_equal_those_of_values_in_f64() {
    by_loops();
    let kernels = oq_cuda::of(Device::Cpu).unwrap();
    // Rows that end within a word, a lane and a tile; groups of a part of a lane, of more, of whole rows; more rows than warps.
    let shapes = [
        ("g64", 5, 128),
        ("g8", 3, 40),
        ("g20", 9, 60),
        ("", 2, 33),
        ("", 1, 2100),
        ("g128", 17, 1152),
        ("g48", 3, 96),
    ];
    for (group, rows, cols) in shapes {
        for scheme in ["w2a16", "w3a16", "w4a16"].map(|bits| format!("{bits}{group}")) {
            let noise = numbers(7, rows * cols, 0.2);
            let codes = QuantizedTensor::quantize(&noise, rows, cols, spec(&scheme)).unwrap();
            let (packed, exact) =
                (sent(&codes, Device::Cpu), Tensor::from_slice(&codes.dequantize()).view([rows as i64, cols as i64]));
            assert!(packed.multiplies());
            for n in 0..=FEW {
                let (x, bias) = (matrix(8, [n, cols], 1.0), matrix(9, [1, rows], 1.0).view(-1));
                for bias in [None, Some(&bias)] {
                    let y = kernels.multiply(&packed, &x, bias);
                    let wide = bias.map(|bias| bias.to_kind(Kind::Double));
                    let expected = x.to_kind(Kind::Double).linear(&exact.to_kind(Kind::Double), wide.as_ref());
                    assert_eq!(y.size(), [n as i64, rows as i64]);
                    if n > 0 {
                        let error = (y - &expected).abs().max() / expected.abs().max();
                        assert!(error.double_value(&[]) < 1e-6, "{scheme} [{rows}, {cols}] {n}: {error:?}");
                    }
                }
            }
        }
    }
}

#[test]
fn packed_models_have_the_logits_of_decoded_ones() {
    by_loops();
    for (name, scheme) in [
        ("tiny-llama", "w2a16g64"),
        ("tiny-opt", "w3a16g64"),
        ("tiny-mixtral", "w4a16g64"),
        ("tiny-llama", "w8a16g64"),
        ("tiny-llama", "w4a8"),
    ] {
        // A prompt, whose weights are decoded, and a few tokens.
        for tokens in [40, 3] {
            let of = |kernels| {
                let model = Model::open(&fixture(name)).unwrap();
                let model = model.with_round_to_nearest(scheme.parse::<QuantSpec>().unwrap()).unwrap();
                let model = model.with_form(Form::new(kernels, Compute::F32, HeadKind::Wide)).unwrap();
                let ids = (Tensor::arange(tokens, (Kind::Int64, Device::Cpu)) * 7).remainder(1024).view([1, tokens]);
                let logits = oq_eval::logits(&model, &ids, Device::Cpu).unwrap();
                values(&logits)
            };
            let error = relative_error(&of(Kernels::Packed), &of(Kernels::Dense));
            let allowed = if scheme == "w4a8" { 0.02 } else { LOGITS };
            assert!(error <= allowed, "{name} {scheme} {tokens}: {error}");
        }
    }
}
