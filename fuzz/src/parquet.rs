//! The bytes are the test split of WikiText-2 as the hub holds it: a parquet file, read from a cache of downloads.

use oq_data::{Hub, Rows, Split, load_text};

use crate::files::{scratch, write};

const FOLDER: &str = "datasets--Salesforce--wikitext/snapshots/main/wikitext-2-raw-v1";

/// Whether rows with a text can be read.
pub fn read(bytes: &[u8]) -> bool {
    std::fs::create_dir_all(scratch().join(FOLDER)).expect("a fuzzer can write temporary files");
    write(&format!("{FOLDER}/test-00000-of-00001.parquet"), bytes);
    let hub = Hub::new("http://127.0.0.1:9", scratch()).with_offline(true);
    load_text("wikitext2", Split::Test, None, &hub, Rows::default()).is_ok()
}
