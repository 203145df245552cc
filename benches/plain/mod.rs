//! The learning step of a LLaMA block as the paper defines it, with autograd for everything.

use std::collections::BTreeMap;

use oq_lwc::Lwc;
use oq_models::layers::split_heads;
use oq_models::{Context, Model};
use oq_quant_core::QuantSpec;
use tch::{Device, Kind, Tensor};

use crate::timing::{median, secs_of};

/// Median time of a step, without the first one.
pub fn step_secs(model: &Model, scheme: QuantSpec, tokens: usize, steps: usize) -> f64 {
    let hidden = model.decoder().dims().hidden as i64;
    let x = Tensor::randn([1, tokens as i64, hidden], (Kind::Float, Device::Cpu));
    let target = x.randn_like();
    let mut block = Plain::new(model, scheme, tokens);
    block.step(&x, &target);
    median((0..steps).map(|_| secs_of(|| block.step(&x, &target))).collect())
}

/// A block with its strengths, and AdamW's two moments of each.
struct Plain<'a> {
    model: &'a Model,
    weights: oq_models::BlockWeights,
    clips: BTreeMap<&'static str, Lwc>,
    moments: Vec<[Tensor; 2]>,
    ctx: Context,
    steps: i32,
}

impl<'a> Plain<'a> {
    fn new(model: &'a Model, scheme: QuantSpec, tokens: usize) -> Self {
        let clips: BTreeMap<_, _> = (model.decoder().layer(0).linears.iter())
            .map(|linear| {
                let (rows, columns) = (linear.out_features, linear.in_features);
                let mut clip = Lwc::new(rows, columns, scheme.weight, Device::Cpu).expect("groups divide");
                clip.gamma = clip.gamma.set_requires_grad(true);
                clip.beta = clip.beta.set_requires_grad(true);
                (linear.name.0, clip)
            })
            .collect();
        let moments = (clips.values().flat_map(|clip| [&clip.gamma, &clip.beta]))
            .map(|strength| [(); 2].map(|()| strength.detach().zeros_like()))
            .collect();
        let weights = model.load_block(0, Device::Cpu).expect("a block");
        Self { model, weights, clips, moments, ctx: model.decoder().context(tokens, Device::Cpu), steps: 0 }
    }

    fn linear(&self, name: &str, x: &Tensor) -> Tensor {
        let weight = self.weights.get(&format!("{name}.weight"));
        x.linear(&self.clips[name].fake_quantize_autograd(weight), None::<&Tensor>)
    }

    fn norm(&self, name: &str, x: &Tensor) -> Tensor {
        let mean = x.square().mean_dim(-1, true, Kind::Float);
        self.weights.get(name) * (x * (mean + 1e-5).rsqrt())
    }

    fn block(&self, x: &Tensor) -> Tensor {
        let head_dim = self.model.decoder().dims().head_dim;
        let h = self.norm("input_layernorm.weight", x);
        let heads = |name: &str| split_heads(&self.linear(name, &h), head_dim);
        let (q, k) =
            (self.ctx.of(0).rotate(&heads("self_attn.q_proj")), self.ctx.of(0).rotate(&heads("self_attn.k_proj")));
        let y = x + self.linear("self_attn.o_proj", &attention(&q, &k, &heads("self_attn.v_proj")));
        let h = self.norm("post_attention_layernorm.weight", &y);
        let gated = self.linear("mlp.gate_proj", &h).silu() * self.linear("mlp.up_proj", &h);
        y + self.linear("mlp.down_proj", &gated)
    }

    fn step(&mut self, x: &Tensor, target: &Tensor) {
        let loss = (self.block(x) - target).square().mean(Kind::Float);
        let params: Vec<&Tensor> = self.clips.values().flat_map(|clip| [&clip.gamma, &clip.beta]).collect();
        let grads = Tensor::run_backward(&[loss], &params, false, false);
        self.steps += 1;
        let unbiased = |beta: f64| 1.0 - beta.powi(self.steps);
        tch::no_grad(|| {
            for ((param, grad), [mean, square]) in params.into_iter().zip(grads).zip(&mut self.moments) {
                *mean = &*mean * 0.9 + &grad * 0.1;
                *square = &*square * 0.999 + grad.square() * 0.001;
                let step = &*mean / unbiased(0.9) / ((&*square / unbiased(0.999)).sqrt() + 1e-8);
                let _ = param.shallow_clone().subtract_(&(step * 5e-3));
            }
        });
    }
}

/// Attention composed of products and a softmax: `q`, `k`, `v` `[1, heads, t, d]` -> `[1, t, heads * d]`.
fn attention(q: &Tensor, k: &Tensor, v: &Tensor) -> Tensor {
    let (_, heads, t, d) = q.size4().expect("heads");
    let share = heads / k.size()[1];
    let (k, v) = (k.repeat_interleave_self_int(share, 1, None), v.repeat_interleave_self_int(share, 1, None));
    let mask = Tensor::full([t, t], f64::NEG_INFINITY, (Kind::Float, Device::Cpu)).triu(1);
    let scores = q.matmul(&k.transpose(2, 3)) * (d as f64).powf(-0.5) + mask;
    scores.softmax(-1, Kind::Float).matmul(&v).transpose(1, 2).reshape([1, t, heads * d])
}
