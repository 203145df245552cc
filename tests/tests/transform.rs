//! Equivalent transformation and quantized activations, end to end: perplexities, the packed model is the measured model, and an
//! interrupted run ends in the same bytes.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::ops::ControlFlow;
use std::path::Path;

use oq_calib::{CalibError, Notice, Nth, Outcome, check, quantize};
use oq_formats::{Checkpoint, Dtype};
use oq_models::layers::token_nll;
use oq_models::{ActPoint, BlockOps, BlockWeights, LinearName, Model, fake_quantize_tokens};
use oq_quant_core::{Bits, QuantSpec, RotateKind, SiteKind};
use oq_recipe::{Method, Overrides, Recipe, find};
use oq_tests::{calibration, check_recorded_losses, fixture, in_f32, measure, model_files, tokens};
use tch::{Device, Kind, Tensor};

const TINY: [&str; 3] = ["tiny-llama", "tiny-opt", "tiny-falcon"];

/// The recipe of `configs/` for a tiny model, with these overrides and without rotation.
fn recipe(model: &str, scheme: &str, overrides: Overrides) -> Recipe {
    let scheme: QuantSpec = scheme.parse().unwrap();
    let overrides = overrides.rotate(RotateKind::None);
    Recipe::resolve(scheme, find(model), None, &overrides).unwrap()
}

fn short() -> Overrides {
    Overrides::default().samples(16).epochs(10).tune_epochs(0).batch(1)
}

fn quantized(model: &str, recipe: &Recipe, out: &Path) -> Outcome {
    let model = Model::open(&fixture(model)).unwrap();
    quantize(&model, recipe, &calibration(recipe), &in_f32(out, false), &mut |_| ControlFlow::Continue(())).unwrap()
}

/// Quantizes with a recipe and returns the perplexity of the written model.
fn cost(model: &str, recipe: &Recipe) -> f64 {
    let out = tempfile::tempdir().unwrap();
    quantized(model, recipe, out.path());
    let packed = Model::open(out.path()).unwrap();
    assert_eq!(packed.quantization(), Some(&recipe.scheme.into()));
    measure(&packed)
}

/// Operations with weights rounded per channel with f32 scales, and inputs of linears quantized. Queries, keys and values stay float.
struct InputsOnly<'a> {
    weights: &'a BlockWeights,
    bits: Bits,
}

impl BlockOps for InputsOnly<'_> {
    fn linear(&self, name: LinearName, x: &Tensor) -> Tensor {
        // A weight's row and a token's activations have the same kind of grid.
        x.linear(&fake_quantize_tokens(self.weights.weight(name), self.bits), self.weights.bias(name))
    }

    fn act(&self, point: ActPoint, x: Tensor) -> Tensor {
        if matches!(point, ActPoint::LinearInput | ActPoint::Inner) { fake_quantize_tokens(&x, self.bits) } else { x }
    }

    fn param(&self, name: &str) -> Tensor {
        self.weights.get(name).shallow_clone()
    }
}

/// Perplexity with only the weights and inputs of linears rounded to nearest.
fn inputs_only(model: &Model, bits: Bits) -> f64 {
    const SEQLEN: usize = 256;
    let _no_grad = tch::no_grad_guard();
    let (decoder, outer) = (model.decoder(), model.outer(Device::Cpu));
    let ids: Vec<i64> = tokens("eval.txt").iter().map(|&id| i64::from(id)).collect();
    let windows: Vec<Tensor> = ids.chunks_exact(SEQLEN).map(|w| Tensor::from_slice(w).unsqueeze(0)).collect();
    let ctx = decoder.context(SEQLEN, Device::Cpu);
    let mut states: Vec<Tensor> = windows.iter().map(|ids| decoder.embed(&outer, ids).unwrap()).collect();
    for block_idx in 0..decoder.dims().n_layers {
        let weights = model.load_block(block_idx, Device::Cpu).unwrap();
        for x in &mut states {
            *x = decoder.block(block_idx, &InputsOnly { weights: &weights, bits }, &ctx, x);
        }
    }
    let head = model.head(Device::Cpu).unwrap();
    let nll = windows.iter().zip(&states).map(|(ids, x)| {
        let x = decoder.finish(&outer, x).unwrap().squeeze_dim(0);
        let logits = head.logits(&x).narrow(0, 0, SEQLEN as i64 - 1);
        token_nll(&logits, &ids.squeeze_dim(0).narrow(0, 1, SEQLEN as i64 - 1)).mean(Kind::Double).double_value(&[])
    });
    (nll.sum::<f64>() / windows.len() as f64).exp()
}

#[test]
fn rounding_activations_costs_what_it_costs_elsewhere() {
    // From a PyTorch quantizer of a few lines with f32 scales on the same weights and text. The table has two decimals.
    const TOLERANCE: f64 = 1e-2;
    let table = [("tiny-llama", 68.08, 19.19), ("tiny-opt", 65.04, 29.44), ("tiny-falcon", 38.94, 21.62)];
    for (folder, w4a4, w6a6) in table {
        let model = Model::open(&fixture(folder)).unwrap();
        for (bits, expected) in [(4, w4a4), (6, w6a6)] {
            let got = inputs_only(&model, Bits::new(bits).unwrap());
            assert!((got / expected - 1.0).abs() <= TOLERANCE, "{folder}, {bits} bits: {got}, expected {expected}");
        }
    }
}

#[test]
fn learning_beats_the_start_and_the_start_rounding_to_nearest() {
    for model in TINY {
        let with = |method| cost(model, &recipe(model, "w4a4", short().method(method)));
        let costs = [Method::Omniquant, Method::Smoothquant, Method::Rtn].map(with);
        assert!(costs[0] < costs[1] && costs[1] < costs[2], "{model}: {costs:?}");
        let in_memory =
            Model::open(&fixture(model)).unwrap().with_round_to_nearest("w4a4".parse::<QuantSpec>().unwrap()).unwrap();
        assert_eq!(measure(&in_memory), costs[2], "{model}");
    }
}

#[test]
fn six_bits_cost_little() {
    for model in TINY {
        let full = measure(&Model::open(&fixture(model)).unwrap());
        let got = cost(model, &recipe(model, "w6a6", short()));
        assert!(got <= 1.03 * full, "{model}: {got}, full precision {full}");
    }
}

#[test]
fn transformation_helps_weights_alone() {
    let with =
        |transform| cost("tiny-opt", &recipe("tiny-opt", "w3a16g64", Overrides { use_let: transform, ..short() }));
    let (transformed, clipped) = (with(None), with(Some(false)));
    assert!(transformed < clipped, "{transformed} with the transformation, {clipped} without");
}

#[test]
fn the_packed_model_is_the_one_that_was_measured() {
    for (model, sites) in
        [("tiny-llama", SiteKind::ALL.to_vec()), ("tiny-opt", SiteKind::ALL.to_vec()), ("tiny-falcon", Vec::new())]
    {
        let mut overrides = Overrides::default().samples(4).seqlen(64).epochs(2).tune_epochs(0);
        overrides.transform.sites = (!sites.is_empty()).then_some(sites);
        let recipe = recipe(model, "w4a6g32", overrides);
        let out = tempfile::tempdir().unwrap();
        let outcome = quantized(model, &recipe, out.path());

        let (full, packed) = (Model::open(&fixture(model)).unwrap(), Model::open(out.path()).unwrap());
        assert_eq!(packed.act(), recipe.scheme.act);
        check_recorded_losses(&full, &packed, &calibration(&recipe), &outcome);
        // Tensors that absorbed scales are stored in f32, and nothing else of the transformation is stored.
        let (before, after) = (full.checkpoint(), packed.checkpoint());
        for view in after.tensors().filter(|view| before.contains(view.name)) {
            let source = before.tensor(view.name).unwrap();
            let is_moved = view.dtype == Dtype::F32;
            assert!(is_moved || view == source, "{}", view.name);
        }
        assert!(after.tensors().any(|view| view.dtype == Dtype::F32), "{model}: something was merged");
    }
}

#[test]
fn scales_do_not_pass_rotations_while_the_model_runs() {
    let model = Model::open(&fixture("tiny-llama")).unwrap();
    let sites = vec![SiteKind::Norm, SiteKind::Vo, SiteKind::Updown];
    let recipe = |rotate| {
        let overrides = Overrides::default().rotate(rotate).let_sites(sites.clone());
        Recipe::resolve("w4a4".parse().unwrap(), None, None, &overrides).unwrap()
    };
    check(&model, &recipe(RotateKind::Merged)).unwrap();
    let error = check(&model, &recipe(RotateKind::Online)).unwrap_err().to_string();
    assert!(error.contains("no updown site") && error.ends_with("leave it out: --let-sites norm,vo"), "{error}");
}

#[test]
fn a_stopped_run_ends_in_the_same_bytes() {
    for method in [Method::Omniquant, Method::Smoothquant] {
        let overrides = Overrides::default().method(method).samples(4).seqlen(64).epochs(2).tune_epochs(0);
        let recipe = recipe("tiny-opt", "w4a4", overrides);
        let (whole, parts) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        quantized("tiny-opt", &recipe, whole.path());

        let model = Model::open(&fixture("tiny-opt")).unwrap();
        let run = |resume, stop_after: usize| {
            let mut finished = 0;
            quantize(&model, &recipe, &calibration(&recipe), &in_f32(parts.path(), resume), &mut |notice| {
                finished += usize::from(matches!(notice, Notice::Event(oq_recipe::Event::BlockFinished(_))));
                if finished == stop_after { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            })
        };
        assert!(matches!(run(false, 2), Err(CalibError::Stopped { block: Nth { index: 2, of: 4 }, .. })));
        let outcome = run(true, usize::MAX).unwrap();
        assert_eq!((outcome.resumed_blocks, outcome.blocks.len()), (2, 4));
        assert_eq!(model_files(whole.path()), model_files(parts.path()), "{method}");
    }
}

#[test]
fn a_checkpoint_that_was_transformed_by_nothing_is_its_source() {
    // At the site `qk` no linear's input is rescaled, so SmoothQuant gives scales of 1 and no shifts.
    let overrides = Overrides::default().method(Method::Smoothquant).let_sites(vec![SiteKind::Qk]).samples(2);
    let rtn = Overrides::default().method(Method::Rtn);
    let (smooth, plain) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    quantized("tiny-llama", &recipe("tiny-llama", "w4a8", overrides), smooth.path());
    quantized("tiny-llama", &recipe("tiny-llama", "w4a8", rtn), plain.path());
    let (smooth, plain) = (Checkpoint::open(smooth.path()).unwrap(), Checkpoint::open(plain.path()).unwrap());
    for view in plain.tensors() {
        assert_eq!(smooth.tensor(view.name).unwrap(), view);
    }
}
