//! Everything that runs on a device, on one whose memory the host cannot reach (`oq-protected`): the same numbers as on the CPU, and as
//! few copies and waits as are allowed.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use oq_calib::{Options, quantize};
use oq_generate::Loaded;
use oq_models::{Compute, Model, dequantized};
use oq_protected::Counts;
use oq_quant_core::{QuantSpec, QuantizedTensor, RotateKind};
use oq_recipe::{Method, Overrides, Recipe, find};
use oq_tests::{fixture, relative_error};
use tch::{Device, Kind, Tensor};

/// For attention in another order of sums, relative to the largest logit.
const LOGITS: f64 = 1e-5;
/// For losses of blocks whose optimization differs in last bits, relative.
const LOSS: f64 = 0.01;
/// With quantized activations a last bit may move a code, which moves the next ones.
const LOSS_OF_CODES: f64 = 0.05;
/// For the divergence after a few steps of tuning on top of that.
const DIVERGENCE_OF_CODES: f64 = 0.2;

/// The device, for one test at a time: counts are the process's.
fn alone() -> (Device, MutexGuard<'static, ()>) {
    static ONE: Mutex<()> = Mutex::new(());
    (oq_protected::device(), ONE.lock().unwrap_or_else(PoisonError::into_inner))
}

fn values(x: &Tensor) -> Vec<f32> {
    Vec::try_from(x.to_device(Device::Cpu).contiguous().view(-1)).unwrap()
}

fn models() -> Vec<PathBuf> {
    let entries = std::fs::read_dir(fixture("family-variants")).unwrap().map(|entry| entry.unwrap().path());
    let mut folders: Vec<PathBuf> = entries.filter(|path| path.is_dir()).collect();
    folders.sort();
    let trained = ["tiny-llama", "tiny-opt", "tiny-falcon", "tiny-qwen3", "tiny-mixtral", "tiny-qwen3-moe"];
    folders.extend(trained.map(fixture));
    folders
}

#[test]
fn logits_of_all_families_equal_the_cpus() {
    let (device, _alone) = alone();
    for dir in models() {
        for scheme in [None, Some("w4a16g8"), Some("w8a8")] {
            let mut model = Model::open(&dir).unwrap();
            if let Some(scheme) = scheme {
                model = model.with_round_to_nearest(scheme.parse::<QuantSpec>().unwrap()).unwrap();
            }
            let ids =
                (Tensor::arange(40, (Kind::Int64, Device::Cpu)) * 7).remainder(model.decoder().dims().vocab as i64);
            let ids = ids.view([2, 20]);
            let on = |device| values(&oq_eval::logits(&model, &ids, device).unwrap());
            let error = relative_error(&on(device), &on(Device::Cpu));
            let allowed = if scheme == Some("w8a8") { LOSS_OF_CODES } else { LOGITS };
            assert!(error < allowed, "{} {scheme:?}: {error}", dir.display());
        }
    }
}

#[test]
fn codes_are_decoded_there_to_the_last_bit() {
    let (device, _alone) = alone();
    let noise: Vec<f32> = (0..24 * 512).map(|i: i32| ((i * i * 31 + i) % 1009 - 504) as f32 * 1e-3).collect();
    for scheme in ["w2a16", "w3a16g32sym", "w3a16g64", "w4a16g128", "w5a16", "w6a16g32", "w8a16g64", "w4a16g64full"]
        .into_iter()
        .chain(["q2_k_s", "q3_k_s", "q4_k_s", "q5_k_s", "q6_k", "q4_0", "q4_1", "q5_0", "q8_0", "mxfp4", "nvfp4"])
    {
        let spec = scheme.parse::<QuantSpec>().unwrap().weight;
        let packed = QuantizedTensor::quantize(&noise, 24, 512, spec).unwrap();
        let (there, counts) = Counts::of(|| dequantized(&packed, device));
        assert!(values(&there) == packed.dequantize(), "{scheme}");
        // Codes, and three numbers for each group; for the packed words of a narrow matrix.
        let bytes = packed.words().len() * 4 + 24 * packed.groups() * 12 + 64;
        assert!(counts.to_device_bytes as usize <= bytes, "{scheme}: {counts:?} of {bytes}");
        assert_eq!((counts.to_host, counts.waits), (0, 0), "{scheme}");
    }
}

/// A short run.
struct Short<'a> {
    model: &'a str,
    scheme: &'a str,
    overrides: Overrides,
    compute: Compute,
}

impl Short<'_> {
    /// Final losses and tuning divergences.
    fn losses(&self, device: Device, out: &Path) -> Vec<f64> {
        let recipe = Recipe::resolve(self.scheme.parse().unwrap(), find(self.model), None, &self.overrides).unwrap();
        let model = Model::open(&fixture(self.model)).unwrap();
        let vocab = model.decoder().dims().vocab as u32;
        let segment = |i: usize| (0..64).map(|t| (t * 7 + i as u32 * 131) % vocab).collect();
        let segments: Vec<Vec<u32>> = (0..recipe.segments()).map(segment).collect();
        let mut options = Options::new(out);
        (options.device, options.compute) = (device, self.compute);
        let outcome = quantize(&model, &recipe, &segments, &options, &mut |_| ControlFlow::Continue(())).unwrap();
        outcome.blocks.iter().map(|block| block.final_loss.unwrap()).chain(outcome.tuning).collect()
    }
}

fn short<'a>(model: &'a str, scheme: &'a str, more: impl Fn(Overrides) -> Overrides) -> Short<'a> {
    let few = Overrides::default().samples(4).seqlen(64).batch(2).epochs(2).tune_epochs(1);
    Short { model, scheme, overrides: more(few), compute: Compute::F32 }
}

#[test]
fn all_that_is_learned_is_learned_alike() {
    let (device, _alone) = alone();
    let runs = [
        short("tiny-llama", "w3a16g64", |few| few),
        short("tiny-llama", "w2a16g64", |few| few.rotate(RotateKind::Merged)),
        short("tiny-llama", "w4a4", |few| few.rotate(RotateKind::Online).method(Method::Omniquant)),
        short("tiny-llama", "w4a8", |few| few.method(Method::Omniquant)),
        short("tiny-llama-256", "q3_k_s", |few| few),
        short("tiny-opt", "w4a8", |few| few.method(Method::Omniquant)),
        short("tiny-falcon", "w6a6", |few| few.method(Method::Omniquant)),
        short("tiny-mixtral", "w3a16g64", |few| few.expert_tokens(60)),
        short("tiny-llama", "w3a16g64", |few| few.bits(3.25)),
    ];
    for run in runs {
        let (here, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (cpu, there) = (run.losses(Device::Cpu, here.path()), run.losses(device, there.path()));
        assert_eq!(cpu.len(), there.len());
        let has_codes = !run.scheme.contains("a16") && !run.scheme.starts_with('q');
        let n_blocks = Model::open(&fixture(run.model)).unwrap().decoder().dims().n_layers;
        for (idx, (cpu, there)) in cpu.iter().zip(&there).enumerate() {
            let allowed = match (has_codes, idx < n_blocks) {
                (false, _) => LOSS,
                (true, true) => LOSS_OF_CODES,
                (true, false) => DIVERGENCE_OF_CODES,
            };
            assert!((cpu - there).abs() <= allowed * cpu, "{} {} {idx}: {cpu} {there}", run.model, run.scheme);
        }
    }
}

#[test]
fn text_is_generated_alike_and_a_token_costs_few_copies() {
    let (device, _alone) = alone();
    for name in ["tiny-llama", "tiny-opt", "tiny-falcon", "tiny-mixtral"] {
        let load = |device| Loaded::new(Model::open(&fixture(name)).unwrap(), device, &mut |_, _| {}).unwrap();
        let (here, there) = (load(Device::Cpu), load(device));
        let (mut here, mut there) = (here.session(), there.session());
        for ids in [&[5, 6, 7, 8, 9][..], &[10], &[11]] {
            let expected = here.extend(ids).unwrap();
            let (logits, counts) = Counts::of(|| there.extend(ids).unwrap());
            assert!(relative_error(&logits, &expected) < LOGITS, "{name}");
            // Tokens and positions there, logits back; and for the experts of a layer, which tokens they have, and back.
            let routed = if name == "tiny-mixtral" { 3 } else { 0 };
            let copies = (counts.to_device, counts.to_host, counts.waits);
            assert!(copies.0 <= 2 + routed && copies.1 <= 1 + routed && copies.2 <= routed, "{name}: {counts:?}");
        }
    }
}

/// What one more epoch costs, of learning or of tuning.
fn of_epoch(run: impl Fn(usize) -> Short<'static>, device: Device) -> Counts {
    let counts = |epochs| {
        let out = tempfile::tempdir().unwrap();
        Counts::of(|| run(epochs).losses(device, out.path())).1
    };
    counts(2) - counts(1)
}

#[test]
fn steps_stay_within_their_budgets() {
    let (device, _alone) = alone();
    let learning = |scheme: &'static str, model: &'static str| {
        of_epoch(move |epochs| short(model, scheme, |few| few.epochs(epochs).tune_epochs(0)), device)
    };
    let steps = |model: &str| 2 * Model::open(&fixture(model)).unwrap().decoder().dims().n_layers as u64;
    // One number for whether all was finite, with the loss.
    for (model, scheme) in [("tiny-llama", "w3a16g64"), ("tiny-opt", "w4a8"), ("tiny-llama", "w4a4")] {
        let all = learning(scheme, model);
        assert_eq!((all.to_device, all.to_host, all.waits), (0, steps(model), 0), "{model} {scheme}: {all:?}");
    }
    // Experts: which tokens each has, once a step in a layer with a router, and the same back.
    let (all, steps) = (learning("w3a16g64", "tiny-mixtral"), steps("tiny-mixtral"));
    assert!(all.to_device <= steps && all.to_host <= 2 * steps && all.waits <= steps, "{all:?} in {steps} steps");

    // Tuning: two more batches. Codes and grids of each linear, for the forward and the backward pass, and norms; no values.
    let epoch = |samples| {
        let tuned = |epochs| short("tiny-llama", "w3a16g64", |few| few.samples(samples).epochs(1).tune_epochs(epochs));
        of_epoch(tuned, device)
    };
    let both = epoch(8) - epoch(4);
    let layer = Model::open(&fixture("tiny-llama")).unwrap().decoder().layer(0);
    let weights: usize = layer.linears.iter().map(|linear| linear.out_features * linear.in_features).sum();
    let bytes = 2 * 2 * 4 * (weights * 3 / 8 + weights / 64 * 12);
    println!("{both:?} of {bytes}");
    assert!(both.to_device <= 2 * 2 * 4 * (2 * layer.linears.len() as u64 + 4), "{both:?}");
    assert!(both.to_device_bytes as usize <= bytes * 5 / 4, "{both:?} of {bytes}");
    assert!(both.to_host <= 4, "{both:?}");
    assert!(both.waits <= 2 * 8, "{both:?}");
}
