//! `pytorch_model.bin`: what torch writes, and what nobody should.

#![allow(clippy::unwrap_used, reason = "a step that fails is the test failing")]

use std::fs;
use std::path::{Path, PathBuf};

use oq_formats::{Checkpoint, FormatError, PickleFault};
use proptest::prelude::*;
use tempfile::TempDir;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/pickle").join(name)
}

#[test]
fn tensors_are_those_that_safetensors_holds() {
    let pickled = Checkpoint::open_file(&fixture("state.bin")).unwrap();
    let expected = Checkpoint::open_file(&fixture("state.safetensors")).unwrap();
    assert_eq!(expected.names().len(), 13);
    assert!(pickled.names().eq(expected.names()));
    for tensor in expected.tensors() {
        assert_eq!(pickled.tensor(tensor.name).unwrap(), tensor);
    }
}

#[test]
fn reads_modules_and_newer_protocols() {
    let module = Checkpoint::open_file(&fixture("module.bin")).unwrap();
    assert!(module.names().eq(["0.bias", "0.weight", "1.bias", "1.weight"]));
    assert_eq!(module.tensor("0.weight").unwrap().shape, [2, 3]);
    assert_eq!(module.values("1.weight").unwrap(), [1.0, 1.0]);
    let newer = Checkpoint::open_file(&fixture("protocol-4.bin")).unwrap();
    assert_eq!(newer.values("a").unwrap(), [1.0; 4]);
}

#[test]
fn dictionaries_by_layer_are_one_with_the_layers_numbers() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("omni_parameters.pth");
    fs::copy(fixture("layers.bin"), &path).unwrap();
    let layers = Checkpoint::open_file(&path).unwrap();
    assert!(layers.names().eq(["0.a", "0.b", "1.a"]));
    let [first, second] = ["0.a", "1.a"].map(|name| layers.values(name).unwrap());
    assert!(first.iter().zip(&second).all(|(a, b)| a + 1.0 == *b));
    assert_eq!(layers.values("0.b").unwrap(), first[..3]);
}

#[test]
fn a_directory_is_opened_by_its_files_names() {
    let dir = TempDir::new().unwrap();
    fs::copy(fixture("module.bin"), dir.path().join("pytorch_model.bin")).unwrap();
    assert_eq!(Checkpoint::open(dir.path()).unwrap().names().len(), 4);
    // Safetensors go first.
    fs::copy(fixture("state.safetensors"), dir.path().join("model.safetensors")).unwrap();
    assert_eq!(Checkpoint::open(dir.path()).unwrap().names().len(), 13);
}

#[test]
fn shards_are_found_through_their_index() {
    let checkpoint = Checkpoint::open(&fixture("sharded")).unwrap();
    // What a shard holds beyond the index is read too, as transformers does.
    assert!(checkpoint.names().eq(["a", "b", "not listed"]));
    assert_eq!(checkpoint.shards().len(), 2);
    assert_eq!(checkpoint.values("b").unwrap(), [0.0; 3]);
}

#[track_caller]
fn check_refused(path: &Path, part: &str) {
    let error = Checkpoint::open_file(path).unwrap_err();
    let message = error.to_string();
    assert!(message.contains(part), "{message}");
}

#[test]
fn what_is_no_state_dict_is_refused() {
    check_refused(&fixture("legacy.bin"), "not a zip archive, as PyTorch writes since 1.6");
    check_refused(&fixture("transposed.bin"), "tensor `t`: shape [3, 4] with strides [1, 3] is not row-major");
    check_refused(&fixture("nested.bin"), "`model` is not a tensor");
    check_refused(&fixture("list.bin"), "a dictionary was expected");
    check_refused(
        &fixture("code.bin"),
        "asks for `posix.system`: only tensors in dictionaries are read, and nothing is run",
    );
    check_refused(&fixture("whole-module.bin"), "asks for `torch.nn.modules.container.Sequential`");
}

/// An archive with this pickle and one storage of 16 bytes named 0.
fn archive(pickle: &[u8], others: &[(&str, &[u8])], compression: zip::CompressionMethod) -> TempDir {
    use std::io::Write;

    let dir = TempDir::new().unwrap();
    let mut writer = zip::ZipWriter::new(fs::File::create(dir.path().join("pytorch_model.bin")).unwrap());
    let options = zip::write::SimpleFileOptions::default().compression_method(compression);
    for (name, bytes) in [("m/data.pkl", pickle), ("m/data/0", &[0; 16])].iter().chain(others) {
        writer.start_file(*name, options).unwrap();
        writer.write_all(bytes).unwrap();
    }
    writer.finish().unwrap();
    dir
}

#[track_caller]
fn check_pickle(pickle: &[u8], part: &str) {
    check_refused(&archive(pickle, &[], zip::CompressionMethod::Stored).path().join("pytorch_model.bin"), part);
}

/// A pickle of `{"w": tensor}` in storage `key`; `sizes` is offset, shape and strides as instructions.
fn pickle_of(key: &str, sizes: &[u8]) -> Vec<u8> {
    let text = |text: &str| [b"\x8c", &[text.len() as u8][..], text.as_bytes()].concat();
    [
        &b"\x80\x02}"[..],
        &text("w"),
        b"ctorch._utils\n_rebuild_tensor_v2\n((",
        &text("storage"),
        b"ctorch\nFloatStorage\n",
        &text(key),
        &text("cpu"),
        b"K\x04tQ",
        sizes,
        b"\x89)tRs.",
    ]
    .concat()
}

#[test]
fn tensors_beyond_their_storage_are_refused() {
    let fits = pickle_of("0", b"K\x00K\x02K\x02\x86K\x02K\x01\x86");
    let dir = archive(&fits, &[], zip::CompressionMethod::Stored);
    assert_eq!(Checkpoint::open(dir.path()).unwrap().values("w").unwrap(), [0.0; 4]);

    check_pickle(&pickle_of("1", b"K\x00K\x04\x85K\x01\x85"), "`w` lies in data/1, which the archive does not hold");
    check_pickle(&pickle_of("../m/data.pkl", b"K\x00K\x04\x85K\x01\x85"), "which the archive does not hold");
    check_pickle(
        &pickle_of("0", b"K\x01K\x04\x85K\x01\x85"),
        "shape [4] of F32 from element 1 does not fit the 16 bytes",
    );
    check_pickle(
        &pickle_of("0", b"K\x00J\xff\xff\xff\x7fJ\xff\xff\xff\x7f\x86J\xff\xff\xff\x7fK\x01\x86"),
        "does not fit",
    );
    let huge = b"\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7f";
    check_pickle(&pickle_of("0", &[&b"K\x00"[..], huge, b"K\x08\x86K\x08K\x01\x86"].concat()), "does not fit");
    check_pickle(&pickle_of("0", &[huge, &b"K\x01\x85K\x01\x85"[..]].concat()), "does not fit");
    check_pickle(&pickle_of("0", b"J\xff\xff\xff\xffK\x01\x85K\x01\x85"), "a size, 0 or more");
    check_pickle(&pickle_of("0", b"K\x00K\x02K\x02\x86K\x01\x85"), "a stride for every dimension");
    check_pickle(&pickle_of("0", b"K\x00K\x02K\x02\x86K\x00K\x01\x86"), "is not row-major");
    check_pickle(&pickle_of("0", b"K\x00(K\x01K\x01K\x01K\x01K\x01K\x01K\x01K\x01K\x01t)"), "at most eight dimensions");
}

#[test]
fn pickles_that_contradict_themselves_are_refused() {
    check_pickle(b"", "more was expected");
    check_pickle(b".", "a value was expected");
    check_pickle(b"\x80\x02}", "more was expected");
    check_pickle(b"u.", "a mark was expected");
    check_pickle(b"(0.", "instruction 0x30 at byte 1 has no place");
    check_pickle(b"cbuiltins\neval\n.", "asks for `builtins.eval`");
    check_pickle(b"\x8c\x02os\x8c\x06system\x93.", "asks for `os.system`");
    check_pickle(b"h\x07.", "a value that was remembered");
    check_pickle(b"X\xff\xff\xff\xff.", "more was expected");
    check_pickle(b"}(K\x01u.", "a dictionary below keys and values");
    check_pickle(b"}K\x01K\x02s.", "a name for every tensor");
    check_pickle(b"ccollections", "the end of a line");
    check_pickle(&[b"}".as_slice(), &b"\x85".repeat(1 << 20), b"."].concat(), "a dictionary was expected");
}

#[test]
fn archives_that_torch_does_not_write_are_refused() {
    let pickle = pickle_of("0", b"K\x00K\x04\x85K\x01\x85");
    let check = |others: &[(&str, &[u8])], compression, part: &str| {
        check_refused(&archive(&pickle, others, compression).path().join("pytorch_model.bin"), part);
    };
    let stored = zip::CompressionMethod::Stored;
    check(&[], zip::CompressionMethod::Deflated, "entry m/data.pkl is compressed");
    check(&[("m/byteorder", b"big")], stored, "written on a big-endian machine");
    check(&[("n/data.pkl", b"")], stored, "the archive holds several of data.pkl");
}

#[test]
fn an_archive_cut_short_is_refused_at_every_length() {
    let whole = fs::read(fixture("module.bin")).unwrap();
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("pytorch_model.bin");
    for len in 1..whole.len() {
        fs::write(&path, &whole[..len]).unwrap();
        let error = Checkpoint::open_file(&path).unwrap_err();
        assert!(matches!(error, FormatError::Pickle { .. }), "{len}: {error:?}");
    }
    fs::write(&path, "PK").unwrap();
    let error = Checkpoint::open_file(&path).unwrap_err();
    assert!(matches!(error, FormatError::Pickle { fault: PickleFault::Archive { .. }, .. }), "{error:?}");
}

proptest! {
    /// Whatever the bytes are, a file is refused or every tensor can be looked at.
    #[test]
    fn changed_bytes_never_panic(changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4)) {
        let mut bytes = fs::read(fixture("state.bin")).unwrap();
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("pytorch_model.bin");
        fs::write(&path, bytes).unwrap();
        if let Ok(checkpoint) = Checkpoint::open_file(&path) {
            for tensor in checkpoint.tensors() {
                prop_assert_eq!(tensor.bytes.len() * 8, tensor.len() * tensor.dtype.bitsize());
            }
        }
    }
}
