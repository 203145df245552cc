//! Checks that every family has to pass, on random weights.

use std::ops::ControlFlow;
use std::path::Path;

use oq_calib::{Options, quantize};
use oq_eval::logits;
use oq_formats::{Dtype, OutTensor, write_shard};
use oq_generate::Loaded;
use oq_models::{Compute, Decoder, Form, HeadKind, Kernels, Layer, Model, ReadDecoder};
use oq_quant_core::SiteKind;
use oq_random::SplitMix64;
use oq_recipe::{Overrides, Recipe};
use tch::{Device, Kind, Tensor};

use crate::models::relative_error;

/// Writes a checkpoint with random weights.
pub fn write_random(dir: &Path, decoder: &dyn Decoder, model_type: &str) {
    let (mut random, mut tensors) = (SplitMix64::new(1), Vec::new());
    let mut put = |name: String, shape: &[usize]| {
        let (offset, size) = if shape.len() == 1 { (1.0, 0.1) } else { (0.0, 0.3) };
        let n = shape.iter().product();
        let values: Vec<f32> = (0..n).map(|_| (offset + size * (2.0 * random.unit() - 1.0)) as f32).collect();
        tensors.push(OutTensor::from_f32(name, shape, &values, Dtype::F32).expect("f32 holds it"));
    };
    decoder.outer_params().iter().for_each(|param| put(param.name.to_owned(), &param.shape));
    for idx in 0..decoder.dims().n_layers {
        let (prefix, Layer { linears, params, .. }) = (decoder.block_prefix(idx), decoder.layer(idx));
        params.iter().for_each(|param| put(format!("{prefix}{}", param.name), &param.shape));
        linears.iter().for_each(|l| put(format!("{prefix}{}.weight", l.name.0), &[l.out_features, l.in_features]));
    }
    write_shard(&dir.join("model.safetensors"), &tensors).expect("it can be written");
    let config = serde_json::json!({ "model_type": model_type });
    std::fs::write(dir.join("config.json"), config.to_string()).expect("it can be written");
}

/// Checks a family. Decoding a sequence in pieces gives the logits of one forward pass. Learned quantization, with LET at norms and with
/// tuning, has a smaller error than rounding to nearest. Packed kernels compute the same as dequantized weights.
#[track_caller]
pub fn check_family(dir: &Path, read: ReadDecoder) {
    let open = |dir: &Path| Model::with_decoder(dir, read).expect("it can be read");
    let model = open(dir);
    let vocab = model.decoder().dims().vocab as u32;
    let ids: Vec<u32> = (0..2048).map(|i: u32| (i * i * 31 + i / 7) % vocab).collect();
    let numbers: Vec<i64> = ids[..20].iter().map(|&id| id.into()).collect();
    let numbers = Tensor::from_slice(&numbers).unsqueeze(0);
    let logits_of = |model: &Model| logits(model, &numbers, Device::Cpu).expect("it can be run");
    let whole = logits_of(&model);
    let row = |at: i64| Vec::<f32>::try_from(whole.get(0).get(at)).expect("logits are f32");

    let loaded = Loaded::new(open(dir), Device::Cpu, &mut |_, _| {}).expect("it can be loaded");
    let mut session = loaded.session();
    for piece in [0..7, 7..8, 8..15, 15..20] {
        let last = piece.end as i64 - 1;
        let got = session.extend(&ids[piece]).expect("there is room");
        // Sums are in a different order.
        let error = relative_error(&got, &row(last));
        assert!(error < 1e-5, "after token {last}: {error:e}");
    }

    let out = tempfile::tempdir().expect("temporary folders can be made");
    let path = out.path().join("packed");
    let overrides = Overrides::default()
        .samples(8)
        .seqlen(32)
        .epochs(2)
        .batch(2)
        .tune_epochs(1)
        .use_let(true)
        .let_sites(vec![SiteKind::Norm]);
    let scheme = "w3a16g32".parse().expect("a scheme");
    let recipe = Recipe::resolve(scheme, None, None, &overrides).expect("a recipe");
    let segments: Vec<Vec<u32>> = ids.chunks(32).take(recipe.segments()).map(<[u32]>::to_vec).collect();
    let (device, compute) = (Device::Cpu, Compute::F32);
    let mut options = Options::new(&path);
    (options.device, options.compute) = (device, compute);
    quantize(&model, &recipe, &segments, &options, &mut |_| ControlFlow::Continue(())).expect("it can be quantized");
    let error = |model: &Model| (logits_of(model) - &whole).square().mean(Kind::Double).double_value(&[]);
    let rounded = error(&open(dir).with_round_to_nearest(recipe.scheme).expect("groups divide"));
    let learned = error(&open(&path));
    assert!(learned < 0.8 * rounded, "{learned} of {rounded}");
    let form = Form::new(Kernels::Packed, compute, HeadKind::Wide);
    let by_kernels = error(&open(&path).with_form(form).expect("it is packed"));
    // With few rows, packed products round activations to 16-bit integers.
    assert!((by_kernels / learned - 1.0).abs() < 0.05, "{by_kernels} and {learned}");
}
