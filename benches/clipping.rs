//! The cost of fake quantization in a learning step: the fused closed form, libtorch's autograd through the definition, and a plain
//! copy of the weights as the machine's limit.
//!
//! `cargo xtask bench --bench clipping`; throughput counts the bytes of the weight once.

#![allow(missing_docs, reason = "criterion's macros make undocumented functions")]

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use oq_lwc::Lwc;
use oq_quant_core::{QuantSpec, QuantizedTensor};
use tch::{Device, Kind, Tensor};

/// Layers of LLaMA-2-7B, `[out, in]`: in f32 they exceed last-level caches.
const SHAPES: [(&str, usize, usize); 2] = [("llama2-7b.q_proj", 4096, 4096), ("llama2-7b.down_proj", 4096, 11008)];

fn clipping(c: &mut Criterion) {
    tch::manual_seed(0);
    for (name, rows, cols) in SHAPES {
        for scheme in ["w4a16g128", "w3a16"] {
            let spec = scheme.parse::<QuantSpec>().expect("the scheme is correct").weight;
            let size = [rows as i64, cols as i64];
            let weight = Tensor::randn(size, (Kind::Float, Device::Cpu)) * 0.02;
            let grad = Tensor::randn(size, (Kind::Float, Device::Cpu));
            let mut clip = Lwc::new(rows, cols, spec, Device::Cpu).expect("the groups divide");
            let mut group = c.benchmark_group(format!("{name} {scheme}"));
            group.sample_size(10).throughput(Throughput::Bytes((rows * cols * 4) as u64));
            let id = |what: &str| BenchmarkId::from_parameter(what);

            group.bench_function(id("copy (limit)"), |b| b.iter(|| black_box(weight.copy())));
            group.bench_function(id("fused: forward"), |b| b.iter(|| black_box(clip.fake_quantize(&weight))));
            group.bench_function(id("fused: backward"), |b| b.iter(|| black_box(clip.gradients(&weight, &grad))));
            group.bench_function(id("round to nearest and pack"), |b| {
                let values = Vec::<f32>::try_from(weight.view(-1)).expect("the weight is f32");
                b.iter(|| black_box(QuantizedTensor::quantize(&values, rows, cols, spec).expect("it is finite")));
            });
            clip.gamma = clip.gamma.set_requires_grad(true);
            clip.beta = clip.beta.set_requires_grad(true);
            group.bench_function(id("autograd: forward and backward"), |b| {
                b.iter(|| {
                    let loss = (clip.fake_quantize_autograd(&weight) * &grad).sum(Kind::Float);
                    black_box(Tensor::run_backward(&[loss], &[&clip.gamma, &clip.beta], false, false))
                });
            });
            group.finish();
        }
    }
}

criterion_group!(benches, clipping);
criterion_main!(benches);
