//! What is fetched, and in which order.

use std::path::{Path, PathBuf};

use super::cache::RepoCache;
use super::client::{Client, Listing};
use super::event::HubEvent;
use super::repo::Repo;
use super::settings::Hub;
use crate::error::{DataError, read_json};

/// Required for every model.
const CONFIG: &str = "config.json";

/// Files that are fetched if the repository has them.
const SMALL_FILES: [&str; 13] = [
    "generation_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    // For the card of a model that is made from this one.
    "README.md",
    "LICENSE",
    "USE_POLICY.md",
];

/// Weights in order of preference, each as (index of shards, single file). The single file is tried first.
const WEIGHTS: [(&str, &str); 2] =
    [("model.safetensors.index.json", "model.safetensors"), ("pytorch_model.bin.index.json", "pytorch_model.bin")];

impl Hub {
    /// Fetches the files of a model (config, tokenizer, and weights: safetensors, else `pytorch_model.bin`, as one file or as the shards of
    /// an index) and returns the directory of its snapshot. `revision` is a branch, a tag or a commit; the default is `main`. Cached files
    /// are not fetched again; offline, all files must be cached.
    pub fn fetch_model(
        &self,
        repo: &str,
        revision: Option<&str>,
        progress: &mut dyn FnMut(HubEvent<'_>),
    ) -> Result<PathBuf, DataError> {
        let repo = Repo::new("", repo, revision)?;
        let cache = RepoCache::new(self.cache()?, &repo);
        if self.offline {
            let snapshot = cache.resolve()?;
            let has = |file: &str| snapshot.join(file).is_file();
            take_model_files(has, |file| not_cached(&snapshot, file), |file| Ok(snapshot.join(file)))?;
            return Ok(snapshot);
        }
        let client = Client::new(self, self.cache()?, &repo);
        let listing = client.list()?;
        let missing = |file: &str| DataError::IncompleteRepo { repo: repo.id.clone(), file: file.to_owned() };
        let get = |file: &str| fetch_file(&client, &cache, &listing, file, progress);
        take_model_files(|file| listing.files.contains(file), missing, get)?;
        // Last, so that refs name complete snapshots only.
        cache.write_ref(&listing.commit)?;
        Ok(cache.snapshot(&listing.commit))
    }

    /// Fetches only a model's `config.json`, like [`Self::fetch_model`], and returns its path in the cache.
    pub fn fetch_config(
        &self,
        repo: &str,
        revision: Option<&str>,
        progress: &mut dyn FnMut(HubEvent<'_>),
    ) -> Result<PathBuf, DataError> {
        let repo = Repo::new("", repo, revision)?;
        let cache = RepoCache::new(self.cache()?, &repo);
        if self.offline {
            return cached(&cache.resolve()?, CONFIG);
        }
        let client = Client::new(self, self.cache()?, &repo);
        let listing = client.list()?;
        if !listing.files.contains(CONFIG) {
            return Err(DataError::IncompleteRepo { repo: repo.id.clone(), file: CONFIG.to_owned() });
        }
        fetch_file(&client, &cache, &listing, CONFIG, progress)
    }

    /// Fetches one file from a dataset's `main` branch and returns its path in the cache.
    pub fn fetch_dataset_file(
        &self,
        repo: &str,
        file: &str,
        progress: &mut dyn FnMut(HubEvent<'_>),
    ) -> Result<PathBuf, DataError> {
        let repo = Repo::new("datasets/", repo, None)?;
        let cache = RepoCache::new(self.cache()?, &repo);
        // Published datasets do not change, so a cached file is not checked again.
        match cache.resolve().and_then(|snapshot| cached(&snapshot, file)) {
            Ok(path) => return Ok(path),
            Err(error) if self.offline => return Err(error),
            Err(_) => {}
        }
        let client = Client::new(self, self.cache()?, &repo);
        let listing = client.list()?;
        let path = fetch_file(&client, &cache, &listing, file, progress)?;
        cache.write_ref(&listing.commit)?;
        Ok(path)
    }

    fn cache(&self) -> Result<&Path, DataError> {
        self.cache.as_deref().ok_or(DataError::NoCache)
    }
}

/// A file of a snapshot, if it exists.
fn cached(snapshot: &Path, file: &str) -> Result<PathBuf, DataError> {
    let path = snapshot.join(file);
    if path.is_file() { Ok(path) } else { Err(not_cached(snapshot, file)) }
}

fn not_cached(snapshot: &Path, file: &str) -> DataError {
    DataError::NotCached { cache: snapshot.to_owned(), what: file.to_owned() }
}

/// Fetches config, small files and weights through `has` and `get`. `missing` is the error for a required file.
fn take_model_files(
    has: impl Fn(&str) -> bool,
    missing: impl Fn(&str) -> DataError,
    mut get: impl FnMut(&str) -> Result<PathBuf, DataError>,
) -> Result<(), DataError> {
    if !has(CONFIG) {
        let adapter = "config.json: it is an adapter (LoRA), which must be merged into its base model first";
        return Err(missing(if has("adapter_config.json") { adapter } else { CONFIG }));
    }
    get(CONFIG)?;
    for file in SMALL_FILES.into_iter().filter(|file| has(file)) {
        get(file)?;
    }
    for (index, single) in WEIGHTS {
        if has(single) {
            return get(single).map(drop);
        }
        if has(index) {
            for shard in shards(&get(index)?)? {
                if !has(&shard) {
                    return Err(missing(&shard));
                }
                get(&shard)?;
            }
            return Ok(());
        }
    }
    Err(missing("model.safetensors or pytorch_model.bin, alone or with its index"))
}

/// The files that an index names, each once, in order.
fn shards(index: &Path) -> Result<Vec<String>, DataError> {
    let json = read_json(index)?;
    let map = json["weight_map"].as_object().ok_or_else(|| DataError::corrupt(index, "no object \"weight_map\""))?;
    let mut files = Vec::new();
    for (tensor, file) in map {
        let file = file.as_str().filter(|file| is_plain_name(file)).ok_or_else(|| {
            DataError::corrupt(index, format!("the shard of {tensor} is {file}, not the name of a file beside it"))
        })?;
        files.push(file.to_owned());
    }
    files.sort();
    files.dedup();
    Ok(files)
}

fn is_plain_name(file: &str) -> bool {
    !file.is_empty() && !file.starts_with('.') && !file.contains(['/', '\\'])
}

/// One file at the listing's commit: from the cache, or downloaded, verified and linked.
fn fetch_file(
    client: &Client<'_>,
    cache: &RepoCache,
    listing: &Listing,
    file: &str,
    progress: &mut dyn FnMut(HubEvent<'_>),
) -> Result<PathBuf, DataError> {
    let path = cache.snapshot(&listing.commit).join(file);
    if path.is_file() {
        progress(HubEvent::Cached { file });
        return Ok(path);
    }
    let meta = client.head(&listing.commit, file)?;
    cache.with_lock(&meta.etag, || progress(HubEvent::Waiting { file }))?.hold(|| {
        let blob = cache.blob(&meta.etag);
        if blob.is_file() {
            progress(HubEvent::Cached { file });
        } else {
            let part = cache.part(&meta.etag);
            client.download(&listing.commit, file, &meta, &part, progress)?;
            std::fs::rename(&part, &blob).map_err(|e| DataError::io(&blob, "rename a download to", e))?;
            progress(HubEvent::Finished { file, total: meta.size });
        }
        cache.link(&blob, &path)
    })?;
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_index_that_points_outside_is_corrupt() {
        let dir = tempfile::tempdir().unwrap();
        let index = dir.path().join("index.json");
        std::fs::write(&index, r#"{"weight_map": {"b": "2.safetensors", "a": "1.safetensors", "c": "2.safetensors"}}"#)
            .unwrap();
        assert_eq!(shards(&index).unwrap(), ["1.safetensors", "2.safetensors"]);
        for bad in [r#"{"weight_map": {"a": "../x"}}"#, r#"{"weight_map": {"a": 3}}"#, "{}", "["] {
            std::fs::write(&index, bad).unwrap();
            assert!(matches!(shards(&index), Err(DataError::Corrupt { .. })), "{bad}");
        }
    }
}
