//! Names of the files that a run keeps in its output directory, beside the packed model and its records ([`oq_recipe::RECORDS`]).

/// The journal: a line for each finished shard.
pub const JOURNAL: &str = "journal.jsonl";
/// Folder of learned blocks that are still to be tuned.
pub const UNTUNED: &str = "untuned";
/// In that folder: how far tuning is.
pub(crate) const TUNING: &str = "tuning.safetensors";
/// Which width each linear has, where an average of bits was asked for.
pub(crate) const WIDTHS: &str = "bits.json";
