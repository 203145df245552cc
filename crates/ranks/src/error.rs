//! Errors of ranks.

/// Why ranks cannot begin, or not go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RanksError {
    /// The environment describes ranks, but not fully.
    #[error("{variable}: {fault}; ranks need RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT, as torchrun sets them")]
    Environment {
        /// The environment variable.
        variable: &'static str,
        /// What is wrong with it.
        fault: String,
    },
    /// The libtorch of this build cannot connect processes.
    #[error("ranks are not in this build, because its libtorch has no c10d for this system: run one process")]
    Absent,
    /// The ranks did not find each other.
    #[error(
        "rank {rank} of {size} did not join the others at {host}:{port}: {cause}; do all ranks run, with the same MASTER_ADDR and \
         MASTER_PORT?"
    )]
    Join {
        /// Which rank.
        rank: usize,
        /// Of how many.
        size: usize,
        /// Where they meet.
        host: String,
        /// The port there.
        port: u16,
        /// What c10d says.
        cause: String,
    },
    /// Another rank has ended with an error of its own.
    #[error("rank {rank} failed: {message}")]
    Failed {
        /// The rank.
        rank: usize,
        /// Its error.
        message: String,
    },
    /// Other ranks have ended without a word.
    #[error("{} ended or cannot be reached any more, and the job ends with it ({cause})", named(ranks))]
    Lost {
        /// The ranks.
        ranks: Vec<usize>,
        /// What c10d says.
        cause: String,
    },
    /// All ranks are there, and exchanging failed nevertheless.
    #[error("the ranks cannot exchange tensors: {0}")]
    Exchange(String),
}

/// `rank 1`, `ranks 1, 2`.
fn named(ranks: &[usize]) -> String {
    let numbers: Vec<String> = ranks.iter().map(usize::to_string).collect();
    format!("rank{} {}", if ranks.len() == 1 { "" } else { "s" }, numbers.join(", "))
}
