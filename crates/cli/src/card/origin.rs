//! Where a model comes from, and under which terms: what the name on the command line and the model's own files say.

use std::path::Path;

use oq_data::Hub;
use oq_recipe::Source;
use serde_json::Value;

use crate::resolve::Named;

/// What is known about a model that was quantized.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Origin {
    /// Its hub id or, if `is_known` is not set, one that its files name.
    pub base: Option<String>,
    /// Whether the weights are known to be those of `base`.
    pub is_known: bool,
    /// `license` and related keys of its card.
    pub terms: Vec<(&'static str, String)>,
}

impl Origin {
    /// The origin of the model that `named` names, which is in `dir`.
    pub fn new(named: &Named, dir: &Path, config: &Value) -> Self {
        let card = std::fs::read_to_string(dir.join("README.md")).unwrap_or_default();
        let of_hub = match named.entry.map(|entry| &entry.source) {
            Some(Source::Hub { repo, .. }) => Some(repo.clone()),
            Some(_) => None,
            None if Path::new(&named.name).is_dir() => snapshot_of(dir),
            None => Some(named.name.clone()).filter(|name| is_id(name)),
        };
        let is_known = of_hub.is_some();
        let of_files = || {
            let in_config = config["_name_or_path"].as_str().map(str::to_owned);
            in_config.into_iter().chain(key_of(&card, "base_model")).find(|name| is_id(name))
        };
        let terms = ["license", "license_name", "license_link"].map(|key| Some((key, key_of(&card, key)?)));
        Self { base: of_hub.or_else(of_files), is_known, terms: terms.into_iter().flatten().collect() }
    }
}

fn is_id(name: &str) -> bool {
    name.contains('/') && Hub::is_repo_id(name)
}

/// The hub id of a snapshot in the hub client's cache: `models--owner--name/snapshots/COMMIT`.
fn snapshot_of(dir: &Path) -> Option<String> {
    let dir = dir.canonicalize().ok()?;
    let mut parents = dir.ancestors().skip(1).filter_map(Path::file_name);
    let is_snapshot = parents.next()? == "snapshots";
    let id = parents.next()?.to_str()?.strip_prefix("models--")?.replace("--", "/");
    Some(id).filter(|id| is_snapshot && is_id(id))
}

/// The value of a key in the YAML at the beginning of a card, if it is a string, or else the first string of its list.
fn key_of(card: &str, key: &str) -> Option<String> {
    let mut lines = card.lines();
    (lines.next()?.trim_end() == "---").then_some(())?;
    let mut lines = lines.take_while(|line| line.trim_end() != "---");
    let own = lines.find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?.trim();
    let value = if own.is_empty() { lines.next()?.trim_start().strip_prefix("- ")?.trim() } else { own };
    let bare = ['"', '\''].into_iter().find_map(|quote| value.strip_prefix(quote)?.strip_suffix(quote));
    let value = bare.unwrap_or(value);
    // No other kinds of values, and no comments.
    let is_string =
        !value.is_empty() && !value.starts_with(['[', '{', '|', '>', '&', '*', '#', '!']) && !value.contains(" #");
    is_string.then(|| value.to_owned())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn keys_of_a_card() {
        #[track_caller]
        fn check(yaml: &str, expected: Option<&str>) {
            assert_eq!(
                key_of(&format!("---\nlicense: mit\n{yaml}\n---\nbase_model: c/d\n"), "base_model").as_deref(),
                expected
            );
        }
        check("base_model: a/b", Some("a/b"));
        check("base_model: \"a/b\"", Some("a/b"));
        check("base_model:\n- a/b\n- c/d", Some("a/b"));
        check("base_model:\n  - 'a/b'", Some("a/b"));
        check("base_model:", None);
        check("base_model: [a/b]", None);
        check("base_model: a/b # or c", None);
        check("base_models: a/b", None);
        assert_eq!(key_of("base_model: a/b", "base_model"), None);
        assert_eq!(key_of("", "base_model"), None);
    }

    #[test]
    fn a_directory_is_known_by_its_place_or_its_files() {
        let dir = tempfile::tempdir().unwrap();
        let of = |dir: &Path, config: Value| {
            let name = dir.to_str().unwrap().to_owned();
            let named = Named::new(&crate::args::ModelArgs { name, revision: None }).unwrap();
            Origin::new(&named, dir, &config)
        };
        let snapshot = dir.path().join("models--owner--name/snapshots/abc");
        fs::create_dir_all(&snapshot).unwrap();
        let known = Origin { base: Some("owner/name".to_owned()), is_known: true, terms: Vec::new() };
        assert_eq!(of(&snapshot, Value::Null), known);

        let plain = dir.path().join("mine");
        fs::create_dir(&plain).unwrap();
        assert_eq!(of(&plain, Value::Null), Origin::default());
        assert_eq!(of(&plain, serde_json::json!({"_name_or_path": "/home/me/model"})), Origin::default());
        let card = "---\nlicense: other\nlicense_name: own\nbase_model: a/b\n---\n";
        fs::write(plain.join("README.md"), card).unwrap();
        let terms = vec![("license", "other".to_owned()), ("license_name", "own".to_owned())];
        let named = |base: &str| Origin { base: Some(base.to_owned()), is_known: false, terms: terms.clone() };
        assert_eq!(of(&plain, Value::Null), named("a/b"));
        assert_eq!(of(&plain, serde_json::json!({"_name_or_path": "c/d"})), named("c/d"));
    }
}
