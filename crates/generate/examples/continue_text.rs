//! Continues a text by the likeliest tokens: `cargo run --release --example continue_text -- MODEL "Once upon a time"`.

#![allow(clippy::print_stdout, reason = "an example prints what it found")]

use std::io::Write;
use std::ops::ControlFlow;
use std::path::Path;

use oq_data::{AddSpecial, Tokenizer};
use oq_generate::{Choice, Loaded, Sampler, Sampling, Settings, generate};
use oq_models::Model;
use tch::Device;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [dir, prompt] = &words[..] else { return Err("name a model's directory and a text".into()) };
    let _no_grad = tch::no_grad_guard();
    let tokenizer = Tokenizer::open(Path::new(dir))?;
    let loaded = Loaded::new(Model::open(Path::new(dir))?, Device::Cpu, &mut |_, _| {})?;
    let settings = Settings::new(40).with_ends(tokenizer.eos().to_vec());
    let mut sampler = Sampler::new(Sampling::new(Choice::Greedy))?;
    let ids = tokenizer.encode(prompt, AddSpecial::Yes)?;
    print!("{prompt}");
    let mut show = |piece: &str| {
        print!("{piece}");
        match std::io::stdout().flush() {
            Ok(()) => ControlFlow::Continue(()),
            Err(_) => ControlFlow::Break(()),
        }
    };
    let done = generate(&mut loaded.session(), &ids, (&settings, &mut sampler, &tokenizer), &mut show)?;
    println!(
        "\n{} tokens at {:.0} a second, ended by {}",
        done.ids.len(),
        done.ids.len() as f64 / done.decode_secs,
        done.end.name()
    );
    Ok(())
}
