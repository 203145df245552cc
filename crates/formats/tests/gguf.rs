//! GGUF against the programs that define it: values by the `gguf` package, ids by `tokenizers` and `sentencepiece`. The files
//! were made by `fixtures/gguf/make_gguf.py`.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on may panic, in its helpers too")]

use std::fs;
use std::path::{Path, PathBuf};

use half::f16;
use oq_formats::gguf::{Array, Gguf, GgufError, TensorKind, Value, convert_to_hf};
use safetensors::{Dtype, SafeTensors};
use serde_json::{Value as Json, json};
use tempfile::TempDir;
use tokenizers::Tokenizer;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/gguf").join(name)
}

fn open(name: &str) -> Gguf {
    Gguf::open(&fixture(name)).unwrap()
}

fn read_json(path: &Path) -> Json {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

/// A converted fixture.
fn convert(name: &str) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    convert_to_hf(&fixture(name), dir.path(), &mut |_| {}).unwrap();
    dir
}

// ---- reading

#[test]
fn metadata_of_every_type() {
    let file = open("kinds.gguf");
    assert_eq!(file.version(), 3);
    let get = |key: &str| file.metadata().get(&format!("test.{key}")).unwrap().clone();
    let scalars = [
        ("u8", Value::Unsigned(200)),
        ("u16", Value::Unsigned(60_000)),
        ("u32", Value::Unsigned(4_000_000_000)),
        ("u64", Value::Unsigned((1 << 63) + 1)),
        ("i8", Value::Signed(-100)),
        ("i16", Value::Signed(-30_000)),
        ("i32", Value::Signed(-2_000_000_000)),
        ("i64", Value::Signed(-(1 << 62))),
        ("f32", Value::Float(0.1f32.into())),
        ("f64", Value::Float(0.1)),
        ("bool", Value::Bool(true)),
        ("text", Value::String("Brücke\n".into())),
    ];
    for (key, value) in scalars {
        assert_eq!(get(key), value, "{key}");
    }
    let arrays = [
        ("integers", Array::Signed(vec![1, -2, 3])),
        ("floats", Array::Float(vec![0.5, -1.5])),
        ("flags", Array::Bool(vec![true, false])),
        ("texts", Array::String(["a", "", "é"].map(String::from).into())),
        ("nested", Array::Array(vec![Array::Signed(vec![1, 2]), Array::Signed(vec![3])])),
    ];
    for (key, array) in arrays {
        assert_eq!(get(key), Value::Array(array), "{key}");
    }
    assert_eq!(file.metadata().get("test.none"), None);
    let error = file.metadata().unsigned("test.text").unwrap_err().to_string();
    assert!(error.contains("`test.text` is \"Brücke\\n\", expected an unsigned integer"), "{error}");
}

#[test]
fn every_kind_dequantizes_to_the_last_bit() {
    let file = open("kinds.gguf");
    let bytes = fs::read(fixture("kinds.safetensors")).unwrap();
    let expected = SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(file.tensors().len(), 16);
    for tensor in file.tensors() {
        assert_eq!(tensor.name(), tensor.kind().name());
        assert_eq!(tensor.shape(), [2, 256]);
        let bits = |values: Vec<f32>| values.into_iter().map(f32::to_bits).collect::<Vec<_>>();
        let expected = expected.tensor(tensor.name()).unwrap();
        let expected = expected.data().as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
        assert_eq!(bits(tensor.dequantize()), bits(expected), "{}", tensor.kind());

        let mut second = vec![0.0; 256];
        tensor.dequantize_row(1, &mut second);
        assert_eq!(second, tensor.dequantize()[256..], "{}", tensor.kind());
    }
}

// ---- converting

#[test]
fn weights_come_back_in_hugging_face_order() {
    let dir = tempfile::tempdir().unwrap();
    let mut seen = Vec::new();
    let converted =
        convert_to_hf(&fixture("smollm.gguf"), dir.path(), &mut |p| seen.push((p.done, p.total, p.tensor.to_owned())))
            .unwrap();

    let ours = fs::read(dir.path().join("model.safetensors")).unwrap();
    assert_eq!(converted.weight_bytes, ours.len() as u64);
    let theirs = fs::read(fixture("smollm.safetensors")).unwrap();
    let (ours, theirs) = (SafeTensors::deserialize(&ours).unwrap(), SafeTensors::deserialize(&theirs).unwrap());
    assert_eq!(ours.len(), theirs.len());
    assert_eq!((converted.tensors, seen.len()), (ours.len(), ours.len()));
    assert_eq!(seen.last().map(|last| (last.0, last.1)), Some((20, 20)));
    for (name, expected) in theirs.tensors() {
        let got = ours.tensor(&name).unwrap();
        assert_eq!((got.dtype(), got.shape()), (expected.dtype(), expected.shape()), "{name}");
        assert!(got.data() == expected.data(), "{name}");
    }
    // The one norm with more digits than f16 has.
    assert_eq!(ours.tensor("model.layers.1.post_attention_layernorm.weight").unwrap().dtype(), Dtype::F32);
}

#[test]
fn config_says_what_the_metadata_says() {
    let dir = convert("smollm.gguf");
    let config = read_json(&dir.path().join("config.json"));
    let expected = [
        ("architectures", json!(["LlamaForCausalLM"])),
        ("model_type", json!("llama")),
        ("hidden_size", json!(32)),
        ("intermediate_size", json!(64)),
        ("num_hidden_layers", json!(2)),
        ("num_attention_heads", json!(4)),
        ("num_key_value_heads", json!(2)),
        ("head_dim", json!(8)),
        ("rope_theta", json!(100_000.0)),
        ("rope_scaling", json!(null)),
        ("rms_norm_eps", json!(1e-5)),
        ("vocab_size", json!(311)),
        ("max_position_embeddings", json!(512)),
        ("tie_word_embeddings", json!(true)),
        ("bos_token_id", json!(1)),
        ("eos_token_id", json!(0)),
        ("torch_dtype", json!("float16")),
    ];
    for (key, value) in expected {
        assert_eq!(config[key], value, "{key}");
    }
    let generation = read_json(&dir.path().join("generation_config.json"));
    assert_eq!(generation["eos_token_id"], json!([0, 2]), "end of text, and the end of a turn");
    let tokenizer = read_json(&dir.path().join("tokenizer_config.json"));
    assert_eq!(tokenizer["bos_token"], "<|start|>");
    assert_eq!(tokenizer["add_bos_token"], false);
    assert!(tokenizer["chat_template"].as_str().unwrap().starts_with("{% for m in messages %}"));
}

#[test]
fn rope_scaling_is_recognized() {
    let scaling = |name: &str| {
        let dir = convert(name);
        let config = read_json(&dir.path().join("config.json"));
        (config["rope_scaling"].clone(), config["tie_word_embeddings"].clone())
    };
    let llama3 = json!({
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    });
    assert_eq!(scaling("llama3.gguf"), (llama3, json!(false)));
    assert_eq!(scaling("sentencepiece.gguf"), (json!({ "rope_type": "linear", "factor": 2.0 }), json!(true)));
}

#[test]
fn tokenizers_give_the_same_ids() {
    let tokens = read_json(&fixture("tokens.json"));
    for name in ["smollm", "llama3", "sentencepiece"] {
        let dir = convert(&format!("{name}.gguf"));
        let tokenizer = Tokenizer::from_file(dir.path().join("tokenizer.json")).unwrap();
        let cases = tokens[name].as_array().unwrap();
        assert!(cases.len() > 10, "{name}");
        for case in cases {
            let text = case[0].as_str().unwrap();
            let encoding = tokenizer.encode(text, true).unwrap();
            assert_eq!(json!(encoding.get_ids()), case[1], "{name}: {text:?}");
            assert_eq!(tokenizer.decode(encoding.get_ids(), true).unwrap(), strip_control(text), "{name}");
        }
    }
}

fn strip_control(text: &str) -> String {
    ["<|start|>", "<|end|>"].iter().fold(text.to_owned(), |text, token| text.replace(token, ""))
}

// ---- refusing

fn refusal(bytes: Vec<u8>) -> String {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.gguf");
    fs::write(&path, bytes).unwrap();
    let out = dir.path().join("out");
    let error = convert_to_hf(&path, &out, &mut |_| {}).unwrap_err();
    assert!(!out.join("config.json").exists(), "a refused model has no config.json");
    error.to_string()
}

/// `fixture` with the bytes `from` replaced by as many others, at their first place.
fn patched(name: &str, from: &[u8], to: &[u8]) -> Vec<u8> {
    assert_eq!(from.len(), to.len());
    let mut bytes = fs::read(fixture(name)).unwrap();
    let at = bytes.windows(from.len()).position(|window| window == from).unwrap();
    bytes[at..at + to.len()].copy_from_slice(to);
    bytes
}

#[test]
fn models_that_would_change_are_refused_by_name() {
    #[track_caller]
    fn check(from: &[u8], to: &[u8], message: &str) {
        let error = refusal(patched("smollm.gguf", from, to));
        assert!(error.contains(message), "{error}");
    }
    check(
        b"\x05\0\0\0\0\0\0\0llama\x14",
        b"\x05\0\0\0\0\0\0\0plamo\x14",
        "`general.architecture` is plamo, expected llama, mistral3, qwen2, qwen2moe, qwen3, qwen3moe, falcon, gemma, gemma2, ",
    );
    check(b"smollm", b"mpt_30", "`tokenizer.ggml.pre` is mpt_30, expected gpt-2, smollm, llama-bpe");
    check(b"\x04\0\0\0\0\0\0\0gpt2", b"\x04\0\0\0\0\0\0\0bert", "`tokenizer.ggml.model` is bert");
    check(b"blk.1.ffn_up.weight", b"blk.1.ffn_xx.weight", "`blk.1.ffn_up.weight` is missing");
    check(
        b"llama.block_count\x04\0\0\0\x02",
        b"llama.block_count\x04\0\0\0\x01",
        "`blk.1.attn_norm.weight` has no place",
    );
    check(b"llama.block_count\x04\0\0\0\x02", b"llama.block_count\x04\0\0\0\x00", "`llama.block_count` is 0");
    check(b"head_count_kv\x04\0\0\0\x02", b"head_count_kv\x04\0\0\0\x03", "is 3, expected a divisor of the 4 heads");
    check(
        b"head_count_kv\x04\0\0\0\x02",
        b"head_count_kv\x04\0\0\0\x04",
        "`blk.0.attn_k.weight` is [16, 32], the metadata says [32, 32]",
    );
    check(b"rope.dimension_count\x04\0\0\0\x08", b"rope.dimension_count\x04\0\0\0\x04", "is 4, expected 8");
    check(b"bos_token_id\x04\0\0\0\x01\0", b"bos_token_id\x04\0\0\0\x01\x09", "is 2305, expected an id below 311");
    check(
        b"rms_epsilon\x06\0\0\0\xac\xc5\x27\x37",
        b"rms_epsilon\x06\0\0\0\xac\xc5\x27\xb7",
        "is -0.00001, expected a positive number",
    );
    check(b"llama.context_length", b"llama.context_lengxx", "`llama.context_length` is missing");
}

#[test]
fn rotations_of_another_rule_are_refused() {
    let file = open("llama3.gguf");
    let mut bytes = fs::read(fixture("llama3.gguf")).unwrap();
    let factors = file.tensor("rope_freqs.weight").unwrap().bytes().to_vec();
    let at = bytes.windows(factors.len()).rposition(|window| window == factors).unwrap();
    bytes[at + 8..at + 12].copy_from_slice(&3.0f32.to_le_bytes());
    let error = refusal(bytes);
    assert!(
        error.contains("`rope_freqs.weight` is 3 at 2, expected 2.") && error.contains("as in Llama 3.1"),
        "{error}"
    );
}

#[test]
fn weights_beyond_f16_are_refused_with_their_place() {
    let file = open("smollm.gguf");
    let tensor = file.tensor("blk.1.attn_v.weight").unwrap();
    let mut bytes = fs::read(fixture("smollm.gguf")).unwrap();
    let row = &tensor.bytes()[3 * 20..4 * 20];
    let at = bytes.windows(20).position(|window| window == row).unwrap();
    bytes[at + 2..at + 4].copy_from_slice(&f16::INFINITY.to_le_bytes());
    let error = refusal(bytes);
    assert!(error.contains("`blk.1.attn_v.weight`: value [3, 0] is inf"), "{error}");
}

// ---- hostile files

#[test]
fn a_file_that_ends_early_is_an_error_wherever_it_ends() {
    let whole = fs::read(fixture("kinds.gguf")).unwrap();
    let padding = 16; // bytes after the last tensor: two rows of MXFP4 are 272 bytes
    for len in 0..whole.len() - padding {
        assert!(Gguf::from_bytes(whole[..len].to_vec()).is_err(), "{len} bytes of {}", whole.len());
    }
}

/// Every byte of the header set to each of four values: an error or another model, never a panic, and never more memory than
/// the file could fill.
#[test]
fn a_flipped_byte_never_panics() {
    let whole = fs::read(fixture("kinds.gguf")).unwrap();
    let header = 2048; // bytes; the data of this file begins there or before
    for at in 0..header {
        for value in [0x00, 0x7f, 0x80, 0xff] {
            let mut bytes = whole.clone();
            bytes[at] = value;
            if let Ok(file) = Gguf::from_bytes(bytes) {
                file.tensors().for_each(|tensor| assert_eq!(tensor.dequantize().len(), tensor.values()));
            }
        }
    }
}

/// The same through all of the conversion's checks, up to an output directory that cannot be made.
#[test]
fn a_flipped_byte_never_panics_in_conversion() {
    let dir = tempfile::tempdir().unwrap();
    let (path, in_the_way) = (dir.path().join("model.gguf"), dir.path().join("file"));
    fs::write(&in_the_way, "").unwrap();
    for name in ["smollm.gguf", "sentencepiece.gguf"] {
        let whole = fs::read(fixture(name)).unwrap();
        let header = 16_000; // bytes, of which the first thousand describe the model and the rest tokens and tensors
        for at in (0..1000).step_by(3).chain((1000..header).step_by(101)) {
            let mut bytes = whole.clone();
            bytes[at] ^= 0x83;
            fs::write(&path, bytes).unwrap();
            convert_to_hf(&path, &in_the_way.join("out"), &mut |_| {}).unwrap_err();
        }
    }
}

/// A GGUF file by hand.
struct Maker(Vec<u8>);

impl Maker {
    fn new(version: u32, tensors: u64, pairs: u64) -> Self {
        Self(b"GGUF".to_vec()).u32(version).u64(tensors).u64(pairs)
    }

    fn u32(mut self, value: u32) -> Self {
        self.0.extend(value.to_le_bytes());
        self
    }

    fn u64(mut self, value: u64) -> Self {
        self.0.extend(value.to_le_bytes());
        self
    }

    fn text(mut self, text: &[u8]) -> Self {
        self = self.u64(text.len() as u64);
        self.0.extend(text);
        self
    }

    fn tensor(self, name: &str, dims: &[u64], kind: u32, offset: u64) -> Self {
        let begun = self.text(name.as_bytes()).u32(dims.len() as u32);
        dims.iter().fold(begun, |made, &dim| made.u64(dim)).u32(kind).u64(offset)
    }

    /// `bytes` of data after the header.
    fn data(mut self, bytes: usize) -> Self {
        self.0.resize(self.0.len().next_multiple_of(32) + bytes, 0);
        self
    }

    fn read(self) -> Result<Gguf, GgufError> {
        Gguf::from_bytes(self.0)
    }
}

#[test]
fn hostile_headers_are_told_what_is_wrong() {
    #[track_caller]
    fn check(made: Maker, message: &str) {
        let error = made.read().unwrap_err().to_string();
        assert!(error.contains(message), "{error}");
    }
    const F32: u32 = 0;
    const Q4_0: u32 = 2;
    check(Maker(b"GGML".to_vec()), "not a GGUF file");
    check(Maker::new(1, 0, 0), "version 1");
    check(Maker::new(3u32.swap_bytes(), 0, 0), "little-endian versions 2 and 3");
    check(
        Maker::new(3, u64::MAX, 0),
        "number of tensors at byte 16: a count of 18446744073709551615, but 8 bytes hold at most 0",
    );
    check(Maker::new(3, 0, 1 << 40), "number of metadata pairs");
    check(Maker::new(3, 0, 1).u64(u64::MAX).data(16), "18446744073709551615 bytes needed");
    check(Maker::new(3, 0, 1).text(b"\xff\xff").data(32), "metadata key at byte 32: not UTF-8");
    check(Maker::new(3, 0, 1).text(b"key").u32(13).data(8), "unknown value type 13");
    check(Maker::new(3, 0, 1).text(b"key").u32(7).u32(2), "2 is neither false (0) nor true (1)");
    check(Maker::new(3, 0, 1).text(b"key").u32(9).u32(4).u64(1 << 62).data(64), "metadata array");
    check(Maker::new(3, 0, 1).text(b"key").u32(9).u32(8).u64(100).data(64), "a count of 100, but ");
    check(
        (0..6).fold(Maker::new(3, 0, 1).text(b"key").u32(9), |made, _| made.u32(9).u64(1)).data(64),
        "nested deeper than 4",
    );
    let twice = Maker::new(3, 0, 2).text(b"key").u32(4).u32(1).text(b"key").u32(4).u32(1);
    check(twice, "`key` occurs twice");
    let alignment =
        |value| Maker::new(3, 1, 1).text(b"general.alignment").u32(4).u32(value).tensor("t", &[8], F32, 0).data(64);
    check(alignment(0), "general.alignment is 0");
    check(alignment(48), "general.alignment is 48");
    assert!(alignment(64).data(64).read().is_ok());
    check(alignment(1 << 31), "the data section has 0");

    let one = |dims: &[u64], kind, offset| Maker::new(3, 1, 0).tensor("t", dims, kind, offset).data(64);
    assert!(one(&[16], F32, 0).read().is_ok());
    assert!(one(&[32, 3], Q4_0, 0).read().is_ok());
    check(one(&[16], F32, 32), "`t`: 64 bytes at offset 32, but the data section has 64");
    check(one(&[17], F32, 0), "`t`: 68 bytes at offset 0");
    check(one(&[32, 4], Q4_0, 0), "`t`: 72 bytes");
    check(one(&[1], F32, u64::MAX - 31), "at offset 18446744073709551584");
    check(one(&[1], F32, 4), "offset 4 is not a multiple of the alignment 32");
    check(one(&[16], Q4_0, 0), "rows of 16 values, but Q4_0 has blocks of 32");
    check(one(&[1 << 32, 1 << 32], F32, 0), "shape [4294967296, 4294967296] overflows");
    check(one(&[u64::MAX], F32, 0), "overflows");
    check(one(&[1; 5], F32, 0), "5 dimensions, at most 4");
    check(one(&[32], 16, 0), "type IQ2_XXS is not supported; supported types are F32, F16, Q4_0");
    check(one(&[32], 4000, 0), "type number 4000 is not supported");
    let empty = one(&[u64::MAX, 0], F32, 0).read().unwrap();
    assert!(empty.tensor("t").unwrap().dequantize().is_empty());
    check(Maker::new(3, 2, 0).tensor("t", &[1], F32, 0).tensor("t", &[1], F32, 32).data(64), "tensor `t` occurs twice");
}

#[test]
fn a_vocabulary_with_absurdly_many_merges_is_refused() {
    let (u32_id, f32_id, text_id, array_id) = (4, 6, 8, 9);
    const VOCAB: usize = 1000;
    let number = |made: Maker, key: &str, n| made.text(format!("llama.{key}").as_bytes()).u32(u32_id).u32(n);
    let made = Maker::new(3, 11, 11).text(b"general.architecture").u32(text_id).text(b"llama");
    let numbers = [
        ("embedding_length", 2),
        ("feed_forward_length", 2),
        ("block_count", 1),
        ("attention.head_count", 1),
        ("context_length", 8),
    ];
    let made = numbers.into_iter().fold(made, |made, (key, n)| number(made, key, n));
    let made = made.text(b"llama.attention.layer_norm_rms_epsilon").u32(f32_id).u32(1e-5f32.to_bits());
    let made = made.text(b"tokenizer.ggml.bos_token_id").u32(u32_id).u32(0);
    let made = made.text(b"tokenizer.ggml.model").u32(text_id).text(b"llama");
    // `a`, `aa`, `aaa`, ..: half a million merges of a thousand letters.
    let made = made.text(b"tokenizer.ggml.tokens").u32(array_id).u32(text_id).u64(VOCAB as u64);
    let made = (1..=VOCAB).fold(made, |made, len| made.text(&vec![b'a'; len]));
    let made = made.text(b"tokenizer.ggml.scores").u32(array_id).u32(f32_id).u64(VOCAB as u64);
    let made = (0..VOCAB).fold(made, |made, _| made.u32(0));
    let made = made.tensor("token_embd.weight", &[2, VOCAB as u64], 0, 0).tensor("output_norm.weight", &[2], 0, 0);
    let norms = ["attn_norm", "ffn_norm"];
    let linears = ["attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"];
    let made = norms.iter().fold(made, |made, name| made.tensor(&format!("blk.0.{name}.weight"), &[2], 0, 0));
    let made = linears.iter().fold(made, |made, name| made.tensor(&format!("blk.0.{name}.weight"), &[2, 2], 0, 0));
    let message = refusal(made.data(8 * VOCAB).0);
    assert!(message.contains("made of others in too many ways, expected at most 16 for each of 1000"), "{message}");
}

#[test]
fn a_missing_file_is_told_by_its_path() {
    let error = Gguf::open(Path::new("no/such.gguf")).unwrap_err().to_string();
    assert!(error.starts_with("no/such.gguf: "), "{error}");
}

// ---- the real model

/// SmolLM2-135M-Instruct as published in Q4_1: 98,362,432 bytes, its embedding Q8_0.
#[test]
fn smollm2_converts() {
    let Some(path) = std::env::var_os("OMNIQUANT_SMOLLM2_GGUF").map(PathBuf::from) else {
        eprintln!("skipped: OMNIQUANT_SMOLLM2_GGUF is not set (SmolLM2-135M-Instruct.Q4_1.gguf)");
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let converted = convert_to_hf(&path, dir.path(), &mut |_| {}).unwrap();
    assert_eq!((converted.tensors, converted.values), (272, 134_515_008));

    let gguf = Gguf::open(&path).unwrap();
    let bytes = fs::read(dir.path().join("model.safetensors")).unwrap();
    let weights = SafeTensors::deserialize(&bytes).unwrap();
    assert!(weights.tensors().iter().all(|(_, tensor)| tensor.dtype() == Dtype::F16), "its norms were trained in bf16");
    let row = |name: &str, row: usize| {
        let bytes = &weights.tensor(name).unwrap().data()[row * 1152..][..1152]; // 576 values of f16
        bytes.as_chunks().0.iter().map(|b| f16::from_le_bytes(*b)).collect::<Vec<_>>()
    };
    let source = |name: &str, row: usize| {
        let mut values = vec![0.0; 576];
        gguf.tensor(name).unwrap().dequantize_row(row, &mut values);
        values.into_iter().map(f16::from_f32).collect::<Vec<_>>()
    };
    assert_eq!(gguf.tensor("blk.7.attn_k.weight").unwrap().kind(), TensorKind::Q4_1);
    // Head 2 of 64 rows: row 5 of its second half stood beside row 5 of its first.
    assert_eq!(
        row("model.layers.7.self_attn.k_proj.weight", 2 * 64 + 32 + 5),
        source("blk.7.attn_k.weight", 2 * 64 + 11)
    );
    assert_eq!(row("model.layers.7.self_attn.v_proj.weight", 100), source("blk.7.attn_v.weight", 100));

    let tokenizer = Tokenizer::from_file(dir.path().join("tokenizer.json")).unwrap();
    let ids = |text: &str| tokenizer.encode(text, true).unwrap().get_ids().to_vec();
    assert_eq!(ids("<|im_start|>"), [1]);
    assert_eq!(ids("1234").len(), 4, "digits one by one");
    let Some(data) = std::env::var_os("OMNIQUANT_DATA").map(PathBuf::from) else {
        eprintln!("skipped: OMNIQUANT_DATA is not set (wikitext2/wiki.test.raw)");
        return;
    };
    let text = fs::read_to_string(data.join("wikitext2/wiki.test.raw")).unwrap();
    // Rows as the data set has them: blank lines are empty, the others keep their newline.
    let rows: Vec<_> = text.split_inclusive('\n').map(|row| if row.trim().is_empty() { "" } else { row }).collect();
    assert_eq!(ids(&rows.join("\n\n")).len(), 304_978);
}
