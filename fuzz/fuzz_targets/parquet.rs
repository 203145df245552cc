//! The bytes are the test split of WikiText-2 as the hub holds it: a parquet file, read from a cache of downloads.

#![no_main]

use libfuzzer_sys::fuzz_target;
use oq_data::{Hub, Rows, Split, load_text};
use oq_fuzz::{scratch, write};

const FOLDER: &str = "datasets--Salesforce--wikitext/snapshots/main/wikitext-2-raw-v1";

fuzz_target!(
    init: {
        std::fs::create_dir_all(scratch().join(FOLDER)).expect("a fuzzer can write temporary files");
        // What panics is caught by the reader, if that comes first: see the target `tokenizer`.
        std::panic::set_hook(Box::new(|_| {}));
    },
    |bytes: &[u8]| {
        write(&format!("{FOLDER}/test-00000-of-00001.parquet"), bytes);
        let hub = Hub::new("http://127.0.0.1:9", scratch()).with_offline(true);
        let _ = load_text("wikitext2", Split::Test, None, &hub, Rows::default());
    }
);
