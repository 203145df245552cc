//! The directory of an export: its files, their sizes, and what happens to what was there before.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::fs;
use std::path::Path;

use common::{llama, open, packed, try_export};
use oq_export::{ExportError, Options, export, find};
use oq_formats::{Checkpoint, Dtype, read_config};
use serde_json::json;

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn a_small_model_is_one_file_and_others_are_several() {
    let dir = packed(&["w4a16g64"], &llama());
    let model = open(&dir);
    let gptq = find("gptq").unwrap();
    let single = dir.path().join("single");
    let exported = export(&model, gptq, &single, &Options::default(), &mut |_| {}).unwrap();
    assert_eq!(names(&single), ["config.json", "model.safetensors", "tokenizer.json"]);
    // Four tensors per linear, the embedding and the bias.
    assert_eq!((exported.format, exported.shards, exported.tensors), ("gptq", 1, 14));

    let several = dir.path().join("several");
    let options = Options::default().with_shard_bytes(9000);
    let mut seen = Vec::new();
    let on = &mut |progress: oq_export::Progress<'_>| seen.push((progress.done, progress.total));
    let sharded = export(&model, gptq, &several, &options, on).unwrap();
    assert_eq!((sharded.tensors, sharded.bytes), (exported.tensors, exported.bytes));
    assert!(sharded.shards > 1 && several.join("model.safetensors.index.json").is_file());
    assert!(seen.is_sorted() && seen.iter().all(|(done, total)| done < total && *total == exported.bytes), "{seen:?}");
    assert_eq!(seen.len(), exported.tensors);
    let [single, several] = [single, several].map(|dir| Checkpoint::open(&dir).unwrap());
    assert!(single.names().eq(several.names()));
    assert!(single.names().all(|name| single.is_same(name, (&several, name)).unwrap()));
    // The largest linear, which alone has more than a file may.
    let largest = several.shards().iter().map(oq_formats::Shard::bytes).max().unwrap();
    assert!(largest < 64 * 384 / 2 + 4096, "{largest}");
}

#[test]
fn other_tensors_and_keys_are_kept() {
    let dir = packed(&["w4a16g64"], &json!({"model_type": "llama", "dtype": "bfloat16", "rope_theta": 5e5, "x": 1}));
    let packed = open(&dir);
    for format in ["compressed-tensors", "gptq", "awq", "auto-round", "dense", "dense-bf16", "dense-f32", "mlx"] {
        let out = dir.path().join(format);
        try_export(&dir, format, &out).unwrap();
        let (config, checkpoint) = (read_config(&out).unwrap(), Checkpoint::open(&out).unwrap());
        assert_eq!((&config["x"], &config["rope_theta"]), (&1.into(), &5e5.into()), "{format}");
        let dtype = match format {
            "dense-bf16" => "bfloat16",
            "dense-f32" => "float32",
            _ => "float16",
        };
        assert_eq!(config["dtype"], dtype, "{format}");
        assert_eq!(config.get("quantization_config").is_none(), format.starts_with("dense"), "{format}");
        for name in ["model.embed_tokens.weight", "model.layers.0.self_attn.q_proj.bias"] {
            if format == "mlx" {
                // One type for all that is computed with.
                assert_eq!(checkpoint.tensor(name).unwrap().dtype, Dtype::F16, "{name}");
            } else {
                assert!(checkpoint.is_same(name, (packed.checkpoint(), name)).unwrap(), "{format}: {name}");
            }
        }
    }
    // A model that computes in f32 keeps its types.
    let wide = packed_in_f32();
    try_export(&wide, "mlx", &wide.path().join("mlx")).unwrap();
    let checkpoint = Checkpoint::open(&wide.path().join("mlx")).unwrap();
    assert_eq!(checkpoint.tensor("model.layers.0.self_attn.q_proj.bias").unwrap().dtype, Dtype::F32);
}

fn packed_in_f32() -> tempfile::TempDir {
    packed(&["w4a16g64"], &json!({"model_type": "llama", "torch_dtype": "float32"}))
}

#[test]
fn a_directory_in_use_is_refused_and_an_unfinished_export_begun_again() {
    let dir = packed(&["w4a16g64"], &llama());
    let out = dir.path().join("out");
    fs::create_dir(&out).unwrap();
    fs::write(out.join("notes.txt"), "mine").unwrap();
    let refused = try_export(&dir, "gptq", &out).unwrap_err();
    assert!(matches!(refused, ExportError::Used { .. }) && names(&out) == ["notes.txt"], "{refused}");
    // The packed model itself is in use.
    let refused = try_export(&dir, "compressed-tensors", &dir.path().join("packed")).unwrap_err();
    assert!(refused.to_string().contains("holds no unfinished export"), "{refused}");

    // A file that is cut off while it is read stops an export midway.
    let broken = dir.path().join("broken");
    let shard = dir.path().join("packed/model-00002-of-00003.safetensors");
    let whole = fs::read(&shard).unwrap();
    let cut_off = &mut |progress: oq_export::Progress<'_>| {
        let file = fs::File::options().write(true).open(&shard).unwrap();
        file.set_len(if progress.done == 0 { whole.len() } else { 8 } as u64).unwrap();
    };
    let options = Options::default().with_shard_bytes(9000);
    let stopped = export(&open(&dir), find("gptq").unwrap(), &broken, &options, cut_off).unwrap_err();
    assert!(matches!(stopped, ExportError::Format(_)), "{stopped}");
    let left = names(&broken);
    assert!(left.contains(&".omniquant-export".to_owned()) && !left.contains(&"config.json".to_owned()), "{left:?}");
    fs::write(&shard, whole).unwrap();

    fs::write(broken.join(".omniquant-partial-1"), "half").unwrap();
    fs::write(broken.join("model-00001-of-00002.safetensors"), "of an earlier one").unwrap();
    try_export(&dir, "awq", &broken).unwrap();
    assert_eq!(names(&broken), ["config.json", "model.safetensors", "tokenizer.json"]);
    assert!(matches!(try_export(&dir, "awq", &broken), Err(ExportError::Used { .. })));
}

#[test]
fn what_a_format_does_not_hold_leaves_no_directory() {
    let dir = packed(&["w3a16g64"], &llama());
    let out = dir.path().join("out");
    let refused = try_export(&dir, "awq", &out).unwrap_err();
    assert!(matches!(&refused, ExportError::Refused(refusal) if refusal.instead.as_deref() == Some("w4a16g64")));
    assert!(refused.to_string().starts_with("awq cannot hold w3a16g64: its codes have 4 bits, not 3"), "{refused}");
    assert!(!out.exists());
}
