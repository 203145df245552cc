//! Text to token ids and back, and how ids are cut: `cargo run --example tokenise -- MODEL TEXT`. Without a model it makes a tokenizer of
//! a few words first.

#![allow(clippy::print_stdout, reason = "an example prints what it found")]

use std::path::PathBuf;

use oq_data::{AddSpecial, Tokenizer, segments, windows};

/// A tokenizer that knows these words and nothing else.
const WORDS: &str = r#"{
  "version": "1.0", "added_tokens": [],
  "pre_tokenizer": {"type": "Whitespace"},
  "model": {"type": "WordLevel", "unk_token": "?", "vocab": {"?": 0, "the": 1, "river": 2, "ran": 3, "to": 4, "sea": 5, "and": 6}}
}"#;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let own = tempfile::tempdir()?;
    let mut words = std::env::args().skip(1);
    let dir = match words.next() {
        Some(dir) => PathBuf::from(dir),
        None => {
            std::fs::write(own.path().join("tokenizer.json"), WORDS)?;
            own.path().to_owned()
        }
    };
    let text = words.next().unwrap_or_else(|| "the river ran to the sea and the sea ran to the river".to_owned());

    let tokenizer = Tokenizer::open(&dir)?;
    let ids = tokenizer.encode(&text, AddSpecial::Yes)?;
    println!("{} tokens: {ids:?}", ids.len());
    println!("and back: {:?}", tokenizer.decode(&ids)?);
    // As calibration and evaluation cut a text: at places that a seed draws, and one after the other.
    let length = ids.len().min(4);
    println!("two segments of {length}, seed 2: {:?}", segments(&ids, 2, length, 2)?);
    println!("windows of {length}: {:?}", windows(&ids, length).collect::<Vec<_>>());
    Ok(())
}
