//! Names of the files that a run keeps in its output directory, beside the packed model and its records ([`oq_recipe::RECORDS`]).

/// The journal: one line for each finished shard.
pub const JOURNAL: &str = "journal.jsonl";
/// Folder of learned blocks that will be tuned.
pub const UNTUNED: &str = "untuned";
/// In that folder: the state of tuning.
pub(crate) const TUNING: &str = "tuning.safetensors";
/// The width of each linear, if average bits were requested.
pub(crate) const WIDTHS: &str = "bits.json";
