//! Every seed reaches what it was made for: its reader accepts it, or refuses it on purpose.

use std::collections::BTreeSet;
use std::path::PathBuf;

use super::*;

fn seeds(target: &str) -> BTreeSet<PathBuf> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("seeds").join(target);
    std::fs::read_dir(folder).expect("a target has seeds").map(|entry| entry.expect("an entry").path()).collect()
}

/// Reads all seeds of a target; those that are refused are named.
#[track_caller]
fn check(target: &str, read: fn(&[u8]) -> bool, refused: &[&str]) {
    let mut found = Vec::new();
    for seed in seeds(target) {
        let name = seed.file_name().expect("a seed has a name").to_string_lossy().into_owned();
        // Shown where the reader panics.
        eprintln!("{target}/{name}");
        if !read(&std::fs::read(&seed).expect("a seed can be read")) {
            found.push(name);
        }
    }
    assert_eq!(found, refused, "{target}: refused on the left, to be refused on the right");
}

#[test]
fn config_seeds() {
    check("config", config::read, &["groups-clash", "index-outside", "rotated-in-part"]);
}

#[test]
fn gguf_seeds() {
    check("gguf", gguf::read, &[]);
}

#[test]
fn packed_seeds() {
    check("packed", packed::read, &["mlx-mixed-up", "no-group"]);
}

#[test]
fn parquet_seeds() {
    check("parquet", parquet::read, &["other-column"]);
}

#[test]
fn pickle_seeds() {
    // Sound files that are no state dicts.
    check("pickle", pickle::read, &["code", "list", "nested"]);
}

#[test]
fn recipe_seeds() {
    check("recipe", recipe::read, &["bits-outside", "unknown"]);
}

#[test]
fn safetensors_seeds() {
    check("safetensors", safetensors::read, &[]);
}

#[test]
fn spec_seeds() {
    check("spec", spec::read, &[]);
}

#[test]
fn state_dict_seeds() {
    check("state_dict", state_dict::read, &["code", "list", "nested"]);
}

#[test]
fn tokenizer_seeds() {
    check("tokenizer", tokenizer::read, &[]);
}

#[test]
fn vocabulary_seeds() {
    check("vocabulary", vocabulary::read, &[]);
}
