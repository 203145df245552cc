//! The bytes are TOML: a recipe as a user writes it, and one as a run left it.

use std::path::Path;

use oq_recipe::{Overrides, Recipe, RecipeError, RecipeFile, find, names};

/// What is accepted can be written, and comes back the same. What is refused says why.
fn check(recipe: Result<Recipe, RecipeError>) -> bool {
    match &recipe {
        Ok(recipe) => {
            let text = recipe.to_toml().expect("an accepted recipe can be written");
            assert_eq!(Recipe::parse(&text, Path::new("again.toml")).expect("what was written is read"), *recipe);
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
    recipe.is_ok()
}

/// Whether a model can be quantized by it.
pub fn read(bytes: &[u8]) -> bool {
    let Ok(text) = str::from_utf8(bytes) else { return false };
    let file = Path::new("recipe.toml");
    check(Recipe::parse(text, file));
    match RecipeFile::parse(text, file) {
        Ok(recipe) => {
            let scheme = recipe.scheme.unwrap_or_else(|| "w3a16g64".parse().expect("a scheme"));
            let models = names().map(find).chain([None]);
            let resolved = models.map(|model| Recipe::resolve(scheme, model, Some(&recipe), &Overrides::default()));
            // Each is checked, whatever became of those before.
            resolved.map(check).fold(false, |any, is_ok| any | is_ok)
        }
        Err(error) => {
            assert!(!error.to_string().is_empty());
            false
        }
    }
}
