//! What is told of a fetch.

/// What a fetch is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HubEvent<'a> {
    /// The file is in the cache.
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
    /// More bytes are on disk.
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
