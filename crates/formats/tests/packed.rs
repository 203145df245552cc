//! The packed directory: written block by block, read back to the same matrices, refused when its parts disagree.

#![allow(clippy::unwrap_used, reason = "a step that fails is the test failing")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use half::f16;
use oq_formats::{
    Checkpoint, Dtype, FormatError, OutTensor, PackedCheckpoint, PackedWriter, Quantization, inspect, packed_tensors,
    read_config, sha256_file, write_shard,
};
use oq_quant_core::{Bits, GroupSize, QuantSpec, QuantizedTensor, Symmetry, WeightSpec};
use proptest::prelude::*;
use serde_json::json;
use tempfile::TempDir;

fn wave(len: usize, seed: f32) -> Vec<f32> {
    (0..len).map(|i| (i as f32 * 0.37 + seed).sin() * (1.0 + (i % 7) as f32)).collect()
}

fn spec(text: &str) -> QuantSpec {
    text.parse().unwrap()
}

/// A directory with a config and one shard of one linear `l`.
fn packed_dir(spec: QuantSpec, tensors: &[OutTensor<'_>]) -> TempDir {
    let dir = TempDir::new().unwrap();
    let config = json!({"quantization_config": oq_formats::packed::quantization_config(&spec.into(), &["lm_head"])});
    fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
    write_shard(&dir.path().join("model.safetensors"), tensors).unwrap();
    dir
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn a_linear_comes_back_as_it_was(
        bits in 2u32..=8,
        rows in 1usize..70,
        group in 1usize..40,
        n_groups in 1usize..6,
        per_channel: bool,
        symmetric: bool,
        seed in -9.0f32..9.0,
    ) {
        let weight = WeightSpec {
            bits: Bits::new(bits).unwrap(),
            group: if per_channel { GroupSize::PerChannel } else { GroupSize::channels(group).unwrap() },
            symmetry: if symmetric { Symmetry::Symmetric } else { Symmetry::Asymmetric },
            storage: oq_quant_core::Storage::Half,
        };
        let cols = group * n_groups;
        let tensor = QuantizedTensor::quantize(&wave(rows * cols, seed), rows, cols, weight).unwrap();
        let spec = QuantSpec::uniform(weight, oq_quant_core::ActSpec::Float);
        let dir = packed_dir(spec, &packed_tensors("l", &tensor));
        let model = PackedCheckpoint::open(dir.path()).unwrap();
        prop_assert_eq!(model.quantization().uniform(), Some(spec));
        let some: Vec<usize> = [rows - 1, 0, rows / 2].to_vec();
        let values = tensor.dequantize();
        let of_some: Vec<f32> = some.iter().flat_map(|row| &values[row * cols..][..cols]).copied().collect();
        prop_assert_eq!(model.rows("l", &some).unwrap(), of_some);
        prop_assert_eq!(model.linear("l").unwrap(), tensor);
        prop_assert_eq!(model.checkpoint().contains("l.weight_zero_point"), !symmetric);
    }
}

/// Packs a tensor of 5 rows of 64 in groups of 32, lets `edit` spoil its parts, and reads it.
#[track_caller]
fn check_refused(edit: impl Fn(&mut BTreeMap<&str, OutTensor<'_>>), part: &str) {
    let spec = spec("w3a16g32");
    let tensor = QuantizedTensor::quantize(&wave(5 * 64, 0.0), 5, 64, spec.weight).unwrap();
    let tensors = packed_tensors("l", &tensor);
    let mut parts: BTreeMap<&str, OutTensor<'_>> =
        tensors.iter().map(|tensor| (tensor.name().strip_prefix("l.weight_").unwrap(), tensor.clone())).collect();
    edit(&mut parts);
    let dir = packed_dir(spec, &parts.into_values().collect::<Vec<_>>());
    let error = PackedCheckpoint::open(dir.path()).unwrap().linear("l").expect_err("must be refused");
    let message = error.to_string();
    assert!(message.starts_with("l: ") && message.contains(part), "{message}");
}

#[test]
fn refuses_parts_that_disagree() {
    let put =
        |parts: &mut BTreeMap<&str, OutTensor<'_>>, part: &'static str, dtype, shape: &[usize], bytes: Vec<u8>| {
            parts.insert(part, OutTensor::new(format!("l.weight_{part}"), dtype, shape, bytes).unwrap());
        };
    let i64s = |values: [i64; 2]| values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>();
    let dense = packed_dir(spec("w3a16g32"), &[OutTensor::from_f32("l.weight", &[1], &[1.0], Dtype::F32).unwrap()]);
    let error = PackedCheckpoint::open(dense.path()).unwrap().linear("l").unwrap_err().to_string();
    assert!(error.starts_with("l: its weight has no codes"), "{error}");
    for part in ["packed", "scale", "zero_point", "shape"] {
        check_refused(|parts| drop(parts.remove(part)), &format!("weight_{part} is missing"));
    }
    check_refused(|p| put(p, "shape", Dtype::I64, &[2], i64s([6, 64])), "weight_packed is [5, 6], expected [6, 6]");
    check_refused(|p| put(p, "shape", Dtype::I64, &[2], i64s([5, 96])), "weight_packed is [5, 6], expected [5, 9]");
    check_refused(|p| put(p, "shape", Dtype::I64, &[2], i64s([5, -1])), "weight_shape says [5, -1]");
    check_refused(
        |p| put(p, "shape", Dtype::I64, &[2], i64s([i64::MAX, 64])),
        "weight_shape says [9223372036854775807",
    );
    check_refused(|p| put(p, "shape", Dtype::I64, &[1], vec![0; 8]), "weight_shape is [1], expected [2]");
    check_refused(|p| put(p, "shape", Dtype::F32, &[2], vec![0; 8]), "weight_shape is F32");
    check_refused(|p| put(p, "scale", Dtype::F16, &[2, 5], vec![1; 20]), "weight_scale is [2, 5], expected [5, 2]");
    check_refused(|p| put(p, "scale", Dtype::I32, &[5, 2], vec![0; 40]), "weight_scale is I32");
    check_refused(|p| put(p, "scale", Dtype::F16, &[5, 2], vec![0; 20]), "scale 0 is 0, not a positive number");
    let nan = [f16::ONE, f16::NAN].repeat(5).iter().flat_map(|scale| scale.to_le_bytes()).collect::<Vec<u8>>();
    check_refused(|p| put(p, "scale", Dtype::F16, &[5, 2], nan.clone()), "scale 1 is NaN");
    let fine = [1.0f32, 1.0 + f32::EPSILON].repeat(5).iter().flat_map(|scale| scale.to_le_bytes()).collect::<Vec<u8>>();
    check_refused(|p| put(p, "scale", Dtype::F32, &[5, 2], fine.clone()), "f16 does not hold exactly");
    check_refused(|p| put(p, "zero_point", Dtype::I32, &[2, 5], vec![0; 40]), "expected [1, 2]");
    check_refused(|p| put(p, "zero_point", Dtype::I64, &[1, 2], vec![0; 16]), "weight_zero_point is I64");
    check_refused(|p| put(p, "packed", Dtype::F32, &[5, 6], vec![0; 120]), "weight_packed is F32");
    // What packing with a gap in every word gives: ten codes of three bits to a word.
    check_refused(|p| put(p, "packed", Dtype::I32, &[5, 7], vec![0; 140]), "expected [5, 6]");
}

#[test]
fn refuses_a_group_that_does_not_divide() {
    let made_with = spec("w4a16");
    let tensor = QuantizedTensor::quantize(&wave(2 * 48, 0.0), 2, 48, made_with.weight).unwrap();
    let dir = packed_dir(spec("w4a16g32"), &packed_tensors("l", &tensor));
    let message = PackedCheckpoint::open(dir.path()).unwrap().linear("l").unwrap_err().to_string();
    assert!(message.contains("group 32 does not divide in_features 48"), "{message}");
}

#[test]
fn bf16_scales_of_other_writers_are_read() {
    let spec = spec("w4a16g32sym");
    let tensor = QuantizedTensor::quantize(&wave(3 * 32, 0.0), 3, 32, spec.weight).unwrap();
    let mut parts = packed_tensors("l", &tensor);
    parts.retain(|part| !part.name().ends_with("scale"));
    parts.push(OutTensor::from_f32("l.weight_scale", &[3, 1], &[0.5, 0.75, 0.01171875], Dtype::BF16).unwrap());
    let dir = packed_dir(spec, &parts);
    let read = PackedCheckpoint::open(dir.path()).unwrap().linear("l").unwrap();
    assert_eq!(read.half().unwrap().0.iter().map(|s| s.to_f32()).collect::<Vec<_>>(), [0.5, 0.75, 0.01171875]);
    assert_eq!(read.words(), tensor.words());
}

/// A made-up source: two blocks of one linear and a norm, an embedding and a head.
fn source_model() -> TempDir {
    let dir = TempDir::new().unwrap();
    let tensor = |name: String, shape: &[usize], seed, dtype| {
        OutTensor::from_f32(name, shape, &wave(shape.iter().product(), seed), dtype).unwrap()
    };
    let mut tensors = vec![
        tensor("model.embed_tokens.weight".into(), &[10, 64], 0.1, Dtype::BF16),
        tensor("lm_head.weight".into(), &[10, 64], 0.2, Dtype::BF16),
        tensor("model.norm.weight".into(), &[64], 0.3, Dtype::F32),
    ];
    for block in 0..2 {
        tensors.push(tensor(format!("model.layers.{block}.mlp.up_proj.weight"), &[96, 64], block as f32, Dtype::BF16));
        tensors.push(tensor(format!("model.layers.{block}.input_layernorm.weight"), &[64], 5.0, Dtype::BF16));
    }
    write_shard(&dir.path().join("model.safetensors"), &tensors).unwrap();
    fs::write(dir.path().join("config.json"), r#"{"model_type":"llama","torch_dtype":"bfloat16"}"#).unwrap();
    fs::write(dir.path().join("tokenizer.json"), "{}").unwrap();
    fs::write(dir.path().join("README.md"), "not copied").unwrap();
    fs::write(dir.path().join("LICENSE"), "copied").unwrap();
    dir
}

fn is_linear(name: &str) -> bool {
    name.contains("_proj.") || name.contains(".fc") || name.contains("dense") || name.contains("query_key_value")
}

/// Rounds every linear of the blocks to nearest and writes the packed model; a block is known by the number in its names.
fn pack_model(source: &Path, out: &Path, spec: QuantSpec) {
    let checkpoint = Checkpoint::open(source).unwrap();
    let block_of = |name: &str| name.split('.').find_map(|part| part.parse::<usize>().ok());
    let n_blocks = checkpoint.names().filter_map(block_of).max().unwrap() + 1;
    let writer = PackedWriter::create(out, source, n_blocks).unwrap();
    let mut shards: Vec<Vec<OutTensor<'_>>> = vec![Vec::new(); n_blocks + 1];
    for tensor in checkpoint.tensors() {
        let shard = &mut shards[block_of(tensor.name).unwrap_or(n_blocks)];
        match tensor.name.strip_suffix(".weight").filter(|_| is_linear(tensor.name) && tensor.shape.len() == 2) {
            Some(linear) => {
                let values = checkpoint.values(tensor.name).unwrap();
                let packed = QuantizedTensor::quantize(&values, tensor.shape[0], tensor.shape[1], spec.weight).unwrap();
                shard.extend(packed_tensors(linear, &packed));
            }
            None => shard.push(OutTensor::copy_of(tensor)),
        }
    }
    for (block_idx, shard) in shards[..n_blocks].iter().enumerate() {
        writer.write_block(block_idx, shard).unwrap();
    }
    writer.write_rest(&shards[n_blocks]).unwrap();
    writer.finish(&read_config(source).unwrap(), &spec.into(), &["lm_head"]).unwrap();
}

fn files_of(dir: &Path) -> BTreeMap<PathBuf, String> {
    let paths = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    paths.map(|path| (path.file_name().unwrap().into(), sha256_file(&path).unwrap())).collect()
}

#[test]
fn a_packed_directory_is_complete_and_repeatable() {
    let source = source_model();
    let (one, two) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let spec = spec("w3a16g32");
    pack_model(source.path(), one.path(), spec);
    pack_model(source.path(), two.path(), spec);
    let files = files_of(one.path());
    assert_eq!(files, files_of(two.path()), "the same bytes twice");
    let names: Vec<_> = files.keys().map(|path| path.to_str().unwrap()).collect();
    assert_eq!(
        names,
        [
            "LICENSE",
            "config.json",
            "model-00001-of-00003.safetensors",
            "model-00002-of-00003.safetensors",
            "model-00003-of-00003.safetensors",
            "model.safetensors.index.json",
            "tokenizer.json"
        ]
    );

    let model = PackedCheckpoint::open(one.path()).unwrap();
    assert_eq!(model.quantization().uniform(), Some(spec));
    assert_eq!(model.config()["torch_dtype"], "float16");
    assert_eq!(model.config()["model_type"], "llama");
    let linears: Vec<_> = model.linear_names().collect();
    assert_eq!(linears, ["model.layers.0.mlp.up_proj", "model.layers.1.mlp.up_proj"]);
    let original = Checkpoint::open(source.path()).unwrap();
    for name in linears {
        let values = original.values(&format!("{name}.weight")).unwrap();
        let expected = QuantizedTensor::quantize(&values, 96, 64, spec.weight).unwrap();
        assert_eq!(model.linear(name).unwrap(), expected);
    }
    for name in ["lm_head.weight", "model.norm.weight", "model.layers.1.input_layernorm.weight"] {
        assert_eq!(model.checkpoint().tensor(name).unwrap(), original.tensor(name).unwrap(), "{name}");
    }
}

#[test]
fn a_summary_adds_up() {
    let source = source_model();
    let out = TempDir::new().unwrap();
    pack_model(source.path(), out.path(), spec("w3a16g32"));

    let dense = inspect(source.path()).unwrap();
    let params = 2 * 10 * 64 + 64 + 2 * (96 * 64 + 64);
    assert_eq!((dense.params, dense.quantized_params, &dense.quantized), (params, 0, &None));
    assert_eq!((dense.tensors, dense.shards), (7, 1));
    assert_eq!(dense.dense_bytes, dense.total_bytes);
    assert_eq!(dense.bytes_by_dtype["F32"], 64 * 4);
    assert_eq!(dense.bits_per_weight(), None);

    let packed = inspect(out.path()).unwrap();
    assert_eq!((packed.params, packed.quantized_params), (params, 2 * 96 * 64));
    assert_eq!((packed.tensors, packed.shards), (5 + 2 * 4, 3));
    assert_eq!(packed.packed_bytes, 2 * 96 * 64 * 3 / 8);
    assert_eq!(packed.scale_bytes, 2 * 96 * 2 * 2);
    assert_eq!(packed.zero_point_bytes, 2 * 96 * 2 * 3 / 8);
    // 3 bits, and in each group of 32 a scale of 16 and a zero point of 3.
    assert_eq!(packed.bits_per_weight(), Some(3.0 + 19.0 / 32.0));
    assert_eq!((packed.bits_per_code(), packed.params_by_bits), (Some(3.0), BTreeMap::from([(3, 2 * 96 * 64)])));
    let shapes = 2 * 2 * 8;
    let parts = packed.packed_bytes + packed.scale_bytes + packed.zero_point_bytes + packed.dense_bytes + shapes;
    assert_eq!(packed.total_bytes, parts);
}

#[test]
fn linears_of_several_widths_come_back() {
    let (narrow, wide) = (spec("w2a16g32").weight, spec("w5a16g32").weight);
    let tensor = |spec, seed| QuantizedTensor::quantize(&wave(6 * 64, seed), 6, 64, spec).unwrap();
    let (a, b) = (tensor(narrow, 0.0), tensor(wide, 1.0));
    let write = |linears: &[(&str, WeightSpec)]| {
        let linears = linears.iter().map(|(name, spec)| ((*name).to_owned(), *spec));
        let mixed = Quantization::of_linears(oq_quant_core::ActSpec::Float, linears);
        let dir = TempDir::new().unwrap();
        let config = json!({"quantization_config": oq_formats::packed::quantization_config(&mixed, &["lm_head"])});
        fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
        let tensors: Vec<_> = packed_tensors("a", &a).into_iter().chain(packed_tensors("b", &b)).collect();
        write_shard(&dir.path().join("model.safetensors"), &tensors).unwrap();
        dir
    };
    let dir = write(&[("a", narrow), ("b", wide)]);
    let model = PackedCheckpoint::open(dir.path()).unwrap();
    assert_eq!((model.linear("a").unwrap(), model.linear("b").unwrap()), (a.clone(), b.clone()));
    let summary = inspect(dir.path()).unwrap();
    assert_eq!((summary.bits_per_code(), summary.quantized_params), (Some(3.5), 2 * 6 * 64));
    assert_eq!(summary.quantized.unwrap().to_string(), "w2a16g32, w5a16g32");

    let refused = |dir: TempDir| inspect(dir.path()).unwrap_err().to_string();
    let message = refused(write(&[("a", narrow), ("c", wide)]));
    assert_eq!(message, "b: no group of quantization_config has it among its targets");
    let message = refused(write(&[("a", wide), ("b", narrow)]));
    assert!(message.contains("a: weight_packed is [6, 4], expected [6, 10]"), "{message}");
}

#[test]
fn a_summary_counts_no_weights_but_those_that_codes_stand_for() {
    // Five matrices of 2^62 weights each, as their shapes say: more than 64 bits count. Their codes are one word.
    let shape: Vec<u8> = [i64::from(i32::MAX); 2].iter().flat_map(|size| size.to_le_bytes()).collect();
    let parts = (0..5).flat_map(|i| {
        let part =
            |part, dtype, shape: &[usize], bytes| OutTensor::new(format!("{i}.weight_{part}"), dtype, shape, bytes);
        [part("shape", Dtype::I64, &[2], shape.clone()), part("packed", Dtype::I32, &[1, 1], vec![0; 4])]
    });
    let dir = packed_dir(spec("w4a16"), &parts.collect::<Result<Vec<_>, _>>().unwrap());
    let message = inspect(dir.path()).unwrap_err().to_string();
    assert!(message.contains("0: weight_packed is [1, 1], expected [2147483647, 268435456]"), "{message}");
}

#[test]
fn an_unfinished_directory_is_not_a_model_and_can_be_finished() {
    let source = source_model();
    let (out, whole) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let spec = spec("w4a16g32");
    pack_model(source.path(), whole.path(), spec);

    let writer = PackedWriter::create(out.path(), source.path(), 2).unwrap();
    let config = read_config(source.path()).unwrap();
    fs::copy(whole.path().join("model-00001-of-00003.safetensors"), writer.block_path(0)).unwrap();
    let error = writer.finish(&config, &spec.into(), &["lm_head"]).unwrap_err();
    assert!(error.to_string().contains("model-00002-of-00003.safetensors"), "{error}");
    fs::create_dir(out.path().join("omniquant")).unwrap();
    fs::write(out.path().join("omniquant/journal.jsonl"), "").unwrap();
    let error = PackedCheckpoint::open(out.path()).unwrap_err();
    assert!(matches!(error, FormatError::NoConfig { .. }) && error.to_string().contains("--resume"), "{error}");
    fs::remove_dir_all(out.path().join("omniquant")).unwrap();

    // A second run finds the first shard, and clears what a killed write left.
    fs::write(out.path().join(".omniquant-partial-abc"), "half").unwrap();
    let writer = PackedWriter::create(out.path(), source.path(), 2).unwrap();
    assert!(writer.block_path(0).exists() && !writer.block_path(1).exists());
    fs::copy(whole.path().join("model-00002-of-00003.safetensors"), writer.block_path(1)).unwrap();
    fs::copy(whole.path().join("model-00003-of-00003.safetensors"), writer.rest_path()).unwrap();
    writer.finish(&config, &spec.into(), &["lm_head"]).unwrap();
    assert_eq!(files_of(out.path()), files_of(whole.path()));
}

#[test]
fn refuses_what_would_spoil_a_model() {
    let source = source_model();
    let error = PackedWriter::create(&source.path().join("."), source.path(), 2).unwrap_err();
    assert!(matches!(error, FormatError::OutputIsSource { .. }), "{error:?}");

    let out = TempDir::new().unwrap();
    let writer = PackedWriter::create(out.path(), source.path(), 1).unwrap();
    let norm = OutTensor::from_f32("norm", &[1], &[1.0], Dtype::F16).unwrap();
    writer.write_block(0, std::slice::from_ref(&norm)).unwrap();
    writer.write_rest(&[norm]).unwrap();
    let error = writer.finish(&json!({}), &spec("w4a16").into(), &[]).unwrap_err();
    assert!(error.to_string().contains("two tensors are named `norm`"), "{error}");

    let error = PackedCheckpoint::open(source.path()).unwrap_err();
    assert!(error.to_string().contains("not a packed model"), "{error}");
}
