//! The bytes are TOML: a recipe as a user writes it, and one as a run left it.

#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use oq_recipe::{Overrides, Recipe, RecipeError, RecipeFile, find, names};

/// What is accepted can be written, and comes back the same. What is refused says why.
fn check(recipe: Result<Recipe, RecipeError>) {
    match recipe {
        Ok(recipe) => {
            let text = recipe.to_toml().expect("an accepted recipe can be written");
            assert_eq!(Recipe::parse(&text, Path::new("again.toml")).expect("what was written is read"), recipe);
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

fuzz_target!(|bytes: &[u8]| {
    let Ok(text) = str::from_utf8(bytes) else { return };
    let file = Path::new("recipe.toml");
    check(Recipe::parse(text, file));
    match RecipeFile::parse(text, file) {
        Ok(recipe) => {
            let scheme = recipe.scheme.unwrap_or_else(|| "w3a16g64".parse().expect("a scheme"));
            for model in names().map(find).chain([None]) {
                check(Recipe::resolve(scheme, model, Some(&recipe), &Overrides::default()));
            }
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
});
