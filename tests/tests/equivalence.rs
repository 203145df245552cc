//! Transformed blocks compute the same function as the original ones, for every site of every family and variant, with random scales and
//! shifts.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::path::Path;

use oq_let::{Action, Site, Transform, Values};
use oq_models::{ActPoint, BlockOps, BlockWeights, Compute, DenseOps, LinearName, Model, Rotator};
use oq_quant_core::{RotateKind, SiteKind};
use oq_tests::{F64_BLOCK, checkpoints, f64_block, fixture};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use tch::{Device, Kind, Tensor};

/// Relative to the largest number. f64 has sixteen digits; scales up to 20 and shifts up to 5 cost three or four of them.
const TOLERANCE: f64 = 1e-9;
/// Breaking a tie changes every output by far more than this.
const BROKEN: f64 = 1e-3;
const TOKENS: i64 = 12;

/// Scales from 1/20 to 20 and shifts from -5 to 5.
fn random_values(sites: &[Site], seed: i64) -> Values {
    tch::manual_seed(seed);
    let mut values = Values::identity(sites, true, Kind::Double, Device::Cpu);
    for scale in &mut values.scales {
        *scale = ((Tensor::rand_like(scale) * 2.0 - 1.0) * 20f64.ln()).exp();
    }
    for shift in values.shifts.iter_mut().flatten() {
        *shift = Tensor::rand_like(shift) * 10.0 - 5.0;
    }
    values
}

/// Uses transformed tensors in place of the block's own, as learning does.
struct Unmerged<'a> {
    weights: &'a BlockWeights,
    moved: BTreeMap<String, Tensor>,
}

impl Unmerged<'_> {
    fn find(&self, name: &str) -> Option<&Tensor> {
        self.moved.get(name).or_else(|| self.weights.find(name))
    }
}

impl BlockOps for Unmerged<'_> {
    fn linear(&self, name: LinearName, x: &Tensor) -> Tensor {
        x.linear(self.find(&format!("{}.weight", name.0)).unwrap(), self.find(&format!("{}.bias", name.0)))
    }

    fn act(&self, point: ActPoint, x: Tensor) -> Tensor {
        self.weights.rotate_online(point, x)
    }

    fn param(&self, name: &str) -> Tensor {
        self.find(name).unwrap().shallow_clone()
    }
}

/// Errors of a block run with transformed tensors and with merged ones, relative to the largest output of the original.
fn errors(model: &Model, weights: &BlockWeights, sites: &[Site], seed: i64) -> [f64; 2] {
    let decoder = model.decoder();
    let values = random_values(sites, seed);
    let x = Tensor::randn([2, TOKENS, decoder.dims().hidden as i64], (Kind::Double, Device::Cpu));
    let ctx = decoder.context(TOKENS as usize, Device::Cpu);
    let original = decoder.block(F64_BLOCK, &DenseOps::new(weights), &ctx, &x);

    let moved = Transform::new(sites.to_vec(), Device::Cpu).apply(&values, |name| weights.find(name));
    let mut merged = weights.cast(&[], Compute::F32); // A plain copy.
    moved.iter().for_each(|(name, tensor)| merged.set(name.clone(), tensor.shallow_clone()));
    let unmerged = decoder.block(F64_BLOCK, &Unmerged { weights, moved }, &ctx, &x);
    let merged = decoder.block(F64_BLOCK, &DenseOps::new(&merged), &ctx, &x);
    let largest = |x: &Tensor| x.abs().max().double_value(&[]);
    [unmerged, merged].map(|y| largest(&(y - &original)) / largest(&original))
}

/// Checks a checkpoint's sites of one kind. Returns how many can shift.
#[track_caller]
fn check(dir: &Path, model: &Model, weights: &BlockWeights, sites: &[Site]) -> usize {
    let mut runner = TestRunner::new_with_rng(
        Config { cases: 4, failure_persistence: None, ..Config::default() },
        proptest::test_runner::TestRng::deterministic_rng(proptest::test_runner::RngAlgorithm::ChaCha),
    );
    let result = runner.run(&(0i64..1 << 40), |seed| {
        for error in errors(model, weights, sites, seed) {
            prop_assert!(error <= TOLERANCE, "{}: {:?}: relative error {error:.1e}", dir.display(), sites[0].kind);
        }
        Ok(())
    });
    result.unwrap();
    sites.iter().filter(|site| site.can_shift).count()
}

#[test]
fn every_site_of_every_model_is_an_equivalence() {
    let mut seen: BTreeMap<SiteKind, usize> = BTreeMap::new();
    let mut shifting = 0;
    let checkpoints = checkpoints();
    for dir in &checkpoints {
        let model = Model::open(dir).unwrap();
        let weights = f64_block(&model);
        let mut all = Vec::new();
        for kind in SiteKind::ALL {
            if let Ok(sites) = model.decoder().sites(F64_BLOCK, kind) {
                shifting += check(dir, &model, &weights, &sites);
                *seen.entry(kind).or_default() += 1;
                all.extend(sites);
            }
        }
        check(dir, &model, &weights, &all);
    }
    // Three OPT-like checkpoints have norms elsewhere or without weights, and scales pass only through a gate or ReLU.
    // One clamps queries, keys and values; OLMo 2 and 3 have no norms before.
    assert_eq!((seen[&SiteKind::Vo], seen[&SiteKind::Qk]), (checkpoints.len() - 1, checkpoints.len() - 1));
    assert!(seen[&SiteKind::Norm] >= checkpoints.len() - 8, "{seen:?} of {}", checkpoints.len());
    assert!(seen[&SiteKind::Updown] >= 30 && shifting >= 20, "{seen:?}, {shifting} shift");
}

#[test]
fn sites_of_rotated_models_are_equivalences() {
    let mut seen = 0;
    for dir in checkpoints() {
        let model = Model::open(&dir).unwrap();
        let Ok(rotator) = Rotator::new(model.decoder(), RotateKind::Online, 5) else { continue };
        let weights = rotator.expect("it was asked for").block(F64_BLOCK, f64_block(&model)).unwrap();
        // The online rotation of the MLP's inner activations lies between the ports of `updown`.
        for kind in [SiteKind::Norm, SiteKind::Vo, SiteKind::Qk] {
            if let Ok(sites) = model.decoder().sites(F64_BLOCK, kind) {
                check(&dir, &model, &weights, &sites);
                seen += 1;
            }
        }
    }
    assert!(seen >= 3 * 30, "{seen}");
}

/// A copy of a site in which tied channels have separate scales.
fn untied(site: &Site) -> Site {
    let mut site = site.clone();
    let widest = site.ports.iter().map(|port| port.channels.len()).max().unwrap();
    site.n_scales = widest;
    for port in &mut site.ports {
        port.scales = (0..port.channels.len() as i64).collect();
    }
    site
}

#[test]
fn ties_are_needed() {
    let cases = [
        ("tiny-llama", SiteKind::Qk),
        ("tiny-llama", SiteKind::Vo),
        ("tiny-falcon", SiteKind::Qk),
        ("falcon-40b-like", SiteKind::Vo),
    ];
    for (folder, kind) in cases {
        let model = Model::open(&fixture(folder)).unwrap();
        let weights = f64_block(&model);
        let sites: Vec<Site> = model.decoder().sites(F64_BLOCK, kind).unwrap().iter().map(untied).collect();
        let [error, _] = errors(&model, &weights, &sites, 1);
        assert!(error > BROKEN, "{folder} {kind}: {error:.1e}");
    }
    // Without a rotary embedding, channels of queries are not tied.
    let model = Model::open(&fixture("tiny-opt")).unwrap();
    let sites = model.decoder().sites(F64_BLOCK, SiteKind::Qk).unwrap();
    assert_eq!(sites[0].n_scales, model.decoder().dims().hidden);
    assert!(sites[0].ports.iter().any(|port| port.action == Action::MultiplyOutput));
}

#[test]
fn places_that_a_model_has_not_are_explained() {
    let cases = [
        ("opt-postnorm-proj", SiteKind::Norm, "the residual stream reads their outputs too"),
        ("opt-falcon-variants/opt-no-affine", SiteKind::Norm, "no weights"),
        ("opt-falcon-variants/opt-gelu", SiteKind::Updown, "not ReLU"),
        ("tiny-falcon", SiteKind::Updown, "not ReLU"),
        ("family-variants/olmo2", SiteKind::Norm, "norms come after"),
        ("family-variants/olmoe-clip", SiteKind::Vo, "clamps queries"),
        ("family-variants/gpt-oss", SiteKind::Updown, "clamp what a scale"),
    ];
    for (folder, kind, part) in cases {
        let reason = Model::open(&fixture(folder)).unwrap().decoder().sites(F64_BLOCK, kind).unwrap_err();
        assert!(reason.contains(part), "{folder}: {reason}");
    }
}
