//! Models and dataset files from a hub, stored in the cache that other programs share.
//!
//! The cache has the layout of `huggingface_hub`: `blobs/<etag>` hold the bytes, `snapshots/<commit>/<file>` link to them, and
//! `refs/<revision>` name commits. A snapshot's directory is a model directory.
//!
//! The HTTP client is our own, over `ureq`. A download must give up on a dead network, continue after an interruption, distinguish a gated
//! repository from a missing one, and be checked against its SHA-256.

mod cache;
mod client;

use std::env;
use std::path::{Path, PathBuf};

use crate::error::{DataError, read_json};
use cache::{MAIN, RepoCache};
use client::{Client, Listing};

/// The default hub, used if `HF_ENDPOINT` is not set.
pub const DEFAULT_ENDPOINT: &str = "https://huggingface.co";

/// Where models come from and where they are cached.
#[derive(Clone)]
pub struct Hub {
    /// The hub's URL, without a trailing slash.
    pub endpoint: String,
    /// The cache's folder of repositories, usually `~/.cache/huggingface/hub`. Nothing can be fetched without one.
    pub cache: Option<PathBuf>,
    /// The access token, for gated and private repositories.
    pub token: Option<String>,
    /// Offline: use the cache only.
    pub offline: bool,
}

/// Progress of a fetch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HubEvent<'a> {
    /// The file was in the cache already.
    Cached {
        /// Name in the repository.
        file: &'a str,
    },
    /// Another process is downloading the file; this one waits.
    Waiting {
        /// Name in the repository.
        file: &'a str,
    },
    /// A download begins, or continues after an interruption.
    Started {
        /// Name in the repository.
        file: &'a str,
        /// Bytes from an earlier attempt.
        done: u64,
        /// Size in bytes.
        total: u64,
    },
    /// More bytes were written to disk.
    Progress {
        /// Name in the repository.
        file: &'a str,
        /// Bytes on disk.
        done: u64,
        /// Size in bytes.
        total: u64,
    },
    /// The file is complete, verified and in the cache.
    Finished {
        /// Name in the repository.
        file: &'a str,
        /// Size in bytes.
        total: u64,
    },
}

/// Required for every model.
const CONFIG: &str = "config.json";

/// Files that are fetched if the repository has them.
const SMALL_FILES: [&str; 10] = [
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
];

/// Weights in order of preference, each as (index of shards, single file). The single file is tried first.
const WEIGHTS: [(&str, &str); 2] =
    [("model.safetensors.index.json", "model.safetensors"), ("pytorch_model.bin.index.json", "pytorch_model.bin")];

impl Hub {
    /// Settings from the environment: `HF_ENDPOINT`; `HF_HUB_CACHE` (or the older `HUGGINGFACE_HUB_CACHE`), `HF_HOME`, `XDG_CACHE_HOME` or
    /// `HOME`; `HF_TOKEN` or the token file of a login; `HF_HUB_OFFLINE`. A leading `~` in a path means `HOME`.
    pub fn from_env() -> Self {
        let set = |name: &str| env::var(name).ok().filter(|value| !value.trim().is_empty());
        Self::from_vars(set)
    }

    fn from_vars(set: impl Fn(&str) -> Option<String>) -> Self {
        let path = |name: &str| {
            let path = set(name)?;
            let below_home = path.strip_prefix('~').filter(|rest| rest.is_empty() || rest.starts_with('/'));
            Some(match (below_home, set("HOME")) {
                (Some(rest), Some(home)) => PathBuf::from(home + rest),
                _ => PathBuf::from(path),
            })
        };
        let home = path("HF_HOME")
            .or_else(|| Some(path("XDG_CACHE_HOME")?.join("huggingface")))
            .or_else(|| Some(path("HOME")?.join(".cache/huggingface")));
        let cache = path("HF_HUB_CACHE").or_else(|| path("HUGGINGFACE_HUB_CACHE"));
        let cache = cache.or_else(|| Some(home.as_ref()?.join("hub")));
        let token_file = path("HF_TOKEN_PATH").or_else(|| Some(home.as_ref()?.join("token")));
        let token = set("HF_TOKEN").or_else(|| std::fs::read_to_string(token_file?).ok());
        let endpoint = set("HF_ENDPOINT").unwrap_or_else(|| DEFAULT_ENDPOINT.to_owned());
        let is_yes = |value: String| ["1", "true", "yes", "on"].contains(&value.trim().to_lowercase().as_str());
        Self {
            endpoint: endpoint.trim().trim_end_matches('/').to_owned(),
            cache,
            token: token.map(|token| token.trim().to_owned()).filter(|token| !token.is_empty()),
            offline: set("HF_HUB_OFFLINE").is_some_and(is_yes),
        }
    }

    fn cache(&self) -> Result<&Path, DataError> {
        self.cache.as_deref().ok_or(DataError::NoCache)
    }

    /// Whether `name` has the form of a hub id: `owner/name` or `name`.
    pub fn is_repo_id(name: &str) -> bool {
        let part_ok = |part: &str| {
            !part.is_empty()
                && !part.starts_with('.')
                && part.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
        };
        name.split('/').count() <= 2 && name.split('/').all(part_ok)
    }

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
}

/// Keeps the token out of logs.
impl std::fmt::Debug for Hub {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let token = self.token.as_ref().map(|_| "set");
        f.debug_struct("Hub")
            .field("endpoint", &self.endpoint)
            .field("cache", &self.cache)
            .field("token", &token)
            .field("offline", &self.offline)
            .finish()
    }
}

/// A repository at a revision. Their names are validated, because they become parts of paths and URLs.
struct Repo {
    /// `` or `datasets/`.
    prefix: &'static str,
    id: String,
    revision: String,
}

impl Repo {
    fn new(prefix: &'static str, id: &str, revision: Option<&str>) -> Result<Self, DataError> {
        if !Hub::is_repo_id(id) {
            let expected = "owner/name of letters, digits, '-', '_' and '.'";
            return Err(DataError::BadHubName { what: "hub id", value: id.to_owned(), expected });
        }
        let revision = revision.unwrap_or(MAIN);
        let ok = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '/');
        if revision.split('/').any(|part| part.is_empty() || part.starts_with('.')) || !revision.chars().all(ok) {
            let expected = "a branch, a tag or a commit";
            return Err(DataError::BadHubName { what: "revision", value: revision.to_owned(), expected });
        }
        Ok(Self { prefix, id: id.to_owned(), revision: revision.to_owned() })
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

    fn hub(vars: &[(&str, &str)]) -> Hub {
        Hub::from_vars(|name| vars.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned()))
    }

    #[test]
    fn the_environment_is_read_as_other_programs_read_it() {
        let home = hub(&[("HOME", "/home/u")]);
        assert_eq!(home.cache.as_deref(), Some(Path::new("/home/u/.cache/huggingface/hub")));
        assert_eq!((home.endpoint.as_str(), home.offline, home.token), (DEFAULT_ENDPOINT, false, None));
        let cache = |vars: &[(&str, &str)]| hub(vars).cache.unwrap();
        assert_eq!(cache(&[("HOME", "/h"), ("XDG_CACHE_HOME", "/x")]), Path::new("/x/huggingface/hub"));
        assert_eq!(cache(&[("HOME", "/h"), ("HF_HOME", "/x")]), Path::new("/x/hub"));
        assert_eq!(cache(&[("HF_HOME", "/x"), ("HF_HUB_CACHE", "/c")]), Path::new("/c"));
        assert_eq!(cache(&[("HF_HOME", "/x"), ("HUGGINGFACE_HUB_CACHE", "/o")]), Path::new("/o"));
        assert_eq!(cache(&[("HF_HUB_CACHE", "/c"), ("HUGGINGFACE_HUB_CACHE", "/o")]), Path::new("/c"));
        assert_eq!(cache(&[("HOME", "/h"), ("HF_HOME", "~/x")]), Path::new("/h/x/hub"));
        assert_eq!(cache(&[("HOME", "/h"), ("HF_HUB_CACHE", "~")]), Path::new("/h"));
        assert_eq!(cache(&[("HOME", "/h"), ("HF_HUB_CACHE", "~other/x")]), Path::new("~other/x"));
        let nowhere = hub(&[]).fetch_model("owner/model", None, &mut |_| {});
        assert!(matches!(nowhere, Err(DataError::NoCache)));
        let set = hub(&[("HOME", "/h"), ("HF_ENDPOINT", "http://m/"), ("HF_HUB_OFFLINE", "TRUE"), ("HF_TOKEN", "t\n")]);
        assert_eq!((set.endpoint.as_str(), set.offline, set.token.as_deref()), ("http://m", true, Some("t")));
        assert!(!format!("{set:?}").contains("\"t\""), "{set:?}");
    }

    #[test]
    fn a_login_leaves_its_token_beside_the_cache() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("token"), "hf_abc\n").unwrap();
        let home = dir.path().to_str().unwrap();
        assert_eq!(hub(&[("HF_HOME", home)]).token.as_deref(), Some("hf_abc"));
        assert_eq!(hub(&[("HF_HOME", home), ("HF_TOKEN", "mine")]).token.as_deref(), Some("mine"));
    }

    #[test]
    fn names_that_would_leave_the_cache_are_refused() {
        for good in ["gpt2", "facebook/opt-125m", "HuggingFaceTB/SmolLM2-135M", "a_b/c.d"] {
            assert!(Hub::is_repo_id(good), "{good}");
        }
        for bad in ["", "/", "a/b/c", "../x", "a/..", "a b", "a/", "/a", "./model", "http://x", "wikitext2:test"] {
            assert!(!Hub::is_repo_id(bad), "{bad}");
        }
        for bad in ["", "..", "a//b", "../../x", "a b", "x?y"] {
            assert!(Repo::new("", "a/b", Some(bad)).is_err(), "{bad}");
        }
        assert!(Repo::new("", "a/b", Some("refs/pr/1")).is_ok());
    }

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
