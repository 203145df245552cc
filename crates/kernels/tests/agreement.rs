//! Every kernel that this processor can run, against the product in f64 and against the scalar kernel.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use half::bf16;
use oq_kernels::{Element, KERNELS, Kernel, KernelError, Operands, PackedLinear};
use oq_quant_core::{Bits, GroupSize, QuantizedTensor, Symmetry, WeightSpec};
use oq_random::SplitMix64;
use proptest::prelude::*;

/// One product: what goes in, and in f64 what should come out.
struct Case {
    tensor: QuantizedTensor,
    bias: Option<Vec<f32>>,
    x: Vec<f32>,
    rows: usize,
    /// `[rows, out]`.
    expected: Vec<f64>,
    /// Sum of `|w x|`, `[rows, out]`: what rounding activations to bf16 errs by.
    size: Vec<f64>,
    /// Sum of `|w|` times the largest `|x|` of the group, `[rows, out]`: what rounding activations to integers errs by.
    largest: Vec<f64>,
    /// Sum of `scale * 256 * |x|`, `[rows, out]`: no code, zero point or what a kernel adds to them for a while is larger.
    span: Vec<f64>,
}

/// Numbers between -1 and 1, some of them large or 0, the same for the same seed.
fn numbers(len: usize, seed: u64) -> Vec<f32> {
    let mut random = SplitMix64::new(seed);
    let sized = |i: usize, x: f32| match i % 29 {
        3 => 0.0,
        7 => 20.0 * x,
        _ => x,
    };
    (0..len).map(|i| sized(i, (2.0 * random.unit() - 1.0) as f32)).collect()
}

fn sum_of_sizes(values: &[f32]) -> f64 {
    values.iter().map(|value| f64::from(value.abs())).sum()
}

impl Case {
    fn new(spec: WeightSpec, rows: usize, [outs, ins]: [usize; 2], bias: bool) -> Self {
        let seed = (rows * 31 + outs * 17 + ins) as u64;
        let tensor = QuantizedTensor::quantize(&numbers(outs * ins, seed), outs, ins, spec).unwrap();
        let bias = bias.then(|| numbers(outs, seed + 1));
        let x = numbers(rows * ins, seed + 2);
        Self::of(tensor, bias, x, rows)
    }

    fn of(tensor: QuantizedTensor, bias: Option<Vec<f32>>, x: Vec<f32>, rows: usize) -> Self {
        let [outs, ins] = tensor.shape();
        let weight = tensor.dequantize();
        let group = ins / tensor.groups();
        let (mut expected, mut size, mut largest, mut span) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for x in x.chunks(ins).take(rows) {
            for out in 0..outs {
                let products = x.iter().zip(&weight[out * ins..]).map(|(x, w)| f64::from(*x) * f64::from(*w));
                let bias = bias.as_ref().map_or(0.0, |bias| f64::from(bias[out]));
                expected.push(products.clone().sum::<f64>() + bias);
                size.push(products.map(f64::abs).sum::<f64>() + bias.abs());
                let groups = x.chunks(group).zip(weight[out * ins..].chunks(group));
                largest.push(
                    groups.map(|(x, w)| sum_of_sizes(w) * f64::from(x.iter().fold(0.0, |a, x| x.abs().max(a)))).sum(),
                );
                let spans = x
                    .chunks(group)
                    .enumerate()
                    .map(|(i, x)| f64::from(tensor.grid(out, i).scale.abs()) * 256.0 * sum_of_sizes(x));
                span.push(spans.sum());
            }
        }
        Self { tensor, bias, x, rows, expected, size, largest, span }
    }

    fn run<A: Element, O: Element + Default>(&self, kernel: &'static Kernel, x: &[A]) -> Vec<O> {
        let linear = PackedLinear::new(&self.tensor, self.bias.as_deref()).unwrap().with_kernel(kernel).unwrap();
        let mut out = vec![O::default(); self.rows * self.tensor.shape()[0]];
        linear.forward(x, self.rows, &mut out).unwrap();
        out
    }

    /// `rounding` is how far rounding activations may move each result.
    ///
    /// A sum in f32 errs by at most 2^-24 of the sizes of what is summed for each addition that a term goes through: here a
    /// segment of at most 256 channels, the groups, and what stands between.
    #[track_caller]
    fn check(&self, name: &str, out: &[f32], expected: &[f64], rounding: &[f64]) {
        let [_, ins] = self.tensor.shape();
        let additions = (ins.min(256) + self.tensor.groups() + ins / 256 + 8) as f64;
        assert_eq!(out.len(), expected.len());
        for (i, (out, expected)) in out.iter().zip(expected).enumerate() {
            let most = additions * 2f64.powi(-24) * (self.span[i] + self.size[i]) + rounding[i];
            let error = (f64::from(*out) - expected).abs();
            assert!(
                error <= most,
                "{name}: {:?} {:?} rows {} at {i}: {out} and not {expected}, {error:e} off, {most:e} at most",
                self.tensor.spec(),
                self.tensor.shape(),
                self.rows
            );
        }
    }

    /// How far rounding activations may move each result.
    fn rounding(&self, kernel: &Kernel, bf16: bool) -> Vec<f64> {
        match if self.rows <= kernel.few_rows { kernel.few } else { kernel.many } {
            // Half a step of 1/32767 of the largest.
            Operands::Int16 => self.largest.iter().map(|x| x / 65500.0).collect(),
            // Half a unit in the last of 8 digits.
            Operands::Bf16 if !bf16 => self.size.iter().map(|x| x / 256.0).collect(),
            Operands::Bf16 | Operands::F32 => vec![0.0; self.size.len()],
            Operands::Int8 => unreachable!("only where it is asked for"),
        }
    }

    /// All kernels, in f32 and in bf16.
    #[track_caller]
    fn check_all(&self) {
        let narrow: Vec<bf16> = self.x.iter().map(|x| bf16::from_f32(*x)).collect();
        let widened = narrow.iter().map(|x| x.to_f32()).collect();
        let of_narrow = Case::of(self.tensor.clone(), self.bias.clone(), widened, self.rows);
        let scalar: Vec<f32> = self.run(Kernel::named("scalar").unwrap(), &self.x);
        let scalar: Vec<f64> = scalar.into_iter().map(f64::from).collect();
        for kernel in KERNELS.iter().filter(|kernel| kernel.is_available()) {
            let out: Vec<f32> = self.run(kernel, &self.x);
            let rounding = self.rounding(kernel, false);
            self.check(kernel.name, &out, &self.expected, &rounding);
            let sums_of_scalar = self.span.iter().map(|span| 2f64.powi(-24) * 270.0 * span);
            let rounding: Vec<f64> = rounding.iter().zip(sums_of_scalar).map(|(a, b)| a + b).collect();
            self.check(kernel.name, &out, &scalar, &rounding);
            let out: Vec<f32> = of_narrow.run(kernel, &narrow);
            of_narrow.check(kernel.name, &out, &of_narrow.expected, &of_narrow.rounding(kernel, true));
            let rounded: Vec<bf16> = of_narrow.run(kernel, &narrow);
            assert!(rounded.iter().zip(&out).all(|(rounded, out)| *rounded == bf16::from_f32(*out)));
        }
    }
}

fn spec(bits: u32, group: usize, symmetry: Symmetry) -> WeightSpec {
    let group = if group == 0 { GroupSize::PerChannel } else { GroupSize::channels(group).unwrap() };
    WeightSpec::integer(Bits::new(bits).unwrap(), group, symmetry)
}

/// Input channels and channels of a group; 0 is one group per output channel.
const GROUPS: [(usize, usize); 14] = [
    (1, 0),
    (31, 0),
    (33, 0),
    (127, 0),
    (1300, 0),
    (49, 7),
    (96, 32),
    (64, 32),
    (320, 64),
    (128, 128),
    (384, 128),
    (512, 256),
    (512, 512),
    (1024, 512),
];

fn check_shapes(bits: u32) {
    for symmetry in [Symmetry::Asymmetric, Symmetry::Symmetric, Symmetry::FullRange] {
        for (ins, group) in GROUPS {
            let spec = spec(bits, group, symmetry);
            for rows in [0, 1, 2, 5, 31, 33] {
                Case::new(spec, rows, [33, ins], true).check_all();
            }
            for outs in [0, 1, 31, 127] {
                Case::new(spec, 2, [outs, ins], false).check_all();
            }
        }
    }
}

#[test]
fn awkward_shapes_2_bits() {
    check_shapes(2);
}

#[test]
fn awkward_shapes_3_bits() {
    check_shapes(3);
}

#[test]
fn awkward_shapes_4_bits() {
    check_shapes(4);
}

#[test]
fn awkward_shapes_8_bits() {
    check_shapes(8);
}

#[test]
fn every_number_of_rows() {
    for bits in [2, 3, 4, 8] {
        for rows in 0..36 {
            Case::new(spec(bits, 32, Symmetry::Asymmetric), rows, [65, 64], true).check_all();
        }
        Case::new(spec(bits, 64, Symmetry::Asymmetric), 127, [127, 128], true).check_all();
    }
    // More rows than are held at a time.
    Case::new(spec(4, 32, Symmetry::Asymmetric), 1031, [33, 64], true).check_all();
}

#[test]
fn widths_between_are_held_in_8_bits() {
    for bits in [5, 6, 7] {
        for symmetry in [Symmetry::Asymmetric, Symmetry::Symmetric, Symmetry::FullRange] {
            Case::new(spec(bits, 32, symmetry), 3, [40, 96], true).check_all();
            Case::new(spec(bits, 0, symmetry), 20, [40, 50], false).check_all();
        }
    }
}

#[test]
fn a_matrix_of_no_rows_gives_nothing() {
    let tensor = QuantizedTensor::quantize(&[], 0, 4, spec(4, 0, Symmetry::Asymmetric)).unwrap();
    for kernel in KERNELS.iter().filter(|kernel| kernel.is_available()) {
        let linear = PackedLinear::new(&tensor, Some(&[])).unwrap().with_kernel(kernel).unwrap();
        linear.forward(&[1.0f32; 8], 2, &mut [0.0f32; 0]).unwrap();
    }
}

#[test]
fn wrong_lengths_are_refused() {
    let tensor = QuantizedTensor::quantize(&[0.5; 12], 3, 4, spec(4, 0, Symmetry::Asymmetric)).unwrap();
    let linear = PackedLinear::new(&tensor, None).unwrap();
    let message = |result: Result<(), KernelError>| result.expect_err("must be refused").to_string();
    assert_eq!(
        message(PackedLinear::new(&tensor, Some(&[0.0; 4])).map(|_| ())),
        "bias: 3 values expected for [3], got 4"
    );
    assert_eq!(message(linear.forward(&[0.0f32; 7], 2, &mut [0.0f32; 6])), "x: 8 values expected for [2, 4], got 7");
    assert_eq!(message(linear.forward(&[0.0f32; 8], 2, &mut [0.0f32; 7])), "out: 6 values expected for [2, 3], got 7");
    assert!(matches!(linear.forward(&[0.0f32; 8], usize::MAX, &mut [0.0f32; 6]), Err(KernelError::Length { .. })));
}

#[test]
fn threads_change_nothing() {
    for rows in [1, 3, 40] {
        let case = Case::new(spec(3, 32, Symmetry::Asymmetric), rows, [300, 96], true);
        for kernel in KERNELS.iter().filter(|kernel| kernel.is_available()) {
            let run = |threads| {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                pool.install(|| case.run::<f32, f32>(kernel, &case.x))
            };
            assert_eq!(run(1), run(5));
        }
    }
}

#[test]
fn what_is_not_a_number_stays_in_its_row() {
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        for rows in [1, 2, 20] {
            let case = Case::new(spec(4, 32, Symmetry::Asymmetric), rows, [40, 96], true);
            for kernel in KERNELS.iter().filter(|kernel| kernel.is_available()) {
                let good: Vec<f32> = case.run(kernel, &case.x);
                // One number, and all of the row.
                for at in [50..51, 0..96] {
                    let mut x = case.x.clone();
                    x[at].fill(bad);
                    let out: Vec<f32> = case.run(kernel, &x);
                    assert!(out[..40].iter().all(|out| !out.is_finite()), "{}", kernel.name);
                    assert_eq!(out[40..], good[40..], "{}", kernel.name);
                }
            }
        }
    }
}

/// The kernels that multiply 8-bit activations here.
fn with_int8() -> Vec<&'static Kernel> {
    let found: Vec<_> = KERNELS.iter().copied().filter(|kernel| kernel.is_available() && kernel.has_int8()).collect();
    if found.is_empty() {
        eprintln!("no kernel multiplies 8-bit activations on this processor: nothing is tested");
    }
    found
}

/// Channels of a group that share a step of 8-bit activations, at most.
const PIECE: usize = 32;

impl Case {
    fn run_int8<A: Element>(&self, kernel: &'static Kernel, x: &[A]) -> Vec<f32> {
        let linear = PackedLinear::new(&self.tensor, self.bias.as_deref()).unwrap().with_kernel(kernel).unwrap();
        let mut out = vec![0.0; self.rows * self.tensor.shape()[0]];
        linear.with_int8().unwrap().forward(x, self.rows, &mut out).unwrap();
        out
    }

    /// The same product of activations that are rounded to 8 bits, and how far that may move each result.
    fn rounded_to_8_bits(&self) -> (Self, Vec<f64>) {
        let [outs, ins] = self.tensor.shape();
        let group = ins / self.tensor.groups();
        let weight = self.tensor.dequantize();
        let (mut x, mut bounds) = (self.x.clone(), Vec::new());
        for x in x.chunks_mut(ins).take(self.rows) {
            let mut of_row = vec![0.0; outs];
            for start in (0..ins).step_by(group).flat_map(|from| (from..from + group).step_by(PIECE)) {
                let end = (start + PIECE).min((start / group + 1) * group);
                let largest = x[start..end].iter().fold(0.0f32, |largest, x| x.abs().max(largest));
                let [step, inverse] = if largest == 0.0 { [0.0, 0.0] } else { [largest / 127.0, 127.0 / largest] };
                for x in &mut x[start..end] {
                    *x = (*x * inverse).round_ties_even() * step;
                }
                for (out, bound) in of_row.iter_mut().enumerate() {
                    *bound += 0.5001 * f64::from(step) * sum_of_sizes(&weight[out * ins + start..out * ins + end]);
                }
            }
            bounds.extend(of_row);
        }
        (Self::of(self.tensor.clone(), self.bias.clone(), x, self.rows), bounds)
    }

    /// Many rows in 8 bits: sums in f32 of what is rounded, and no further from the product than rounding moves it.
    #[track_caller]
    fn check_int8(&self) {
        let narrow: Vec<bf16> = self.x.iter().map(|x| bf16::from_f32(*x)).collect();
        let widened = narrow.iter().map(|x| x.to_f32()).collect();
        let of_narrow = Self::of(self.tensor.clone(), self.bias.clone(), widened, self.rows);
        for kernel in with_int8() {
            for (case, out) in
                [(self, self.run_int8(kernel, &self.x)), (&of_narrow, of_narrow.run_int8(kernel, &narrow))]
            {
                if case.rows <= kernel.few_rows {
                    assert_eq!(out, case.run::<f32, f32>(kernel, &case.x), "a few rows are as without");
                    continue;
                }
                let (rounded, bounds) = case.rounded_to_8_bits();
                rounded.check(kernel.name, &out, &rounded.expected, &vec![0.0; out.len()]);
                case.check(kernel.name, &out, &case.expected, &bounds);
            }
        }
    }
}

#[test]
fn activations_of_8_bits() {
    for bits in 2..=8 {
        for symmetry in [Symmetry::Asymmetric, Symmetry::Symmetric, Symmetry::FullRange] {
            for (ins, group) in GROUPS.into_iter().chain([(3, 1), (7, 0), (98, 49), (80, 40), (128, 32)]) {
                Case::new(spec(bits, group, symmetry), 19, [33, ins], true).check_int8();
            }
            for outs in [0, 1, 127] {
                Case::new(spec(bits, 32, symmetry), 17, [outs, 96], false).check_int8();
            }
        }
    }
}

#[test]
fn every_number_of_rows_in_8_bits() {
    for bits in [2, 3, 4, 8] {
        for rows in 0..60 {
            Case::new(spec(bits, 32, Symmetry::Asymmetric), rows, [65, 64], true).check_int8();
        }
        Case::new(spec(bits, 64, Symmetry::Asymmetric), 127, [300, 640], true).check_int8();
    }
    Case::new(spec(4, 32, Symmetry::Asymmetric), 1031, [33, 64], true).check_int8();
}

/// What is 0 in a piece stays 0 whatever its neighbours are, and what is tiny or huge is not lost.
#[test]
fn sizes_of_8_bit_activations() {
    for size in [0.0, 1e-20, 1e20] {
        let mut case = Case::new(spec(4, 64, Symmetry::Asymmetric), 20, [40, 128], false);
        case.x.chunks_mut(32).step_by(3).for_each(|x| x.iter_mut().for_each(|x| *x *= size));
        Case::of(case.tensor, None, case.x, 20).check_int8();
    }
}

#[test]
fn what_is_not_a_number_stays_in_its_row_in_8_bits() {
    for bits in [3, 4, 8] {
        let case = Case::new(spec(bits, 32, Symmetry::Asymmetric), 20, [40, 96], true);
        for kernel in with_int8() {
            let good = case.run_int8(kernel, &case.x);
            for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                for at in [50..51, 0..96] {
                    let mut x = case.x.clone();
                    x[at].fill(bad);
                    let out = case.run_int8(kernel, &x);
                    assert!(out[..40].iter().all(|out| !out.is_finite()), "{}", kernel.name);
                    assert_eq!(out[40..], good[40..], "{}", kernel.name);
                }
            }
        }
    }
}

#[test]
fn kernels_without_8_bit_activations_say_so() {
    let tensor = QuantizedTensor::quantize(&[0.5; 12], 3, 4, spec(4, 0, Symmetry::Asymmetric)).unwrap();
    let linear = PackedLinear::new(&tensor, None).unwrap().with_kernel(Kernel::named("scalar").unwrap()).unwrap();
    let error = linear.with_int8().expect_err("it has no such path");
    assert_eq!(
        error.to_string(),
        "kernel scalar does not multiply 8-bit activations: avx512-bf16 does (AVX-512 with VNNI and BF16)"
    );
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_specs(
        bits in 2u32..=8,
        symmetric in any::<bool>(),
        (group, groups) in (1usize..80, 1usize..5),
        per_channel in any::<bool>(),
        rows in 0usize..20,
        outs in 1usize..70,
        bias in any::<bool>(),
    ) {
        let symmetry = if symmetric { Symmetry::Symmetric } else { Symmetry::Asymmetric };
        let spec = spec(bits, if per_channel { 0 } else { group }, symmetry);
        Case::new(spec, rows, [outs, group * groups], bias).check_all();
        Case::new(spec, rows + 16, [outs, group * groups], bias).check_int8();
    }
}
