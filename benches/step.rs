//! A learning step of one block, as users' runs make it, in f32 and bf16, against the plain definition of the method: f32, autograd through the
//! quantizer, attention out of single operations. The machine's own limit is measured in the same run: its fastest matrix product.
//!
//!     cargo xtask synth llama2-7b --layers 1 --out out/step
//!     OMNIQUANT_STEP_MODEL=$PWD/out/step cargo xtask bench --bench step
//!
//! `OMNIQUANT_STEP` may say `<scheme> <tokens> <steps>`; it is `w4a16g128 2048 3` otherwise. LLaMA's layout only.

#![allow(missing_docs, clippy::print_stdout, reason = "a bench is a program that prints")]

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::Path;
use std::time::Instant;

use oq_calib::{Notice, Options, quantize};
use oq_lwc::Lwc;
use oq_models::layers::{rms_norm, split_heads};
use oq_models::{Compute, Model};
use oq_quant_core::QuantSpec;
use oq_recipe::{Overrides, Recipe};
use tch::{Device, Kind, Tensor};

fn main() {
    let Some(dir) = std::env::var_os("OMNIQUANT_STEP_MODEL") else {
        println!("skipped: OMNIQUANT_STEP_MODEL is not set (see the head of benches/step.rs)");
        return;
    };
    let setting = std::env::var("OMNIQUANT_STEP").unwrap_or_else(|_| "w4a16g128 2048 3".to_owned());
    let words: Vec<&str> = setting.split_whitespace().collect();
    let [scheme, tokens, steps] = words[..] else { panic!("OMNIQUANT_STEP: `<scheme> <tokens> <steps>`") };
    let scheme: QuantSpec = scheme.parse().expect("a scheme");
    let (tokens, steps) = (tokens.parse().expect("a number of tokens"), steps.parse().expect("a number of steps"));

    let model = Model::open(Path::new(&dir)).expect("a model directory");
    let forward = forward_flops(&model, tokens);
    println!("{}: hidden {}, {tokens} tokens, {scheme}", model.dir().display(), model.decoder().dims().hidden);
    let [f32_peak, bf16_peak] = [Kind::Float, Kind::BFloat16].map(peak_gflops);
    println!("matrix products: f32 {f32_peak:.0} GFLOP/s, bf16 {bf16_peak:.0} GFLOP/s");
    // Backward through inputs and weights: twice the forward.
    let report = |what: &str, secs: f64| {
        let gflops = 3.0 * forward / secs / 1e9;
        println!(
            "{what:<24}{secs:>8.3} s {gflops:>8.1} GFLOP/s {:>6.1} % of the bf16 peak",
            100.0 * gflops / bf16_peak
        );
    };
    report("step, bf16", step_secs(&model, scheme, tokens, steps, Compute::Bf16));
    report("step, f32", step_secs(&model, scheme, tokens, steps, Compute::F32));
    report("plain definition", plain_secs(&model, scheme, tokens, steps));
}

/// Products of a block's linears and of causal attention.
fn forward_flops(model: &Model, tokens: usize) -> f64 {
    let decoder = model.decoder();
    let weights: usize = decoder.block_layout().linears.iter().map(|l| l.out_features * l.in_features).sum();
    let dims = decoder.dims();
    let attention = 2 * tokens * tokens * dims.n_heads * dims.head_dim;
    (2 * weights * tokens + attention) as f64
}

fn median(mut secs: Vec<f64>) -> f64 {
    secs.sort_by(f64::total_cmp);
    secs[secs.len() / 2]
}

/// The fastest of a few square products.
fn peak_gflops(kind: Kind) -> f64 {
    const N: i64 = 3072;
    let a = Tensor::randn([N, N], (Kind::Float, Device::Cpu)).to_kind(kind);
    let secs = (0..6).map(|_| {
        let started = Instant::now();
        let _ = std::hint::black_box(a.matmul(&a));
        started.elapsed().as_secs_f64()
    });
    let fastest = secs.fold(f64::INFINITY, f64::min);
    2.0 * (N as f64).powi(3) / fastest / 1e9
}

/// Median time between the steps of a run, the first one left out.
fn step_secs(model: &Model, scheme: QuantSpec, tokens: usize, steps: usize, compute: Compute) -> f64 {
    let overrides =
        Overrides { samples: Some(1), seqlen: Some(tokens), epochs: Some(steps + 1), ..Overrides::default() };
    let recipe = Recipe::resolve(scheme, None, None, &overrides).expect("a recipe");
    let out = std::env::temp_dir().join(format!("omniquant-step-{}", std::process::id()));
    let options = Options { device: Device::Cpu, compute, out: out.clone(), resume: false };
    let mut ends = Vec::new();
    let result = quantize(model, &recipe, &[ids(tokens)], &options, &mut |notice| {
        if matches!(notice, Notice::Progress { .. }) {
            ends.push(Instant::now());
        }
        if ends.len() > steps { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    assert!(result.is_err() || ends.len() > steps, "the run was stopped after its steps");
    std::fs::remove_dir_all(&out).expect("the run wrote there");
    median(ends.windows(2).map(|pair| (pair[1] - pair[0]).as_secs_f64()).collect())
}

fn ids(tokens: usize) -> Vec<u32> {
    (0..tokens as u32).map(|i| i * 7 % 200).collect()
}

/// The same step written down from the paper, for LLaMA's block.
fn plain_secs(model: &Model, scheme: QuantSpec, tokens: usize, steps: usize) -> f64 {
    let decoder = model.decoder();
    let (dims, ctx) = (decoder.dims(), decoder.context(tokens, Device::Cpu));
    let weights = model.load_block(0, Device::Cpu).expect("a block");
    let mut clips = BTreeMap::new();
    for linear in decoder.block_layout().linears {
        let mut clip =
            Lwc::new(linear.out_features, linear.in_features, scheme.weight, Device::Cpu).expect("groups divide");
        clip.gamma = clip.gamma.set_requires_grad(true);
        clip.beta = clip.beta.set_requires_grad(true);
        clips.insert(linear.name.0, clip);
    }
    let x = Tensor::randn([1, tokens as i64, dims.hidden as i64], (Kind::Float, Device::Cpu));
    let target = x.randn_like();
    let linear = |name: &str, x: &Tensor| {
        x.linear(&clips[name].fake_quantize_autograd(weights.get(&format!("{name}.weight"))), None::<&Tensor>)
    };
    let step = || {
        let h = rms_norm(&x, weights.get("input_layernorm.weight"), 1e-5);
        let heads = |name: &str| split_heads(&linear(name, &h), dims.head_dim);
        let (q, k, v) =
            (ctx.turn(&heads("self_attn.q_proj")), ctx.turn(&heads("self_attn.k_proj")), heads("self_attn.v_proj"));
        let y = &x + linear("self_attn.o_proj", &attention(&q, &k, &v));
        let h = rms_norm(&y, weights.get("post_attention_layernorm.weight"), 1e-5);
        let gated = linear("mlp.gate_proj", &h).silu() * linear("mlp.up_proj", &h);
        let y = y + linear("mlp.down_proj", &gated);
        let params: Vec<&Tensor> = clips.values().flat_map(|clip| [&clip.gamma, &clip.beta]).collect();
        std::hint::black_box(Tensor::run_backward(&[(y - &target).square().mean(Kind::Float)], &params, false, false));
    };
    step();
    let secs = (0..steps).map(|_| {
        let started = Instant::now();
        step();
        started.elapsed().as_secs_f64()
    });
    median(secs.collect())
}

/// Attention out of products and a softmax: `q`, `k`, `v` `[1, heads, t, d]` -> `[1, t, heads * d]`.
fn attention(q: &Tensor, k: &Tensor, v: &Tensor) -> Tensor {
    let (_, heads, t, d) = q.size4().expect("heads");
    let share = heads / k.size()[1];
    let (k, v) = (k.repeat_interleave_self_int(share, 1, None), v.repeat_interleave_self_int(share, 1, None));
    let mask = Tensor::full([t, t], f64::NEG_INFINITY, (Kind::Float, Device::Cpu)).triu(1);
    let scores = q.matmul(&k.transpose(2, 3)) * (d as f64).powf(-0.5) + mask;
    scores.softmax(-1, Kind::Float).matmul(&v).transpose(1, 2).reshape([1, t, heads * d])
}
