//! Transforms one block of a model at every place that its family names, with random scales, and says how far the outputs are from the
//! original's: `cargo run --release --example transform_block -- MODEL [BLOCK]`.

#![allow(clippy::print_stdout, reason = "an example prints what it found")]

use std::path::Path;

use oq_let::{Transform, Values};
use oq_models::{DenseOps, Model};
use oq_quant_core::SiteKind;
use tch::{Device, Kind, Tensor};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut words = std::env::args().skip(1);
    let dir = words.next().ok_or("name a model's directory")?;
    let block_idx = words.next().map_or(Ok(0), |word| word.parse())?;
    let _no_grad = tch::no_grad_guard();

    let model = Model::open(Path::new(&dir))?;
    let decoder = model.decoder();
    if block_idx >= decoder.dims().n_layers {
        return Err(format!("the model has {} blocks", decoder.dims().n_layers).into());
    }
    let mut weights = model.load_block(block_idx, Device::Cpu)?;
    let x = Tensor::randn([1, 16, decoder.dims().hidden as i64], (Kind::Float, Device::Cpu));
    let context = decoder.context(16, Device::Cpu);
    let original = decoder.block(block_idx, &DenseOps::new(&weights), &context, &x);

    for kind in SiteKind::ALL {
        let sites = match decoder.sites(block_idx, kind) {
            Ok(sites) => sites,
            Err(why) => {
                println!("{kind}: {why}");
                continue;
            }
        };
        let mut values = Values::identity(&sites, false, Kind::Float, Device::Cpu);
        values.scales.iter_mut().for_each(|scale| *scale = (scale.rand_like() * 2.0 - 1.0).exp());
        let n_scales: Vec<usize> = sites.iter().map(|site| site.n_scales).collect();
        let moved = Transform::new(sites, Device::Cpu).apply(&values, |name| weights.find(name));
        let changed: Vec<&str> = moved.keys().map(String::as_str).collect();
        println!("{kind}: {n_scales:?} scales change {}", changed.join(", "));
        moved.into_iter().for_each(|(name, tensor)| weights.set(name, tensor));
    }

    let transformed = decoder.block(block_idx, &DenseOps::new(&weights), &context, &x);
    let off = (transformed - &original).abs().max().double_value(&[]) / original.abs().max().double_value(&[]);
    println!("block {block_idx}: off by {off:.1e} of the largest output");
    Ok(())
}
