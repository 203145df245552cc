//! Learning with products in bf16 is as good as in f32 for every family. A run cannot switch between the two.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::ops::ControlFlow;
use std::path::Path;

use oq_calib::{CalibError, JournalError, Options, Outcome, quantize};
use oq_data::segments;
use oq_eval::perplexity;
use oq_models::{Compute, Model};
use oq_recipe::{Overrides, Recipe, find};
use oq_tests::{fixture, tokens};
use tch::Device;

/// Runs that differ in the rounding of products end in different codes. Their perplexities differ by a few tenths of a percent.
const TOLERANCE: f64 = 1e-2;

fn run(model: &str, scheme: &str, compute: Compute, resume: bool, out: &Path) -> Result<Outcome, CalibError> {
    let overrides = Overrides::default().samples(8).epochs(4).tune_epochs(0);
    let scheme = scheme.parse().unwrap();
    let recipe = Recipe::resolve(scheme, find(model), None, &overrides).unwrap();
    let c = &recipe.calibration;
    let segments = segments(&tokens("calib.txt"), c.samples, c.seqlen, c.seed).unwrap();
    let mut options = Options::new(out);
    (options.compute, options.resume) = (compute, resume);
    quantize(&Model::open(&fixture(model)).unwrap(), &recipe, &segments, &options, &mut |_| ControlFlow::Continue(()))
}

#[test]
fn learns_as_well_as_in_f32() {
    for (model, scheme) in [("tiny-llama", "w3a16g64"), ("tiny-opt", "w3a16g64"), ("tiny-falcon", "w4a6")] {
        let cost = |compute| {
            let out = tempfile::tempdir().unwrap();
            run(model, scheme, compute, false, out.path()).unwrap();
            perplexity(&Model::open(out.path()).unwrap(), &tokens("eval.txt"), 256, None, Device::Cpu, &mut |_| {})
                .unwrap()
                .value()
        };
        let (bf16, f32) = (cost(Compute::Bf16), cost(Compute::F32));
        assert!(bf16 != f32, "{model}: products were computed in the same kind");
        assert!((bf16 / f32 - 1.0).abs() <= TOLERANCE, "{model} {scheme}: {bf16} in bf16, {f32} in f32");
    }
}

#[test]
fn a_run_goes_on_in_what_it_began() {
    let out = tempfile::tempdir().unwrap();
    run("tiny-opt", "w4a16g64", Compute::Bf16, false, out.path()).unwrap();
    let error = run("tiny-opt", "w4a16g64", Compute::F32, true, out.path()).unwrap_err();
    assert!(
        matches!(&error, CalibError::Journal(JournalError::Different { differences, .. }) if differences == "compute")
    );
    assert!(run("tiny-opt", "w4a16g64", Compute::Bf16, true, out.path()).unwrap().was_complete);
}
