//! What the authors' release learned, merged into a packed model, beside the release's formulas written out.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::path::Path;

use oq_formats::{Checkpoint, OutTensor, PackedCheckpoint, write_shard};
use oq_quant_core::{ActSpec, Bits};
use oq_tests::{fixture, omniquant, run};
use tempfile::TempDir;

/// Two sums of some hundred products in f32.
const ROUNDING: f32 = 1e-4;
/// Scales that are f16 numbers take weights between two codes to the other one: at most this share.
const OTHER_CODES: f32 = 0.01;

/// A block's tensors in full precision.
struct Block(BTreeMap<String, Vec<f32>>);

impl Block {
    fn rows(&mut self, linear: &str, change: impl Fn(usize, f32) -> f32) {
        let n = self.0[&format!("{linear}.weight")].len() / self.width(linear);
        let width = self.width(linear);
        let weight = self.0.get_mut(&format!("{linear}.weight")).unwrap();
        (0..n).for_each(|row| weight[row * width..][..width].iter_mut().for_each(|w| *w = change(row, *w)));
        self.entries(&format!("{linear}.bias"), change);
    }

    fn entries(&mut self, name: &str, change: impl Fn(usize, f32) -> f32) {
        let values = self.0.get_mut(name).into_iter().flatten().enumerate();
        values.for_each(|(at, value)| *value = change(at, *value));
    }

    /// Input channels of a linear of these small models: 64, but for the MLP's last one.
    fn width(&self, linear: &str) -> usize {
        match linear {
            "mlp.down_proj" => 160,
            "fc2" => 128,
            _ => 64,
        }
    }

    /// `b += W d`, then columns times `s`.
    fn reads(&mut self, linear: &str, s: &[f32], d: &[f32]) {
        let width = self.width(linear);
        let weight = self.0.get_mut(&format!("{linear}.weight")).unwrap();
        let added: Vec<f32> = weight.chunks(width).map(|row| row.iter().zip(d).map(|(w, d)| w * d).sum()).collect();
        weight.chunks_mut(width).for_each(|row| row.iter_mut().zip(s).for_each(|(w, s)| *w *= s));
        self.entries(&format!("{linear}.bias"), |row, b| b + added[row]);
    }

    /// What the release does with its scales and shifts.
    fn transform(&mut self, of: &impl Fn(&str) -> Vec<f32>, norms: [&str; 2], out: &str, inner: &[&str]) {
        let scales = |place: &str| -> Vec<f32> {
            let scales = of(&format!("{place}_smooth_scale"));
            scales.into_iter().map(|s| if s.abs() < 0.01 { s.signum() * 0.01 } else { s }).collect()
        };
        let [q, k, v] = ["q_proj", "k_proj", "v_proj"].map(|name| format!("self_attn.{name}"));
        for (place, norm, readers) in [("qkv", norms[0], &[&*q, &*k, &*v][..]), ("fc1", norms[1], inner)] {
            let (s, d) = (scales(place), of(&format!("{place}_smooth_shift")));
            self.entries(&format!("{norm}.bias"), |i, b| (b - d[i]) / s[i]);
            self.entries(&format!("{norm}.weight"), |i, w| w / s[i]);
            readers.iter().for_each(|reader| self.reads(reader, &s, &d));
        }
        let (s, d) = (scales("out"), of("out_smooth_shift"));
        self.entries(&format!("{v}.bias"), |i, b| b - d[i]);
        self.rows(&v, |i, w| w / s[i]);
        self.reads(out, &s, &d);
        let s = scales("qkt");
        self.rows(&q, |i, w| w / s[i]);
        self.rows(&k, |i, w| w * s[i]);
    }
}

/// The release's quantizer: each group with the fractions of its maximum and minimum. Gives values, and each group's scale.
fn quantized(weight: &[f32], group: usize, bits: u32, up: &[f32], low: &[f32]) -> Vec<(f32, f32)> {
    let most = 2f32.powi(bits as i32) - 1.0;
    let sigmoid = |x: f32| 1.0 / (1.0 + (-x).exp());
    let mut made = Vec::new();
    for (idx, weights) in weight.chunks(group).enumerate() {
        let fraction = |strengths: &[f32]| strengths.get(idx).map_or(1.0, |&x| sigmoid(x));
        let hi = fraction(up) * weights.iter().copied().fold(f32::MIN, f32::max);
        let lo = fraction(low) * weights.iter().copied().fold(f32::MAX, f32::min);
        let scale = (hi - lo) / most;
        let zero = (-lo / scale).round();
        made.extend(weights.iter().map(|w| ((((w / scale).round() + zero).clamp(0.0, most) - zero) * scale, scale)));
    }
    made
}

fn merge(model: &str, parameters: &Path, scheme: &str, out: &Path) -> std::process::Command {
    let mut command = omniquant();
    command.arg("merge").arg(fixture(model)).arg("--parameters").arg(parameters).args(["--scheme", scheme, "--out"]);
    command.arg(out);
    command
}

fn learned(name: &str) -> std::path::PathBuf {
    fixture("release").join(format!("{name}.pth"))
}

/// The names of a family's modules: prefix of blocks, two norms, output projection, linears that read the second norm.
type Family = (&'static str, [&'static str; 2], &'static str, &'static [&'static str]);

const LLAMA: Family = (
    "model.layers.",
    ["input_layernorm", "post_attention_layernorm"],
    "self_attn.o_proj",
    &["mlp.gate_proj", "mlp.up_proj"],
);
const OPT: Family =
    ("model.decoder.layers.", ["self_attn_layer_norm", "final_layer_norm"], "self_attn.out_proj", &["fc1"]);

#[track_caller]
fn check(name: &str, (model, family): (&str, Family), scheme: &str, bits: u32, group: Option<usize>, is_let: bool) {
    let dir = TempDir::new().unwrap();
    let out = dir.path().join("merged");
    run(&mut merge(model, &learned(name), scheme, &out), 0);
    let packed = PackedCheckpoint::open(&out).unwrap();
    let original = Checkpoint::open(&fixture(model)).unwrap();
    let parameters = Checkpoint::open_file(&learned(name)).unwrap();
    let (prefix, norms, output, inner) = family;
    let (mut n_weights, mut n_other) = (0, 0);
    for idx in 0..3 {
        let of_block = format!("{prefix}{idx}.");
        let names = original.names().filter_map(|name| Some((name.strip_prefix(&of_block)?.to_owned(), name)));
        let mut block = Block(names.map(|(short, name)| (short, original.values(name).unwrap())).collect());
        let number = |name: &str| parameters.values(&format!("{idx}.{name}")).unwrap_or_default();
        if is_let {
            block.transform(&number, norms, output, inner);
        }
        for (short, expected) in &block.0 {
            let linear = short.strip_suffix(".weight").filter(|linear| !linear.contains("norm"));
            let Some(linear) = linear else {
                let got = packed.checkpoint().values(&format!("{of_block}{short}")).unwrap();
                let near = |(got, expected): (&f32, &f32)| (got - expected).abs() <= ROUNDING * expected.abs().max(1.0);
                assert!(got.iter().zip(expected).all(near), "{of_block}{short}: {got:?} {expected:?}");
                continue;
            };
            let bound = |which: &str| number(&format!("{linear}.weight_quantizer.{which}_factor"));
            let group = group.unwrap_or(block.width(linear));
            let expected = quantized(expected, group, bits, &bound("upbound"), &bound("lowbound"));
            let got = packed.linear(&format!("{of_block}{linear}")).unwrap().dequantize();
            assert_eq!(got.len(), expected.len());
            for (at, (got, (expected, scale))) in got.iter().zip(expected).enumerate() {
                // A scale in f16 is off by 2^-11 at most, and so is what its codes stand for.
                let same = scale * 2f32.powi(bits as i32 - 10);
                let off = (got - expected).abs();
                assert!(off <= same + scale, "{of_block}{linear} {at}: {got}, {expected} by the release");
                n_other += usize::from(off > same);
            }
            n_weights += got.len();
        }
    }
    assert!(n_weights > 50_000, "{n_weights}");
    assert!(n_other as f32 <= OTHER_CODES * n_weights as f32, "{n_other} of {n_weights} have other codes");
}

#[test]
fn models_are_those_of_the_release() {
    check("llama-gqa-tied-w3a16", ("llama-gqa-tied", LLAMA), "w3a16", 3, None, false);
    check("llama-mha-w4a16g32-let", ("llama-mha", LLAMA), "w4a16g32", 4, Some(32), true);
    check("opt-prenorm-w4a4-let", ("opt-prenorm", OPT), "w4a4", 4, None, true);
    check("llama-mha-w6a6-let-alone", ("llama-mha", LLAMA), "w6a6", 6, None, true);
}

#[test]
fn the_packed_model_quantizes_activations_and_runs() {
    let dir = TempDir::new().unwrap();
    let out = dir.path().join("merged");
    run(&mut merge("opt-prenorm", &learned("opt-prenorm-w4a4-let"), "w4a4", &out), 0);
    let packed = PackedCheckpoint::open(&out).unwrap();
    assert_eq!(packed.quantization().act(), ActSpec::PerToken(Bits::new(4).unwrap()));
    let logits = dir.path().join("logits.safetensors");
    let ids = fixture("opt-prenorm/golden.safetensors");
    run(omniquant().arg("logits").arg(&out).arg("--ids").arg(ids).arg("--out").arg(&logits), 0);
    let shape = Checkpoint::open_file(&logits).unwrap().tensor("logits").unwrap().shape.to_vec();
    assert_eq!(shape.last(), Some(&320));
}

#[track_caller]
fn refused((model, parameters, scheme): (&str, &Path, &str), code: i32, part: &str) {
    let dir = TempDir::new().unwrap();
    let out = dir.path().join("merged");
    let stderr = String::from_utf8(run(&mut merge(model, parameters, scheme, &out), code).stderr).unwrap();
    assert!(stderr.contains(part), "{stderr}");
    assert!(!out.exists());
}

#[test]
fn refuses_parameters_of_something_else() {
    let [gqa, mha, opt] = ["llama-gqa-tied-w3a16", "llama-mha-w4a16g32-let", "opt-prenorm-w4a4-let"].map(learned);
    let groups = "`0.self_attn.q_proj.weight_quantizer.upbound_factor` has 128 numbers, and w4a16 has 64 groups there";
    refused(("llama-mha", &mha, "w4a16"), 2, groups);
    refused(("llama-mha", &mha, "w4a16g64"), 2, "group 64 does not divide in_features 160");
    refused(("llama-mha", &mha, "w4a16g32full"), 2, "no scheme of the release");
    refused(("llama-mha", &mha, "q4_k_m"), 2, "no scheme of the release");
    refused(("tiny-llama", &mha, "w4a16g32"), 3, "of 3 blocks, and the model has 4");
    refused(("llama-mha", &opt, "w4a4"), 3, "`0.self_attn.o_proj.weight_quantizer.upbound_factor` is missing");
    refused(("llama-mha", &gqa, "w3a16"), 2, "`0.self_attn.k_proj.weight_quantizer.upbound_factor` has 32 numbers");
    refused(("llama-mha", &fixture("llama-mha/config.json"), "w3a16"), 3, "config.json");
}

/// The parameters of llama-mha with some of them changed, as safetensors.
fn changed(dir: &TempDir, change: impl Fn(&str, &mut Vec<f32>) -> bool) -> std::path::PathBuf {
    let file = Checkpoint::open_file(&learned("llama-mha-w4a16g32-let")).unwrap();
    let mut tensors = Vec::new();
    for tensor in file.tensors() {
        let mut values = tensor.to_f32_vec().unwrap();
        if change(tensor.name, &mut values) {
            let shape = [values.len()];
            tensors.push(OutTensor::from_f32(tensor.name, &shape, &values, oq_formats::Dtype::F32).unwrap());
        }
    }
    let path = dir.path().join("changed.safetensors");
    write_shard(&path, &tensors).unwrap();
    path
}

#[test]
fn refuses_a_transformation_that_the_model_cannot_have() {
    let dir = TempDir::new().unwrap();
    let check = |change: &dyn Fn(&str, &mut Vec<f32>) -> bool, part: &str| {
        refused(("llama-mha", &changed(&dir, change), "w4a16g32"), 3, part);
    };
    check(&|name, _| name != "1.qkt_smooth_scale", "`1.qkt_smooth_scale` is missing");
    let shifted = |name: &str, values: &mut Vec<f32>| {
        values[5] += f32::from(u8::from(name == "2.qkv_smooth_shift"));
        true
    };
    check(&shifted, "`2.qkv_smooth_shift` shifts channels, and the model has no biases");
    let zero = |name: &str, values: &mut Vec<f32>| {
        values[5] *= f32::from(u8::from(name != "1.out_smooth_scale"));
        true
    };
    check(&zero, "`1.out_smooth_scale`: scale 5 is 0");
    let short = |name: &str, values: &mut Vec<f32>| {
        values.truncate(if name == "0.fc1_smooth_scale" { 60 } else { usize::MAX });
        true
    };
    check(&short, "`0.fc1_smooth_scale` has 60 numbers, and the model has 64 channels there");
    // Of the same shapes, but with shared key/value heads, to which the release has no transformation.
    let only_let = |name: &str, _: &mut Vec<f32>| name.contains("smooth");
    let gqa = changed(&dir, only_let);
    refused(("llama-gqa-tied", &gqa, "w4a16g32"), 3, "query heads share key/value heads");
}
