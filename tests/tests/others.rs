//! Models that other programs packed: tiny-llama's linears in each of their layouts compute what the decoded weights do.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::Path;

use half::f16;
use oq_eval::logits;
use oq_formats::{Checkpoint, Dtype, FormatError, OutTensor, read_config, write_shard};
use oq_models::{Compute, Form, HeadKind, Kernels, Model, ModelError};
use oq_quant_core::{ActSpec, QuantSpec, QuantizedTensor, pack_row, packed_words};
use oq_tests::{fixture, measure, omniquant, relative_error};
use serde_json::{Value, json};
use tch::{Device, Kind, Tensor};
use tempfile::TempDir;

/// Packed products sum in another order than libtorch.
const F32_TOLERANCE: f64 = 1e-4;

/// The tensors of a linear in a layout, and the values that they stand for.
type Pack = fn(&str, &QuantizedTensor) -> (Vec<OutTensor<'static>>, Vec<f32>);

fn spec(text: &str) -> QuantSpec {
    text.parse().unwrap()
}

fn raw(name: String, shape: &[usize], dtype: Dtype, bytes: Vec<u8>) -> OutTensor<'static> {
    OutTensor::new(name, dtype, shape, bytes).unwrap()
}

fn words(name: String, shape: &[usize], dtype: Dtype, words: &[u32]) -> OutTensor<'static> {
    raw(name, shape, dtype, words.iter().flat_map(|word| word.to_le_bytes()).collect())
}

fn halves(name: String, shape: &[usize], values: &[f16]) -> OutTensor<'static> {
    raw(name, shape, Dtype::F16, values.iter().flat_map(|value| value.to_le_bytes()).collect())
}

fn transposed<T: Copy>(values: &[T], cols: usize) -> Vec<T> {
    (0..cols).flat_map(|col| values.iter().skip(col).step_by(cols).copied()).collect()
}

/// GPTQ with zero points less one, whose groups are the runs of `g_idx`.
fn gptq_with(
    name: &str,
    codes: &QuantizedTensor,
    less: u8,
    g_idx: Option<Vec<usize>>,
) -> (Vec<OutTensor<'static>>, Vec<f32>) {
    let ([rows, cols], groups, bits) = (codes.shape(), codes.groups(), codes.spec().bits);
    let (scales, zeros) = codes.half().unwrap();
    let row_words = packed_words(rows, bits);
    let mut packed_zeros = vec![0; groups * row_words];
    for (zeros, words) in transposed(zeros, groups).chunks(rows).zip(packed_zeros.chunks_mut(row_words)) {
        pack_row(&zeros.iter().map(|zero| zero - less).collect::<Vec<_>>(), bits, words).unwrap();
    }
    let mut tensors = vec![
        words(
            format!("{name}.qweight"),
            &[packed_words(cols, bits), rows],
            Dtype::I32,
            &transposed(codes.words(), packed_words(cols, bits)),
        ),
        words(format!("{name}.qzeros"), &[groups, row_words], Dtype::I32, &packed_zeros),
        halves(format!("{name}.scales"), &[groups, rows], &transposed(scales, groups)),
    ];
    let Some(of) = g_idx else { return (tensors, codes.dequantize()) };
    let numbers: Vec<u32> = of.iter().map(|group| *group as u32).collect();
    tensors.push(words(format!("{name}.g_idx"), &[cols], Dtype::I32, &numbers));
    let mut values = Vec::with_capacity(rows * cols);
    let mut row_codes = vec![0; cols];
    for row in 0..rows {
        codes.row_codes(row, &mut row_codes);
        for (code, group) in row_codes.iter().zip(&of) {
            let at = row * groups + group;
            values.push((f32::from(*code) - f32::from(zeros[at])) * scales[at].to_f32());
        }
    }
    (tensors, values)
}

fn gptq(name: &str, codes: &QuantizedTensor) -> (Vec<OutTensor<'static>>, Vec<f32>) {
    gptq_with(name, codes, 1, None)
}

fn gptq_in_another_order(name: &str, codes: &QuantizedTensor) -> (Vec<OutTensor<'static>>, Vec<f32>) {
    let groups = codes.groups();
    gptq_with(name, codes, 0, Some((0..codes.shape()[1]).map(|col| col * 7 % groups).collect()))
}

fn awq(name: &str, codes: &QuantizedTensor) -> (Vec<OutTensor<'static>>, Vec<f32>) {
    let ([rows, cols], groups) = (codes.shape(), codes.groups());
    let (scales, zeros) = codes.half().unwrap();
    let by_rows: Vec<u8> = (0..rows)
        .flat_map(|row| {
            let mut of_row = vec![0; cols];
            codes.row_codes(row, &mut of_row);
            of_row
        })
        .collect();
    let word = |eight: &[u8]| {
        let places = [0, 2, 4, 6, 1, 3, 5, 7].into_iter().enumerate();
        places.map(|(place, column)| u32::from(eight[column]) << (4 * place)).sum()
    };
    let interleaved = |values: &[u8]| -> Vec<u32> { values.chunks(8).map(word).collect() };
    let tensors = vec![
        words(format!("{name}.qweight"), &[cols, rows / 8], Dtype::I32, &interleaved(&transposed(&by_rows, cols))),
        words(format!("{name}.qzeros"), &[groups, rows / 8], Dtype::I32, &interleaved(&transposed(zeros, groups))),
        halves(format!("{name}.scales"), &[groups, rows], &transposed(scales, groups)),
    ];
    (tensors, codes.dequantize())
}

fn mlx(name: &str, codes: &QuantizedTensor) -> (Vec<OutTensor<'static>>, Vec<f32>) {
    let ([rows, cols], groups) = (codes.shape(), codes.groups());
    let (scales, zeros) = codes.half().unwrap();
    let bias = |(scale, zero): (&f16, &u8)| f16::from_f32(-scale.to_f32() * f32::from(*zero));
    let biases: Vec<f16> = scales.iter().zip(zeros).map(bias).collect();
    let mut values = Vec::with_capacity(rows * cols);
    let mut row_codes = vec![0; cols];
    for row in 0..rows {
        codes.row_codes(row, &mut row_codes);
        for (col, code) in row_codes.iter().enumerate() {
            let at = row * groups + col * groups / cols;
            values.push(scales[at].to_f32() * f32::from(*code) + biases[at].to_f32());
        }
    }
    let tensors = vec![
        words(format!("{name}.weight"), &[rows, packed_words(cols, codes.spec().bits)], Dtype::U32, codes.words()),
        halves(format!("{name}.scales"), &[rows, groups], scales),
        halves(format!("{name}.biases"), &[rows, groups], &biases),
    ];
    (tensors, values)
}

fn bytes(name: &str, codes: &QuantizedTensor) -> (Vec<OutTensor<'static>>, Vec<f32>) {
    let [rows, cols] = codes.shape();
    let mut signed = Vec::with_capacity(rows * cols);
    let mut row_codes = vec![0u8; cols];
    for row in 0..rows {
        codes.row_codes(row, &mut row_codes);
        signed.extend(row_codes.iter().map(|code| code.wrapping_sub(128)));
    }
    let tensors = vec![
        raw(format!("{name}.weight"), &[rows, cols], Dtype::I8, signed),
        halves(format!("{name}.weight_scale"), &[rows, 1], codes.half().unwrap().0),
    ];
    (tensors, codes.dequantize())
}

/// FP8 with a scale per block; its numbers are those of codes of 4 bits, so that they are e4m3 numbers.
fn fp8(name: &str, codes: &QuantizedTensor) -> (Vec<OutTensor<'static>>, Vec<f32>) {
    let [rows, cols] = codes.shape();
    // -8 to 7 in e4m3.
    let e4m3 = |number: i32| {
        let size = number.unsigned_abs();
        let exponent = size.checked_ilog2().unwrap_or(0);
        let byte = if size == 0 { 0 } else { ((exponent + 7) << 3) | ((size << 3 >> exponent) & 7) };
        byte as u8 | if number < 0 { 0x80 } else { 0 }
    };
    let (high, wide) = (rows.div_ceil(48), cols.div_ceil(80));
    let scales: Vec<f32> = (0..high * wide).map(|at| 0.011 + at as f32 * 0.003).collect();
    let (mut numbers, mut values, mut row_codes) = (Vec::new(), Vec::new(), vec![0u8; cols]);
    for row in 0..rows {
        codes.row_codes(row, &mut row_codes);
        for (col, code) in row_codes.iter().enumerate() {
            numbers.push(e4m3(i32::from(*code) - 8));
            values.push((f32::from(*code) - 8.0) * scales[row / 48 * wide + col / 80]);
        }
    }
    let tensors = vec![
        raw(format!("{name}.weight"), &[rows, cols], Dtype::F8_E4M3, numbers),
        OutTensor::from_f32(format!("{name}.weight_scale_inv"), &[high, wide], &scales, Dtype::F32).unwrap(),
    ];
    (tensors, values)
}

struct Layout {
    config: Value,
    scheme: &'static str,
    pack: Pack,
    /// Whether the embedding and the head are packed too.
    outer: bool,
}

/// tiny-llama in a layout, and the same values in a dense model.
fn repacked(layout: &Layout) -> (TempDir, TempDir) {
    let source = fixture("tiny-llama");
    let (packed, dense) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let model = Model::open(&source).unwrap();
    let decoder = model.decoder();
    let of_layer = |layer: usize| {
        let names = decoder.layer(layer).linears.into_iter();
        names.map(move |linear| format!("{}{}", decoder.block_prefix(layer), linear.name.0)).collect::<Vec<_>>()
    };
    let mut linears: Vec<String> = (0..decoder.dims().n_layers).flat_map(of_layer).collect();
    if layout.outer {
        linears.extend(["model.embed_tokens", "lm_head"].map(str::to_owned));
    }
    let checkpoint = Checkpoint::open(&source).unwrap();
    let (mut of_packed, mut of_dense) = (Vec::new(), Vec::new());
    for tensor in checkpoint.tensors() {
        let linear = tensor.name.strip_suffix(".weight").filter(|name| linears.iter().any(|linear| linear == name));
        let Some(linear) = linear else {
            of_packed.push(OutTensor::copy_from(&checkpoint, tensor.name).unwrap());
            of_dense.push(OutTensor::copy_from(&checkpoint, tensor.name).unwrap());
            continue;
        };
        let codes = QuantizedTensor::quantize(
            &tensor.to_f32_vec().unwrap(),
            tensor.shape[0],
            tensor.shape[1],
            spec(layout.scheme).weight,
        );
        let (parts, values) = (layout.pack)(linear, &codes.unwrap());
        of_packed.extend(parts);
        of_dense.push(OutTensor::from_f32(tensor.name.to_owned(), tensor.shape, &values, Dtype::F32).unwrap());
    }
    let mut config = read_config(&source).unwrap();
    for (dir, tensors) in [(&dense, of_dense), (&packed, of_packed)] {
        fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
        write_shard(&dir.path().join("model.safetensors"), &tensors).unwrap();
        fs::copy(source.join("tokenizer.json"), dir.path().join("tokenizer.json")).unwrap();
        config["quantization_config"] = layout.config.clone();
    }
    (packed, dense)
}

fn open(dir: &Path, kernels: Kernels, compute: Compute) -> Model {
    Model::open(dir).unwrap().with_form(Form::new(kernels, compute, HeadKind::Wide)).unwrap()
}

fn answer(model: &Model) -> Vec<f32> {
    let vocab = model.decoder().dims().vocab as i64;
    let ids = (Tensor::arange(2 * 24, (Kind::Int64, Device::Cpu)) * 37 + 11).remainder(vocab).view([2, 24]);
    Vec::try_from(logits(model, &ids, Device::Cpu).unwrap().view(-1)).unwrap()
}

fn layouts() -> Vec<Layout> {
    let gptq_config = |version: &str, bits: u32, group: i64| json!({"quant_method": "gptq", "bits": bits, "group_size": group, "checkpoint_format": version, "sym": true});
    let of = |config: Value, scheme: &'static str, pack: Pack| Layout { config, scheme, pack, outer: false };
    let act = json!({"num_bits": 8, "type": "int", "symmetric": true, "strategy": "token", "dynamic": true});
    let bytes_config = |act: Value| {
        json!({"quant_method": "compressed-tensors", "format": "int-quantized", "config_groups": {"group_0": {
            "targets": ["Linear"], "weights": {"num_bits": 8, "strategy": "channel"}, "input_activations": act}}})
    };
    vec![
        of(gptq_config("gptq", 4, 64), "w4a16g64sym", gptq),
        of(gptq_config("gptq", 3, -1), "w3a16sym", gptq),
        of(gptq_config("gptq_v2", 4, 32), "w4a16g32", gptq_in_another_order),
        of(json!({"quant_method": "awq", "bits": 4, "group_size": 64}), "w4a16g64", awq),
        of(
            json!({"quant_method": "auto-round", "packing_format": "auto_round:auto_gptq", "bits": 2, "group_size": 32,
            "sym": true}),
            "w2a16g32sym",
            gptq,
        ),
        Layout { outer: true, ..of(json!({"bits": 4, "group_size": 64}), "w4a16g64", mlx) },
        of(bytes_config(Value::Null), "w8a16sym", bytes),
        of(bytes_config(act), "w8a16sym", bytes),
    ]
}

#[test]
fn logits_are_those_of_decoded_weights() {
    for layout in layouts() {
        let (packed, dense) = repacked(&layout);
        let model = open(packed.path(), Kernels::Dense, Compute::F32);
        let name = layout.config.to_string();
        if model.act() == ActSpec::Float {
            let expected = answer(&open(dense.path(), Kernels::Dense, Compute::F32));
            assert_eq!(answer(&model), expected, "{name}");
            let error = relative_error(&answer(&open(packed.path(), Kernels::Packed, Compute::F32)), &expected);
            assert!(error <= F32_TOLERANCE, "{name}: relative error {error:.1e}");
        } else {
            // A level halfway between two codes may be rounded either way, so only the perplexities agree.
            let by_codes = measure(&open(packed.path(), Kernels::Packed, Compute::F32));
            assert!((by_codes / measure(&model) - 1.0).abs() <= 1e-3, "{name}");
            assert_ne!(answer(&model), answer(&open(dense.path(), Kernels::Dense, Compute::F32)), "{name}");
        }
        let refused = model.check_quantizable(spec("w4a16g64")).unwrap_err();
        assert!(matches!(refused, ModelError::AlreadyQuantized { .. }), "{refused}");
    }
}

fn fp8_layout(outer: bool) -> Layout {
    let config = json!({"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [48, 80]});
    Layout { config, scheme: "w4a16sym", pack: fp8, outer }
}

#[test]
fn a_model_in_fp8_is_quantized_like_its_decoded_weights() {
    let (packed, dense) = repacked(&fp8_layout(false));
    let model = open(packed.path(), Kernels::Dense, Compute::F32);
    assert_eq!(answer(&model), answer(&open(dense.path(), Kernels::Dense, Compute::F32)));
    assert_eq!(model.quantization(), None);
    let form = Form::new(Kernels::Packed, Compute::F32, HeadKind::Wide);
    assert!(matches!(model.with_form(form), Err(ModelError::Format(FormatError::NotPacked { .. }))));
    let rounded = |dir: &Path| answer(&Model::open(dir).unwrap().with_round_to_nearest(spec("w3a16g64")).unwrap());
    assert_eq!(rounded(packed.path()), rounded(dense.path()));

    let outs = [&packed, &dense].map(|source| {
        let out = TempDir::new().unwrap();
        let args = ["quantize", source.path().to_str().unwrap(), "--scheme", "w3a16g64", "--method", "rtn", "--out"];
        let run = omniquant().args(args).arg(out.path()).output().unwrap();
        assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
        out
    });
    let [ours, theirs] = outs.map(|out| answer(&open(out.path(), Kernels::Dense, Compute::F32)));
    assert_eq!(ours, theirs);

    // The embedding and the head would be copied as they are.
    let (packed, _) = repacked(&fp8_layout(true));
    let refused = Model::open(packed.path()).unwrap().check_quantizable(spec("w4a16g64")).unwrap_err();
    assert!(refused.to_string().contains("`model.embed_tokens.weight` is F8_E4M3"), "{refused}");
}

#[test]
fn inspect_names_the_method() {
    let layout = &layouts()[3];
    let (packed, _) = repacked(layout);
    let run = omniquant().arg("inspect").arg(packed.path()).output().unwrap();
    let text = String::from_utf8_lossy(&run.stdout);
    assert!(text.contains("format          awq") && text.contains("quantized       w4a16g64, 4.3"), "{text}");
    let (packed, _) = repacked(&fp8_layout(false));
    let run = omniquant().arg("inspect").arg(packed.path()).output().unwrap();
    let text = String::from_utf8_lossy(&run.stdout);
    assert!(text.contains("format          fp8") && text.contains("quantized       8.0"), "{text}");
}

#[test]
fn a_linear_of_another_shape_is_refused() {
    let (packed, _) = repacked(&layouts()[0]);
    let mut config = read_config(packed.path()).unwrap();
    config["intermediate_size"] = 256.into();
    fs::write(packed.path().join("config.json"), config.to_string()).unwrap();
    let refused = Model::open(packed.path()).err().unwrap();
    assert!(matches!(refused, ModelError::Shape { .. }), "{refused}");
}
