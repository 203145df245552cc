//! Every family beyond LLaMA, OPT and Falcon is learned with LET and tuning, packed, and read back.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use oq_calib::quantize;
use oq_eval::logits;
use oq_formats::{Checkpoint, Dtype, OutTensor, read_config, write_shard};
use oq_models::{Compute, Form, HeadKind, Kernels, Model};
use oq_quant_core::{QuantSpec, SiteKind};
use oq_recipe::{Method, Overrides, Recipe};
use oq_tests::{fixture, in_f32, relative_error};
use serde_json::json;
use tch::{Device, Kind, Tensor};
use tempfile::TempDir;

/// Groups of eight: heads of some variants have eight channels.
const SCHEME: &str = "w4a16g8";
/// Packed products with few rows round activations to integers, in steps of up to 2^-16 of the largest one of a group.
const PACKED_TOLERANCE: f64 = 1e-3;

/// The small models of `tests/fixtures/family-variants`.
fn variants() -> Vec<PathBuf> {
    let entries = std::fs::read_dir(fixture("family-variants")).unwrap();
    let mut folders: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).filter(|path| path.is_dir()).collect();
    folders.sort();
    assert!(folders.len() >= 36, "{}", folders.len());
    folders
}

fn answer(model: &Model) -> Vec<f32> {
    let vocab = model.decoder().dims().vocab as i64;
    let ids = (Tensor::arange(24, (Kind::Int64, Device::Cpu)) * 37 + 11).remainder(vocab).view([1, 24]);
    Vec::try_from(logits(model, &ids, Device::Cpu).unwrap().view(-1)).unwrap()
}

/// Quantizes a model, and opens the result.
fn quantized(source: &Path, overrides: &Overrides, out: &Path) -> Model {
    let model = Model::open(source).unwrap();
    let recipe = Recipe::resolve(SCHEME.parse().unwrap(), None, None, overrides).unwrap();
    let vocab = model.decoder().dims().vocab as u64;
    let ids: Vec<u32> = (0..4096u64).map(|i| (i * i * 2_654_435_761 % 104_729 % vocab) as u32).collect();
    let segments: Vec<Vec<u32>> = ids.chunks(32).take(recipe.segments()).map(<[u32]>::to_vec).collect();
    quantize(&model, &recipe, &segments, &in_f32(out, false), &mut |_| ControlFlow::Continue(())).unwrap();
    Model::open(out).unwrap()
}

/// Sum of squared differences.
fn squares(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(a - b).powi(2)).sum()
}

#[test]
fn rounded_to_nearest_they_are_what_is_measured() {
    for dir in variants() {
        let out = tempfile::tempdir().unwrap();
        let packed = quantized(&dir, &Overrides::default().method(Method::Rtn), out.path());
        let rounded = Model::open(&dir).unwrap().with_round_to_nearest(SCHEME.parse::<QuantSpec>().unwrap()).unwrap();
        assert_eq!(answer(&packed), answer(&rounded), "{}", dir.display());
    }
}

#[test]
fn learned_with_every_site_and_tuned_they_run_in_both_forms() {
    let (variants, mut better) = (variants(), 0);
    for dir in &variants {
        let (out, name) = (tempfile::tempdir().unwrap(), dir.display());
        let full = Model::open(dir).unwrap();
        let sites =
            |kind: &SiteKind| (0..full.decoder().dims().n_layers).all(|l| full.decoder().sites(l, *kind).is_ok());
        let sites: Vec<SiteKind> = SiteKind::ALL.into_iter().filter(sites).collect();
        let overrides = Overrides::default().samples(4).seqlen(32).epochs(2).tune_epochs(1);
        let overrides = overrides.use_let(true).let_sites(sites).expert_tokens(8);
        let packed = quantized(dir, &overrides, out.path());
        let (exact, learned) = (answer(&full), answer(&packed));
        let rounded = Model::open(dir).unwrap().with_round_to_nearest(SCHEME.parse::<QuantSpec>().unwrap()).unwrap();
        let [error, of_rounded] = [&learned, &answer(&rounded)].map(|logits| squares(logits, &exact));
        println!("{name}: {error} learned, {of_rounded} rounded");
        // These weights are random, and the calibration text is four segments of noise.
        assert!(error < 2.5 * of_rounded, "{name}: {error} learned, {of_rounded} rounded");
        better += usize::from(error < of_rounded);
        let form = Form::new(Kernels::Packed, Compute::F32, HeadKind::Wide);
        let by_kernels = answer(&packed.with_form(form).unwrap());
        let error = relative_error(&by_kernels, &learned);
        assert!(error < PACKED_TOLERANCE, "{name}: {error}");
    }
    assert!(better >= variants.len() * 3 / 5, "{better} of {} are better than rounded", variants.len());
}

/// A model of text and images around a text model: its tensors under `prefix` and `head`, beside one of the image part.
fn wrapped(text: &Path, prefix: &str, head: &str) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let checkpoint = Checkpoint::open(text).unwrap();
    let renamed = |name: &str| match name.strip_prefix("model.") {
        Some(rest) => format!("{prefix}{rest}"),
        None => format!("{head}{name}"),
    };
    let tensor = |name: &str| {
        let view = checkpoint.tensor(name).unwrap();
        OutTensor::from_f32(renamed(name), view.shape, &checkpoint.values(name).unwrap(), Dtype::F32).unwrap()
    };
    let mut tensors: Vec<OutTensor<'_>> = checkpoint.names().map(tensor).collect();
    tensors.push(OutTensor::from_f32("vision_tower.patch.weight", &[2, 2], &[0.0; 4], Dtype::F32).unwrap());
    write_shard(&dir.path().join("model.safetensors"), &tensors).unwrap();
    let config = json!({"model_type": "gemma3", "text_config": read_config(text).unwrap(), "vision_config": {}});
    std::fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
    dir
}

#[test]
fn the_text_model_of_a_larger_one_is_read_and_packed() {
    for folder in ["gemma3", "gemma3-published"] {
        let text = fixture("family-variants").join(folder);
        let expected = answer(&Model::open(&text).unwrap());
        for (prefix, head) in [("language_model.model.", "language_model."), ("model.language_model.", "")] {
            let dir = wrapped(&text, prefix, head);
            let model = Model::open(dir.path()).unwrap();
            assert_eq!(answer(&model), expected, "{folder} {prefix}");
            assert_eq!(model.config()["model_type"], "gemma3_text");
            let out = tempfile::tempdir().unwrap();
            let packed = quantized(dir.path(), &Overrides::default().method(Method::Rtn), out.path());
            let rounded =
                Model::open(&text).unwrap().with_round_to_nearest(SCHEME.parse::<QuantSpec>().unwrap()).unwrap();
            assert_eq!(answer(&packed), answer(&rounded), "{folder} {prefix}");
            assert_eq!(read_config(out.path()).unwrap()["model_type"], "gemma3_text");
        }
    }
}
