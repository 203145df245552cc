//! Paths of the files that a run keeps in its output directory, from there. They are in [`oq_recipe::RUN_FOLDER`], like the run's records
//! ([`oq_recipe::RECORDS`]).

/// The journal: one line for each finished shard.
pub const JOURNAL: &str = "omniquant/journal.jsonl";
/// The state of tuning, while blocks are tuned.
pub const TUNING: &str = "omniquant/tuning.safetensors";
/// The width of each linear, if average bits were requested.
pub(crate) const WIDTHS: &str = oq_recipe::BITS;
/// Where earlier versions kept the journal.
pub(crate) const EARLIER_JOURNAL: &str = "journal.jsonl";

#[cfg(test)]
mod tests {
    use std::path::Path;

    use oq_recipe::{RECORDS, RUN_FOLDER};

    use super::*;

    #[test]
    fn all_of_a_run_is_in_one_folder() {
        for path in RECORDS.into_iter().chain([JOURNAL, TUNING, WIDTHS]) {
            assert_eq!(Path::new(path).parent(), Some(Path::new(RUN_FOLDER)), "{path}");
        }
    }
}
