//! A norm and a linear that reads it, where some channels are a hundred times as large as the others: moves that size into the weights,
//! and says what 8-bit activations lose before and after.

#![allow(clippy::print_stdout, reason = "an example prints what it found")]

use std::collections::BTreeMap;

use oq_let::{InputStats, Site, Source, Transform, Values};
use oq_quant_core::SiteKind;
use oq_random::SplitMix64;
use tch::{Device, Kind, Tensor};

const HIDDEN: i64 = 64;
const OUT: i64 = 48;

/// A block's tensors, and what its linear was given.
struct Seen {
    tensors: BTreeMap<String, Tensor>,
    inputs: InputStats,
}

impl Source for Seen {
    fn weight(&self, module: &str) -> &Tensor {
        &self.tensors[&format!("{module}.weight")]
    }

    fn inputs(&self, _module: &str) -> Option<&InputStats> {
        Some(&self.inputs)
    }
}

/// Activations in 8 bits, symmetric, a step for each token: `[.., n]` -> `[.., n]`.
fn in_8_bits(x: &Tensor) -> Tensor {
    let step = x.abs().amax([-1], true) / 127.0;
    (x / &step).round() * step
}

/// What the norm gives, and what becomes of it: `[.., hidden]` -> `[.., hidden]`, `[.., out]`.
fn block(tensors: &BTreeMap<String, Tensor>, x: &Tensor, act: impl Fn(&Tensor) -> Tensor) -> Tensor {
    let normed = x.rms_norm([HIDDEN], Some(&tensors["norm.weight"]), 1e-6);
    act(&normed).linear(&tensors["up.weight"], None::<&Tensor>)
}

fn main() {
    let mut random = SplitMix64::new(1);
    let mut normal = |shape: &[i64]| {
        let n: i64 = shape.iter().product();
        let values: Vec<f32> = (0..n).map(|_| random.normal() as f32).collect();
        Tensor::from_slice(&values).view(shape)
    };
    let (up, x) = (normal(&[OUT, HIDDEN]) * 0.1, normal(&[4, 32, HIDDEN]));
    let norm: Vec<f32> = (0..HIDDEN).map(|channel| if channel % 16 == 3 { 100.0 } else { 1.0 }).collect();
    let tensors = [("norm.weight", Tensor::from_slice(&norm)), ("up.weight", up)];
    let tensors: BTreeMap<String, Tensor> = tensors.map(|(name, tensor)| (name.to_owned(), tensor)).into();

    let mut inputs = InputStats::default();
    inputs.add(&x.rms_norm([HIDDEN], Some(&tensors["norm.weight"]), 1e-6));
    let seen = Seen { tensors, inputs };
    let sites = vec![Site::free(SiteKind::Norm, HIDDEN as usize, "norm", ["up"], false)];
    let values = Values::smooth(&sites, false, 0.5, &seen, Device::Cpu);
    let moved = Transform::new(sites, Device::Cpu).apply(&values, |name| seen.tensors.get(name));

    let original = block(&seen.tensors, &x, Tensor::shallow_clone);
    let error = |tensors: &BTreeMap<String, Tensor>, act: fn(&Tensor) -> Tensor| {
        let off =
            (block(tensors, &x, act) - &original).square().mean(Kind::Float) / original.square().mean(Kind::Float);
        off.double_value(&[]).sqrt()
    };
    println!(
        "scales: from {:.3} to {:.3}",
        values.scales[0].min().double_value(&[]),
        values.scales[0].max().double_value(&[])
    );
    println!("transformed, in floating point: off by {:.1e}", error(&moved, Tensor::shallow_clone));
    println!("8-bit activations, as it was:   off by {:.1e}", error(&seen.tensors, in_8_bits));
    println!("8-bit activations, transformed: off by {:.1e}", error(&moved, in_8_bits));
}
