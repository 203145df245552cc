//! Gradients against finite differences, and saving and merging.

use std::ops::ControlFlow;

use oq_formats::{Checkpoint, Dtype, OutTensor, write_shard};
use oq_models::Compute;
use oq_quant_core::QuantizedTensor;
use oq_random::SplitMix64;
use oq_recipe::{Method, Overrides, Recipe};
use tch::Device;

use super::*;
use crate::disk::states::Cache;
use crate::testing::fixture;
use crate::widths::Widths;
use crate::{Options, quantize};

/// More positions than are predicted at once.
const TOKENS: usize = 150;

/// A tuner of a model rounded to nearest, with the embedded tokens and the last hidden states in full precision.
fn with_tuner(name: &str, scheme: &str, test: impl FnOnce(&mut Tuner<'_>, &Tensor, &Tensor)) {
    let model = fixture(name);
    let out = tempfile::tempdir().unwrap();
    let scheme = scheme.parse().unwrap();
    let rtn = Overrides::default().method(Method::Rtn).tune_epochs(2);
    let recipe = Recipe::resolve(scheme, None, None, &rtn).unwrap();
    let (device, compute) = (Device::Cpu, Compute::F32);
    let options = Options { device, compute, ..Options::new(out.path()) };
    quantize(&model, &recipe, &[], &options, &mut |_| ControlFlow::Continue(())).unwrap();
    let _no_grad = tch::no_grad_guard();
    let ctx = model.decoder().context(TOKENS, device);
    let mut random = SplitMix64::new(1);
    let ids = [(); TOKENS].map(|()| random.below(model.decoder().dims().vocab as u64) as i64);
    let ids = Tensor::from_slice(&ids).unsqueeze(0);
    let x = model.decoder().embed(&model.outer(device), &ids).unwrap();
    let mut target = x.shallow_clone();
    for block in 0..model.decoder().dims().n_layers {
        let weights = model.load_block(block, device).unwrap();
        target = model.decoder().block(block, &model.ops(&weights), &ctx, &target);
    }
    let blocks = Output::create(out.path(), &model, Widths::of_recipe(model.decoder(), &recipe).unwrap()).unwrap();
    let (act, place) = (scheme.act, Place { device, compute });
    let (batches, tune, ranks) = (1, &recipe.tune, &Ranks::alone());
    let subject = Subject { model: &model, blocks: &blocks, ctx: &ctx, act, place, batches, tune, ranks };
    let len = TOKENS * x.size()[2] as usize * model.decoder().dims().n_layers;
    let cache = Cache { device, budget: None, batch: 0, len, total: len, dir: out.path().to_owned() };
    test(&mut Tuner::new(subject, Store::new(&cache)).unwrap(), &x, &target);
}

fn divergence(tuner: &mut Tuner<'_>, x: &Tensor, target: &Tensor) -> f64 {
    tuner.descend((x.shallow_clone(), 1.0), target, (0.0, 0), |_, _| ()).unwrap()
}

/// Moves all changes by `step` along `way`, which lists the tensors of the last block first.
fn walk(tuner: &mut Tuner<'_>, way: &[Tensor], step: f64) {
    let changes = tuner.blocks.iter_mut().rev().flat_map(|changes| changes.tensors.values_mut());
    changes.zip(way).for_each(|(change, way)| drop(change.g_add_(&(way * step))));
}

#[test]
fn gradients_match_finite_differences() {
    // Finite differences in f32: 1e-6 of a divergence near 0.1, over 2e-3 times a slope near 1. The curvature adds less.
    const STEP: f64 = 1e-3;
    const TOLERANCE: f64 = 0.02;
    for (name, scheme) in [("tiny-llama", "w3a16g64"), ("tiny-opt", "w3a16"), ("tiny-falcon", "w4a16g64sym")] {
        with_tuner(name, scheme, |tuner, x, target| {
            let mut grads = Vec::new();
            tuner.descend((x.shallow_clone(), 1.0), target, (0.0, 0), |_, of_block| grads.extend(of_block)).unwrap();
            // Along the signs of the gradients, every tensor contributes.
            let way: Vec<Tensor> = grads.iter().map(Tensor::sign).collect();
            let slope: f64 = grads.iter().map(|grad| grad.abs().sum(Kind::Double).double_value(&[])).sum();
            walk(tuner, &way, STEP / slope);
            let after = divergence(tuner, x, target);
            walk(tuner, &way, -2.0 * STEP / slope);
            let before = divergence(tuner, x, target);
            let measured = (after - before) / (2.0 * STEP / slope);
            assert!((measured / slope - 1.0).abs() < TOLERANCE, "{name}: {measured} for {slope}");
        });
    }
}

#[test]
fn a_model_has_no_divergence_from_itself() {
    with_tuner("tiny-llama", "w8a16g64", |tuner, x, target| {
        let (divergence, grad) = tuner.predictions.divergence(target, target).unwrap();
        // Both sides are identical.
        assert_eq!((divergence, grad.abs().max().double_value(&[])), (0.0, 0.0));
        assert!(tuner.predictions.divergence(x, target).unwrap().0 > 1.0);
    });
}

#[test]
fn steps_decrease_the_divergence_and_resume_exactly() {
    with_tuner("tiny-llama", "w2a16g64", |tuner, x, target| {
        let first = tuner.step(x.shallow_clone(), target, x.size()[0] as usize).unwrap();
        tuner.finish_epoch();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tuning.safetensors");
        tuner.save(&path).unwrap();
        let second = tuner.step(x.shallow_clone(), target, x.size()[0] as usize).unwrap();
        assert!(second < 0.999 * first, "{second} after {first}");
        let tensors = |tuner: &Tuner<'_>| -> Vec<Vec<f32>> {
            let all = tuner.blocks.iter().flat_map(|changes| changes.tensors.values());
            all.map(|tensor| Vec::try_from(tensor.view(-1)).unwrap()).collect()
        };
        let whole = tensors(tuner);
        tuner.start(1.0).unwrap();
        tuner.restore(&path).unwrap();
        assert_eq!(tuner.divergences(), [first]);
        assert_eq!(tuner.step(x.shallow_clone(), target, x.size()[0] as usize).unwrap(), second);
        assert_eq!(tensors(tuner), whole);
    });
}

#[test]
fn codes_that_many_texts_agree_on_move_and_resume_exactly() {
    with_tuner("tiny-llama", "w2a16g64", |tuner, x, target| {
        let moving: &Tune = Box::leak(Box::new(Tune { codes: 1.0, epochs: 1, lr: 1e-12 }));
        (tuner.subject.tune, tuner.subject.batches) = (moving, 24);
        tuner.start(moving.lr).unwrap();
        let first = tuner.step(x.shallow_clone(), target, x.size()[0] as usize).unwrap();
        for _ in 0..11 {
            tuner.step(x.shallow_clone(), target, x.size()[0] as usize).unwrap();
        }
        let (dir, mut last) = (tempfile::tempdir().unwrap(), f64::NAN);
        let path = dir.path().join("tuning.safetensors");
        tuner.save(&path).unwrap();
        let mut rest = |tuner: &mut Tuner<'_>| {
            for _ in 0..10 {
                last = tuner.step(x.shallow_clone(), target, x.size()[0] as usize).unwrap();
            }
            let merged = (0..4).map(|block| tuner.merged(block).unwrap().codes);
            (last, merged.flat_map(|codes| codes.into_values()).collect::<Vec<QuantizedTensor>>())
        };
        let (last, codes) = rest(tuner);
        tuner.start(moving.lr).unwrap();
        tuner.restore(&path).unwrap();
        assert_eq!(rest(tuner), (last, codes.clone()));
        // Nothing else moves at such a rate.
        assert!(last < 0.95 * first, "{last} after {first}");
        let before = (0..4).flat_map(|block| {
            tuner.subject.blocks.read_block(block, Device::Cpu).unwrap().codes.into_values().collect::<Vec<_>>()
        });
        let (mut moved, mut all) = (0, 0);
        for (before, after) in before.zip(&codes) {
            let values = |packed: &QuantizedTensor| {
                let mut row = vec![0; packed.shape()[1]];
                let rows = 0..packed.shape()[0];
                rows.flat_map(|at| {
                    packed.row_codes(at, &mut row);
                    row.clone()
                })
                .collect::<Vec<u8>>()
            };
            for (before, after) in values(&before).into_iter().zip(values(after)) {
                assert!(before.abs_diff(after) <= 1, "one step at most");
                moved += usize::from(before != after);
                all += 1;
            }
        }
        assert!(moved * 10 < all && moved * 10_000 > all, "few codes: {moved} of {all}");
    });
}

/// As stored in the file.
fn numbers(numbers: &[f64]) -> Vec<u8> {
    numbers.iter().flat_map(|number| number.to_le_bytes()).collect()
}

#[test]
fn a_state_of_another_run_is_refused() {
    with_tuner("tiny-llama", "w2a16g64", |tuner, x, target| {
        // State: of two epochs with three steps each, one is finished, and the next has made one step.
        tuner.subject.batches = 3;
        let fresh = tuner.step(x.shallow_clone(), target, x.size()[0] as usize).unwrap();
        tuner.finish_epoch();
        tuner.step(x.shallow_clone(), target, x.size()[0] as usize).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tuning.safetensors");
        tuner.save(&path).unwrap();
        let lr = tuner.lr();
        let saved = std::fs::read(&path).unwrap();
        tuner.restore(&path).expect("it is this run's");

        let mut check = |part: &str, bytes: &[u8]| {
            std::fs::write(&path, bytes).unwrap();
            let error = tuner.restore(&path).expect_err(part).to_string();
            assert!(error.contains("tuning.safetensors") && error.contains(part), "{part}: {error}");
            // The caller restarts after an error.
            tuner.start(lr).unwrap();
            assert_eq!(divergence(tuner, x, target), fresh);
        };
        for cut in [0, 7, 100, saved.len() / 2, saved.len() - 1] {
            check("tuning.safetensors", &saved[..cut]);
        }
        // Replaces one tensor by another.
        let with = |name: &str, dtype: Dtype, len: usize, bytes: Vec<u8>| {
            let other = dir.path().join("other.safetensors");
            std::fs::write(&other, &saved).unwrap();
            let all = Checkpoint::open_file(&other).unwrap();
            let kept = all.names().filter(|kept| *kept != name).map(|kept| OutTensor::copy_from(&all, kept).unwrap());
            let mut tensors: Vec<OutTensor<'_>> = kept.collect();
            tensors.push(OutTensor::new(name, dtype, &[len], bytes).unwrap());
            write_shard(&dir.path().join("made.safetensors"), &tensors).unwrap();
            std::fs::read(dir.path().join("made.safetensors")).unwrap()
        };
        let progress = |of: &[f64]| with("progress", Dtype::F64, of.len(), numbers(of));
        check("progress is F64 [3], not F64 of 4", &progress(&[lr, 1.0, 1.0]));
        check("progress is F64 [0]", &progress(&[]));
        check("progress is F32 [9]", &with("progress", Dtype::F32, 9, vec![0; 36]));
        for rate in [f64::NAN, 0.3, 0.0, -lr, 2.0 * lr, lr / 1024.0] {
            check(&format!("the learning rate is {rate}, not"), &progress(&[rate, 1.0, 1.0, 0.5, 0.5]));
        }
        for steps in [3.0, 1e30, -1.0, 0.5, f64::NAN] {
            check("not 0 to 2", &progress(&[lr, steps, 1.0, 0.5, 0.5]));
        }
        check("the number of segments is 0 after 1 steps", &progress(&[lr, 1.0, 0.0, 0.5, 0.5]));
        check("a divergence is NaN", &progress(&[lr, 1.0, 1.0, f64::NAN, 0.5]));
        check("a divergence is inf", &progress(&[lr, 1.0, 1.0, 0.5, f64::INFINITY]));
        check("the number of epochs is 3, not 0 to 2", &progress(&[lr, 0.0, 0.0, 0.0, 0.5, 0.5, 0.5]));
        check("the number of steps is 1, not 0 to 0", &progress(&[lr, 1.0, 1.0, 0.5, 0.5, 0.5]));
        let name = "2.mlp.up_proj.weight.first";
        check(&format!("{name} is F32 [5], not F32 ["), &with(name, Dtype::F32, 5, vec![0; 20]));
        check(&format!("{name} is F64 ["), &with(name, Dtype::F64, 5, vec![0; 40]));
    });
}

#[test]
fn merged_blocks_match_the_tuned_ones() {
    with_tuner("tiny-opt", "w4a16g64", |tuner, x, target| {
        for _ in 0..2 {
            tuner.step(x.shallow_clone(), target, x.size()[0] as usize).unwrap();
        }
        let place = tuner.subject.place;
        let packed = tuner.subject.blocks.read_block(0, place.device).unwrap();
        let (applied, merged) = (tuner.blocks[0].applied(&packed, place), tuner.merged(0).unwrap());
        for (name, codes) in &merged.codes {
            let tuned = &applied[&name.weight()];
            let stored = Tensor::from_slice(&codes.dequantize()).view_as(tuned);
            // Scales are stored with 11 bits of precision.
            let off = ((stored - tuned).abs() / tuned.abs().max()).max().double_value(&[]);
            assert!(off < 5e-4, "{name:?}: {off}");
            assert_eq!(codes.words(), packed.codes[name].words());
        }
        assert!(merged.params.iter().all(|(name, tensor)| *tensor == applied[name]));
        assert!(merged.params.iter().any(|(name, tensor)| *tensor != packed.params[name]));
    });
}
