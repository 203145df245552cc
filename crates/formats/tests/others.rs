//! Packed layouts of other programs, written here from their definitions and read back to the same values.

#![allow(clippy::unwrap_used, reason = "a step that fails is the test failing")]

use std::fs;

use half::{bf16, f16};
use oq_formats::{Dtype, Matrix, OutTensor, PackedCheckpoint, inspect, quantization_of, write_shard};
use serde_json::{Value, json};
use tempfile::TempDir;

const ROWS: usize = 64;
const COLS: usize = 96;

/// Numbers below `bound`, the same each time.
fn numbers(len: usize, bound: u64, seed: u64) -> Vec<u64> {
    (0..len as u64).map(|i| (((i + 977 * seed) * 2_654_435_761) >> 7) % 104_729 % bound).collect()
}

/// Codes, zero points and scales of a matrix `[ROWS, COLS]`.
struct Codes {
    bits: usize,
    group: usize,
    codes: Vec<u64>,
    zeros: Vec<u64>,
    scales: Vec<f32>,
}

impl Codes {
    /// With zero points from 1 on, so that version 1 of GPTQ can store them, and scales that are f16 numbers.
    fn new(bits: usize, group: usize) -> Self {
        let groups = ROWS * COLS / group;
        Self {
            bits,
            group,
            codes: numbers(ROWS * COLS, 1 << bits, 1),
            zeros: numbers(groups, (1 << bits) - 1, 2).into_iter().map(|zero| zero + 1).collect(),
            scales: numbers(groups, 1000, 3)
                .into_iter()
                .map(|n| f16::from_f32(0.01 + n as f32 / 999.0).to_f32())
                .collect(),
        }
    }

    fn symmetric(bits: usize, group: usize) -> Self {
        let codes = Self::new(bits, group);
        Self { zeros: vec![1 << (bits - 1); codes.zeros.len()], ..codes }
    }

    fn groups(&self) -> usize {
        COLS / self.group
    }

    /// The values, with channel `c` in group `of[c]`.
    fn values_of(&self, of: &[usize]) -> Vec<f32> {
        let mut values = Vec::new();
        for row in 0..ROWS {
            for (col, group) in of.iter().enumerate() {
                let at = row * self.groups() + group;
                values.push((self.codes[row * COLS + col] as f32 - self.zeros[at] as f32) * self.scales[at]);
            }
        }
        values
    }

    fn values(&self) -> Vec<f32> {
        self.values_of(&(0..COLS).map(|col| col / self.group).collect::<Vec<_>>())
    }
}

/// One bit after the other, the lowest first.
fn stream(codes: impl IntoIterator<Item = u64>, bits: usize) -> Vec<u32> {
    let bit = |(i, code): (usize, u64)| (0..bits).map(move |b| (i * bits + b, code >> b & 1)).collect::<Vec<_>>();
    let mut words = Vec::new();
    for (at, bit) in codes.into_iter().enumerate().flat_map(bit) {
        words.resize(at / 32 + 1, 0);
        words[at / 32] |= (bit as u32) << (at % 32);
    }
    words
}

fn transposed<T: Copy>(values: &[T], cols: usize) -> Vec<T> {
    (0..cols).flat_map(|col| values.iter().skip(col).step_by(cols).copied()).collect()
}

fn i32s(name: &str, shape: &[usize], words: &[u32]) -> OutTensor<'static> {
    bytes(name, shape, Dtype::I32, words.iter().flat_map(|word| word.to_le_bytes()).collect())
}

fn floats(name: &str, shape: &[usize], values: &[f32], dtype: Dtype) -> OutTensor<'static> {
    OutTensor::from_f32(name.to_owned(), shape, values, dtype).unwrap()
}

fn bytes(name: &str, shape: &[usize], dtype: Dtype, bytes: Vec<u8>) -> OutTensor<'static> {
    OutTensor::new(name.to_owned(), dtype, shape, bytes).unwrap()
}

/// The tensors of GPTQ's layout; `less` is taken from zero points.
fn gptq(codes: &Codes, less: u64, scales: Dtype, g_idx: Option<&[u32]>) -> Vec<OutTensor<'static>> {
    let (bits, groups) = (codes.bits, codes.groups());
    let columns: Vec<u32> = codes.codes.chunks(COLS).flat_map(|row| stream(row.iter().copied(), bits)).collect();
    let zeros = transposed(&codes.zeros, groups);
    let zeros: Vec<u32> = zeros.chunks(ROWS).flat_map(|row| stream(row.iter().map(|zero| zero - less), bits)).collect();
    let mut tensors = vec![
        i32s("l.qweight", &[COLS * bits / 32, ROWS], &transposed(&columns, COLS * bits / 32)),
        i32s("l.qzeros", &[groups, ROWS * bits / 32], &zeros),
        floats("l.scales", &[groups, ROWS], &transposed(&codes.scales, groups), scales),
    ];
    tensors.extend(g_idx.map(|g_idx| i32s("l.g_idx", &[COLS], g_idx)));
    tensors
}

fn awq(codes: &Codes) -> Vec<OutTensor<'static>> {
    let groups = codes.groups();
    let interleaved = |values: Vec<u64>| -> Vec<u32> {
        let word = |eight: &[u64]| stream([0, 2, 4, 6, 1, 3, 5, 7].map(|column| eight[column]), 4)[0];
        values.chunks(8).map(word).collect()
    };
    vec![
        i32s("l.qweight", &[COLS, ROWS / 8], &interleaved(transposed(&codes.codes, COLS))),
        i32s("l.qzeros", &[groups, ROWS / 8], &interleaved(transposed(&codes.zeros, groups))),
        floats("l.scales", &[groups, ROWS], &transposed(&codes.scales, groups), Dtype::F16),
    ]
}

/// A directory with this `quantization_config`.
fn packed(config: &Value, tensors: &[OutTensor<'_>]) -> TempDir {
    let dir = TempDir::new().unwrap();
    fs::write(dir.path().join("config.json"), json!({"quantization_config": config}).to_string()).unwrap();
    write_shard(&dir.path().join("model.safetensors"), tensors).unwrap();
    dir
}

/// Reads the linear `l`, compares its values, and returns the setting of its codes, or `values`.
#[track_caller]
fn check(config: &Value, tensors: &[OutTensor<'_>], expected: &[f32]) -> String {
    let dir = packed(config, tensors);
    let model = PackedCheckpoint::open(dir.path()).unwrap();
    let matrix = model.matrix("l").unwrap();
    let kind = match &matrix {
        Matrix::Codes(codes) => {
            assert_eq!(model.linear("l").unwrap(), *codes);
            codes.spec().to_string()
        }
        _ => {
            assert!(model.linear("l").unwrap_err().to_string().starts_with("l: "));
            "values".to_owned()
        }
    };
    assert_eq!(model.linear_shape("l").unwrap(), [ROWS, COLS]);
    let values = matrix.into_values();
    let wrong = values.iter().zip(expected).position(|(got, expected)| got != expected);
    assert_eq!((wrong, values.len()), (None, expected.len()), "{:?}", wrong.map(|at| (values[at], expected[at])));
    let picked = [expected[5 * COLS..6 * COLS].to_vec(), expected[..COLS].to_vec()].concat();
    assert_eq!(model.rows("l", &[5, 0]).unwrap(), picked);
    assert!(model.is_packed("l") && !model.is_packed("m"));
    kind
}

/// The error of opening a model and reading its linear `l`.
#[track_caller]
fn check_refused(config: &Value, tensors: &[OutTensor<'_>], part: &str) {
    let dir = packed(config, tensors);
    let error = PackedCheckpoint::open(dir.path()).and_then(|model| model.matrix("l")).expect_err("must be refused");
    assert!(error.to_string().contains(part), "{error}");
}

fn gptq_config(bits: usize, group: i64, version: &str) -> Value {
    json!({"quant_method": "gptq", "bits": bits, "group_size": group, "sym": false, "desc_act": false,
        "checkpoint_format": version})
}

#[test]
fn gptq_of_both_versions() {
    let runs: Vec<u32> = (0..COLS as u32).map(|col| col / 32).collect();
    for bits in [2, 3, 4, 8] {
        let codes = Codes::new(bits, 32);
        for (less, version) in [(1, "gptq"), (0, "gptq_v2")] {
            for g_idx in [None, Some(&runs[..])] {
                let kind =
                    check(&gptq_config(bits, 32, version), &gptq(&codes, less, Dtype::F16, g_idx), &codes.values());
                assert_eq!(kind, format!("w{bits}g32"), "{version}");
            }
        }
    }
    let (all, centred) = (Codes::new(4, COLS), Codes::symmetric(4, 48));
    assert_eq!(check(&gptq_config(4, -1, "gptq_v2"), &gptq(&all, 0, Dtype::F16, None), &all.values()), "w4");
    let tensors = gptq(&centred, 1, Dtype::F16, None);
    let mut config = gptq_config(4, 48, "gptq");
    assert_eq!(check(&config, &tensors, &centred.values()), "w4g48");
    config["sym"] = true.into();
    assert_eq!(check(&config, &tensors, &centred.values()), "w4g48sym");
    // Zero points are read even where the config needs none.
    let shifted = Codes::new(4, 48);
    assert_eq!(check(&config, &gptq(&shifted, 1, Dtype::F16, None), &shifted.values()), "w4g48");
    // Zero points of 2^bits are no codes, but what kernels of version 1 compute with.
    let beyond = Codes { zeros: vec![16; 2 * ROWS], ..Codes::new(4, 48) };
    assert_eq!(check(&gptq_config(4, 48, "gptq"), &gptq(&beyond, 1, Dtype::F16, None), &beyond.values()), "values");
}

#[test]
fn scales_are_never_rounded() {
    let mut codes = Codes::new(4, 32);
    codes.scales[7] = 0.1;
    assert_eq!(check(&gptq_config(4, 32, "gptq_v2"), &gptq(&codes, 0, Dtype::F32, None), &codes.values()), "values");
    // bf16 numbers of usual sizes are f16 numbers.
    codes.scales.iter_mut().for_each(|scale| *scale = bf16::from_f32(*scale).to_f32());
    assert_eq!(check(&gptq_config(4, 32, "gptq_v2"), &gptq(&codes, 0, Dtype::BF16, None), &codes.values()), "w4g32");
    codes.scales[7] = 0.0;
    assert_eq!(check(&gptq_config(4, 32, "gptq_v2"), &gptq(&codes, 0, Dtype::F16, None), &codes.values()), "values");
}

#[test]
fn gptq_with_channels_in_another_order() {
    let codes = Codes::new(3, 32);
    let order: Vec<usize> = (0..COLS).map(|col| col * 37 % COLS / 32).collect();
    let g_idx: Vec<u32> = order.iter().map(|group| *group as u32).collect();
    let tensors = gptq(&codes, 0, Dtype::F16, Some(&g_idx));
    assert_eq!(check(&gptq_config(3, 32, "gptq_v2"), &tensors, &codes.values_of(&order)), "values");
    let spoiled = |at: usize, group: u32| {
        let mut g_idx = g_idx.clone();
        g_idx[at] = group;
        gptq(&codes, 0, Dtype::F16, Some(&g_idx))
    };
    let config = gptq_config(3, 32, "gptq_v2");
    check_refused(&config, &spoiled(2, 3), "g_idx: channel 2 is in group 3 of 3");
    check_refused(&config, &spoiled(9, u32::MAX), "g_idx: channel 9 is in group -1 of");
}

#[test]
fn modules_with_settings_of_their_own() {
    let codes = Codes::new(8, 48);
    let mut config = gptq_config(4, 32, "gptq_v2");
    config["dynamic"] = json!({"-:m": {}, "+:l|k": {"bits": 8, "group_size": 48}});
    assert_eq!(check(&config, &gptq(&codes, 0, Dtype::F16, None), &codes.values()), "w8g48");
    let mut config = auto_round_config("auto_round", 4, false);
    config["extra_config"] = json!({"l": {"bits": 8, "group_size": 48}, ".*lm_head.*": {"bits": 16}});
    assert_eq!(check(&config, &gptq(&codes, 0, Dtype::F16, None), &codes.values()), "w8g48");
    config["extra_config"] = json!({".*l": {"bits": 8, "group_size": 48}});
    assert_eq!(check(&config, &gptq(&codes, 0, Dtype::F16, None), &codes.values()), "w8g48");
    let mut interleaved = auto_round_config("auto_round:auto_awq", 4, false);
    interleaved["extra_config"] = json!({"l": {"bits": 3}});
    check_refused(&interleaved, &awq(&Codes::new(4, 32)), "bits is 3, expected 4");
    config["extra_config"] = json!([]);
    check_refused(&config, &[], "extra_config is [], expected an object");
}

#[test]
fn awq_of_products() {
    let config = |group: i64| json!({"quant_method": "awq", "bits": 4, "group_size": group, "zero_point": true, "version": "GEMM"});
    let (codes, centred) = (Codes::new(4, 32), Codes::symmetric(4, COLS));
    assert_eq!(check(&config(32), &awq(&codes), &codes.values()), "w4g32");
    assert_eq!(check(&config(-1), &awq(&centred), &centred.values()), "w4");
    let missing: Vec<_> = awq(&codes).into_iter().filter(|tensor| tensor.name() != "l.qzeros").collect();
    check_refused(&config(32), &missing, "l: qzeros is missing");
    check_refused(&config(48), &awq(&codes), "scales is [3, 64], expected [2, 64]");
    let mut other = config(32);
    other["version"] = "gemv".into();
    check_refused(&other, &[], "version is \"gemv\", expected \"gemm\"");
    other = config(32);
    other["bits"] = 3.into();
    check_refused(&other, &[], "bits is 3, expected 4");
}

fn auto_round_config(format: &str, bits: usize, sym: bool) -> Value {
    json!({"quant_method": "auto-round", "packing_format": format, "bits": bits, "group_size": 32, "sym": sym, "data_type": "int"})
}

#[test]
fn auto_round_in_each_packing() {
    for bits in [2, 3, 4, 8] {
        let codes = Codes::new(bits, 32);
        for (format, less) in [("auto_round", 0), ("auto_round:gptqmodel", 0), ("auto_round:auto_gptq", 1)] {
            let tensors = gptq(&codes, less, Dtype::F16, None);
            assert_eq!(
                check(&auto_round_config(format, bits, false), &tensors, &codes.values()),
                format!("w{bits}g32")
            );
        }
    }
    let codes = Codes::new(4, 32);
    assert_eq!(check(&auto_round_config("auto_round:auto_awq", 4, false), &awq(&codes), &codes.values()), "w4g32");
    // Signed scales, which use all codes.
    let mut full = Codes::symmetric(2, 32);
    full.scales.iter_mut().step_by(3).for_each(|scale| *scale = -*scale);
    let config = auto_round_config("auto_round:auto_gptq", 2, true);
    assert_eq!(check(&config, &gptq(&full, 1, Dtype::F16, None), &full.values()), "w2g32full");
    let mut method = config.clone();
    method["quant_method"] = "intel/auto-round".into();
    assert_eq!(check(&method, &gptq(&full, 1, Dtype::F16, None), &full.values()), "w2g32full");
    // Without a centred zero point, there is no such grid.
    full.zeros[3] = 1;
    assert_eq!(check(&config, &gptq(&full, 1, Dtype::F16, None), &full.values()), "values");

    check_refused(
        &auto_round_config("auto_round:fp8_static", 8, true),
        &[],
        "packing_format is \"auto_round:fp8_static\"",
    );
    check_refused(&auto_round_config("auto_round:auto_awq", 3, true), &[], "bits is 3, expected 4");
    for (field, value, part) in
        [("data_type", json!("mx_fp"), "data_type is \"mx_fp\""), ("act_bits", json!(8), "act_bits is 8")]
    {
        let mut other = config.clone();
        other[field] = value;
        check_refused(&other, &[], part);
    }
}

#[test]
fn mlx_of_each_width() {
    for bits in [2, 3, 4, 5, 6, 8] {
        let codes = Codes::new(bits, 32);
        let config = json!({"group_size": 32, "bits": bits, "mode": "affine"});
        for dtype in [Dtype::F16, Dtype::BF16, Dtype::F32] {
            let stored = |values: Vec<f32>| -> Vec<f32> {
                let rounded = |x: &f32| match dtype {
                    Dtype::F16 => f16::from_f32(*x).to_f32(),
                    Dtype::BF16 => bf16::from_f32(*x).to_f32(),
                    _ => *x,
                };
                values.iter().map(rounded).collect()
            };
            let (scales, biases) =
                (stored(codes.scales.clone()), stored(codes.scales.iter().map(|s| s * -1.3).collect()));
            let values = codes.codes.iter().enumerate();
            let values: Vec<f32> = values.map(|(at, code)| scales[at / 32] * *code as f32 + biases[at / 32]).collect();
            let words: Vec<u32> = codes.codes.chunks(COLS).flat_map(|row| stream(row.iter().copied(), bits)).collect();
            let words: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
            let tensors = [
                bytes("l.weight", &[ROWS, COLS * bits / 32], Dtype::U32, words),
                floats("l.scales", &[ROWS, 3], &scales, dtype),
                floats("l.biases", &[ROWS, 3], &biases, dtype),
            ];
            check(&config, &tensors, &values);
            let mut own = json!({"group_size": 64, "bits": 4, "m": false, "n": true});
            own["l"] = config.clone();
            check(&own, &tensors, &values);
            let unsaid = json!({"group_size": 32, "bits": 4, "l": {"group_size": null, "bits": bits}});
            check(&unsaid, &tensors, &values);
            check_refused(
                &json!({"group_size": 64, "bits": bits}),
                &tensors,
                &format!("weight is [64, {}]", COLS * bits / 32),
            );
        }
    }
    check_refused(
        &json!({"group_size": 32, "bits": 4, "mode": "mxfp4"}),
        &[],
        "mode is \"mxfp4\", expected \"affine\"",
    );
    check_refused(&json!({"group_size": -1, "bits": 4}), &[], "group_size is -1");
    check_refused(&json!({"group_size": 32, "bits": 7}), &[], "bits is 7, expected 2, 3, 4, 5, 6 or 8");
}

/// `quantization_config` of compressed-tensors.
fn compressed(format: &str, weights: Value, act: Value) -> Value {
    json!({"quant_method": "compressed-tensors", "format": format, "config_groups": {
        "group_0": {"targets": ["Linear"], "weights": weights, "input_activations": act}}})
}

#[test]
fn bytes_of_compressed_tensors() {
    let act = json!({"num_bits": 8, "type": "int", "symmetric": true, "strategy": "token", "dynamic": true});
    let weights = |strategy: &str, symmetric: bool| json!({"num_bits": 8, "type": "int", "symmetric": symmetric, "strategy": strategy});
    let signed = |codes: &[u64]| codes.iter().map(|code| (*code as i32 - 128) as i8 as u8).collect::<Vec<u8>>();
    let weight = |codes: &Codes| bytes("l.weight", &[ROWS, COLS], Dtype::I8, signed(&codes.codes));
    for format in ["int-quantized", "naive-quantized"] {
        let codes = Codes::symmetric(8, COLS);
        let config = compressed(format, weights("channel", true), act.clone());
        let scale = floats("l.weight_scale", &[ROWS, 1], &codes.scales, Dtype::BF16);
        let rounded = codes.scales.iter().map(|scale| bf16::from_f32(*scale).to_f32()).collect();
        let codes = Codes { scales: rounded, ..codes };
        assert_eq!(check(&config, &[weight(&codes), scale], &codes.values()), "w8sym");
        let of_config = quantization_of(&json!({"quantization_config": config})).unwrap().unwrap();
        assert_eq!(of_config.to_string(), "w8a8-int8");
    }
    let codes = Codes { scales: vec![0.25; ROWS], ..Codes::symmetric(8, COLS) };
    let scale = floats("l.weight_scale", &[1], &[0.25], Dtype::F32);
    let config = compressed("int-quantized", weights("tensor", true), act);
    assert_eq!(check(&config, &[weight(&codes), scale], &codes.values()), "w8sym");
    let codes = Codes::new(8, 32);
    let mut grouped = weights("group", false);
    grouped["group_size"] = 32.into();
    let config = compressed("int-quantized", grouped, Value::Null);
    let tensors = |zeros: &[u64]| {
        [
            weight(&codes),
            floats("l.weight_scale", &[ROWS, 3], &codes.scales, Dtype::F16),
            bytes("l.weight_zero_point", &[ROWS, zeros.len() / ROWS], Dtype::I8, signed(zeros)),
        ]
    };
    assert_eq!(check(&config, &tensors(&codes.zeros), &codes.values()), "w8g32");
    check_refused(&config, &tensors(&codes.zeros[..ROWS]), "weight_zero_point is [64, 1], expected [64, 3]");
    // Codes of fewer bits lie in bytes as well.
    let codes = Codes::symmetric(4, COLS);
    let config = compressed("naive-quantized", json!({"num_bits": 4, "strategy": "channel"}), Value::Null);
    let four = |codes: &[u64]| {
        bytes("l.weight", &[ROWS, COLS], Dtype::I8, codes.iter().map(|code| (*code as i32 - 8) as i8 as u8).collect())
    };
    let scale = floats("l.weight_scale", &[ROWS, 1], &codes.scales, Dtype::F16);
    assert_eq!(check(&config, &[four(&codes.codes), scale.clone()], &codes.values()), "w4sym");
    check_refused(&config, &[four(&[21; ROWS * COLS]), scale], "weight [0, 0] is 13, which has more than 4 bits");
}

/// e4m3 by its definition.
fn e4m3(byte: u8) -> f32 {
    let (sign, exponent, mantissa) = (byte >> 7, byte >> 3 & 15, f32::from(byte & 7));
    let size = if exponent == 0 { mantissa / 512.0 } else { (8.0 + mantissa) * 2f32.powi(i32::from(exponent) - 10) };
    if sign == 1 { -size } else { size }
}

#[test]
fn fp8_with_scales_of_each_granularity() {
    // All bytes but the two that are no numbers.
    let codes: Vec<u8> = (0..ROWS * COLS).map(|at| (at % 127 + (at / 127 % 2) * 128) as u8).collect();
    let weight = bytes("l.weight", &[ROWS, COLS], Dtype::F8_E4M3, codes.clone());
    let scales: Vec<f32> = numbers(64 * 3, 1000, 5).iter().map(|n| 0.001 + *n as f32 / 3000.0).collect();
    let fp8 = json!({"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [48, 40]});
    let float = |strategy: &str| json!({"num_bits": 8, "type": "float", "symmetric": true, "strategy": strategy});
    let act = json!({"num_bits": 8, "type": "float", "symmetric": true, "strategy": "token", "dynamic": true});
    let of_parts = |strategy: &str| compressed("float-quantized", float(strategy), act.clone());
    let mut block = of_parts("block");
    block["config_groups"]["group_0"]["weights"]["block_structure"] = json!([48, 40]);
    let cases = [
        (&fp8, "weight_scale_inv", vec![2, 3], [48, 40]),
        (&block, "weight_scale", vec![2, 3], [48, 40]),
        (&of_parts("tensor"), "weight_scale", vec![1], [ROWS, COLS]),
        (&of_parts("channel"), "weight_scale", vec![ROWS, 1], [1, COLS]),
        (&of_parts("group"), "weight_scale", vec![ROWS, 3], [1, 32]),
        (&json!({"quant_method": "fbgemm_fp8"}), "weight_scale", vec![ROWS, 1], [1, COLS]),
    ];
    for (config, part, shape, [high, wide]) in cases {
        let scale = floats(&format!("l.{part}"), &shape, &scales[..shape.iter().product()], Dtype::F32);
        let at = |at: usize| scales[at / COLS / high * COLS.div_ceil(wide) + at % COLS / wide];
        let values: Vec<f32> = codes.iter().enumerate().map(|(i, byte)| e4m3(*byte) * at(i)).collect();
        assert_eq!(check(config, &[weight.clone(), scale], &values), "values");
        assert_eq!(quantization_of(&json!({"quantization_config": config})).unwrap(), None, "it can be quantized");
    }
    let powers = bytes("l.weight_scale_inv", &[2, 3], Dtype::F8_E8M0, vec![127, 128, 120, 127, 126, 125]);
    let at = |at: usize| [1.0, 2.0, 0.0078125, 1.0, 0.5, 0.25][at / COLS / 48 * 3 + at % COLS / 40];
    let values: Vec<f32> = codes.iter().enumerate().map(|(i, byte)| e4m3(*byte) * at(i)).collect();
    check(&fp8, &[weight.clone(), powers], &values);

    let scale = |shape: &[usize]| floats("l.weight_scale", shape, &scales[..shape.iter().product()], Dtype::F32);
    check_refused(&fp8, &[weight.clone(), scale(&[3, 2])], "weight_scale is [3, 2], expected [64, 1]");
    check_refused(&fp8, std::slice::from_ref(&weight), "l: weight_scale is missing");
    let nan = bytes("l.weight", &[ROWS, COLS], Dtype::F8_E4M3, vec![0x7f; ROWS * COLS]);
    check_refused(&fp8, &[nan, scale(&[1])], "weight [0, 0] is NaN");
    let other = bytes("l.weight", &[ROWS, COLS], Dtype::F8_E5M2, codes);
    check_refused(&fp8, &[other, scale(&[1])], "weight is F8_E5M2");
    let mut six = of_parts("channel");
    six["config_groups"]["group_0"]["weights"]["num_bits"] = 6.into();
    check_refused(&six, &[], "num_bits is 6, expected 4 or 8");
    check_refused(&json!({"quant_method": "fp8", "weight_block_size": [128]}), &[], "weight_block_size is [128]");
}

#[test]
fn fp4_of_compressed_tensors() {
    let numbers_of_e2m1 = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0];
    let codes = numbers(ROWS * COLS, 16, 9);
    let pairs = codes.chunks(2).map(|pair| (pair[0] | pair[1] << 4) as u8).collect();
    let weight = bytes("l.weight_packed", &[ROWS, COLS / 2], Dtype::U8, pairs);
    let float = |group: usize| json!({"num_bits": 4, "type": "float", "symmetric": true, "strategy": "group", "group_size": group});
    let values = |scale: &dyn Fn(usize) -> f32| -> Vec<f32> {
        codes.iter().enumerate().map(|(at, code)| numbers_of_e2m1[*code as usize] * scale(at)).collect()
    };
    let exponents: Vec<u8> = numbers(ROWS * 3, 9, 4).iter().map(|n| 120 + *n as u8).collect();
    let expected = values(&|at| 2f32.powi(i32::from(exponents[at / 32]) - 127));
    let scale = bytes("l.weight_scale", &[ROWS, 3], Dtype::U8, exponents.clone());
    let config = compressed("mxfp4-pack-quantized", float(32), Value::Null);
    assert_eq!(check(&config, &[weight.clone(), scale], &expected), "mxfp4");

    let scales: Vec<u8> = numbers(ROWS * 6, 126, 6).iter().map(|n| 1 + *n as u8).collect();
    let expected = values(&|at| e4m3(scales[at / 16]) / 37.0);
    let scale = bytes("l.weight_scale", &[ROWS, 6], Dtype::F8_E4M3, scales.clone());
    let global = floats("l.weight_global_scale", &[1], &[37.0], Dtype::F32);
    let act = json!({"num_bits": 4, "type": "float", "symmetric": true, "strategy": "tensor_group", "dynamic": "local", "group_size": 16});
    let config = compressed("nvfp4-pack-quantized", float(16), act);
    assert_eq!(check(&config, &[weight.clone(), scale.clone(), global], &expected), "nvfp4");
    check_refused(&config, &[weight, scale], "weight_global_scale is missing");
}

#[test]
fn scales_of_our_own_layout_in_other_types() {
    let mut codes = Codes::new(3, 32);
    codes.scales[5] = 0.3;
    let words: Vec<u32> = codes.codes.chunks(COLS).flat_map(|row| stream(row.iter().copied(), 3)).collect();
    let zeros = transposed(&codes.zeros, 3);
    let zeros: Vec<u32> = zeros.chunks(ROWS).flat_map(|column| stream(column.iter().copied(), 3)).collect();
    let tensors = [
        i32s("l.weight_packed", &[ROWS, COLS * 3 / 32], &words),
        floats("l.weight_scale", &[ROWS, 3], &codes.scales, Dtype::F32),
        i32s("l.weight_zero_point", &[ROWS * 3 / 32, 3], &transposed(&zeros, ROWS * 3 / 32)),
        bytes("l.weight_shape", &[2], Dtype::I64, [ROWS as i64, COLS as i64].map(i64::to_le_bytes).concat()),
    ];
    let weights = json!({"num_bits": 3, "symmetric": false, "strategy": "group", "group_size": 32});
    assert_eq!(check(&compressed("pack-quantized", weights, Value::Null), &tensors, &codes.values()), "values");
}

#[test]
fn linears_that_are_left_out_have_plain_weights() {
    let codes = Codes::new(4, 32);
    let plain = floats("m.weight", &[2, 3], &[1.0, -2.0, 0.5, 0.0, 4.0, 8.0], Dtype::BF16);
    let norm = floats("norm.weight", &[4], &[1.0; 4], Dtype::F16);
    let mut tensors = gptq(&codes, 0, Dtype::F16, None);
    tensors.extend([plain, norm]);
    let mut config = gptq_config(4, 32, "gptq_v2");
    config["modules_in_block_to_quantize"] = json!([["l"]]);
    let dir = packed(&config, &tensors);
    let model = PackedCheckpoint::open(dir.path()).unwrap();
    assert_eq!(model.matrix("m").unwrap(), Matrix::Values(vec![1.0, -2.0, 0.5, 0.0, 4.0, 8.0]));
    assert_eq!(model.linear_names().collect::<Vec<_>>(), ["l"]);
    assert_eq!((model.bits("l").unwrap(), model.bits("m").unwrap()), (Some(4), None));
    assert!(model.linear("m").unwrap_err().to_string().contains("m: its weight has no codes"));

    let summary = inspect(dir.path()).unwrap();
    assert_eq!(summary.method.as_deref(), Some("gptq (gptq_v2)"));
    assert_eq!(summary.quantized.unwrap().to_string(), "w4a16g32");
    assert_eq!((summary.params, summary.quantized_params), ((ROWS * COLS + 10) as u64, (ROWS * COLS) as u64));
    let sizes = [summary.packed_bytes, summary.scale_bytes, summary.zero_point_bytes, summary.dense_bytes];
    assert_eq!(sizes, [ROWS * COLS / 2, 2 * ROWS * 3, ROWS * 3 / 2, 2 * 10].map(|n| n as u64));
}

#[test]
fn keys_of_other_names_and_methods_that_are_not_read() {
    let read = |config: Value| quantization_of(&config).map(|found| found.map(|found| found.to_string()));
    let affine = json!({"group_size": 64, "bits": 4});
    assert_eq!(read(json!({"quantization": affine, "quantization_config": affine})).unwrap().unwrap(), "w4a16g64");
    let packed = compressed("pack-quantized", json!({"num_bits": 4, "strategy": "channel"}), Value::Null);
    assert_eq!(read(json!({"quantization_config": packed})).unwrap().unwrap(), "w4a16sym");
    let old = read(json!({"compression_config": packed})).unwrap_err().to_string();
    assert!(old.contains("compression_config is") && old.contains("rename it to quantization_config"), "{old}");
    let refused = |config: Value| read(json!({"quantization_config": config})).unwrap_err().to_string();
    assert_eq!(
        refused(json!({"quant_method": "bitsandbytes", "load_in_4bit": true})),
        "quantization method `bitsandbytes` is not read, only compressed-tensors, gptq, awq, auto-round, mlx and fp8: give the \
         full-precision original"
    );
    assert!(refused(json!({})).contains("method `none given`"));
    assert!(refused(gptq_config(5, 32, "gptq")).contains("bits is 5, expected 2, 3, 4 or 8"));
    assert!(refused(gptq_config(4, 0, "gptq")).contains("group_size is 0"));
    assert!(refused(gptq_config(4, 32, "marlin")).contains("checkpoint_format is \"marlin\""));
}

#[test]
fn refuses_parts_that_disagree() {
    let codes = Codes::new(4, 32);
    let config = gptq_config(4, 32, "gptq_v2");
    for (idx, part) in ["qweight", "qzeros", "scales"].into_iter().enumerate() {
        let mut tensors = gptq(&codes, 0, Dtype::F16, None);
        tensors.remove(idx);
        // Without codes it is no packed linear.
        check_refused(&config, &tensors, &format!("l: {} is missing", part.replace("qweight", "weight")));
        let mut tensors = gptq(&codes, 0, Dtype::F16, None);
        tensors[idx] = i32s(&format!("l.{part}"), &[2, 2], &[0; 4]);
        check_refused(&config, &tensors, "l: ");
    }
    let mut tensors = gptq(&codes, 0, Dtype::F16, None);
    tensors[0] = floats("l.qweight", &[COLS / 8, ROWS], &vec![0.0; ROWS * COLS / 8], Dtype::F32);
    check_refused(&config, &tensors, "qweight is F32, expected I32 or U32");
    tensors[0] = i32s("l.qweight", &[0, ROWS], &[]);
    check_refused(&config, &tensors, "qweight is [0, 64], expected a matrix");
    let mut tensors = gptq(&codes, 0, Dtype::F16, None);
    let nan = [f16::NAN.to_le_bytes()].concat().repeat(3 * ROWS);
    tensors[2] = bytes("l.scales", &[3, ROWS], Dtype::F16, nan);
    check_refused(&config, &tensors, "scales: value 0 is NaN");
    check_refused(&gptq_config(3, 32, "gptq_v2"), &gptq(&Codes::new(8, 32), 0, Dtype::F16, None), "l: ");
    // The bytes of one method mean nothing to another.
    check_refused(
        &json!({"group_size": 32, "bits": 4}),
        &gptq(&codes, 0, Dtype::F16, None),
        "l: weight_packed is missing",
    );
}
