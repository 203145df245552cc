//! The hub's settings, from the environment: where models come from and where they are cached.

use std::env;
use std::path::PathBuf;

/// The default hub, used if `HF_ENDPOINT` is not set.
pub const DEFAULT_ENDPOINT: &str = "https://huggingface.co";

/// Where models come from and where they are cached.
#[derive(Clone)]
#[non_exhaustive]
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

impl Hub {
    /// A hub at this address, without a final slash, asked by nobody in particular, and the folder of its repositories.
    pub fn new(endpoint: impl Into<String>, cache: impl Into<PathBuf>) -> Self {
        Self { endpoint: endpoint.into(), cache: Some(cache.into()), token: None, offline: false }
    }

    /// The same, of whose cache alone is read, or not.
    pub fn with_offline(self, offline: bool) -> Self {
        Self { offline, ..self }
    }

    /// The same, asked by whoever this token is of.
    pub fn with_token(self, token: impl Into<String>) -> Self {
        Self { token: Some(token.into()), ..self }
    }

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

    /// Whether `name` has the form of a hub id: `owner/name` or `name`.
    pub fn is_repo_id(name: &str) -> bool {
        let part_ok = |part: &str| {
            !part.is_empty()
                && !part.starts_with('.')
                && part.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
        };
        name.split('/').count() <= 2 && name.split('/').all(part_ok)
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

#[cfg(test)]
mod tests {
    use std::path::Path;

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
        assert_eq!(hub(&[]).cache, None);
        #[cfg(feature = "hub")]
        assert!(matches!(hub(&[]).fetch_model("owner/model", None, &mut |_| {}), Err(crate::DataError::NoCache)));
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
    }
}
