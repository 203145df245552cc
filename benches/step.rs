//! A learning step of one block by the published method (`--preset paper`), in bf16 and f32, compared with its plain definition: f32,
//! autograd through the quantizer, norms and attention composed of single operations, batch 1. The machine's limit, its fastest matrix
//! product, is measured between the steps.
//!
//!     cargo xtask synth llama2-7b --layers 1 --out out/step
//!     OMNIQUANT_STEP_MODEL=$PWD/out/step cargo xtask bench --bench step
//!
//! `OMNIQUANT_STEP` may be set to `<scheme> <tokens> <steps>`; the default is `w4a16g128 2048 3`. LLaMA's layout only.

#![allow(missing_docs, clippy::print_stdout, reason = "a bench is a program that prints")]

use std::ops::ControlFlow;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use oq_calib::{Notice, Options, quantize};
use oq_models::{Compute, Mixed, Model, Scores};
use oq_quant_core::QuantSpec;
use oq_recipe::{Overrides, Preset, Recipe};
use tch::{Device, Kind, Tensor};

mod plain;
mod timing;

use crate::timing::{median, secs_of};

/// Set in the process that measures the plain definition.
const PLAIN: &str = "OMNIQUANT_STEP_PLAIN";

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
    let of_peak = |what: &str, secs: f64, peak: f64| {
        // The backward pass through inputs and weights takes twice the forward pass.
        let gflops = 3.0 * forward_flops(&model, tokens) / secs / 1e9;
        println!("{what:<24}{secs:>8.3} s {gflops:>8.1} GFLOP/s {:>6.1} % of the bf16 peak", 100.0 * gflops / peak);
    };
    if let Ok(peak) = std::env::var(PLAIN) {
        of_peak(
            "plain definition, f32",
            plain::step_secs(&model, scheme, tokens, steps),
            peak.parse().expect("GFLOP/s"),
        );
        return;
    }
    oq_runtime::settle().expect("the bench starts itself again, with the settings of the program");

    println!("{}: hidden {}, {tokens} tokens, {scheme}", model.dir().display(), model.decoder().dims().hidden);
    let mut peaks = [Vec::new(), Vec::new()];
    let bf16 = step_secs(&model, scheme, tokens, steps, Compute::Bf16, &mut peaks);
    let f32 = step_secs(&model, scheme, tokens, steps, Compute::F32, &mut peaks);
    let [f32_peak, bf16_peak] = peaks.map(median);
    println!("matrix products: f32 {f32_peak:.0} GFLOP/s, bf16 {bf16_peak:.0} GFLOP/s");
    of_peak("step, bf16", bf16, bf16_peak);
    of_peak("step, f32", f32, bf16_peak);
    parts(&model, tokens, bf16);
    // In the environment of a program that does not have our allocator settings.
    let mut plain = Command::new(std::env::current_exe().expect("this program"));
    plain.env_remove("GLIBC_TUNABLES").env(PLAIN, bf16_peak.to_string());
    assert!(plain.status().expect("it starts").success(), "the plain definition failed");
}

/// Operations in a block's linears and in causal attention.
fn forward_flops(model: &Model, tokens: usize) -> f64 {
    let decoder = model.decoder();
    let weights: usize = decoder.layer(0).linears.iter().map(|l| l.out_features * l.in_features).sum();
    let dims = decoder.dims();
    let attention = 2 * tokens * tokens * dims.n_heads * dims.head_dim;
    (2 * weights * tokens + attention) as f64
}

/// The fastest of a few square products, GFLOP/s.
fn peak_gflops(kind: Kind) -> f64 {
    const N: i64 = 2048;
    let a = Tensor::randn([N, N], (Kind::Float, Device::Cpu)).to_kind(kind);
    let secs = (0..3).map(|_| secs_of(|| a.matmul(&a)));
    2.0 * (N as f64).powi(3) / secs.fold(f64::INFINITY, f64::min) / 1e9
}

/// Median time of a run's steps, without the first one. After each step, the peaks of f32 and bf16 are measured.
fn step_secs(
    model: &Model,
    scheme: QuantSpec,
    tokens: usize,
    steps: usize,
    compute: Compute,
    peaks: &mut [Vec<f64>; 2],
) -> f64 {
    let overrides = Overrides::default().preset(Preset::Paper).samples(1).seqlen(tokens).epochs(steps + 1);
    let recipe = Recipe::resolve(scheme, None, None, &overrides).expect("a recipe");
    let out = std::env::temp_dir().join(format!("omniquant-step-{}", std::process::id()));
    let mut options = Options::new(&out);
    options.compute = compute;
    let ids = (0..tokens as u32).map(|i| i * 7 % 200).collect();
    let (mut secs, mut last) = (Vec::new(), None::<Instant>);
    let result = quantize(model, &recipe, &[ids], &options, &mut |notice| {
        if matches!(notice, Notice::Progress { .. }) {
            secs.extend(last.map(|last| last.elapsed().as_secs_f64()));
            peaks[0].push(peak_gflops(Kind::Float));
            peaks[1].push(peak_gflops(Kind::BFloat16));
            last = Some(Instant::now());
        }
        if secs.len() >= steps { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    assert!(result.is_err() || secs.len() >= steps, "the run was stopped after its steps");
    std::fs::remove_dir_all(&out).expect("the run wrote there");
    median(secs)
}

/// Where the time of a bf16 step goes: its products and its attention, measured one by one, and the rest.
fn parts(model: &Model, tokens: usize, step: f64) {
    let decoder = model.decoder();
    let (dims, t) = (decoder.dims(), tokens as i64);
    let random =
        |rows: i64, columns: i64| Tensor::randn([rows, columns], (Kind::Float, Device::Cpu)).to_kind(Kind::BFloat16);
    let of_best = |work: &dyn Fn() -> Tensor| (0..3).map(|_| secs_of(work)).fold(f64::INFINITY, f64::min);
    let [mut forward, mut to_input, mut to_weight] = [0.0; 3];
    for linear in decoder.layer(0).linears {
        let (rows, columns) = (linear.out_features as i64, linear.in_features as i64);
        let (x, w, g) = (random(t, columns), random(rows, columns), random(t, rows));
        forward += of_best(&|| x.linear(&w, None::<&Tensor>));
        to_weight += of_best(&|| g.transpose(0, 1).matmul(&x));
        // The input of the first linears needs no gradient.
        if !["q_proj", "k_proj", "v_proj"].iter().any(|first| linear.name.0.ends_with(first)) {
            to_input += of_best(&|| g.matmul(&w));
        }
    }
    let heads = |n: usize| {
        let by_tokens = random(t, (n * dims.head_dim) as i64).view([1, t, n as i64, dims.head_dim as i64]);
        by_tokens.transpose(1, 2)
    };
    let (q, kv, grad) = (heads(dims.n_heads), heads(dims.n_kv_heads), random(t, (dims.n_heads * dims.head_dim) as i64));
    let mix = || Mixed::new(&q, &kv, &kv, &Scores::default()).expect("our own attention, where bf16 is fast");
    let attention = of_best(&|| mix().out);
    let mixed = mix();
    let attention_back = of_best(&|| mixed.grads(&grad)[0].shallow_clone());
    let parts = [
        ("  linears, forward", forward),
        ("  linears, to inputs", to_input),
        ("  linears, to weights", to_weight),
        ("  attention, forward", attention),
        ("  attention, backward", attention_back),
    ];
    let rest = step - parts.iter().map(|(_, secs)| secs).sum::<f64>();
    for (name, secs) in parts.into_iter().chain([("  the rest", rest)]) {
        println!("{name:<24}{secs:>8.3} s {:>27.1} % of the step", 100.0 * secs / step);
    }
}
