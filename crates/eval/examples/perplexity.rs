//! The perplexity of a model on a text: `cargo run --release --example perplexity -- MODEL TEXT [SEQLEN]`.

#![allow(clippy::print_stdout, reason = "an example prints what it found")]

use std::path::Path;

use oq_data::{AddSpecial, Tokenizer};
use oq_eval::perplexity;
use oq_models::Model;
use tch::Device;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [dir, text, rest @ ..] = &words[..] else { return Err("name a model's directory and a text".into()) };
    let model = Model::open(Path::new(dir))?;
    let ids = Tokenizer::open(Path::new(dir))?.encode(&std::fs::read_to_string(text)?, AddSpecial::Yes)?;
    let most = model.decoder().dims().max_positions;
    let seqlen = rest.first().map_or(Ok(most.min(2048)), |word| word.parse())?;
    let mut show = |progress: oq_eval::Progress| eprint!("\r{} of {} blocks", progress.done, progress.total);
    let measured = perplexity(&model, &ids, seqlen, None, Device::Cpu, &mut show)?;
    eprintln!();
    println!("{:.3} over {} windows of {seqlen} tokens", measured.value(), measured.window_nll.len());
    Ok(())
}
