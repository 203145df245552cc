//! Quantizes a model to 4 bits: `cargo run --release --example quantize -- MODEL OUT`. In place of a text it takes random token ids, which
//! shows how a run is made, and not what it can do: give segments of a text in their place.

#![allow(clippy::print_stdout, reason = "an example prints what it found")]

use std::ops::ControlFlow;
use std::path::Path;

use oq_calib::{Notice, Options, quantize};
use oq_models::Model;
use oq_random::SplitMix64;
use oq_recipe::{Overrides, Recipe};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [dir, out] = &words[..] else { return Err("name a model's directory and one for the result".into()) };
    let model = Model::open(Path::new(dir))?;
    let overrides = Overrides::default().samples(8).seqlen(128).epochs(1);
    let recipe = Recipe::resolve("w4a16g64".parse()?, None, None, &overrides)?;

    let mut random = SplitMix64::new(1);
    let vocab = model.decoder().dims().vocab as u64;
    let mut segment = || (0..recipe.text().tokens).map(|_| random.below(vocab) as u32).collect();
    let segments: Vec<Vec<u32>> = (0..recipe.segments()).map(|_| segment()).collect();
    let done = quantize(&model, &recipe, &segments, &Options::new(out), &mut |notice| {
        if let Notice::Progress { done, total } = notice {
            eprint!("\r{done} of {total}");
        }
        ControlFlow::Continue(())
    })?;
    eprintln!();
    for block in &done.blocks {
        println!("block {}: losses {:?}", block.index, block.losses);
    }
    Ok(())
}
