//! Rotated models compute the same function as the original ones, and the packed model is the measured model.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::ops::ControlFlow;
use std::path::Path;

use oq_calib::{CalibError, Notice, Nth, Outcome, check, quantize};
use oq_eval::logits;
use oq_formats::{Dtype, is_rotated_online};
use oq_generate::Loaded;
use oq_models::{
    ActPoint, BlockWeights, Compute, DenseOps, Form, HeadKind, Kernels, Model, ModelError, OuterOps, RotateError,
    Rotator, quantize_act,
};
use oq_quant_core::{QuantSpec, RotateKind};
use oq_recipe::{Event, Method, Overrides, Recipe, find};
use oq_rotation::Orthogonal;
use oq_tests::{
    F64_BLOCK, calibration, check_recorded_losses, checkpoints, f64_block, fixture, in_f32, measure, model_files,
    relative_error,
};
use tch::{Device, Kind, Tensor};

/// Relative to the largest number. f64 has sixteen digits, and sums have some hundred terms.
const TOLERANCE: f64 = 1e-9;
/// Leaving out a part of the rotation changes outputs by far more than this.
const BROKEN: f64 = 1e-4;
/// For f32 logits of two models with the same function. The difference is like that of two libraries in the golden tests.
const F32_TOLERANCE: f64 = 1e-4;
const TOKENS: usize = 12;
const ROTATED: [RotateKind; 2] = [RotateKind::Merged, RotateKind::Online];

fn copy(weights: &BlockWeights) -> BlockWeights {
    BlockWeights::new(weights.tensors().iter().map(|(name, t)| (name.clone(), t.shallow_clone())).collect())
}

/// Error of a rotated block on a rotated residual stream, relative to the original block's rotated output.
fn error(model: &Model, rotator: &Rotator, original: &BlockWeights, rotated: &BlockWeights) -> f64 {
    let decoder = model.decoder();
    let x = Tensor::randn([2, TOKENS as i64, decoder.dims().hidden as i64], (Kind::Double, Device::Cpu)) * 3.0;
    let ctx = decoder.context(TOKENS, Device::Cpu);
    let expected = rotator.stream().apply(&decoder.block(F64_BLOCK, &DenseOps::new(original), &ctx, &x));
    let got = decoder.block(F64_BLOCK, &DenseOps::new(rotated), &ctx, &rotator.stream().apply(&x));
    let largest = |x: &Tensor| x.abs().max().double_value(&[]);
    largest(&(got - &expected)) / largest(&expected)
}

/// Arbitrary token ids, `[1, n]`.
fn ids(model: &Model, n: i64) -> Tensor {
    let vocab = model.decoder().dims().vocab as i64;
    Tensor::from_slice(&(0..n).map(|i| (i * 37 + 11) % vocab).collect::<Vec<_>>()).unsqueeze(0)
}

fn values(x: &Tensor) -> Vec<f32> {
    Vec::try_from(x.contiguous().view(-1)).unwrap()
}

#[test]
fn rotated_models_compute_what_they_did() {
    let _no_grad = tch::no_grad_guard();
    let (mut rotated, mut refused) = (0, Vec::new());
    for dir in checkpoints() {
        let name = dir.strip_prefix(fixture("")).unwrap().display().to_string();
        for kind in ROTATED {
            let model = Model::open(&dir).unwrap();
            let rotator = match Rotator::new(model.decoder(), kind, 7) {
                Ok(rotator) => rotator.unwrap(),
                Err(error) => {
                    let message = error.to_string();
                    assert!(matches!(model.rotated(kind, 7), Err(ModelError::Rotate(again)) if again == error));
                    refused.push(format!("{name} {kind}: {message}"));
                    continue;
                }
            };
            let original = f64_block(&model);
            let block = rotator.block(F64_BLOCK, copy(&original)).unwrap();
            let off = error(&model, &rotator, &original, &block);
            assert!(off <= TOLERANCE, "{name} {kind}: relative error {off:.1e}");

            let ids = ids(&model, TOKENS as i64);
            let expected = values(&logits(&model, &ids, Device::Cpu).unwrap());
            let was_tied = model.decoder().outer_params().len();
            let model = model.rotated(kind, 7).unwrap();
            let got = values(&logits(&model, &ids, Device::Cpu).unwrap());
            let off = relative_error(&got, &expected);
            assert!(off <= F32_TOLERANCE, "{name} {kind}: relative error of logits {off:.1e}");
            assert_ne!(model.decoder().head(), model.decoder().outer_params()[0].name, "{name}: the head is its own");
            let unties = model.decoder().outer_params().len() - was_tied;
            assert!(unties == 0 || (unties == 1 && model.config()["tie_word_embeddings"] == false), "{name}");
            rotated += 1;
        }
    }
    // Not rotated: OPT with post-norm or a projected embedding, and three models whose MLP or head width has no Hadamard matrix.
    println!("{rotated} rotated\n{}", refused.join("\n"));
    assert!(rotated >= 80, "{rotated} rotated; {refused:#?}");
    let expected = ["opt-postnorm-proj merged", "opt-falcon-variants/opt-350m-like merged", "opt-projected merged"];
    assert!(expected.iter().all(|part| refused.iter().any(|refused| refused.contains(part))), "{refused:#?}");
}

#[test]
fn every_piece_is_needed() {
    let _no_grad = tch::no_grad_guard();
    tch::manual_seed(1);
    for folder in [
        "tiny-llama",
        "tiny-llama-256",
        "llama-gqa-tied",
        "llama-like-variants/qwen3",
        "tiny-opt",
        "tiny-falcon",
        "falcon-40b-like",
    ] {
        let model = Model::open(&fixture(folder)).unwrap();
        let rotator = Rotator::new(model.decoder(), RotateKind::Online, 3).unwrap().unwrap();
        let original = f64_block(&model);
        let rotated = || rotator.block(F64_BLOCK, copy(&original)).unwrap();
        for linear in model.decoder().layer(F64_BLOCK).linears {
            let mut block = rotated();
            let name = format!("{}.weight", linear.name.0);
            block.set(name.clone(), original.get(&name).shallow_clone());
            let off = error(&model, &rotator, &original, &block);
            assert!(off > BROKEN, "{folder}: {name} as it was: {off:.1e}");
        }
        let off = error(&model, &rotator, &original, &rotated().with_online(None));
        assert!(off > BROKEN, "{folder}: without rotations while it runs: {off:.1e}");
    }
}

#[test]
fn a_norm_that_cannot_be_folded_is_named() {
    let model = Model::open(&fixture("tiny-falcon")).unwrap();
    let rotator = Rotator::new(model.decoder(), RotateKind::Merged, 3).unwrap().unwrap();
    let mut block = f64_block(&model);
    let zeroed = block.get("input_layernorm.weight").copy();
    let _ = zeroed.get(5).fill_(0.0);
    block.set("input_layernorm.weight".to_owned(), zeroed);
    let error = rotator.block(F64_BLOCK, block).unwrap_err();
    assert_eq!(error, RotateError::Norm { norm: "input_layernorm".to_owned() });
}

fn recipe(model: &str, scheme: &str, rotate: RotateKind, more: Overrides) -> Recipe {
    let scheme: QuantSpec = scheme.parse().unwrap();
    let overrides = more.samples(4).seqlen(64).epochs(2).tune_epochs(0).rotate(rotate);
    Recipe::resolve(scheme, find(model), None, &overrides).unwrap()
}

fn quantized(model: &str, recipe: &Recipe, out: &Path) -> Outcome {
    let model = Model::open(&fixture(model)).unwrap();
    quantize(&model, recipe, &calibration(recipe), &in_f32(out, false), &mut |_| ControlFlow::Continue(())).unwrap()
}

#[test]
fn the_packed_model_is_the_one_that_was_measured() {
    // f16 has 11 significant bits; matrices in f32 are kept exactly.
    const F16_STEP: f64 = 1.0 / 2048.0;
    let _no_grad = tch::no_grad_guard();
    for (name, kind, more) in [
        ("tiny-llama", RotateKind::Merged, Overrides::default()),
        ("tiny-llama", RotateKind::Online, Overrides::default()),
        ("tiny-opt", RotateKind::Online, Overrides::default()),
        ("tiny-falcon", RotateKind::Online, Overrides::default().use_let(false)),
    ] {
        let recipe = recipe(name, "w4a6g32", kind, more);
        let out = tempfile::tempdir().unwrap();
        let outcome = quantized(name, &recipe, out.path());
        let packed = Model::open(out.path()).unwrap();
        assert_eq!(packed.quantization(), Some(&recipe.scheme.into()));
        assert_eq!(is_rotated_online(packed.config()), kind == RotateKind::Online);
        let rotated = Model::open(&fixture(name)).unwrap().rotated(kind, recipe.rotate.seed).unwrap();

        let decoder = rotated.decoder();
        for param in decoder.outer_params() {
            let [made, stored] = [&rotated, &packed].map(|model| model.outer(Device::Cpu).param(param.name).unwrap());
            let off = ((&made - stored).abs().max() / made.abs().max()).double_value(&[]);
            let dtype = packed.checkpoint().tensor(param.name).unwrap().dtype;
            assert!(off <= if dtype == Dtype::F32 { 0.0 } else { F16_STEP }, "{name}: {}: {off:.1e}", param.name);
        }
        check_recorded_losses(&rotated, &packed, &calibration(&recipe), &outcome);
    }
}

#[test]
fn a_model_that_is_rotated_while_it_runs_is_the_same_in_pieces_and_in_packed_products() {
    // With sums in a different order, an activation halfway between two codes may be rounded either way.
    const QUANTIZED: f64 = 0.05;
    let out = tempfile::tempdir().unwrap();
    let recipe = recipe("tiny-llama", "w4a8g32", RotateKind::Online, Overrides::default().method(Method::Rtn));
    quantized("tiny-llama", &recipe, out.path());
    let _no_grad = tch::no_grad_guard();
    let form = |kernels| Form::new(kernels, Compute::F32, HeadKind::Wide);
    let model = Model::open(out.path()).unwrap();
    let ids = ids(&model, 20);

    // Without quantized activations, rotating queries and keys leaves the scores unchanged.
    let d = model.decoder().dims().head_dim as i64;
    let queries = Tensor::randn([1, 2, 5, d], (Kind::Float, Device::Cpu));
    let expected = quantize_act(
        model.act(),
        oq_models::ActPoint::QueryKey,
        Orthogonal::hadamard(d as usize).unwrap().apply(&queries),
    );
    for kernels in [Kernels::Dense, Kernels::Packed] {
        let block = Model::open(out.path()).unwrap().with_form(form(kernels)).unwrap().block(1, Device::Cpu).unwrap();
        let seen = block.with_ops(|ops| ops.act(ActPoint::QueryKey, queries.shallow_clone()));
        assert_eq!(values(&seen), values(&expected), "{}", kernels.name());
    }

    let whole = logits(&model, &ids, Device::Cpu).unwrap().squeeze_dim(0);
    for kernels in [Kernels::Dense, Kernels::Packed] {
        let model = Model::open(out.path()).unwrap().with_form(form(kernels)).unwrap();
        let loaded = Loaded::new(model, Device::Cpu, &mut |_, _| {}).unwrap();
        let mut session = loaded.session();
        let ids: Vec<u32> = Vec::<i64>::try_from(ids.view(-1)).unwrap().into_iter().map(|id| id as u32).collect();
        let mut last = Vec::new();
        for piece in [&ids[..9], &ids[9..10], &ids[10..19], &ids[19..]] {
            last = session.extend(piece).unwrap();
        }
        let off = relative_error(&last, &values(&whole.get(19)));
        assert!(off <= QUANTIZED, "{}: {off:.1e}", kernels.name());
    }

    // Tensors are checked before matrices with the config's sizes are computed.
    let mut config = model.config().clone();
    config["intermediate_size"] = 150.into();
    std::fs::write(out.path().join("config.json"), config.to_string()).unwrap();
    assert!(matches!(Model::open(out.path()), Err(ModelError::Shape { .. })));
}

#[test]
fn rotations_help_few_bits() {
    /// Without rotation, perplexity is 68.9.
    const ROUNDED: f64 = 21.0;
    let rtn = || Overrides::default().method(Method::Rtn);
    let perplexities = [RotateKind::None, RotateKind::Merged, RotateKind::Online].map(|kind| {
        let out = tempfile::tempdir().unwrap();
        quantized("tiny-llama", &recipe("tiny-llama", "w4a4", kind, rtn()), out.path());
        let model = Model::open(out.path()).unwrap();
        measure(&model)
    });
    let [none, merged, online] = perplexities;
    assert!(none > 2.0 * merged && merged < ROUNDED && online < merged, "{perplexities:?}");
}

#[test]
fn a_stopped_run_ends_in_the_same_bytes() {
    for (name, kind, tune_epochs) in [("tiny-opt", RotateKind::Merged, 0), ("tiny-llama", RotateKind::Online, 1)] {
        let recipe = recipe(name, "w4a4", kind, Overrides::default().tune_epochs(tune_epochs));
        let (whole, parts) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        quantized(name, &recipe, whole.path());

        let model = Model::open(&fixture(name)).unwrap();
        let run = |resume, stop_after: usize| {
            let mut finished = 0;
            quantize(&model, &recipe, &calibration(&recipe), &in_f32(parts.path(), resume), &mut |notice| {
                finished += usize::from(matches!(notice, Notice::Event(Event::BlockFinished(_))));
                if finished == stop_after { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            })
        };
        assert!(matches!(run(false, 2), Err(CalibError::Stopped { block: Nth { index: 2, of: 4 }, .. })));
        let outcome = run(true, usize::MAX).unwrap();
        assert_eq!((outcome.resumed_blocks, outcome.blocks.len()), (2, 4));
        assert_eq!(model_files(whole.path()), model_files(parts.path()), "{name}");
        assert!(run(true, usize::MAX).unwrap().was_complete, "{name}: nothing is left to do");

        // Tensors outside the blocks are written again if they have changed.
        let rest = parts.path().join("model-00005-of-00005.safetensors");
        let mut bytes = std::fs::read(&rest).unwrap();
        let last = bytes.len() - 1;
        bytes[last] ^= 1;
        std::fs::write(&rest, bytes).unwrap();
        assert!(!run(true, usize::MAX).unwrap().was_complete, "{name}: a bit is another");
        assert_eq!(model_files(whole.path()), model_files(parts.path()), "{name}");
    }
}

#[test]
fn models_without_a_place_for_them_are_refused_before_weights_are_read() {
    let recipe = |kind| recipe("opt-350m", "w4a16", kind, Overrides::default());
    let model = Model::open(&fixture("opt-postnorm-proj")).unwrap();
    let error = check(&model, &recipe(RotateKind::Merged)).unwrap_err().to_string();
    assert!(error.contains("on the residual itself; say --rotate none"), "{error}");
    check(&model, &recipe(RotateKind::None)).unwrap();

    for (folder, reason) in [
        ("olmo2", "norms behind"),
        ("gemma3", "norms behind"),
        ("glm4", "norms behind"),
        ("olmoe-clip", "clamps values"),
    ] {
        let model = Model::open(&fixture("family-variants").join(folder)).unwrap();
        let error = check(&model, &recipe(RotateKind::Merged)).unwrap_err().to_string();
        assert!(error.contains(reason) && error.contains("say --rotate none"), "{folder}: {error}");
    }

    // There is no Hadamard matrix of order 150.
    let model = Model::open(&fixture("llama-mha")).unwrap();
    let mut config = model.config().clone();
    config["intermediate_size"] = 150.into();
    let decoder = oq_models::family::decoder_of(&config).unwrap();
    let refused = Rotator::new(&*decoder, RotateKind::Online, 0).unwrap_err();
    let error = refused.to_string();
    assert!(error.contains("150 channels") && error.contains("say --rotate merged"), "{error}");
    assert!(Rotator::new(&*decoder, RotateKind::Merged, 0).unwrap().is_some());

    // `check` computes no matrices, so sizes that no tensor confirms cost nothing.
    assert_eq!(Rotator::check(&*decoder, RotateKind::Online), Err(refused));
    config["intermediate_size"] = ((1 << 24) - 4).into();
    config["hidden_size"] = ((1 << 24) - 2).into();
    config["head_dim"] = 64.into();
    let decoder = oq_models::family::decoder_of(&config).unwrap();
    let is_width = |error: &RotateError| matches!(error, RotateError::Width { what: "the MLP", width: 16_777_212 });
    assert!(Rotator::check(&*decoder, RotateKind::Online).as_ref().is_err_and(is_width));
    assert_eq!(Rotator::check(&*decoder, RotateKind::Merged), Ok(()));
    assert_eq!(Rotator::check(&*decoder, RotateKind::None), Ok(()));
}
