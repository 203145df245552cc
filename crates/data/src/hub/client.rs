//! The hub's HTTP API for one repository: its files, their metadata, their bytes.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::Path;
use std::thread::sleep;
use std::time::Duration;

use sha2::{Digest, Sha256};
use ureq::config::RedirectAuthHeaders;
use ureq::http::{HeaderMap, Response};
use ureq::{Agent, Body};

use super::cache::{create_parent, is_commit};
use super::event::HubEvent;
use super::repo::Repo;
use super::settings::Hub;
use crate::error::DataError;

/// Enough to find out that a name does not resolve or a port does not open.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// From the request to the head of the response.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// A transfer that brings no byte for this long is restarted.
const READ_TIMEOUT: Duration = Duration::from_secs(60);
/// Consecutive attempts without progress.
const ATTEMPTS: u32 = 3;
/// Delay before the second attempt; it is doubled before the third.
const BACKOFF: Duration = Duration::from_millis(500);
/// Relative redirects of a renamed repository.
const MAX_MOVES: usize = 5;
/// A listing of 100,000 files is smaller than this.
const MAX_LISTING_BYTES: u64 = 64 << 20;

pub(super) struct Client<'a> {
    hub: &'a Hub,
    /// The folder of downloads, for messages.
    cache: &'a Path,
    repo: &'a Repo,
    /// Does not follow redirects, because their responses carry a file's metadata.
    direct: Agent,
    /// Follows redirects; the token is sent to the hub's host only.
    following: Agent,
}

/// The content of a revision.
pub(super) struct Listing {
    pub commit: String,
    pub files: BTreeSet<String>,
}

/// A file's metadata.
pub(super) struct FileMeta {
    /// Name of its blob: the SHA-256 of a large file, the git hash of a small one.
    pub etag: String,
    /// Size in bytes.
    pub size: u64,
}

/// Why a request failed.
enum Failure {
    Network(String),
    Status {
        status: u16,
        code: String,
    },
    /// Not a network failure.
    Here(DataError),
}

impl<'a> Client<'a> {
    pub(super) fn new(hub: &'a Hub, cache: &'a Path, repo: &'a Repo) -> Self {
        let agent = |redirects: u32| {
            Agent::config_builder()
                .timeout_resolve(Some(CONNECT_TIMEOUT))
                .timeout_connect(Some(CONNECT_TIMEOUT))
                .timeout_recv_response(Some(ANSWER_TIMEOUT))
                .timeout_per_read(Some(READ_TIMEOUT))
                .http_status_as_error(false)
                .max_redirects(redirects)
                .max_redirects_will_error(redirects > 0)
                .redirect_auth_headers(RedirectAuthHeaders::SameHost)
                .user_agent(concat!("omniquant/", env!("CARGO_PKG_VERSION")))
                .accept_encoding("identity")
                .build()
                .new_agent()
        };
        Self { hub, cache, repo, direct: agent(0), following: agent(10) }
    }

    /// The revision's commit and files.
    pub(super) fn list(&self) -> Result<Listing, DataError> {
        let Repo { prefix, id, revision } = self.repo;
        let kind = if prefix.is_empty() { "models/" } else { prefix };
        let url = format!("{}/api/{kind}{id}/revision/{}", self.hub.endpoint, revision.replace('/', "%2F"));
        let what = || format!("{id} at revision {revision}");
        let body = self.retried(&url, what, || {
            let mut response = self.send(&self.following, &url, Method::Get, None)?;
            let body = response.body_mut().with_config().limit(MAX_LISTING_BYTES);
            body.read_to_string().map_err(|e| Failure::Network(reason(e)))
        })?;
        let wrong = |reason: &str| DataError::HubAnswer { url: url.clone(), reason: reason.to_owned() };
        let json: serde_json::Value = serde_json::from_str(&body).map_err(|e| wrong(&format!("not JSON: {e}")))?;
        let commit = json["sha"].as_str().filter(|sha| is_commit(sha)).ok_or_else(|| wrong("no commit in \"sha\""))?;
        let siblings = json["siblings"].as_array().ok_or_else(|| wrong("no list \"siblings\""))?;
        let files = siblings.iter().filter_map(|file| file["rfilename"].as_str()).map(str::to_owned).collect();
        Ok(Listing { commit: commit.to_owned(), files })
    }

    /// A file's blob name and size.
    pub(super) fn head(&self, commit: &str, file: &str) -> Result<FileMeta, DataError> {
        let url = self.file_url(commit, file);
        let headers = self.retried(&url, || self.file_name(commit, file), || self.head_once(&url))?;
        let field = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        let wrong = |reason: &str| DataError::HubAnswer { url: url.clone(), reason: reason.to_owned() };
        // On a redirect to a store of large files, the `x-linked-` headers describe the file and the others the redirect.
        let etag = field("x-linked-etag").or_else(|| field("etag")).ok_or_else(|| wrong("no ETag in the answer"))?;
        let etag = etag.trim_start_matches("W/").trim_matches('"');
        if etag.is_empty() || !etag.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_')) {
            return Err(wrong(&format!("the ETag {etag:?} cannot name a file")));
        }
        let size = field("x-linked-size").or_else(|| field("content-length")).and_then(|size| size.parse().ok());
        Ok(FileMeta { etag: etag.to_owned(), size: size.ok_or_else(|| wrong("no size in the answer"))? })
    }

    fn head_once(&self, url: &str) -> Result<HeaderMap, Failure> {
        let mut url = url.to_owned();
        for _ in 0..MAX_MOVES {
            let response = self.send(&self.direct, &url, Method::Head, None)?;
            let moved_to = response.headers().get("location").and_then(|location| location.to_str().ok());
            match moved_to {
                Some(path) if path.starts_with('/') && !path.starts_with("//") => {
                    url = format!("{}{path}", origin(&url));
                }
                _ => return Ok(response.headers().clone()),
            }
        }
        Err(Failure::Network(format!("more than {MAX_MOVES} redirects")))
    }

    /// Downloads the rest of `part` up to the file's size and verifies it. A corrupt part is removed.
    pub(super) fn download(
        &self,
        commit: &str,
        file: &str,
        meta: &FileMeta,
        part: &Path,
        progress: &mut dyn FnMut(HubEvent<'_>),
    ) -> Result<(), DataError> {
        create_parent(part)?;
        let url = self.file_url(commit, file);
        let mut done = fs::metadata(part).map_or(0, |part| part.len());
        if done > meta.size {
            fs::remove_file(part).map_err(|e| DataError::io(part, "remove", e))?;
            done = 0;
        }
        progress(HubEvent::Started { file, done, total: meta.size });
        // Attempts that made progress do not count: a long download may be interrupted many times.
        let mut idle = 0;
        loop {
            let before = done;
            let transfer = || {
                let mut on_bytes = |now| {
                    done = now;
                    progress(HubEvent::Progress { file, done: now, total: meta.size });
                };
                self.transfer(&url, meta.size, part, &mut on_bytes)
            };
            match self.retried(&url, || self.file_name(commit, file), transfer) {
                Ok(()) => break,
                Err(e @ DataError::Unreachable { .. }) => {
                    idle = if done > before { 0 } else { idle + 1 };
                    if idle == ATTEMPTS {
                        return Err(e);
                    }
                    tracing::warn!("{file}: {e}; continuing at byte {done}");
                    sleep(BACKOFF * idle);
                }
                Err(e) => return Err(e),
            }
        }
        verify(file, meta, part)
    }

    /// One request for the rest of the file.
    fn transfer(&self, url: &str, size: u64, part: &Path, on_bytes: &mut dyn FnMut(u64)) -> Result<(), Failure> {
        let here = |action| move |e| Failure::Here(DataError::io(part, action, e));
        let mut file = File::options().create(true).append(true).open(part).map_err(here("open"))?;
        let mut done = file.metadata().map_err(here("read"))?.len();
        if done < size {
            let mut response = self.send(&self.following, url, Method::Get, (done > 0).then_some(done))?;
            if done > 0 && response.status() != 206 {
                // The server sends the whole file instead of the rest.
                file.set_len(0).map_err(here("truncate"))?;
                done = 0;
            }
            // Anything beyond the size is not part of the file; one byte of it is enough to notice.
            let mut reader = response.body_mut().as_reader().take(size - done + 1);
            let mut buffer = vec![0; 256 << 10];
            loop {
                let n = match reader.read(&mut buffer) {
                    Ok(0) => break,
                    Ok(n) => n,
                    Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                    Err(e) => return Err(Failure::Network(e.to_string())),
                };
                file.write_all(&buffer[..n])
                    .map_err(|e| Failure::Here(write_error(part, size.saturating_sub(done), e)))?;
                done += n as u64;
                on_bytes(done);
            }
        }
        if done < size {
            return Err(Failure::Network(format!("the connection ended at byte {done} of {size}")));
        }
        file.sync_all().map_err(here("write"))
    }

    fn send(&self, agent: &Agent, url: &str, method: Method, from: Option<u64>) -> Result<Response<Body>, Failure> {
        let mut request = match method {
            Method::Get => agent.get(url),
            Method::Head => agent.head(url),
        };
        if let Some(token) = &self.hub.token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        if let Some(from) = from {
            request = request.header("range", format!("bytes={from}-"));
        }
        let response = request.call().map_err(|e| Failure::Network(reason(e)))?;
        let status = response.status().as_u16();
        if status < 400 {
            return Ok(response);
        }
        let code = response.headers().get("x-error-code").and_then(|code| code.to_str().ok()).unwrap_or_default();
        Err(Failure::Status { status, code: code.to_owned() })
    }

    /// Retries after transient failures: server errors and interrupted transfers. An unreachable hub fails at once.
    fn retried<T>(
        &self,
        url: &str,
        what: impl Fn() -> String,
        mut attempt: impl FnMut() -> Result<T, Failure>,
    ) -> Result<T, DataError> {
        let mut tried = 1;
        loop {
            match attempt() {
                Ok(value) => return Ok(value),
                Err(Failure::Status { status: 429 | 500.., .. }) if tried < ATTEMPTS => {}
                Err(failure) => return Err(self.error(url, &what(), failure, tried)),
            }
            tracing::warn!("{url}: attempt {tried} of {ATTEMPTS} failed, trying again");
            sleep(BACKOFF * tried);
            tried += 1;
        }
    }

    fn error(&self, url: &str, what: &str, failure: Failure, tried: u32) -> DataError {
        let (endpoint, repo) = (self.hub.endpoint.clone(), self.repo.id.clone());
        match failure {
            Failure::Here(e) => e,
            Failure::Network(reason) => DataError::Unreachable { repo, endpoint, reason, cache: self.cache.to_owned() },
            Failure::Status { status: status @ (401 | 403), code } => {
                let page = format!("{endpoint}/{}{repo}", self.repo.prefix);
                let mend = match (&self.hub.token, code.as_str()) {
                    (None, "GatedRepo") => format!("it is gated: accept its terms at {page} and set HF_TOKEN"),
                    (None, _) => "no such repository, or it is private or gated: check its spelling, and set HF_TOKEN \
                                  to a token that may read it"
                        .to_owned(),
                    (Some(_), "GatedRepo") => format!("the token's account has no access yet: request it at {page}"),
                    (Some(_), _) => "the token in HF_TOKEN may not read it: check the spelling, the token and its \
                                     rights"
                        .to_owned(),
                };
                DataError::Refused { repo, endpoint, status, mend }
            }
            Failure::Status { status: 404, .. } => DataError::NotOnHub { endpoint, what: what.to_owned() },
            Failure::Status { status, .. } => {
                DataError::HubStatus { url: url.to_owned(), status, after: format!("after {tried} attempts") }
            }
        }
    }

    fn file_url(&self, commit: &str, file: &str) -> String {
        format!("{}/{}{}/resolve/{commit}/{file}", self.hub.endpoint, self.repo.prefix, self.repo.id)
    }

    fn file_name(&self, commit: &str, file: &str) -> String {
        format!("{file} in {} at commit {commit}", self.repo.id)
    }
}

/// The network's own error message, without the library's.
fn reason(e: ureq::Error) -> String {
    match e {
        ureq::Error::Io(e) => e.to_string(),
        e => e.to_string(),
    }
}

enum Method {
    Get,
    Head,
}

/// `https://host:port` of a URL.
fn origin(url: &str) -> &str {
    let host = url.find("://").map_or(0, |i| i + 3);
    url[host..].find('/').map_or(url, |i| &url[..host + i])
}

fn write_error(part: &Path, needed: u64, e: io::Error) -> DataError {
    match e.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            DataError::DiskFull { path: part.to_path_buf(), needed }
        }
        _ => DataError::io(part, "write", e),
    }
}

/// Verifies the size, and the SHA-256 if the ETag is one, as it is for weights.
fn verify(file: &str, meta: &FileMeta, part: &Path) -> Result<(), DataError> {
    let err = |e| DataError::io(part, "read", e);
    let size = fs::metadata(part).map_err(err)?.len();
    let is_sha256 = meta.etag.len() == 64 && meta.etag.chars().all(|c| c.is_ascii_hexdigit());
    let found = if size != meta.size {
        format!("{size} bytes instead of {}", meta.size)
    } else if is_sha256 {
        let sha256 = sha256_of(part).map_err(err)?;
        if sha256.eq_ignore_ascii_case(&meta.etag) {
            return Ok(());
        }
        format!("SHA-256 {sha256} instead of {}", meta.etag)
    } else {
        return Ok(());
    };
    fs::remove_file(part).map_err(|e| DataError::io(part, "remove", e))?;
    Err(DataError::corrupt(part, format!("{file} arrived corrupted: {found}; it was removed, run again")))
}

fn sha256_of(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect()),
            n => hasher.update(&buffer[..n]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_told_from_other_failures() {
        let part = Path::new("blobs/x.part");
        let full = write_error(part, 77, io::ErrorKind::StorageFull.into());
        assert!(matches!(full, DataError::DiskFull { needed: 77, .. }), "{full}");
        let denied = write_error(part, 77, io::ErrorKind::PermissionDenied.into());
        assert!(matches!(denied, DataError::Io { .. }), "{denied}");
    }

    #[test]
    fn a_relative_redirect_stays_on_the_host() {
        assert_eq!(origin("https://h:8/a/b"), "https://h:8");
        assert_eq!(origin("http://h"), "http://h");
    }
}
