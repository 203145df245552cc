//! Paths of one repository in the shared cache, and how files are added to it.

use std::fs::{self, File};
use std::path::{Component, Path, PathBuf};

use fd_lock::RwLock;

use super::repo::{MAIN, Repo};
use crate::error::DataError;

/// Minimum length of an abbreviated commit hash.
const SHORTEST: usize = 7;

pub(super) struct RepoCache {
    /// `<cache>/models--owner--name`.
    dir: PathBuf,
    /// `<cache>/.locks/models--owner--name`: other programs lock here too.
    locks: PathBuf,
    revision: String,
    /// `owner/name`, for messages.
    id: String,
}

impl RepoCache {
    pub(super) fn new(cache: &Path, repo: &Repo) -> Self {
        let kind = if repo.prefix.is_empty() { "models" } else { "datasets" };
        let folder = format!("{kind}--{}", repo.id.replace('/', "--"));
        Self {
            dir: cache.join(&folder),
            locks: cache.join(".locks").join(folder),
            revision: repo.revision.clone(),
            id: repo.id.clone(),
        }
    }

    pub(super) fn blob(&self, etag: &str) -> PathBuf {
        self.dir.join("blobs").join(etag)
    }

    /// An incomplete download.
    pub(super) fn part(&self, etag: &str) -> PathBuf {
        self.dir.join("blobs").join(format!("{etag}.part"))
    }

    pub(super) fn snapshot(&self, commit: &str) -> PathBuf {
        self.dir.join("snapshots").join(commit)
    }

    /// The snapshot of the revision, found through its ref, its commit, or the first digits of a commit. If there is no ref, as after a
    /// download by commit, `main` means the only snapshot.
    pub(super) fn resolve(&self) -> Result<PathBuf, DataError> {
        let reference = self.dir.join("refs").join(&self.revision);
        let commit = match fs::read_to_string(&reference) {
            Ok(commit) if is_commit(commit.trim()) => commit.trim().to_owned(),
            Ok(_) => return Err(DataError::corrupt(&reference, "does not name a commit: remove it")),
            Err(_) => self.revision.clone(),
        };
        let snapshot = self.snapshot(&commit);
        if snapshot.is_dir() {
            return Ok(snapshot);
        }
        let there = self.commits();
        let named: Vec<&String> = match &*self.revision {
            MAIN => there.iter().collect(),
            digits => there.iter().filter(|commit| digits.len() >= SHORTEST && commit.starts_with(digits)).collect(),
        };
        if let [only] = named[..] {
            return Ok(self.snapshot(only));
        }
        let mut what = format!("{} at {}", self.id, self.revision);
        if !there.is_empty() {
            what = format!("{what} (cached snapshots, which --revision can name: {})", there.join(", "));
        }
        Err(DataError::NotCached { cache: self.dir.clone(), what })
    }

    /// The commits that have snapshots, sorted. Snapshots of a single file are left out, such as a config that was read before its model
    /// was fetched.
    fn commits(&self) -> Vec<String> {
        let entries = fs::read_dir(self.dir.join("snapshots")).into_iter().flatten().flatten();
        let has_files = |path: PathBuf| fs::read_dir(path).is_ok_and(|files| files.count() > 1);
        let snapshots = entries.filter(|entry| has_files(entry.path()));
        let mut commits: Vec<String> =
            snapshots.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
        commits.sort();
        commits
    }

    /// Records the commit of the revision. A revision that is a commit needs no record.
    pub(super) fn write_ref(&self, commit: &str) -> Result<(), DataError> {
        if self.revision == commit {
            return Ok(());
        }
        let path = self.dir.join("refs").join(&self.revision);
        // A complete cache may be read-only.
        if fs::read_to_string(&path).is_ok_and(|known| known.trim() == commit) {
            return Ok(());
        }
        create_parent(&path)?;
        // Written atomically, for concurrent readers.
        let part = path.with_extension(format!("{}.part", std::process::id()));
        let written = fs::write(&part, commit).and_then(|()| fs::rename(&part, &path));
        written.map_err(|e| DataError::io(&path, "write", e))
    }

    /// The lock of one blob; `on_wait` is called before waiting for another process.
    pub(super) fn with_lock(&self, etag: &str, on_wait: impl FnOnce()) -> Result<BlobLock, DataError> {
        let path = self.locks.join(format!("{etag}.lock"));
        create_parent(&path)?;
        let file = File::options().create(true).append(true).open(&path);
        let mut lock = RwLock::new(file.map_err(|e| DataError::io(&path, "open", e))?);
        if lock.try_write().is_err() {
            on_wait();
        }
        Ok(BlobLock { lock, path })
    }

    /// Links `path` in a snapshot to `blob`.
    pub(super) fn link(&self, blob: &Path, path: &Path) -> Result<(), DataError> {
        create_parent(path)?;
        let err = |e| DataError::io(path, "link", e);
        if path.symlink_metadata().is_ok() {
            fs::remove_file(path).map_err(err)?;
        }
        #[cfg(unix)]
        {
            let inside = path.strip_prefix(&self.dir).expect("snapshots lie in the repository's folder");
            let name = blob.file_name().expect("a blob has a name");
            let up: PathBuf = inside.components().skip(1).map(|_| Component::ParentDir).collect();
            std::os::unix::fs::symlink(up.join("blobs").join(name), path).map_err(err)
        }
        #[cfg(not(unix))]
        fs::hard_link(blob, path).map_err(err)
    }
}

/// The lock of a blob; [`BlobLock::hold`] acquires it.
pub(super) struct BlobLock {
    lock: RwLock<File>,
    path: PathBuf,
}

impl BlobLock {
    /// Runs `work` while no other process works on the blob.
    pub(super) fn hold<T>(mut self, work: impl FnOnce() -> Result<T, DataError>) -> Result<T, DataError> {
        let _guard = self.lock.write().map_err(|e| DataError::io(&self.path, "lock", e))?;
        work()
    }
}

/// Letters and digits only, because it becomes a folder's name.
pub(super) fn is_commit(commit: &str) -> bool {
    !commit.is_empty() && commit.chars().all(|c| c.is_ascii_alphanumeric())
}

pub(super) fn create_parent(path: &Path) -> Result<(), DataError> {
    let parent = path.parent().expect("a cache path has a parent");
    fs::create_dir_all(parent).map_err(|e| DataError::io(parent, "create", e))
}
