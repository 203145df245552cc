//! Texts by name and by file.

#![allow(clippy::unwrap_used, reason = "a test that cannot be set up should fail")]

use std::path::Path;

use oq_data::{DataError, ErrorKind, Hub, Split, load_text};

/// A hub that is never asked.
fn no_hub() -> Hub {
    Hub { endpoint: "http://127.0.0.1:9".into(), cache: Some("no-cache".into()), token: None, offline: true }
}

/// A data directory with `folder/wiki.valid.raw` and `folder/wiki.test.raw`.
fn data_dir(folder: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join(folder);
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("wiki.valid.raw"), " \n = Title = \n \n A line . \n").unwrap();
    std::fs::write(folder.join("wiki.test.raw"), " \n test \n").unwrap();
    dir
}

#[test]
fn lines_keep_their_newline_and_blank_ones_are_empty() {
    for folder in ["wikitext2", "wikitext-2-raw", "."] {
        let dir = data_dir(folder);
        let valid = load_text("wikitext2", Split::Validation, Some(dir.path()), &no_hub()).unwrap();
        assert_eq!(valid.text, "\n\n = Title = \n\n\n\n\n A line . \n");
        assert_eq!(valid.name, "wikitext2:valid");
    }
}

#[test]
fn a_named_split_wins_over_the_command_s_own() {
    let dir = data_dir("wikitext2");
    for name in ["wikitext2:test", "wikitext2:valid", "wikitext2:validation"] {
        let text = load_text(name, Split::Train, Some(dir.path()), &no_hub()).unwrap();
        assert_eq!(text.text.contains("test"), name.ends_with("test"), "{name}");
    }
}

#[test]
fn an_absent_split_is_not_replaced_but_its_stand_in_is_named() {
    let dir = data_dir("wikitext2");
    let err = load_text("wikitext2", Split::Train, Some(dir.path()), &no_hub()).unwrap_err();
    assert_eq!(err.kind(), ErrorKind::MissingInput);
    let said = err.to_string();
    assert!(said.contains("wiki.train.raw") && said.contains("HF_HUB_OFFLINE"), "{said}");
    assert!(said.contains("wikitext2:valid is here") && !said.contains("wikitext2:test"), "{said}");
    let said = load_text("wikitext2", Split::Train, None, &no_hub()).unwrap_err().to_string();
    assert!(said.contains("OMNIQUANT_DATA") && !said.contains("is here:"), "{said}");
}

#[test]
fn a_file_is_one_text_without_its_final_newline() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("a.txt");
    for (content, text) in [("one\n\ntwo\n", "one\n\ntwo"), ("x\n\n", "x\n"), ("x", "x"), ("", "")] {
        std::fs::write(&file, content).unwrap();
        assert_eq!(load_text(file.to_str().unwrap(), Split::Test, None, &no_hub()).unwrap().text, text);
    }
    std::fs::write(&file, b"ab\xff").unwrap();
    let err = load_text(file.to_str().unwrap(), Split::Test, None, &no_hub()).unwrap_err();
    assert_eq!(err.kind(), ErrorKind::Corrupt);
    assert!(err.to_string().ends_with("a.txt: not UTF-8 at byte 2"), "{err}");
}

#[test]
fn unknown_names_are_told_what_is_known() {
    for name in ["c4", "wikitext2:dev", "nowhere/file.txt"] {
        let err = load_text(name, Split::Test, None, &no_hub()).unwrap_err();
        assert!(matches!(err, DataError::UnknownDataset { .. }), "{err}");
        assert!(err.to_string().contains("wikitext2:valid"), "{err}");
    }
}

#[test]
fn the_published_files_have_their_known_shape() {
    let Some(data) = std::env::var_os("OMNIQUANT_DATA") else {
        eprintln!("skipped: OMNIQUANT_DATA is not set");
        return;
    };
    // Rows (4358 and 3760) joined by two newlines.
    for (split, bytes) in [(Split::Test, TEST_BYTES), (Split::Validation, VALID_BYTES)] {
        let text = load_text("wikitext2", split, Some(Path::new(&data)), &no_hub()).unwrap().text;
        assert_eq!(text.len(), bytes, "{split}");
    }
}

const TEST_BYTES: usize = 1_296_370;
const VALID_BYTES: usize = 1_151_766;
