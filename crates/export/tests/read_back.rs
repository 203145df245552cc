//! What is exported is read back as the same weights, and can be exported again.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::path::Path;

use common::{LINEARS, llama, open, packed, try_export};
use oq_export::{ExportError, Exported, Options, export, find};
use oq_formats::{Checkpoint, Matrix, PackedCheckpoint, read_config};

fn again(from: &Path, format: &str, out: &Path) -> Result<Exported, ExportError> {
    let model = PackedCheckpoint::open(from)?;
    export(&model, find(format).unwrap(), out, &Options::default(), &mut |_| {})
}

#[track_caller]
fn check(format: &str, schemes: &[&str]) {
    let dir = packed(schemes, &llama());
    let out = dir.path().join("out");
    try_export(&dir, format, &out).unwrap();
    let (model, read) = (open(&dir), PackedCheckpoint::open(&out).unwrap());
    for (name, shape) in LINEARS {
        let expected = model.linear(name).unwrap();
        assert_eq!(read.linear_shape(name).unwrap(), shape);
        match read.matrix(name).unwrap() {
            // A format may have zero points where the model needs none.
            Matrix::Codes(codes) => {
                let same = codes.words() == expected.words() && codes.stored() == expected.stored();
                assert!(same && codes.spec().group == expected.spec().group, "{format} {schemes:?}: {name}");
            }
            other => assert!(other.into_values() == expected.dequantize(), "{format} {schemes:?}: {name}"),
        }
        assert_eq!(read.matrix(name).unwrap().into_values().len(), shape[0] * shape[1]);
    }
    assert_eq!(read.quantization().act(), model.quantization().act());
}

#[test]
fn exports_are_read_back() {
    for sym in ["", "sym"] {
        for bits in [2, 3, 8] {
            for group in ["", "g32", "g128"] {
                check("gptq", &[&format!("w{bits}a16{group}{sym}")]);
                check("auto-round", &[&format!("w{bits}a16{group}{sym}")]);
            }
        }
        for bits in [2, 3, 4, 5, 6, 8] {
            check("mlx", &[&format!("w{bits}a16g64{sym}")]);
        }
        for format in ["gptq", "auto-round", "awq"] {
            check(format, &[&format!("w4a16g64{sym}")]);
        }
    }
    check("mlx", &["w2a16g64", "w4a16g64", "w3a16g128sym"]);
    check("compressed-tensors", &["w8a8-int8"]);
}

#[test]
fn an_export_can_be_exported() {
    let dir = packed(&["w4a16g64"], &llama());
    let at = |name: &str| dir.path().join(name);
    try_export(&dir, "gptq", &at("gptq")).unwrap();
    try_export(&dir, "awq", &at("awq")).unwrap();
    again(&at("gptq"), "awq", &at("again")).unwrap();
    let (direct, again_) = (Checkpoint::open(&at("awq")).unwrap(), Checkpoint::open(&at("again")).unwrap());
    assert!(direct.names().eq(again_.names()));
    for tensor in direct.tensors() {
        assert_eq!(again_.tensor(tensor.name).unwrap(), tensor);
    }
    assert_eq!(read_config(&at("again")).unwrap(), read_config(&at("awq")).unwrap());

    let error = again(&at("awq"), "compressed-tensors", &at("packed-again")).unwrap_err().to_string();
    assert!(error.contains("compressed-tensors holds what this program packed, and this is awq"), "{error}");
    try_export(&dir, "mlx", &at("mlx")).unwrap();
    let error = again(&at("mlx"), "gptq", &at("from-mlx")).unwrap_err().to_string();
    assert!(error.contains("its weight has no codes"), "{error}");
}
