//! The settings of a run, complete: `cargo run --example resolve -- w2a16g64 llama2-7b best`.

#![allow(clippy::print_stdout, reason = "an example prints what it found")]

use oq_recipe::{Overrides, Recipe, find, names};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut words = std::env::args().skip(1);
    let mut word = |default: &str| words.next().unwrap_or_else(|| default.to_owned());
    let (scheme, model, preset) = (word("w3a16g128"), word("llama2-7b"), word("default"));
    let entry = find(&model)
        .ok_or_else(|| format!("no model {model}; known are {}", names().collect::<Vec<_>>().join(", ")))?;
    let overrides = Overrides::default().preset(preset.parse()?);
    let recipe = Recipe::resolve(scheme.parse()?, Some(entry), None, &overrides)?;
    println!("# {model} by {preset}: {} segments of {} tokens\n", recipe.segments(), recipe.text().tokens);
    print!("{}", recipe.to_toml()?);
    Ok(())
}
