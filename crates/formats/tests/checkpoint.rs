//! Reading safetensors directories: what is right is read, what is wrong is refused with the numbers.

#![allow(clippy::unwrap_used, reason = "a step that fails is the test failing")]

use std::fs;
use std::path::Path;
#[cfg(target_os = "linux")]
use std::sync::Mutex;

use oq_formats::{Checkpoint, Dtype, FormatError, HeaderFault, OutTensor, read_config, write_shard};
use tempfile::TempDir;

fn file_of(header: &str, data: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), data].concat()
}

fn write_tensors(path: &Path, names: &[&str]) {
    let tensors: Vec<_> =
        names.iter().map(|name| OutTensor::from_f32(*name, &[2], &[1.0, -2.0], Dtype::F16).unwrap()).collect();
    write_shard(path, &tensors).unwrap();
}

fn write_index(dir: &Path, json: &str) {
    fs::write(dir.join("model.safetensors.index.json"), json).unwrap();
}

/// Opens a directory whose only file is `bytes`.
fn open_bytes(bytes: &[u8]) -> Result<Checkpoint, FormatError> {
    let dir = TempDir::new().unwrap();
    fs::write(dir.path().join("model.safetensors"), bytes).unwrap();
    Checkpoint::open(dir.path())
}

#[test]
fn reads_what_other_writers_write() {
    // Unaligned data, metadata, names out of order, an empty tensor and a scalar.
    let header = r#"{"__metadata__":{"format":"pt"},"b":{"dtype":"F32","shape":[],"data_offsets":[2,6]},"e":{"dtype":"F16","shape":[0,4],"data_offsets":[6,6]},"a":{"dtype":"BF16","shape":[1],"data_offsets":[0,2]}}  "#;
    let data = [&[0x80, 0x3f][..], &2.5f32.to_le_bytes()].concat();
    let checkpoint = open_bytes(&file_of(header, &data)).unwrap();
    assert_eq!(checkpoint.names().collect::<Vec<_>>(), ["a", "b", "e"]);
    assert_eq!(checkpoint.values("a").unwrap(), [1.0]);
    assert_eq!(checkpoint.values("b").unwrap(), [2.5]);
    assert!(checkpoint.tensor("e").unwrap().is_empty());
    assert!(checkpoint.contains("e") && !checkpoint.contains("__metadata__"));
    checkpoint.release();
    assert_eq!(checkpoint.values("b").unwrap(), [2.5], "released pages come back");
}

/// Held by tests that measure memory, which is the whole process's.
#[cfg(target_os = "linux")]
static MEASURING: Mutex<()> = Mutex::new(());

/// Memory of this process that is backed by files, in bytes.
#[cfg(target_os = "linux")]
fn file_backed_memory() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    // A file on tmpfs is shared memory to the system.
    let kinds = ["RssFile:", "RssShmem:"];
    let lines = status.lines().filter_map(|line| kinds.iter().find_map(|kind| line.strip_prefix(kind)));
    lines.map(|line| line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024).sum()
}

#[cfg(target_os = "linux")]
#[test]
fn released_pages_no_longer_count_as_memory() {
    let _alone = MEASURING.lock();
    // Far more than the other tests of this program map at the same time.
    let bytes = 64 << 20;
    let dir = TempDir::new().unwrap();
    let tensor = OutTensor::new("w", Dtype::U8, &[bytes], vec![1; bytes]).unwrap();
    write_shard(&dir.path().join("model.safetensors"), &[tensor]).unwrap();
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    let sum = || checkpoint.tensor("w").unwrap().bytes.iter().map(|&byte| usize::from(byte)).sum::<usize>();
    assert_eq!(sum(), bytes);
    let read = file_backed_memory();
    checkpoint.release();
    let released = file_backed_memory();
    assert!(released + (bytes as u64) / 2 < read, "{read} bytes before, {released} after");
    assert_eq!(sum(), bytes);
}

#[cfg(target_os = "linux")]
#[test]
fn large_tensors_are_looked_at_and_copied_in_pieces() {
    let _alone = MEASURING.lock();
    let values = 32 << 20;
    let bytes = 2 * values as u64;
    let dir = TempDir::new().unwrap();
    let [path, copy] = ["model.safetensors", "copy.safetensors"].map(|name| dir.path().join(name));
    let mut data = half::f16::ONE.to_le_bytes().repeat(values);
    let write = |path: &Path, data: &[u8]| {
        write_shard(path, &[OutTensor::new("w", Dtype::F16, &[values], data).unwrap()]).unwrap();
    };
    write(&path, &data);
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    let before = file_backed_memory();
    let mut most = 0;
    let read = checkpoint.for_each_piece("w", |start, piece| {
        assert!(*piece == data[start..start + piece.len()]);
        most = most.max(file_backed_memory());
        Ok::<_, FormatError>(())
    });
    read.unwrap();
    assert!(most < before + bytes / 2, "{before} bytes before, {most} while it is read");
    checkpoint.check_finite("w").unwrap();
    write_shard(&copy, &[OutTensor::copy_from(&checkpoint, "w").unwrap()]).unwrap();
    assert!(file_backed_memory() < before + bytes / 2);
    assert!(checkpoint.is_same("w", (&Checkpoint::open_file(&copy).unwrap(), "w")).unwrap());

    // In the last piece.
    let index = values - 3;
    data[2 * index..2 * index + 2].copy_from_slice(&half::f16::NAN.to_le_bytes());
    write(&copy, &data);
    let damaged = Checkpoint::open_file(&copy).unwrap();
    match damaged.check_finite("w") {
        Err(FormatError::NotFinite { index: found, .. }) => assert_eq!(found, index),
        other => panic!("{other:?}"),
    }
    assert!(!checkpoint.is_same("w", (&damaged, "w")).unwrap());
    write(&copy, &data);
    assert!(damaged.tensor("w").is_ok(), "a file that another one replaced is still there for who opened it");
}

#[test]
fn a_single_file_is_the_model_whatever_an_index_beside_it_says() {
    let dir = TempDir::new().unwrap();
    let write = |name: &str, value: f32| {
        let tensor = OutTensor::new("w", Dtype::F32, &[1], value.to_le_bytes().to_vec()).unwrap();
        write_shard(&dir.path().join(name), &[tensor]).unwrap();
    };
    write("model-00001-of-00001.safetensors", 1.0);
    let index = r#"{"weight_map": {"w": "model-00001-of-00001.safetensors"}}"#;
    std::fs::write(dir.path().join("model.safetensors.index.json"), index).unwrap();
    let value = || Checkpoint::open(dir.path()).unwrap().values("w").unwrap();
    assert_eq!(value(), [1.0]);
    write("model.safetensors", 2.0);
    assert_eq!(value(), [2.0]);
}

#[test]
fn a_file_that_is_cut_while_it_is_open() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("model.safetensors");
    write_tensors(&path, &["a", "b"]);
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    checkpoint.read_ahead("a");
    let whole = fs::metadata(&path).unwrap().len();
    fs::File::options().write(true).open(&path).unwrap().set_len(whole - 1).unwrap();
    match checkpoint.tensor("a") {
        Err(FormatError::Truncated { needed, found, .. }) => assert_eq!((needed, found), (whole, whole - 1)),
        other => panic!("{other:?}"),
    }
    checkpoint.read_ahead("b");
    assert!(checkpoint.check_finite("b").is_err() && checkpoint.values("b").is_err());
}

#[track_caller]
fn check_header(header: &str, data_len: usize, part: &str) {
    let error = open_bytes(&file_of(header, &vec![0; data_len])).expect_err("must be refused");
    let message = error.to_string();
    assert!(message.contains(part) && message.contains("model.safetensors"), "{message}");
}

#[test]
fn refuses_hostile_headers() {
    let one = |entry: &str| format!(r#"{{"w":{entry}}}"#);
    check_header("", 0, "header is not valid");
    check_header("[]", 0, "expected an object");
    check_header("\u{7f}{}", 0, "header is not valid");
    check_header(r#"{"w":{"dtype":"F16"}}"#, 0, "`w` has an invalid description: missing field `shape`");
    check_header(&one(r#"{"dtype":"F17","shape":[1],"data_offsets":[0,2]}"#), 2, "unknown variant `F17`");
    check_header(&one(r#"{"dtype":"F16","shape":[-1],"data_offsets":[0,2]}"#), 2, "`w` has an invalid description");
    check_header(&one(r#"{"dtype":"F16","shape":[1.5],"data_offsets":[0,2]}"#), 2, "`w` has an invalid description");
    check_header(&one(r#"{"dtype":"F16","shape":[1],"data_offsets":[-2,0]}"#), 2, "`w` has an invalid description");
    check_header(&one(r#"{"dtype":"F16","shape":[1],"data_offsets":[4,2]}"#), 8, "bytes 4..2");
    check_header(&one(r#"{"dtype":"F16","shape":[1],"data_offsets":[0]}"#), 8, "`w` has an invalid description");
    check_header(&one(r#"{"dtype":"F16","shape":[4],"data_offsets":[2,10]}"#), 10, "should start at 0");
    check_header(&one(r#"{"dtype":"F16","shape":[3],"data_offsets":[0,8]}"#), 8, "needs 6 bytes, its offsets span 8");
    check_header(&one(r#"{"dtype":"F16","shape":[4],"data_offsets":[0,8]}"#), 11, "3 bytes follow");
    check_header(&one(r#"{"dtype":"F4","shape":[1],"data_offsets":[0,1]}"#), 1, "shape [1] of F4 ends within a byte");
    let huge = r#"{"dtype":"F16","shape":[4294967296,4294967296],"data_offsets":[0,8]}"#;
    check_header(&one(huge), 8, "[4294967296, 4294967296] overflows");
    let wrapping = r#"{"dtype":"F32","shape":[4611686018427387905],"data_offsets":[0,4]}"#;
    check_header(&one(wrapping), 4, "overflows");
    let overlap = r#"{"a":{"dtype":"F16","shape":[2],"data_offsets":[0,4]},"b":{"dtype":"F16","shape":[2],"data_offsets":[2,6]}}"#;
    check_header(overlap, 6, "`b` lies at bytes 2..6, but should start at 4");
    let same_place = r#"{"a":{"dtype":"F16","shape":[2],"data_offsets":[0,4]},"b":{"dtype":"F16","shape":[2],"data_offsets":[0,4]}}"#;
    check_header(same_place, 4, "but should start at 4");
    let twice = r#"{"a":{"dtype":"F16","shape":[2],"data_offsets":[0,4]},"a":{"dtype":"F16","shape":[2],"data_offsets":[0,4]}}"#;
    check_header(twice, 4, "`a` occurs twice");
    check_header(&one(&"[".repeat(100_000)), 0, "header is not valid");
}

#[test]
fn a_header_that_ends_beyond_64_bits_is_truncated() {
    // Eight tensors of the most bytes whose bits can be counted, and one up to the last byte that an offset can name: with the
    // header before them, they end beyond it.
    let most = (1u64 << 61) - 1;
    let mut start = 0;
    let entries = (1..=8).map(|i| i * most).chain([u64::MAX]).map(|end| {
        let entry = format!(r#""{start}":{{"dtype":"U8","shape":[{}],"data_offsets":[{start},{end}]}}"#, end - start);
        start = end;
        entry
    });
    let header = format!("{{{}}}", entries.collect::<Vec<_>>().join(","));
    match open_bytes(&file_of(&header, &[])) {
        Err(FormatError::Truncated { needed: u64::MAX, .. }) => {}
        other => panic!("{other:?}"),
    }
}

#[test]
fn refuses_absurd_header_lengths() {
    for len in [100_000_001, u64::MAX / 2, u64::MAX - 8, u64::MAX] {
        match open_bytes(&[&len.to_le_bytes()[..], b"{}"].concat()) {
            Err(FormatError::Header { fault: HeaderFault::TooLong { len: told, .. }, .. }) => assert_eq!(told, len),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_truncated_file_is_told_with_its_sizes() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("model.safetensors");
    write_tensors(&path, &["a", "b"]);
    let whole = fs::read(&path).unwrap();
    // In the length, in the header, in the data; an empty file too.
    for found in [0, 7, 9, 40, whole.len() - 1] {
        match open_bytes(&whole[..found]) {
            Err(FormatError::Truncated { needed, found: told, .. }) => {
                assert_eq!(told, found as u64);
                assert!(needed > told && needed <= whole.len() as u64, "{found}: {needed}");
            }
            other => panic!("{found}: {other:?}"),
        }
    }
    let message = open_bytes(&whole[..whole.len() - 1]).unwrap_err().to_string();
    let sizes = format!("truncated: {} bytes needed, {} found", whole.len(), whole.len() - 1);
    assert!(message.contains(&sizes), "{message}");
}

#[test]
fn shards_stand_behind_one_table() {
    let dir = TempDir::new().unwrap();
    write_tensors(&dir.path().join("one.safetensors"), &["a", "c"]);
    write_tensors(&dir.path().join("two.safetensors"), &["b", "unlisted"]);
    write_index(
        dir.path(),
        r#"{"metadata":{},"weight_map":{"c":"one.safetensors","b":"two.safetensors","a":"one.safetensors"}}"#,
    );
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    // transformers reads whole shards: an index that is out of date hides nothing.
    assert_eq!(checkpoint.names().collect::<Vec<_>>(), ["a", "b", "c", "unlisted"]);
    assert_eq!(checkpoint.values("b").unwrap(), [1.0, -2.0]);
    assert_eq!(checkpoint.values("unlisted").unwrap(), [1.0, -2.0]);
    assert_eq!(checkpoint.shards().len(), 2);
    let on_disk: u64 = checkpoint.shards().iter().map(|shard| fs::metadata(shard.path()).unwrap().len()).sum();
    assert_eq!(checkpoint.total_bytes(), on_disk);
    let error = checkpoint.tensor("absent").unwrap_err();
    assert!(error.to_string().contains("no tensor `absent`"), "{error}");
}

#[test]
fn the_index_decides_between_shards_that_hold_one_name() {
    let dir = TempDir::new().unwrap();
    let value = |shard: &str, name: &str, value: f32| {
        let tensor = OutTensor::from_f32(name, &[1], &[value], Dtype::F32).unwrap();
        write_shard(
            &dir.path().join(shard),
            &[tensor, OutTensor::from_f32("stale", &[1], &[value], Dtype::F32).unwrap()],
        )
        .unwrap();
    };
    value("one.safetensors", "a", 1.0);
    value("two.safetensors", "a", 2.0);
    write_index(dir.path(), r#"{"weight_map":{"a":"one.safetensors","stale":"one.safetensors"}}"#);
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    assert_eq!((checkpoint.values("a").unwrap(), checkpoint.values("stale").unwrap()), (vec![1.0], vec![1.0]));
    // What no line of it places is the last shard's, as for a loader that reads one after the other.
    value("two.safetensors", "b", 2.0);
    write_index(dir.path(), r#"{"weight_map":{"a":"one.safetensors","b":"two.safetensors"}}"#);
    assert_eq!(Checkpoint::open(dir.path()).unwrap().values("stale").unwrap(), [2.0]);
}

const POINTER: &str = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 13478771234\n";

#[test]
fn a_pointer_of_git_lfs_is_told_from_a_broken_file() {
    let index = r#"{"weight_map":{"a":"one.safetensors"}}"#;
    for (file, beside) in [
        ("model.safetensors", None),
        ("pytorch_model.bin", None),
        ("model.safetensors.index.json", None),
        ("one.safetensors", Some(index)),
    ] {
        let dir = TempDir::new().unwrap();
        fs::write(dir.path().join(file), POINTER).unwrap();
        beside.into_iter().for_each(|index| write_index(dir.path(), index));
        let error = Checkpoint::open(dir.path()).unwrap_err();
        assert!(matches!(&error, FormatError::LfsPointer { path } if path.ends_with(file)), "{error}");
        assert!(error.to_string().contains("git lfs pull"), "{error}");
    }
    let dir = TempDir::new().unwrap();
    fs::write(dir.path().join("config.json"), POINTER).unwrap();
    assert!(matches!(read_config(dir.path()), Err(FormatError::LfsPointer { .. })));
    let gguf = dir.path().join("model.gguf");
    fs::write(&gguf, POINTER).unwrap();
    assert!(oq_formats::gguf::Gguf::open(&gguf).unwrap_err().to_string().contains("git lfs pull"));
}

/// What is said of a folder of these files, by its config or by its weights.
#[track_caller]
fn check_folder(files: &[&str], said: &[&str]) {
    let dir = TempDir::new().unwrap();
    for file in files {
        fs::create_dir_all(dir.path().join(file).parent().unwrap()).unwrap();
        fs::write(dir.path().join(file), r#"{"base_model_name_or_path": "org/base"}"#).unwrap();
    }
    let error = match files.contains(&"config.json") {
        true => Checkpoint::open(dir.path()).unwrap_err(),
        false => read_config(dir.path()).unwrap_err(),
    };
    let error = error.to_string();
    assert!(said.iter().all(|said| error.contains(said)), "{files:?}: {error}");
}

#[test]
fn what_is_no_model_is_told_for_what_it_is() {
    check_folder(
        &["adapter_config.json", "adapter_model.safetensors"],
        &["adapter (LoRA) for org/base", "merge_and_unload"],
    );
    check_folder(&["config.json", "adapter_config.json", "adapter_model.safetensors"], &["adapter", "no weights"]);
    check_folder(
        &["checkpoint-500/config.json", "checkpoint-1000/config.json"],
        &["checkpoint-500", "folder of models"],
    );
    check_folder(&["trainer_state.json", "optimizer.pt"], &["no config.json", "trainer"]);
    check_folder(&["model.Q4_K_M.gguf"], &["omniquant convert", "model.Q4_K_M.gguf"]);
    check_folder(&["params.json", "consolidated.00.pth"], &["params.json", "Hugging Face"]);
    check_folder(&["config.json", "consolidated.safetensors"], &["no weights", "consolidated.safetensors"]);
    check_folder(&["config.json", "model.fp16.safetensors"], &["no weights", "model.fp16.safetensors", "rename"]);
    check_folder(&["config.json", "tf_model.h5"], &["another framework"]);
    check_folder(&["notes.txt"], &["config.json: no such file: not a model's folder"]);
}

#[track_caller]
fn check_index(json: &str, part: &str) {
    let dir = TempDir::new().unwrap();
    let inner = dir.path().join("model");
    fs::create_dir(&inner).unwrap();
    write_tensors(&dir.path().join("outside.safetensors"), &["a"]);
    write_tensors(&inner.join("one.safetensors"), &["a"]);
    // An absolute path that exists stands in for `ABSOLUTE`.
    let absolute = dir.path().join("outside.safetensors");
    write_index(&inner, &json.replace("ABSOLUTE", absolute.to_str().unwrap()));
    let error = Checkpoint::open(&inner).expect_err("must be refused");
    let message = error.to_string();
    assert!(message.contains(part) && message.contains("model.safetensors.index.json"), "{message}");
}

#[test]
fn refuses_bad_indices() {
    check_index(r#"{"weight_map":{"a":"two.safetensors"}}"#, "two.safetensors: no such shard");
    check_index(r#"{"weight_map":{"a":"one.safetensors","b":"one.safetensors"}}"#, "places `b` in one");
    check_index(r#"{"weight_map":{"a":"../outside.safetensors"}}"#, "`../outside.safetensors` is not a file name");
    check_index(r#"{"weight_map":{"a":"./one.safetensors"}}"#, "is not a file name");
    check_index(r#"{"weight_map":{"a":"ABSOLUTE"}}"#, "is not a file name");
    check_index(r#"{"weight_map":{"a":".."}}"#, "is not a file name");
    check_index(r#"{"weight_map":{"a":""}}"#, "is not a file name");
    check_index(r#"{"weight_map":{"a":"..\\outside.safetensors"}}"#, "is not a file name");
    check_index(r#"{"weight_map":{"a":"one.safetensors","a":"one.safetensors"}}"#, "`a` occurs twice");
    check_index(r#"{"metadata":{}}"#, "missing field `weight_map`");
    check_index(r#"{"weight_map":{"a":7}}"#, "expected a string");
    check_index("not json", "expected");
}

#[test]
fn an_empty_directory_says_what_was_looked_for() {
    let dir = TempDir::new().unwrap();
    let error = Checkpoint::open(dir.path()).unwrap_err();
    let message = error.to_string();
    assert!(message.contains("neither model.safetensors nor pytorch_model.bin"), "{message}");
    let absent = Checkpoint::open(&dir.path().join("absent"));
    assert!(matches!(absent, Err(FormatError::NoWeights { .. })));
}

#[test]
fn a_config_is_an_object() {
    let dir = TempDir::new().unwrap();
    assert!(matches!(read_config(dir.path()), Err(FormatError::NoConfig { .. })));
    assert!(matches!(read_config(&dir.path().join("absent")), Err(FormatError::MissingFile { .. })));
    for bad in ["[]", "{", "\u{feff}"] {
        fs::write(dir.path().join("config.json"), bad).unwrap();
        assert!(matches!(read_config(dir.path()), Err(FormatError::Json { .. })), "{bad}");
    }
    fs::write(dir.path().join("config.json"), r#"{"model_type":"llama"}"#).unwrap();
    assert_eq!(read_config(dir.path()).unwrap()["model_type"], "llama");
    fs::write(dir.path().join("config.json"), "\u{feff}{\"model_type\":\"opt\"}").unwrap();
    assert_eq!(read_config(dir.path()).unwrap()["model_type"], "opt");
}

#[test]
fn a_shard_has_the_same_bytes_whatever_the_order() {
    let dir = TempDir::new().unwrap();
    let tensor = |name: &str, dtype| OutTensor::from_f32(name, &[3], &[0.5, 1.0, -1.0], dtype).unwrap();
    let tensors = [tensor("z", Dtype::F32), tensor("m", Dtype::F16), tensor("a", Dtype::F32), tensor("b", Dtype::BF16)];
    let (one, two) = (dir.path().join("one"), dir.path().join("model.safetensors"));
    write_shard(&one, &tensors).unwrap();
    let reversed: Vec<_> = tensors.iter().rev().cloned().collect();
    write_shard(&two, &reversed).unwrap();
    assert_eq!(fs::read(&one).unwrap(), fs::read(&two).unwrap());

    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    assert_eq!(checkpoint.names().collect::<Vec<_>>(), ["a", "b", "m", "z"]);
    for tensor in checkpoint.tensors() {
        assert_eq!(tensor.to_f32_vec().unwrap(), [0.5, 1.0, -1.0]);
        // Maps start at a page, so an aligned place in the file is an aligned address.
        assert_eq!(tensor.bytes.as_ptr() as usize % tensor.dtype.bitsize().div_ceil(8), 0, "{}", tensor.name);
    }
    // Another loader's validation accepts the file.
    let bytes = fs::read(&two).unwrap();
    assert_eq!(safetensors::SafeTensors::deserialize(&bytes).unwrap().len(), 4);
}

#[test]
fn refuses_to_write_what_does_not_fit_together() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("model.safetensors");
    let tensor = OutTensor::new("w", Dtype::U8, &[2], vec![1, 2]).unwrap();
    let message = write_shard(&path, &[tensor.clone(), tensor]).unwrap_err().to_string();
    assert!(message.contains("two tensors are named `w`"), "{message}");
    assert!(!path.exists());
    let message = OutTensor::new("w", Dtype::F16, &[2, 3], vec![0; 11]).unwrap_err().to_string();
    assert!(message.contains("needs 12 bytes, got 11"), "{message}");
    assert!(OutTensor::new("w", Dtype::F16, &[usize::MAX, 3], vec![]).is_err());
    let missing = dir.path().join("absent").join("model.safetensors");
    assert!(write_shard(&missing, &[]).unwrap_err().to_string().contains("absent"));
}
