//! Texts by name and by file.

#![allow(clippy::unwrap_used, reason = "a test that cannot be set up should fail")]

use std::path::Path;

use oq_data::{DataError, ErrorKind, Hub, Rows, Split, load_text};

/// A hub that is never asked.
fn no_hub() -> Hub {
    Hub::new("http://127.0.0.1:9", "no-cache").with_offline(true)
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
        let valid = load_text("wikitext2", Split::Validation, Some(dir.path()), &no_hub(), Rows::default()).unwrap();
        assert_eq!(valid.text, "\n\n = Title = \n\n\n\n\n A line . \n");
        assert_eq!(valid.name, "wikitext2:valid");
    }
}

#[test]
fn a_named_split_wins_over_the_command_s_own() {
    let dir = data_dir("wikitext2");
    for name in ["wikitext2:test", "wikitext2:valid", "wikitext2:validation"] {
        let text = load_text(name, Split::Train, Some(dir.path()), &no_hub(), Rows::default()).unwrap();
        assert_eq!(text.text.contains("test"), name.ends_with("test"), "{name}");
    }
}

#[test]
fn an_absent_split_is_not_replaced_but_its_stand_in_is_named() {
    let dir = data_dir("wikitext2");
    let err = load_text("wikitext2", Split::Train, Some(dir.path()), &no_hub(), Rows::default()).unwrap_err();
    assert_eq!(err.kind(), ErrorKind::MissingInput);
    let said = err.to_string();
    assert!(said.contains("wiki.train.raw") && said.contains("HF_HUB_OFFLINE"), "{said}");
    assert!(said.contains("wikitext2:valid is here") && !said.contains("wikitext2:test"), "{said}");
    let said = load_text("wikitext2", Split::Train, None, &no_hub(), Rows::default()).unwrap_err().to_string();
    assert!(said.contains("OMNIQUANT_DATA") && !said.contains("is here:"), "{said}");
}

#[test]
fn a_file_is_one_text_without_its_final_newline() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("a.txt");
    for (content, text) in [("one\n\ntwo\n", "one\n\ntwo"), ("x\n\n", "x\n"), ("x", "x"), ("", "")] {
        std::fs::write(&file, content).unwrap();
        assert_eq!(
            load_text(file.to_str().unwrap(), Split::Test, None, &no_hub(), Rows::default()).unwrap().text,
            text
        );
    }
    std::fs::write(&file, b"ab\xff").unwrap();
    let err = load_text(file.to_str().unwrap(), Split::Test, None, &no_hub(), Rows::default()).unwrap_err();
    assert_eq!(err.kind(), ErrorKind::Corrupt);
    assert!(err.to_string().ends_with("a.txt: not UTF-8 at byte 2"), "{err}");
}

#[test]
fn unknown_names_are_told_what_is_known() {
    for name in ["c5", "wikitext2:dev", "nowhere/file.txt"] {
        let err = load_text(name, Split::Test, None, &no_hub(), Rows::default()).unwrap_err();
        assert!(matches!(err, DataError::UnknownDataset { .. }), "{err}");
        assert!(err.to_string().contains("wikitext2:valid"), "{err}");
    }
}

#[test]
fn other_texts_are_read_as_papers_evaluate_on_them() {
    let dir = tempfile::tempdir().unwrap();
    let load = |name: &str, split| load_text(name, split, Some(dir.path()), &no_hub(), Rows::default());
    for (name, file) in [("c4", "c4-validation.00000-of-00008.json.gz"), ("ptb", "ptb.test.txt")] {
        let err = load(name, Split::Test).unwrap_err();
        assert_eq!(err.kind(), ErrorKind::MissingInput);
        assert!(err.to_string().contains(file), "{err}");
        std::fs::create_dir(dir.path().join(name)).unwrap();
    }
    std::fs::write(dir.path().join("ptb/ptb.test.txt"), " no it was n't <unk> \n but n years ago \n").unwrap();
    assert_eq!(load("ptb", Split::Test).unwrap().text, "no it was n't <unk>\n\nbut n years ago");
    assert!(load("ptb", Split::Train).unwrap_err().to_string().contains("ptb.train.txt"));
    // C4 has no test split; 1100 documents are read.
    let rows: String = (0..1101).map(|i| format!("{{\"text\": \"d{i}\\n\", \"url\": \"u\"}}\n")).collect();
    std::fs::write(dir.path().join("c4/c4-validation.00000-of-00008.json"), rows).unwrap();
    let text = load("c4", Split::Test).unwrap();
    assert_eq!((&*text.name, text.about.as_deref()), ("c4:valid", Some("1100 documents")));
    assert!(text.text.starts_with("d0\n d1\n d2\n") && text.text.ends_with(" d1099\n"), "{}", &text.text[..20]);
    std::fs::write(dir.path().join("c4/c4-validation.00000-of-00008.json"), "{\"url\": \"u\"}\n").unwrap();
    assert!(load("c4:valid", Split::Test).unwrap_err().to_string().contains("line 1 has no field `text`"));
}

#[test]
fn the_published_files_have_their_known_shape() {
    let Some(data) = std::env::var_os("OMNIQUANT_DATA") else {
        eprintln!("skipped: OMNIQUANT_DATA is not set");
        return;
    };
    // Rows (4358 and 3760) joined by two newlines.
    for (split, bytes) in [(Split::Test, TEST_BYTES), (Split::Validation, VALID_BYTES)] {
        let text = load_text("wikitext2", split, Some(Path::new(&data)), &no_hub(), Rows::default()).unwrap().text;
        assert_eq!(text.len(), bytes, "{split}");
    }
}

const TEST_BYTES: usize = 1_296_370;
const VALID_BYTES: usize = 1_151_766;

fn fixtures() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures"))
}

/// The text of a file of that name with these bytes.
fn load(name: &str, bytes: &[u8], rows: Rows<'_>) -> Result<oq_data::Text, DataError> {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join(name);
    std::fs::write(&file, bytes).unwrap();
    load_text(file.to_str().unwrap(), Split::Train, None, &no_hub(), rows)
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    std::io::Write::write_all(&mut gzip, bytes).unwrap();
    gzip.finish().unwrap()
}

const JSONL: &str =
    "{\"text\": \"One.\", \"id\": 1}\n\n{\"text\": \"Two \\u00e9.\"}\r\n{\"text\": null}\n{\"text\": \" \"}\n";

#[test]
fn rows_of_json_are_their_texts() {
    let texts = |name: &str, json: &str| load(name, json.as_bytes(), Rows::default()).unwrap();
    for (name, json) in [
        ("a.jsonl", JSONL),
        ("a.json", JSONL),
        ("a.JSONL", JSONL),
        // Not named so, and rows all the same.
        ("a.txt", JSONL),
        ("a.json", r#"[{"text": "One."}, {"text": "Two é."}]"#),
        ("a.json", r#"["One.", "Two é."]"#),
        ("a.ndjson", "\"One.\"\n\"Two é.\""),
        ("a.json", "\u{feff}[\n {\"text\": \"One.\"},\n {\"text\": \"Two é.\"}\n]\n"),
    ] {
        let text = texts(name, json);
        assert_eq!(text.text, "One.\n\nTwo é.", "{name} {json}");
        assert!(text.about.unwrap().ends_with("rows of JSON, field `text`"));
    }
    assert_eq!(texts("a.json", r#"{"text": "One."}"#).text, "One.");
    // Text that begins as JSON does.
    for plain in ["{\"text\": 1} and so on\n{", "[{ 1 }]", "{\"a\": \"b\"\nc", "[1, 2]"] {
        let text = texts("a.txt", plain);
        assert_eq!((text.text.as_str(), text.about), (plain, None));
    }
}

#[test]
fn a_field_may_be_named() {
    let rows = Rows::default().with_field("story");
    assert_eq!(load("a.jsonl", b"{\"story\": \"x\", \"text\": \"y\"}", rows).unwrap().text, "x");
    let refused = |json: &str, rows: Rows<'_>| {
        let error = load("a.jsonl", json.as_bytes(), rows).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt);
        error.to_string()
    };
    let error = refused("{\"question\": \"x\", \"answer\": \"y\"}", Rows::default());
    assert!(
        error.contains("row 1 has no field `text`, only question, answer") && error.contains("--text-field"),
        "{error}"
    );
    let error = refused("{\"story\": \"x\"}\n{\"text\": \"y\"}", rows);
    assert!(error.contains("row 2 has no field `story`"), "{error}");
    assert!(refused("{\"text\": 3}", Rows::default()).contains("row 1: field `text` is not a text"));
    assert!(refused("{\"text\": \"a\"}\nnonsense", Rows::default()).contains("line 2 is not JSON"));
    assert!(refused("3", Rows::default()).contains("rows are needed"));
    assert!(refused("", Rows::default()).contains("rows are needed"));
}

#[test]
fn conversations_are_written_by_the_model_s_template() {
    let model = tempfile::tempdir().unwrap();
    let template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}";
    std::fs::write(model.path().join("chat_template.jinja"), template).unwrap();
    let rows = Rows::default().with_model(model.path());
    for json in [
        r#"{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]}"#,
        r#"{"messages": [{"role": "user", "content": [{"type": "text", "text": "H"}, {"text": "i"}]}, {"role": "assistant", "content": "Ho"}]}"#,
        r#"{"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ho"}]}"#,
    ] {
        assert_eq!(load("a.jsonl", json.as_bytes(), rows).unwrap().text, "<user>Hi<assistant>Ho", "{json}");
    }
    let json = r#"{"messages": [{"role": "user", "content": "Hi"}]}"#;
    let bare = tempfile::tempdir().unwrap();
    let rows = Rows::default().with_model(bare.path());
    assert!(matches!(load("a.jsonl", json.as_bytes(), rows), Err(DataError::NoChatTemplate { .. })));
    let error = load("a.jsonl", br#"{"messages": [{"speaker": "x"}]}"#, rows).unwrap_err().to_string();
    assert!(error.contains("row 1, field `messages`") && error.contains("role"), "{error}");
}

#[test]
fn parquet_has_its_texts_in_a_column() {
    let bytes = std::fs::read(fixtures().join("rows.parquet")).unwrap();
    let text = load("rows.parquet", &bytes, Rows::default()).unwrap();
    assert_eq!(text.text, "The first row.\n\nThe third row é.");
    assert_eq!(text.about.unwrap(), "3 rows of parquet, column `text`");
    let field = |field| load("rows.parquet", &bytes, Rows::default().with_field(field));
    assert_eq!(field("story").unwrap().text, "Once.\n\nTwice.\n\nThrice.");
    let error = field("nothing").unwrap_err().to_string();
    assert!(error.contains("only id, meta, text, tags, story: name one by --text-field"), "{error}");
    assert!(field("id").unwrap_err().to_string().contains("does not hold one string per row"));
    assert!(field("meta").is_err());
    let error = load("a.parquet", b"PAR1 and nothing else PAR1", Rows::default()).unwrap_err().to_string();
    assert!(error.contains("not readable as parquet"), "{error}");
}

#[test]
fn gzip_is_undone_around_rows() {
    for name in ["a.jsonl.gz", "a.json.gz", "a.gz", "a"] {
        assert_eq!(load(name, &gzip(JSONL.as_bytes()), Rows::default()).unwrap().text, "One.\n\nTwo é.", "{name}");
    }
    let bytes = std::fs::read(fixtures().join("rows.parquet")).unwrap();
    assert!(load("rows.parquet.gz", &gzip(&bytes), Rows::default()).unwrap().text.starts_with("The first row."));
    let refused = |bytes: &[u8]| load("a.txt.gz", bytes, Rows::default()).unwrap_err().to_string();
    assert!(refused(&gzip(b"One.\n")).contains("a gzipped text") && refused(&gzip(b"One.\n")).contains("gunzip"));
    assert!(refused(&gzip(JSONL.as_bytes())[..20]).contains("not readable as gzip"));
}

#[test]
fn a_byte_order_mark_is_no_text() {
    assert_eq!(load("a.txt", "\u{feff}One.\u{feff}\n".as_bytes(), Rows::default()).unwrap().text, "One.\u{feff}");
    let utf16: Vec<u8> = "\u{feff}One.".encode_utf16().flat_map(u16::to_le_bytes).collect();
    assert!(load("a.txt", &utf16, Rows::default()).unwrap_err().to_string().contains("UTF-16"));
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n";
    assert!(load("a.txt", pointer.as_bytes(), Rows::default()).unwrap_err().to_string().contains("git lfs pull"));
}

#[cfg(unix)]
#[test]
fn a_pipe_is_read_and_a_folder_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let pipe = dir.path().join("pipe");
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let writer = std::thread::spawn({
        let pipe = pipe.clone();
        move || std::fs::write(pipe, "From a pipe.\n").unwrap()
    });
    let load = |path: &Path| load_text(path.to_str().unwrap(), Split::Train, None, &no_hub(), Rows::default());
    assert_eq!(load(&pipe).unwrap().text, "From a pipe.");
    writer.join().unwrap();
    let error = load(dir.path()).unwrap_err();
    assert!(error.kind() == ErrorKind::Usage && error.to_string().contains("a folder, not a text"), "{error}");
}
