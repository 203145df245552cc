//! Paths and contents of fixtures.

use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use oq_data::{AddSpecial, Tokenizer};
use tempfile::TempDir;

/// The repository's root.
pub fn repository() -> &'static Path {
    // Where the tests of a device were taken to another machine, a folder has what they read (`cargo xtask device --prepare`).
    static PREPARED: LazyLock<Option<PathBuf>> =
        LazyLock::new(|| std::env::var_os("OMNIQUANT_PREPARED").map(PathBuf::from));
    let here = || Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("this package lies in the repository");
    PREPARED.as_deref().unwrap_or_else(here)
}

/// Path of a file or directory in `tests/fixtures`.
pub fn fixture(name: &str) -> PathBuf {
    repository().join("tests/fixtures").join(name)
}

/// A writable copy of a fixture's directory.
pub fn copied(name: &str) -> TempDir {
    let copy = tempfile::tempdir().expect("temporary folders can be made");
    for entry in std::fs::read_dir(fixture(name)).expect("the fixture is there") {
        let path = entry.expect("the fixture is listed").path();
        let bytes = std::fs::read(&path).expect("fixtures are plain files");
        // Not with `fs::copy`, which would also copy a read-only mode.
        std::fs::write(copy.path().join(path.file_name().expect("entries have names")), bytes)
            .expect("it can be written");
    }
    copy
}

/// Token ids of the file `text` in `tests/fixtures`, without its final newline, from tiny-llama's tokenizer.
pub fn tokens(text: &str) -> Vec<u32> {
    let text = std::fs::read_to_string(fixture(text)).expect("the text is in the repository");
    let tokenizer = Tokenizer::open(&fixture("tiny-llama")).expect("tiny-llama has a tokenizer");
    tokenizer.encode(text.trim_end_matches('\n'), AddSpecial::Yes).expect("its own text can be tokenized")
}
