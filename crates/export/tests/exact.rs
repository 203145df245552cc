//! Readers of each format, written from its definition in plain loops. What they read of an export are the packed model's weights.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use common::{LINEARS, llama, open, packed, try_export};
use half::{bf16, f16};
use oq_formats::{Checkpoint, Dtype, TensorView, read_config};
use serde_json::Value;

/// Element `index` of a tensor of integers.
fn integer(tensor: TensorView<'_>, index: usize) -> i64 {
    match tensor.dtype {
        Dtype::I8 => tensor.bytes[index] as i8 as i64,
        Dtype::I32 => i32::from_le_bytes(tensor.bytes[4 * index..][..4].try_into().unwrap()).into(),
        Dtype::U32 => u32::from_le_bytes(tensor.bytes[4 * index..][..4].try_into().unwrap()).into(),
        other => panic!("{}: {other}", tensor.name),
    }
}

/// Element `index` of a tensor of floating-point numbers.
fn float(tensor: TensorView<'_>, index: usize) -> f32 {
    match tensor.dtype {
        Dtype::F16 => f16::from_le_bytes(tensor.bytes[2 * index..][..2].try_into().unwrap()).to_f32(),
        Dtype::BF16 => bf16::from_le_bytes(tensor.bytes[2 * index..][..2].try_into().unwrap()).to_f32(),
        Dtype::F32 => f32::from_le_bytes(tensor.bytes[4 * index..][..4].try_into().unwrap()),
        other => panic!("{}: {other}", tensor.name),
    }
}

/// The `bits` bits from bit `bits * index` on of a stream whose word `n` is `word(n)`.
fn in_stream(word: impl Fn(usize) -> i64, bits: usize, index: usize) -> u32 {
    let bit = |at: usize| (word(at / 32) >> (at % 32) & 1) as u32;
    (0..bits).map(|place| bit(bits * index + place) << place).sum()
}

/// A linear of an export: its tensors, the quantization config, and the shape that it should have.
struct Linear<'a> {
    checkpoint: &'a Checkpoint,
    config: &'a Value,
    name: &'a str,
    shape: [usize; 2],
}

impl Linear<'_> {
    fn part(&self, part: &str, shape: &[usize]) -> TensorView<'_> {
        let tensor = self.checkpoint.tensor(&format!("{}.{part}", self.name)).unwrap();
        assert_eq!(tensor.shape, shape, "{}", tensor.name);
        tensor
    }

    fn number(&self, key: &str) -> i64 {
        self.config[key].as_i64().unwrap_or_else(|| panic!("{key} in {}", self.config))
    }

    /// Bits and channels of a group, as most configs write them.
    fn setting(&self) -> (usize, usize) {
        let group = usize::try_from(self.number("group_size")).unwrap_or(self.shape[1]);
        (self.number("bits") as usize, group)
    }

    fn values(&self, value: impl Fn(usize, usize) -> f32) -> Vec<f32> {
        let [rows, cols] = self.shape;
        (0..rows * cols).map(|at| value(at / cols, at % cols)).collect()
    }
}

/// Version 1 adds one to zero points, version 2 does not.
fn gptq(linear: &Linear<'_>, version: u32) -> Vec<f32> {
    let ([rows, cols], (bits, group)) = (linear.shape, linear.setting());
    let (codes, scales) =
        (linear.part("qweight", &[cols * bits / 32, rows]), linear.part("scales", &[cols / group, rows]));
    let (zeros, groups) = (linear.part("qzeros", &[cols / group, rows * bits / 32]), linear.part("g_idx", &[cols]));
    linear.values(|row, col| {
        let of = integer(groups, col) as usize;
        let code = in_stream(|word| integer(codes, word * rows + row), bits, col);
        let zero = in_stream(|word| integer(zeros, of * (rows * bits / 32) + word), bits, row) + (2 - version);
        float(scales, of * rows + row) * (code as f32 - zero as f32)
    })
}

fn awq(linear: &Linear<'_>) -> Vec<f32> {
    let ([rows, cols], (bits, group)) = (linear.shape, linear.setting());
    assert_eq!(bits, 4);
    let (codes, scales) = (linear.part("qweight", &[cols, rows / 8]), linear.part("scales", &[cols / group, rows]));
    let zeros = linear.part("qzeros", &[cols / group, rows / 8]);
    // The nibble that has output channel 0, 1, .. 7 of a word.
    let nibble = [0, 4, 1, 5, 2, 6, 3, 7];
    let of =
        |tensor, line: usize, row: usize| integer(tensor, line * (rows / 8) + row / 8) >> (4 * nibble[row % 8]) & 15;
    linear.values(|row, col| {
        let (code, zero) = (of(codes, col, row), of(zeros, col / group, row));
        float(scales, col / group * rows + row) * (code - zero) as f32
    })
}

fn auto_round(linear: &Linear<'_>) -> Vec<f32> {
    assert_eq!(linear.config["quant_method"], "auto-round");
    assert_eq!(linear.config["block_name_to_quantize"], "model.layers");
    match linear.config["packing_format"].as_str().unwrap() {
        "auto_round:auto_gptq" => gptq(linear, 1),
        "auto_round:auto_awq" => awq(linear),
        "auto_round" => gptq(linear, 2),
        other => panic!("{other}"),
    }
}

fn mlx(linear: &Linear<'_>) -> Vec<f32> {
    // A linear that is listed by name has settings of its own.
    let config = linear.config.get(linear.name).unwrap_or(linear.config);
    let [bits, group] = ["bits", "group_size"].map(|key| config[key].as_u64().unwrap() as usize);
    let [rows, cols] = linear.shape;
    let codes = linear.part("weight", &[rows, cols * bits / 32]);
    let [scales, biases] = ["scales", "biases"].map(|part| linear.part(part, &[rows, cols / group]));
    linear.values(|row, col| {
        let code = in_stream(|word| integer(codes, row * (cols * bits / 32) + word), bits, col);
        let of = row * (cols / group) + col / group;
        float(scales, of) * code as f32 + float(biases, of)
    })
}

fn compressed(linear: &Linear<'_>) -> Vec<f32> {
    let [rows, cols] = linear.shape;
    let mut groups = linear.config["config_groups"].as_object().unwrap().values();
    let covers = |group: &&Value| {
        let targets = group["targets"].as_array().unwrap();
        targets.iter().any(|target| target == "Linear" || target == linear.name)
    };
    let group = groups.find(covers).unwrap();
    let weights = &group["weights"];
    let bits = weights["num_bits"].as_u64().unwrap() as usize;
    let len = weights["group_size"].as_u64().map_or(cols, |n| n as usize);
    let scales = linear.part("weight_scale", &[rows, cols / len]);
    if group["format"] == "int-quantized" {
        let codes = linear.part("weight", &[rows, cols]);
        assert_eq!((bits, codes.dtype, &group["input_activations"]["symmetric"]), (8, Dtype::I8, &true.into()));
        return linear.values(|row, col| float(scales, row) * integer(codes, row * cols + col) as f32);
    }
    let words = (cols * bits).div_ceil(32);
    let codes = linear.part("weight_packed", &[rows, words]);
    let zero_words = (rows * bits).div_ceil(32);
    let zeros = (weights["symmetric"] == false).then(|| linear.part("weight_zero_point", &[zero_words, cols / len]));
    linear.values(|row, col| {
        let (of, n_groups) = (col / len, cols / len);
        let code = in_stream(|word| integer(codes, row * words + word), bits, col);
        let zero = |zeros| in_stream(|word| integer(zeros, word * n_groups + of), bits, row);
        let zero = zeros.map_or(1 << (bits - 1), zero);
        float(scales, row * n_groups + of) * (code as f32 - zero as f32)
    })
}

fn dense(linear: &Linear<'_>) -> Vec<f32> {
    let tensor = linear.part("weight", &linear.shape);
    linear.values(|row, col| float(tensor, row * linear.shape[1] + col))
}

/// Exports a model of these schemes, and compares what `read` reads with the packed model, of which `rounded` is expected.
#[track_caller]
fn check(format: &str, schemes: &[&str], read: fn(&Linear<'_>) -> Vec<f32>, rounded: fn(f32) -> f32) {
    let dir = packed(schemes, &llama());
    let out = dir.path().join("out");
    try_export(&dir, format, &out).unwrap();
    let (model, config, checkpoint) = (open(&dir), read_config(&out).unwrap(), Checkpoint::open(&out).unwrap());
    for (name, shape) in LINEARS {
        let linear = Linear { checkpoint: &checkpoint, config: &config["quantization_config"], name, shape };
        let expected: Vec<u32> =
            model.linear(name).unwrap().dequantize().into_iter().map(|w| rounded(w).to_bits()).collect();
        let got: Vec<u32> = read(&linear).into_iter().map(f32::to_bits).collect();
        assert!(got == expected, "{format} {schemes:?}: {name}");
    }
}

#[track_caller]
fn check_exact(format: &str, schemes: &[&str], read: fn(&Linear<'_>) -> Vec<f32>) {
    check(format, schemes, read, |weight| weight);
}

/// Every scheme of these widths and groups, symmetric or not.
fn schemes(bits: &[u32], groups: &[&str]) -> Vec<String> {
    let mut schemes = Vec::new();
    for bits in bits {
        for group in groups {
            schemes.extend(["", "sym"].map(|sym| format!("w{bits}a16{group}{sym}")));
        }
    }
    schemes
}

const WIDTHS: [u32; 4] = [2, 3, 4, 8];
const GROUPS: [&str; 4] = ["g32", "g64", "g128", ""];

#[test]
fn gptq_is_exact() {
    for scheme in schemes(&WIDTHS, &GROUPS) {
        if scheme.starts_with("w4") && !scheme.contains('g') {
            continue;
        }
        let read = if scheme.ends_with("sym") {
            |linear: &Linear<'_>| gptq(linear, 1)
        } else {
            |linear: &Linear<'_>| gptq(linear, 2)
        };
        check_exact("gptq", &[&scheme], read);
    }
}

#[test]
fn awq_is_exact() {
    schemes(&[4], &GROUPS[..3]).iter().for_each(|scheme| check_exact("awq", &[scheme], awq));
}

#[test]
fn auto_round_is_exact() {
    schemes(&[2, 3, 4, 5, 6, 7, 8], &GROUPS).iter().for_each(|scheme| check_exact("auto-round", &[scheme], auto_round));
}

#[test]
fn mlx_is_exact() {
    schemes(&[2, 3, 4, 5, 6, 8], &GROUPS[..3]).iter().for_each(|scheme| check_exact("mlx", &[scheme], mlx));
    check_exact("mlx", &["w2a16g64", "w4a16g64", "w3a16g128sym"], mlx);
}

#[test]
fn compressed_tensors_is_exact() {
    let all = schemes(&[2, 3, 4, 5, 6, 7, 8], &GROUPS);
    all.iter().for_each(|scheme| check_exact("compressed-tensors", &[scheme], compressed));
    check_exact("compressed-tensors", &["w8a8-int8"], compressed);
    check_exact("compressed-tensors", &["w2a16g64sym", "w4a16g64sym", "w3a16g128sym"], compressed);
}

#[test]
fn dense_weights_are_rounded_once() {
    for scheme in schemes(&WIDTHS, &GROUPS) {
        check("dense", &[&scheme], dense, |weight| f16::from_f32(weight).to_f32());
        check("dense-bf16", &[&scheme], dense, |weight| bf16::from_f32(weight).to_f32());
        check_exact("dense-f32", &[&scheme], dense);
    }
    check_exact("dense-f32", &["w2a16g64", "w4a16"], dense);
}
