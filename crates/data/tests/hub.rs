//! Fetching from a hub: what is asked, what is kept, what is said when it fails.

#![allow(clippy::unwrap_used, reason = "a test that cannot be set up should fail")]

mod fake_hub;

use std::path::Path;
use std::time::{Duration, Instant};

use fake_hub::{COMMIT, FakeHub, Faults, sha256};
use oq_data::{DataError, ErrorKind, Hub, HubEvent, Rows, Split, load_text};

const REPO: &str = "owner/model";
const CONFIG: (&str, &[u8]) = ("config.json", b"{}");

/// 300,000 bytes: more than one read.
fn weights() -> Vec<u8> {
    (0..300_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect()
}

fn fetch(hub: &Hub) -> Result<std::path::PathBuf, DataError> {
    hub.fetch_model(REPO, None, &mut |_| {})
}

#[test]
fn a_model_arrives_in_the_shared_layout_and_is_not_fetched_twice() {
    let weights = weights();
    let files = [CONFIG, ("tokenizer.json", b"{\"t\": 1}"), ("train.log", b"no"), ("model.safetensors", &weights)];
    let server = FakeHub::start(REPO, &files, Faults::default());
    let cache = tempfile::tempdir().unwrap();
    let mut hub = server.client(cache.path(), Some("secret"));
    let mut events = Vec::new();
    let dir = hub.fetch_model(REPO, None, &mut |event| events.push(format!("{event:?}"))).unwrap();

    let repo = cache.path().join("models--owner--model");
    assert_eq!(dir, repo.join("snapshots").join(COMMIT));
    assert_eq!(std::fs::read_to_string(repo.join("refs/main")).unwrap(), COMMIT);
    assert_eq!(std::fs::read(dir.join("model.safetensors")).unwrap(), weights);
    assert_eq!(std::fs::read(dir.join("tokenizer.json")).unwrap(), b"{\"t\": 1}");
    assert!(!dir.join("train.log").exists());
    let blob = Path::new("../../blobs").join(sha256(&weights));
    assert_eq!(std::fs::read_link(dir.join("model.safetensors")).unwrap(), blob);
    assert!(events.iter().any(|event| event.starts_with("Finished { file: \"model.safetensors\", total: 300000")));

    let requests = server.requests();
    let with_token = |path: &str| requests.iter().filter(|r| r.contains(path) && r.contains("Bearer secret")).count();
    assert!(with_token("/resolve/") > 0);
    assert_eq!(with_token("/store/"), 0, "the token must stay with the hub: {requests:?}");

    assert_eq!(fetch(&hub).unwrap(), dir);
    assert_eq!(server.requests().len(), 1, "the listing alone");
    hub.offline = true;
    assert_eq!(fetch(&hub).unwrap(), dir);
    assert_eq!(hub.fetch_model(REPO, Some(COMMIT), &mut |_| {}).unwrap(), dir);
    assert!(server.requests().is_empty());
    std::fs::remove_file(dir.join("model.safetensors")).unwrap();
    let err = fetch(&hub).unwrap_err();
    assert!(matches!(err, DataError::NotCached { .. }) && err.to_string().contains("model.safetensors"), "{err}");
}

#[test]
fn a_config_comes_without_the_weights() {
    let files = [CONFIG, ("model.safetensors", b"1234" as &[u8])];
    let server = FakeHub::start(REPO, &files, Faults::default());
    let cache = tempfile::tempdir().unwrap();
    let mut hub = server.client(cache.path(), None);
    let config = |hub: &Hub| hub.fetch_config(REPO, None, &mut |_| {});
    let path = config(&hub).unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), CONFIG.1);
    assert!(!path.with_file_name("model.safetensors").exists());
    hub.offline = true;
    assert!(matches!(config(&hub), Err(DataError::NotCached { .. })), "a ref names complete snapshots only");
    hub.offline = false;
    fetch(&hub).unwrap();
    hub.offline = true;
    assert_eq!(config(&hub).unwrap(), path);

    let server = FakeHub::start(REPO, &files[1..], Faults::default());
    let err = config(&server.client(cache.path(), None)).unwrap_err();
    assert!(matches!(err, DataError::IncompleteRepo { .. }) && err.to_string().contains("config.json"), "{err}");
}

#[test]
fn a_snapshot_without_a_ref_is_found_where_it_is_the_only_one() {
    const OTHER: &str = "fedcba9876543210fedcba9876543210fedcba98";
    let server = FakeHub::start(REPO, &[CONFIG, ("model.safetensors", b"1234" as &[u8])], Faults::default());
    let cache = tempfile::tempdir().unwrap();
    let mut hub = server.client(cache.path(), None);
    let dir = fetch(&hub).unwrap();
    // As a download by commit leaves it.
    std::fs::remove_dir_all(dir.join("../../refs")).unwrap();
    hub.offline = true;
    assert_eq!(fetch(&hub).unwrap(), dir);
    let at = |revision: &str| hub.fetch_model(REPO, Some(revision), &mut |_| {});
    assert_eq!(at(&COMMIT[..7]).unwrap(), dir);
    // Too few digits, and a branch.
    for revision in [&COMMIT[..6], "dev"] {
        assert!(matches!(at(revision), Err(DataError::NotCached { .. })), "{revision}");
    }
    let other = dir.with_file_name(OTHER);
    std::fs::create_dir(&other).unwrap();
    for file in ["config.json", "model.safetensors"] {
        std::fs::copy(dir.join(file), other.join(file)).unwrap();
    }
    let error = fetch(&hub).unwrap_err().to_string();
    assert!(error.contains(COMMIT) && error.contains(OTHER) && error.contains("--revision"), "{error}");
    assert_eq!(at(OTHER).unwrap(), other);
}

#[test]
fn shards_are_those_of_the_index() {
    let index =
        br#"{"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors", "c": "model-1.safetensors"}}"#;
    let mut files: Vec<(&str, &[u8])> = vec![
        CONFIG,
        ("model.safetensors.index.json", index),
        ("model-1.safetensors", b"11"),
        ("other.safetensors", b"3"),
    ];
    let cache = tempfile::tempdir().unwrap();
    let server = FakeHub::start(REPO, &files, Faults::default());
    let err = fetch(&server.client(cache.path(), None)).unwrap_err();
    assert!(err.to_string().contains("owner/model has no model-2.safetensors"), "{err}");
    assert!(!cache.path().join("models--owner--model/refs/main").exists(), "a ref names complete snapshots only");

    files.push(("model-2.safetensors", b"22"));
    let server = FakeHub::start(REPO, &files, Faults::default());
    let dir = fetch(&server.client(cache.path(), None)).unwrap();
    assert_eq!(std::fs::read(dir.join("model-2.safetensors")).unwrap(), b"22");
    assert!(!dir.join("other.safetensors").exists());
}

#[test]
fn a_cut_download_continues_where_it_stopped() {
    let weights = weights();
    // More cuts than attempts are allowed without progress.
    let faults = Faults { cut: (50_000, 5), ..Faults::default() };
    let server = FakeHub::start(REPO, &[CONFIG, ("model.safetensors", &weights)], faults);
    let cache = tempfile::tempdir().unwrap();
    let dir = fetch(&server.client(cache.path(), None)).unwrap();
    assert_eq!(std::fs::read(dir.join("model.safetensors")).unwrap(), weights);
    let ranges: Vec<String> = server.requests().into_iter().filter(|r| r.contains("/store/")).collect();
    assert_eq!(ranges.len(), 6, "{ranges:?}");
    for (i, request) in ranges.iter().enumerate().skip(1) {
        assert!(request.ends_with(&format!("bytes={}-", 50_000 * i)), "{ranges:?}");
    }
}

#[test]
fn cuts_that_bring_nothing_are_counted() {
    let weights = weights();
    let faults = |cuts| Faults { cut: (0, cuts), ..Faults::default() };
    let server = FakeHub::start(REPO, &[CONFIG, ("model.safetensors", &weights)], faults(3));
    let cache = tempfile::tempdir().unwrap();
    let hub = server.client(cache.path(), None);
    let err = fetch(&hub).unwrap_err();
    assert_eq!(err.kind(), ErrorKind::Unreachable, "{err}");
    server.set_faults(faults(2));
    assert_eq!(std::fs::read(fetch(&hub).unwrap().join("model.safetensors")).unwrap(), weights);
}

#[test]
fn two_processes_do_not_write_one_file() {
    let server = FakeHub::start(REPO, &[CONFIG, ("model.safetensors", b"1")], Faults::default());
    let cache = tempfile::tempdir().unwrap();
    let locks = cache.path().join(".locks/models--owner--model");
    std::fs::create_dir_all(&locks).unwrap();
    // As another process would hold it: the lock belongs to the open file.
    let file = std::fs::File::create(locks.join(format!("{}.lock", sha256(b"1")))).unwrap();
    let mut lock = fd_lock::RwLock::new(file);
    let mut guard = Some(lock.write().unwrap());
    let mut waited = false;
    let hub = server.client(cache.path(), None);
    hub.fetch_model(REPO, None, &mut |event| match event {
        HubEvent::Waiting { file: "model.safetensors" } => {
            waited = true;
            guard = None;
        }
        HubEvent::Started { file: "model.safetensors", .. } => assert!(guard.is_none()),
        _ => {}
    })
    .unwrap();
    assert!(waited);
}

#[test]
fn what_a_killed_process_left_is_used() {
    let weights = weights();
    let server = FakeHub::start(REPO, &[CONFIG, ("model.safetensors", &weights)], Faults::default());
    for (left, ignore_range) in [(&weights[..123_456], false), (&weights[..123_456], true), (&weights[..], false)] {
        server.set_faults(Faults { ignore_range, ..Faults::default() });
        let cache = tempfile::tempdir().unwrap();
        let blobs = cache.path().join("models--owner--model/blobs");
        std::fs::create_dir_all(&blobs).unwrap();
        std::fs::write(blobs.join(format!("{}.part", sha256(&weights))), left).unwrap();
        let hub = server.client(cache.path(), None);
        let mut resumed = None;
        let dir = hub.fetch_model(REPO, None, &mut |event| {
            if let HubEvent::Started { file: "model.safetensors", done, .. } = event {
                resumed = Some(done);
            }
        });
        assert_eq!(std::fs::read(dir.unwrap().join("model.safetensors")).unwrap(), weights);
        assert_eq!(resumed, Some(left.len() as u64));
    }
}

#[test]
fn changed_bytes_are_refused_and_removed() {
    let faults = Faults { flip: true, ..Faults::default() };
    let server = FakeHub::start(REPO, &[CONFIG, ("model.safetensors", &weights())], faults);
    let cache = tempfile::tempdir().unwrap();
    let hub = server.client(cache.path(), None);
    let err = fetch(&hub).unwrap_err();
    assert_eq!(err.kind(), ErrorKind::Corrupt);
    assert!(err.to_string().contains("SHA-256"), "{err}");
    server.set_faults(Faults::default());
    fetch(&hub).unwrap();
}

#[test]
fn a_busy_hub_is_asked_again() {
    let server =
        FakeHub::start(REPO, &[CONFIG, ("model.safetensors", b"1")], Faults { unavailable: 2, ..Faults::default() });
    let cache = tempfile::tempdir().unwrap();
    fetch(&server.client(cache.path(), None)).unwrap();
    server.set_faults(Faults { unavailable: 3, ..Faults::default() });
    let err = fetch(&server.client(cache.path(), None)).unwrap_err();
    assert!(matches!(err, DataError::HubStatus { status: 503, .. }), "{err}");
    assert!(err.to_string().contains("after 3 attempts"), "{err}");
}

#[track_caller]
fn check_refused(status: u16, code: &'static str, token: Option<&str>, kind: ErrorKind, said: &str) {
    let server = FakeHub::start(REPO, &[CONFIG], Faults { refuse: Some((status, code)), ..Faults::default() });
    let cache = tempfile::tempdir().unwrap();
    let err = fetch(&server.client(cache.path(), token)).unwrap_err();
    assert_eq!(err.kind(), kind, "{err}");
    assert!(err.to_string().contains(said), "{err}");
    assert!(!err.to_string().contains("secret"), "{err}");
    assert!(std::fs::read_dir(cache.path()).unwrap().next().is_none(), "a failure leaves nothing behind");
}

#[test]
fn refusals_say_what_would_help() {
    let missing = ErrorKind::MissingInput;
    check_refused(401, "RepoNotFound", None, missing, "no such repository, or it is private or gated");
    check_refused(401, "GatedRepo", None, missing, "accept its terms");
    check_refused(401, "", Some("secret"), missing, "the token in HF_TOKEN may not read it");
    check_refused(403, "GatedRepo", Some("secret"), missing, "has no access yet");
    check_refused(404, "RevisionNotFound", None, missing, "has no owner/model at revision main (HTTP 404)");
    check_refused(500, "", None, ErrorKind::Unreachable, "HTTP 500 after 3 attempts");
}

#[test]
fn a_repository_without_weights_is_not_a_model() {
    let server = FakeHub::start(REPO, &[CONFIG, ("model.gguf", b"")], Faults::default());
    let cache = tempfile::tempdir().unwrap();
    let err = fetch(&server.client(cache.path(), None)).unwrap_err();
    assert!(matches!(err, DataError::IncompleteRepo { .. }), "{err}");
}

#[test]
fn an_unreachable_hub_fails_within_seconds_and_says_what_to_do() {
    let cache = tempfile::tempdir().unwrap();
    // A name that never resolves (RFC 6761), and a port where nothing listens.
    for endpoint in ["http://hub.invalid", "http://127.0.0.1:1"] {
        let hub = Hub::new(endpoint, cache.path());
        let started = Instant::now();
        let err = fetch(&hub).unwrap_err();
        // The connection's timeout is 10 s.
        assert!(started.elapsed() < Duration::from_secs(15), "{:?}", started.elapsed());
        assert_eq!(err.kind(), ErrorKind::Unreachable, "{err}");
        let said = err.to_string();
        for part in [endpoint, REPO, "HF_HUB_OFFLINE=1", "HF_ENDPOINT"] {
            assert!(said.contains(part), "{said}");
        }
    }
}

#[test]
fn something_that_is_no_hub_is_recognised() {
    // It answers everything with 200 and no hub's headers.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            use std::io::{Read, Write};
            let _ = stream.read(&mut [0; 4096]);
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\nConnection: close\r\n\r\n<html>");
        }
    });
    let hub = Hub::new(endpoint, "unused");
    let err = fetch(&hub).unwrap_err();
    assert!(err.to_string().ends_with("is HF_ENDPOINT a model hub?"), "{err}");
}

#[test]
fn names_are_checked_before_anything_is_asked() {
    let cache = tempfile::tempdir().unwrap();
    let hub = Hub::new("http://hub.invalid", cache.path());
    for name in ["../../x", "a/b/c", ""] {
        let err = hub.fetch_model(name, None, &mut |_| {}).unwrap_err();
        assert!(matches!(err, DataError::BadHubName { .. }), "{err}");
    }
}

/// A parquet file with one string column, in row groups of three rows.
fn parquet(column: &str, rows: &[&str]) -> Vec<u8> {
    parquet_groups(column, &rows.chunks(3).collect::<Vec<_>>())
}

/// A parquet file with one string column.
fn parquet_groups(column: &str, groups: &[&[&str]]) -> Vec<u8> {
    use parquet::basic::Compression;
    use parquet::data_type::{ByteArray, ByteArrayType};
    use parquet::file::properties::WriterProperties;
    use parquet::file::writer::SerializedFileWriter;
    let schema = format!("message schema {{ OPTIONAL BYTE_ARRAY {column} (UTF8); }}");
    let schema = parquet::schema::parser::parse_message_type(&schema).unwrap();
    let properties = WriterProperties::builder().set_compression(Compression::SNAPPY).build();
    let mut bytes = Vec::new();
    let mut writer = SerializedFileWriter::new(&mut bytes, schema.into(), properties.into()).unwrap();
    for rows in groups {
        let mut group = writer.next_row_group().unwrap();
        let mut column = group.next_column().unwrap().unwrap();
        let values: Vec<ByteArray> = rows.iter().map(|&row| row.into()).collect();
        column.typed::<ByteArrayType>().write_batch(&values, Some(&vec![1; rows.len()]), None).unwrap();
        column.close().unwrap();
        group.close().unwrap();
    }
    writer.close().unwrap();
    bytes
}

#[test]
fn wikitext2_comes_from_the_hub_where_no_file_is() {
    let rows = ["", " = Title = \n", "", " A line . \n", " The last . \n"];
    let bytes = parquet("text", &rows);
    let files = [("wikitext-2-raw-v1/train-00000-of-00001.parquet", &bytes[..])];
    let server = FakeHub::start("datasets/Salesforce/wikitext", &files, Faults::default());
    let cache = tempfile::tempdir().unwrap();
    let mut hub = server.client(cache.path(), None);
    let text = load_text("wikitext2", Split::Train, None, &hub, Rows::default()).unwrap();
    assert_eq!(text.text, rows.join("\n\n"));
    hub.offline = true;
    assert_eq!(load_text("wikitext2:train", Split::Test, None, &hub, Rows::default()).unwrap(), text);
    let err = load_text("wikitext2", Split::Test, None, &hub, Rows::default()).unwrap_err();
    assert_eq!(err.kind(), ErrorKind::MissingInput, "{err}");
}

/// The test split that is read where the hub's cache holds `bytes` for it.
fn load_cached(bytes: &[u8]) -> Result<String, DataError> {
    let cache = tempfile::tempdir().unwrap();
    let folder = cache.path().join("datasets--Salesforce--wikitext/snapshots/main/wikitext-2-raw-v1");
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("test-00000-of-00001.parquet"), bytes).unwrap();
    let hub = Hub::new("http://127.0.0.1:9", cache.path()).with_offline(true);
    load_text("wikitext2", Split::Test, None, &hub, Rows::default()).map(|text| text.text)
}

#[test]
fn a_flipped_byte_of_a_parquet_file_never_panics() {
    let whole = parquet("text", &["", " = Title = \n", "", " A line . \n", " The last . \n"]);
    for at in 0..whole.len() {
        // The lowest bit is the sign of a number.
        let mut bytes = whole.clone();
        bytes[at] ^= 1;
        if let Err(error) = load_cached(&bytes) {
            assert_eq!(error.kind(), ErrorKind::Corrupt, "byte {at}: {error}");
        }
    }
}

#[track_caller]
fn check_parquet_is_corrupt(bytes: &[u8], said: &str) {
    let started = Instant::now();
    let err = load_cached(bytes).unwrap_err();
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
    assert_eq!(err.kind(), ErrorKind::Corrupt, "{err}");
    assert!(err.to_string().contains(said), "{err}");
}

/// `footer` at the end of a parquet file.
fn with_footer(mut file: Vec<u8>, footer: &[u8]) -> Vec<u8> {
    file.extend_from_slice(footer);
    file.extend_from_slice(&(footer.len() as u32).to_le_bytes());
    file.extend_from_slice(b"PAR1");
    file
}

#[test]
fn a_parquet_header_that_announces_more_than_the_file_holds_is_corrupt() {
    let whole = parquet("text", &["a", "b", "c"]);
    // Behind type and sizes of a page: a list of 2^31 - 1 numbers or flags, a dictionary of 2^30 strings, a page of 2^30 bytes.
    let announced: [&[u8]; 4] = [
        b"\x15\x00\x15\x02\x15\x02\x69\xf7\xff\xff\xff\xff\x07",
        b"\x15\x00\x15\x02\x15\x02\x69\xf2\xff\xff\xff\xff\x07\x00",
        b"\x15\x04\x15\x02\x15\x02\x4c\x15\x80\x80\x80\x80\x08\x15\x00\x00\x00",
        b"\x15\x04\x15\x80\x80\x80\x80\x08\x15\x02\x4c\x15\x02\x15\x00\x00\x00",
    ];
    for header in announced {
        let mut bytes = whole.clone();
        bytes[4..][..header.len()].copy_from_slice(header);
        check_parquet_is_corrupt(&bytes, "a page does not fit its header");
    }

    let (rest, end) = whole.split_at(whole.len() - 8);
    let (rest, footer) = rest.split_at(rest.len() - u32::from_le_bytes(*end.first_chunk().unwrap()) as usize);
    assert_eq!(with_footer(rest.to_vec(), footer), whole);
    // A thousand lists of 2^31 - 1 flags in place of the footer's end.
    let flags = [&footer[..footer.len() - 1], &b"\x19\xf2\xff\xff\xff\xff\x07".repeat(1000), b"\0"].concat();
    check_parquet_is_corrupt(&with_footer(rest.to_vec(), &flags), "does not end in a footer");
    // The version, and a schema of 2^20 groups, each in the one before and without a name.
    let groups = [b"\x15\x02\x19\xfc\x80\x80\x40", &b"\x48\x00\x15\x02\x00".repeat(1 << 20)[..]].concat();
    let end = b"\x16\x00\x19\x0c\x00";
    check_parquet_is_corrupt(&with_footer(b"PAR1".to_vec(), &[&groups[..], end].concat()), "columns in columns");
}

#[test]
fn row_groups_of_the_same_pages_are_corrupt() {
    // Index pages of no bytes, with 7 bytes of header each.
    let pages = b"\x15\x02\x15\0\x15\0\0".repeat(1 << 15);
    // The version and a schema of one optional string column.
    let schema = b"\x15\x02\x19\x2c\x48\0\x15\x02\0\x15\x0c\x25\x02\x18\x04text\x25\0\0\x16\0";
    // Uncompressed, 7 * 2^15 bytes from byte 4 on, of no rows.
    let group = b"\x19\x1c\x26\0\x1c\x45\0\x36\x80\x80\x1c\x26\x08\0\0\x16\0\x16\0\0";
    let footer = [&schema[..], b"\x19\xfc\x80\x40", &group.repeat(1 << 13), b"\0"].concat();
    check_parquet_is_corrupt(&with_footer([b"PAR1", &pages[..]].concat(), &footer), "row groups lie in each other");
}

#[test]
fn a_parquet_file_of_little_that_repeats_for_ever_is_corrupt() {
    let row = "a".repeat(10_000);
    let rows = vec![row.as_str(); 1000];
    let said = "more than 256 times as large as the file";
    check_parquet_is_corrupt(&parquet_groups("text", &[&rows]), said);
    assert_eq!(load_cached(&parquet_groups("text", &[&rows[..10]])).unwrap().len(), 10 * 10_002 - 2);
}

#[test]
fn a_parquet_file_without_text_is_corrupt() {
    let name = "wikitext-2-raw-v1/test-00000-of-00001.parquet";
    for (bytes, said) in [(parquet("rows", &["a"]), "no column"), (b"PAR1 but not".to_vec(), "not readable as parquet")]
    {
        let server = FakeHub::start("datasets/Salesforce/wikitext", &[(name, &bytes)], Faults::default());
        let cache = tempfile::tempdir().unwrap();
        let err =
            load_text("wikitext2", Split::Test, None, &server.client(cache.path(), None), Rows::default()).unwrap_err();
        assert_eq!(err.kind(), ErrorKind::Corrupt, "{err}");
        assert!(err.to_string().contains(said), "{err}");
    }
}
