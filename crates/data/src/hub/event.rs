//! Progress events of a fetch.

/// Progress of a fetch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
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
