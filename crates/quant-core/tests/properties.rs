//! What must hold for every spec and every weight: properties of packing, grids and specs, and a naive reference.

use half::f16;
use oq_quant_core::{
    ActSpec, Bits, Clip, Grid, GroupSize, Mixture, QuantSpec, QuantizedTensor, Range, SCALE_MAX, SCALE_MIN, Storage,
    Stored, Symmetry, TensorError, WeightSpec, f16_toward_zero, from_e4m3, pack_row, packed_words, unpack_row,
};
use proptest::collection::vec;
use proptest::prelude::*;

/// `weight / scale` is rounded to f32 before it is rounded to a code: off by at most 255 * 2^-24 steps of the grid.
const DIVISION_STEPS: f32 = 2e-5;
/// A scale rounded to one of the f16 numbers beside it loses less than this share of itself, where f16 is not subnormal.
const F16_LOSS: f32 = 1.0 / 1024.0;
/// Smallest f16 that is not subnormal.
const F16_NORMAL: f32 = 6.104e-5;
/// Three roundings to f32 (the width, the quotient, the constant) are each at most 2^-24 off.
const F32_ROUNDINGS: f64 = 1.0 / (1 << 22) as f64;

/// Types whose scales are not f16 numbers with an integer zero point.
const NAMED: [&str; 9] = ["q2_k", "q3_k", "q4_k", "q5_k", "q6_k", "q4_1", "q5_1", "mxfp4", "nvfp4"];

#[derive(Clone, Debug)]
struct Matrix {
    spec: WeightSpec,
    rows: usize,
    cols: usize,
    weight: Vec<f32>,
}

impl Matrix {
    fn quantize(&self) -> QuantizedTensor {
        QuantizedTensor::quantize(&self.weight, self.rows, self.cols, self.spec).expect("shape and weights are valid")
    }

    /// Calls `check(weights, codes, grid)` for each group of a quantized matrix.
    fn for_groups(
        &self,
        packed: &QuantizedTensor,
        mut check: impl FnMut(&[f32], &[u8], Grid) -> Result<(), TestCaseError>,
    ) -> Result<(), TestCaseError> {
        let len = self.cols / packed.groups();
        let mut codes = vec![0; self.cols];
        for (row, weight) in self.weight.chunks(self.cols).enumerate() {
            packed.row_codes(row, &mut codes);
            for (i, (weight, codes)) in weight.chunks(len).zip(codes.chunks(len)).enumerate() {
                check(weight, codes, packed.grid(row, i))?;
            }
        }
        Ok(())
    }
}

fn bits() -> impl Strategy<Value = Bits> {
    proptest::sample::select(Bits::ALL.to_vec())
}

fn symmetry() -> impl Strategy<Value = Symmetry> {
    prop_oneof![Just(Symmetry::Asymmetric), Just(Symmetry::Symmetric), Just(Symmetry::FullRange)]
}

/// Weights of one matrix: of one size or of all sizes, of both signs or of one, and the odd values among them.
fn weights(len: usize) -> impl Strategy<Value = Vec<f32>> {
    let special = prop_oneof![
        Just(0.0f32),
        Just(-0.0),
        Just(f32::MIN_POSITIVE),
        Just(-1e-45),
        Just(f32::MAX),
        Just(-f32::MAX),
        Just(SCALE_MIN),
        Just(SCALE_MAX),
    ];
    let any_size = (-9.0f32..6.0, any::<bool>()).prop_map(|(e, neg)| 10f32.powf(e) * if neg { -1.0 } else { 1.0 });
    prop_oneof![
        4 => (-6.0f32..4.0, vec(-1.0f32..1.0, len)).prop_map(|(e, w)| scaled(w, 10f32.powf(e))),
        1 => (-6.0f32..4.0, vec(0.0f32..1.0, len)).prop_map(|(e, w)| scaled(w, 10f32.powf(e))),
        1 => (-6.0f32..4.0, vec(-1.0f32..-0.5, len)).prop_map(|(e, w)| scaled(w, 10f32.powf(e))),
        1 => (-6.0f32..4.0).prop_map(move |e| vec![10f32.powf(e); len]),
        1 => (-6.0f32..4.0, vec(-8i8..8, len))
            .prop_map(|(e, w)| scaled(w.into_iter().map(f32::from).collect(), 10f32.powf(e) / 16.0)),
        1 => Just(vec![0.0; len]),
        2 => vec(any_size.clone(), len),
        1 => vec(prop_oneof![3 => any_size, 1 => special], len),
    ]
}

fn scaled(mut weight: Vec<f32>, by: f32) -> Vec<f32> {
    weight.iter_mut().for_each(|w| *w *= by);
    weight
}

fn matrix() -> impl Strategy<Value = Matrix> {
    let group = proptest::sample::select(vec![1usize, 2, 3, 7, 8, 32, 64, 128]);
    let shape = prop_oneof![
        (group, 1usize..4).prop_map(|(group, n)| (GroupSize::channels(group).expect("not 0"), group * n)),
        (1usize..200).prop_map(|cols| (GroupSize::PerChannel, cols)),
    ];
    (bits(), symmetry(), shape, 1usize..4).prop_flat_map(|(bits, symmetry, (group, cols), rows)| {
        let spec = WeightSpec::integer(bits, group, symmetry);
        weights(rows * cols).prop_map(move |weight| Matrix { spec, rows, cols, weight })
    })
}

/// A matrix to be quantized to one of the named types; of weights whose scales are ordinary numbers.
fn named_matrix() -> impl Strategy<Value = Matrix> {
    (proptest::sample::select(NAMED.to_vec()), 1usize..3, 1usize..3).prop_flat_map(|(name, rows, blocks)| {
        let (spec, cols) = (WeightSpec::named(name).expect("a type"), 256 * blocks);
        weights(rows * cols).prop_map(move |mut weight| {
            weight.iter_mut().for_each(|w| *w = w.clamp(-1e3, 1e3));
            Matrix { spec, rows, cols, weight }
        })
    })
}

/// Values from what is stored, written out type by type as ggml and the OCP formats define them.
fn by_definition(packed: &QuantizedTensor) -> Vec<f32> {
    let [rows, cols] = packed.shape();
    let (spec, mut codes, mut values) = (packed.spec(), vec![0u8; cols], Vec::new());
    let group = spec.group.len(cols);
    for row in 0..rows {
        packed.row_codes(row, &mut codes);
        for (col, &code) in codes.iter().enumerate() {
            let at = (row * cols + col) / group;
            let outer = (row * cols + col) / 256;
            let q = f32::from(code);
            values.push(match packed.stored() {
                Stored::HalfMin { scales, minima } => scales[at].to_f32() * q + minima[at].to_f32(),
                Stored::Super { scales, minima, outer_scales, outer_minima } => {
                    let d = outer_scales[outer].to_f32() * f32::from(scales[at]);
                    match spec.bits.get() {
                        3 => d * (q - 4.0),
                        6 => d * (q - 32.0),
                        _ => d * q - outer_minima[outer].to_f32() * f32::from(minima[at]),
                    }
                }
                Stored::E8m0 { exponents } => 2f32.powi(i32::from(exponents[at]) - 127) * e2m1(code),
                Stored::E4m3 { scales, global } => from_e4m3(scales[at]) / global * e2m1(code),
                other => panic!("{other:?} is no named type"),
            });
        }
    }
    values
}

/// A sign, two bits of exponent with bias 1, one bit of fraction.
fn e2m1(code: u8) -> f32 {
    let (exponent, fraction) = (code >> 1 & 3, f32::from(code & 1));
    let size = if exponent == 0 { fraction / 2.0 } else { (1.0 + fraction / 2.0) * 2f32.powi(i32::from(exponent) - 1) };
    if code & 8 == 0 { size } else { -size }
}

/// Two weights whose places on their grid lie within a few ulps of half way between codes, where rounding is decided.
fn halfway_ends() -> impl Strategy<Value = (Bits, Symmetry, [f32; 2])> {
    // From below SCALE_MIN to above SCALE_MAX, with all the subnormal scales.
    (bits(), symmetry(), 0x0020u16..0x7100, any::<u8>(), -3i32..4, -3i32..4).prop_map(
        |(bits, symmetry, scale, split, up, down)| {
            let scale = f16::from_bits(scale).to_f32();
            let steps = f32::from(bits.max_code());
            let below = f32::from(split % bits.max_code()) + 0.5;
            let ends = [nudged((steps - below) * scale, up), -nudged(below * scale, down)];
            (bits, symmetry, ends)
        },
    )
}

fn nudged(value: f32, ulps: i32) -> f32 {
    f32::from_bits(value.to_bits().saturating_add_signed(ulps))
}

fn quant_spec() -> impl Strategy<Value = QuantSpec> {
    let group = prop_oneof![
        Just(GroupSize::PerChannel),
        (1usize..=usize::MAX).prop_map(|n| GroupSize::channels(n).expect("not 0")),
        (1usize..1024).prop_map(|n| GroupSize::channels(n).expect("not 0")),
    ];
    let act = prop_oneof![Just(ActSpec::Float), bits().prop_map(ActSpec::PerToken)];
    let integer = (bits(), group.clone(), symmetry(), act)
        .prop_map(|(bits, group, symmetry, act)| QuantSpec::uniform(WeightSpec::integer(bits, group, symmetry), act));
    let int8 = (bits(), group).prop_map(|(bits, group)| {
        let act = ActSpec::PerTokenSymmetric(Bits::new(8).expect("in range"));
        QuantSpec::uniform(WeightSpec::integer(bits, group, Symmetry::Symmetric), act)
    });
    let named = proptest::sample::select(NAMED.to_vec())
        .prop_map(|name| QuantSpec::uniform(WeightSpec::named(name).expect("a type"), ActSpec::Float));
    let mixture = proptest::sample::select(Mixture::ALL.to_vec()).prop_map(QuantSpec::from);
    prop_oneof![4 => integer, 1 => int8, 1 => named, 1 => mixture]
}

/// Largest f16 not above `value`, found among all of them.
fn reference_toward_zero(value: f64) -> f64 {
    let above = (0..0x7c00).collect::<Vec<u16>>().partition_point(|&b| f16::from_bits(b).to_f64() <= value);
    f16::from_bits(above as u16 - 1).to_f64()
}

/// The f16 nearest to `value`, as the nearer of its two neighbours; ties go up.
fn reference_nearest(value: f64) -> f64 {
    let below = reference_toward_zero(value);
    let above = f16::from_bits(f16::from_f64(below).to_bits() + 1).to_f64();
    if value - below < above - value { below } else { above }
}

/// Eq. 2 in f64, one group at a time: what a group's scale, zero point and codes must be. Each is an interval as wide as
/// f32's own rounding of the number that is then rounded.
fn check_reference(spec: WeightSpec, weight: &[f32], codes: &[u8], grid: Grid) -> Result<(), TestCaseError> {
    let max_code = f64::from(2u32.pow(spec.bits.get()) - 1);
    let half = f64::from(2u32.pow(spec.bits.get() - 1));
    let hi = weight.iter().copied().map(f64::from).fold(0.0, f64::max);
    let lo = weight.iter().copied().map(f64::from).fold(0.0, f64::min);
    let step = match spec.symmetry {
        Symmetry::Asymmetric => (hi - lo) / max_code,
        Symmetry::Symmetric => hi.max(-lo) / (half - 1.0),
        Symmetry::FullRange => hi.max(-lo) / half,
    };
    let step = step.clamp(f64::from(SCALE_MIN), f64::from(SCALE_MAX));
    let (least_step, most_step) = (step * (1.0 - F32_ROUNDINGS), step * (1.0 + F32_ROUNDINGS));
    prop_assert_eq!(f16::from_f32(grid.scale).to_f32(), grid.scale, "an f16 number");
    let has_sign = spec.symmetry == Symmetry::FullRange && hi >= -lo;
    prop_assert_eq!(grid.scale < 0.0, has_sign, "the larger end is code 0");
    let scale = f64::from(grid.scale.abs());
    let nearest = reference_nearest(least_step)..=reference_nearest(most_step);
    match spec.symmetry {
        Symmetry::Symmetric | Symmetry::FullRange => {
            prop_assert!(nearest.contains(&scale), "scale {scale}, expected {nearest:?}");
        }
        Symmetry::Asymmetric => {
            let scales = reference_toward_zero(least_step)..=*nearest.end();
            prop_assert!(scales.contains(&scale), "scale {scale}, expected {scales:?}");
            // The nearest, unless the codes of the two ends would then not span all codes.
            let inwards = |end: f64| (end / nearest.start() * (1.0 - F32_ROUNDINGS)).round();
            let spans = inwards(hi) + inwards(-lo).min(max_code) >= max_code;
            prop_assert!(scale >= *nearest.start() || !spans, "scale {scale}, expected {nearest:?}");
        }
    }

    let rounded = |x: f64| (x - x.abs() * F32_ROUNDINGS).round()..=(x + x.abs() * F32_ROUNDINGS).round();
    let zero_point = f64::from(grid.zero_point);
    match spec.symmetry {
        Symmetry::Symmetric | Symmetry::FullRange => prop_assert_eq!(zero_point, half),
        Symmetry::Asymmetric => {
            let zero_points = rounded(-lo / scale);
            let (least, most) = (zero_points.start().min(max_code), zero_points.end().min(max_code));
            prop_assert!((least..=most).contains(&zero_point), "zero point {zero_point}, expected {least} to {most}");
        }
    }
    for (&w, &code) in weight.iter().zip(codes) {
        let places = rounded(f64::from(w) / f64::from(grid.scale));
        let least = (places.start() + zero_point).clamp(0.0, max_code);
        let most = (places.end() + zero_point).clamp(0.0, max_code);
        prop_assert!((least..=most).contains(&f64::from(code)), "{w} has code {code}, expected {least} to {most}");
    }
    Ok(())
}

fn check_idempotent(matrix: &Matrix) -> Result<(), TestCaseError> {
    let once = matrix.quantize();
    let twice = Matrix { weight: once.dequantize(), ..matrix.clone() }.quantize();
    if matrix.spec.symmetry == Symmetry::FullRange {
        // Weights that all become 0 say nothing of the sign of the scale.
        prop_assert_eq!(once.dequantize(), twice.dequantize());
    } else {
        prop_assert_eq!(once, twice);
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn unpacking_undoes_packing((bits, codes) in bits().prop_flat_map(|b| (Just(b), vec(0..=b.max_code(), 0..300)))) {
        let mut words = vec![u32::MAX; packed_words(codes.len(), bits)];
        pack_row(&codes, bits, &mut words).unwrap();
        let mut read = vec![u8::MAX; codes.len()];
        unpack_row(&words, bits, &mut read).unwrap();
        prop_assert_eq!(read, codes);
    }

    #[test]
    fn packing_is_the_bit_stream((bits, codes) in bits().prop_flat_map(|b| (Just(b), vec(0..=b.max_code(), 0..300)))) {
        let mut words = vec![u32::MAX; packed_words(codes.len(), bits)];
        pack_row(&codes, bits, &mut words).unwrap();
        let bit = |at: usize| words[at / 32] >> (at % 32) & 1;
        let width = bits.get() as usize;
        for (i, &code) in codes.iter().enumerate() {
            let read: u32 = (0..width).map(|k| bit(i * width + k) << k).sum();
            prop_assert_eq!(read, u32::from(code));
        }
        prop_assert!((codes.len() * width..words.len() * 32).all(|at| bit(at) == 0), "padding is zeros");
    }

    #[test]
    fn scale_toward_zero_is_the_nearest_below(value in prop_oneof![1e-6f32..1e-3, 1e-3f32..65000.0]) {
        prop_assert_eq!(f16_toward_zero(value).to_f64(), reference_toward_zero(f64::from(value)));
    }

    #[test]
    fn agrees_with_the_reference(matrix in matrix()) {
        let packed = matrix.quantize();
        matrix.for_groups(&packed, |weight, codes, grid| check_reference(matrix.spec, weight, codes, grid))?;
    }

    #[test]
    fn codes_and_zero_points_are_codes(matrix in matrix()) {
        let packed = matrix.quantize();
        let max_code = matrix.spec.bits.max_code();
        matrix.for_groups(&packed, |_, codes, grid| {
            prop_assert!(codes.iter().all(|&code| code <= max_code));
            prop_assert!(grid.zero_point <= max_code);
            prop_assert!(grid.scale.is_finite() && grid.scale != 0.0);
            prop_assert_eq!(grid.max_code, max_code);
            Ok(())
        })?;
    }

    #[test]
    fn zero_is_exact(matrix in matrix()) {
        let packed = matrix.quantize();
        matrix.for_groups(&packed, |_, _, grid| {
            for zero in [0.0, -0.0] {
                prop_assert_eq!(grid.decode(grid.encode(zero)).to_bits(), 0.0f32.to_bits());
            }
            Ok(())
        })?;
    }

    #[test]
    fn error_is_at_most_half_a_step(matrix in matrix()) {
        let packed = matrix.quantize();
        matrix.for_groups(&packed, |weight, codes, grid| {
            let scale = grid.scale.abs();
            let half_step = (0.5 + DIVISION_STEPS) * scale;
            let ends = [grid.decode(0), grid.decode(grid.max_code)];
            let (least, most) = (ends[0].min(ends[1]), ends[0].max(ends[1]));
            for (&w, &code) in weight.iter().zip(codes) {
                let value = grid.decode(code);
                if (least..=most).contains(&w) {
                    prop_assert!((w - value).abs() <= half_step, "{w} became {value}, scale {scale}");
                } else {
                    // Beyond the grid: the nearer end.
                    prop_assert_eq!(value, w.clamp(least, most));
                    // The grid was made to hold all weights, but for the rounding of its scale to f16 and of its zero point. A full range
                    // lacks a step on one side.
                    let lacks = f32::from(u8::from(matrix.spec.symmetry == Symmetry::FullRange)) * scale;
                    let half_step = half_step + lacks;
                    if (F16_NORMAL..SCALE_MAX).contains(&scale) {
                        let rounding = f32::from(grid.max_code) * scale * F16_LOSS;
                        prop_assert!((w - value).abs() <= half_step + rounding, "{w} became {value}, scale {scale}");
                    }
                }
            }
            Ok(())
        })?;
    }

    #[test]
    fn quantizing_twice_changes_nothing(matrix in matrix()) {
        check_idempotent(&matrix)?;
    }

    #[test]
    fn quantizing_twice_changes_nothing_halfway_between_codes((bits, symmetry, ends) in halfway_ends()) {
        let spec = WeightSpec::integer(bits, GroupSize::PerChannel, symmetry);
        check_idempotent(&Matrix { spec, rows: 1, cols: 2, weight: ends.to_vec() })?;
    }

    #[test]
    fn quantizing_a_clipped_asymmetric_tensor_changes_nothing(matrix in matrix(), hi in 0.3f32..1.0, lo in 0.3f32..1.0) {
        // Clipped symmetric grids are left out: a clipped weight may take code 0, one step further than a grid of its own.
        let spec = WeightSpec { symmetry: Symmetry::Asymmetric, ..matrix.spec };
        let groups = matrix.rows * spec.group.count(matrix.cols);
        let clip = Clip { hi: &vec![hi; groups], lo: &vec![lo; groups] };
        let once = QuantizedTensor::quantize_clipped(&matrix.weight, matrix.rows, matrix.cols, spec, clip, None).unwrap();
        let twice = QuantizedTensor::quantize(&once.dequantize(), matrix.rows, matrix.cols, spec).unwrap();
        prop_assert_eq!(once, twice);
    }

    #[test]
    fn clipping_by_one_is_not_clipping(matrix in matrix()) {
        let ones = vec![1.0; matrix.rows * matrix.spec.group.count(matrix.cols)];
        let clip = Clip { hi: &ones, lo: &ones };
        let clipped = QuantizedTensor::quantize_clipped(&matrix.weight, matrix.rows, matrix.cols, matrix.spec, clip, None);
        prop_assert_eq!(clipped.unwrap(), matrix.quantize());
    }

    #[test]
    fn clipping_is_a_smaller_range(matrix in matrix(), hi in 0.0f32..=1.0, lo in 0.0f32..=1.0) {
        let Matrix { spec, rows, cols, .. } = matrix;
        let groups = rows * spec.group.count(cols);
        let clip = Clip { hi: &vec![hi; groups], lo: &vec![lo; groups] };
        let clipped = QuantizedTensor::quantize_clipped(&matrix.weight, rows, cols, spec, clip, None).unwrap();
        matrix.for_groups(&clipped, |weight, codes, grid| {
            let range = Range::of(weight);
            let clipped = Grid::new(range.clipped(hi, lo, spec.symmetry), spec.bits, spec.symmetry);
            prop_assert_eq!(grid, clipped);
            if spec.symmetry != Symmetry::FullRange {
                prop_assert_eq!(range.clipped(hi, lo, spec.symmetry), Range { lo: lo * range.lo, hi: hi * range.hi });
            } else if range.hi != -range.lo {
                // Whatever the clipping, the larger end is code 0.
                prop_assert_eq!(grid.scale < 0.0, range.hi > -range.lo);
            }
            prop_assert!(weight.iter().zip(codes).all(|(&w, &code)| code == grid.encode(w)));
            Ok(())
        })?;
    }

    #[test]
    fn offsets_shift_places_before_they_are_rounded(matrix in matrix(), seed in 0.0f32..1.0) {
        let Matrix { spec, rows, cols, .. } = matrix;
        let ones = vec![1.0; rows * spec.group.count(cols)];
        let clip = || Clip { hi: &ones, lo: &ones };
        let quantize = |offsets: &[f32]| {
            QuantizedTensor::quantize_clipped(&matrix.weight, rows, cols, spec, clip(), Some(offsets)).unwrap()
        };
        prop_assert_eq!(quantize(&vec![0.0; rows * cols]), matrix.quantize());
        let offsets: Vec<f32> = (0..rows * cols).map(|i| (i as f32 * 0.37 + seed).sin() * 3.0).collect();
        let (shifted, nearest) = (quantize(&offsets), matrix.quantize());
        prop_assert_eq!(shifted.stored(), nearest.stored());
        let mut codes = vec![0; cols];
        for row in 0..rows {
            shifted.row_codes(row, &mut codes);
            for (col, &code) in codes.iter().enumerate() {
                let grid = shifted.grid(row, col / (cols / shifted.groups()));
                let at = row * cols + col;
                let place = f64::from(matrix.weight[at]) / f64::from(grid.scale) + f64::from(offsets[at]);
                let expected = (place + f64::from(grid.zero_point)).clamp(0.0, f64::from(grid.max_code));
                // Half a step, and f32's rounding of places that are far out.
                let bound = 0.5 + 1e-6 * (1.0 + place.abs());
                prop_assert!((f64::from(code) - expected).abs() <= bound, "code {code} for {expected}");
            }
        }
    }

    #[test]
    fn rescaling_keeps_codes_and_multiplies_steps(matrix in matrix(), factor in 0.25f32..4.0) {
        let before = matrix.quantize();
        let scales = |tensor: &QuantizedTensor| tensor.half().unwrap().0.to_vec();
        let by = |factor| before.rescaled(&vec![factor; scales(&before).len()]);
        let after = by(factor).unwrap();
        prop_assert_eq!(after.words(), before.words());
        prop_assert_eq!(after.half().unwrap().1, before.half().unwrap().1);
        for (after, before) in scales(&after).iter().zip(scales(&before)) {
            let exact = (before.to_f32().abs() * factor).clamp(SCALE_MIN, SCALE_MAX);
            // Half a unit of the last of eleven digits, and scales below 2^-14 have fewer.
            let half_ulp = (exact / 2048.0).max(0.5f32.powi(25));
            prop_assert_eq!(after.is_sign_negative(), before.is_sign_negative());
            prop_assert!((after.to_f32().abs() - exact).abs() <= half_ulp, "{} for {}", after, exact);
        }
        let is_refused = matches!(by(f32::NAN), Err(TensorError::BadScale { index: 0, .. }));
        prop_assert!(is_refused);
        prop_assert_eq!(by(1.0).unwrap(), before);
    }

    #[test]
    fn codes_step_as_far_as_the_grid_goes(matrix in matrix(), steps in vec(-2i8..=2, 64)) {
        let before = matrix.quantize();
        let [rows, cols] = before.shape();
        let steps: Vec<i8> = (0..rows * cols).map(|at| steps[at % steps.len()]).collect();
        let after = before.stepped(&steps);
        prop_assert_eq!(after.stored(), before.stored());
        let (mut old, mut new) = (vec![0; cols], vec![0; cols]);
        let groups = before.groups();
        for row in 0..rows {
            before.row_codes(row, &mut old);
            after.row_codes(row, &mut new);
            for col in 0..cols {
                let grid = before.grid(row, col * groups / cols);
                // Symmetric grids have as many codes on either side.
                let least = match before.spec().symmetry {
                    Symmetry::Symmetric => 2 * i16::from(grid.zero_point) - i16::from(grid.max_code),
                    _ => 0,
                };
                let expected = i16::from(old[col]) + i16::from(steps[row * cols + col]);
                let least = least.min(i16::from(old[col]));
                prop_assert_eq!(i16::from(new[col]), expected.clamp(least, i16::from(grid.max_code)));
            }
        }
    }

    #[test]
    fn parts_make_the_same_tensor(matrix in matrix()) {
        let packed = matrix.quantize();
        let (scales, zero_points) = packed.half().unwrap();
        let parts = (packed.words().to_vec(), scales.to_vec(), zero_points.to_vec());
        let again = QuantizedTensor::from_parts(packed.spec(), packed.shape(), parts.0, parts.1, parts.2).unwrap();
        prop_assert_eq!(again.dequantize(), packed.dequantize());
        prop_assert_eq!(again, packed);
    }

    #[test]
    fn named_types_take_the_nearest_value_of_their_grid(matrix in named_matrix()) {
        let packed = matrix.quantize();
        matrix.for_groups(&packed, |weight, codes, grid| {
            prop_assert!(grid.scale.is_finite() && grid.scale != 0.0);
            for (&w, &code) in weight.iter().zip(codes) {
                let off = |code| (f64::from(w) - f64::from(grid.decode(code))).abs();
                let nearest = (0..=grid.max_code).map(off).fold(f64::MAX, f64::min);
                // Differences are exact; places are rounded to f32 before they are rounded to codes.
                let rounding = 1e-6 * (f64::from(w.abs()) + f64::from(grid.base.abs()));
                prop_assert!(off(code) <= nearest + rounding, "{w} has code {code} on {grid:?}");
            }
            Ok(())
        })?;
        // Zeros stay zeros where nothing but zeros is in a group.
        let zeros = Matrix { weight: vec![0.0; matrix.weight.len()], ..matrix.clone() }.quantize();
        prop_assert!(zeros.dequantize().iter().all(|&w| w == 0.0));
    }

    #[test]
    fn named_types_are_decoded_as_their_formats_define(matrix in named_matrix()) {
        let packed = matrix.quantize();
        prop_assert_eq!(packed.dequantize(), by_definition(&packed));
        let parts = (packed.words().to_vec(), packed.stored().clone());
        let again = QuantizedTensor::from_stored(packed.spec(), packed.shape(), parts.0, parts.1).unwrap();
        prop_assert_eq!(again, packed);
    }

    #[test]
    fn named_types_hold_ordinary_weights_about_as_well_as_f16_scales(seed in any::<u32>()) {
        // Sums of twelve uniform numbers: nearly normal.
        let mut state = u64::from(seed) | 1;
        let mut uniform = || { state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407); (state >> 40) as f32 / 16777216.0 };
        let weight: Vec<f32> = (0..8 * 512).map(|_| (0..12).map(|_| uniform()).sum::<f32>() - 6.0).collect();
        let error = |spec: WeightSpec| {
            let packed = QuantizedTensor::quantize(&weight, 8, 512, spec).unwrap();
            weight.iter().zip(packed.dequantize()).map(|(w, v)| f64::from(w - v).powi(2)).sum::<f64>().sqrt()
        };
        for name in NAMED {
            let spec = WeightSpec::named(name).unwrap();
            let like = WeightSpec { storage: Storage::Half, ..spec };
            // Scales of 4 bits cost a quarter of a step at the ends; e2m1 codes are coarse where weights are large.
            prop_assert!(error(spec) < 1.3 * error(like), "{name}: {} and {}", error(spec), error(like));
        }
    }

    #[test]
    fn rescaling_named_types_multiplies_values(matrix in named_matrix(), factor in 0.25f32..4.0) {
        let before = matrix.quantize();
        let after = before.rescaled(&vec![factor; before.shape()[0] * before.scale_groups()]).unwrap();
        prop_assert_eq!(after.words(), before.words());
        prop_assert_eq!(before.scale_groups() == 0, matrix.spec.storage.has_float_codes());
        prop_assert_eq!(before.rescaled(&vec![1.0; before.shape()[0] * before.scale_groups()]).unwrap(), before);
    }

    #[test]
    fn specs_are_read_as_they_are_written(spec in quant_spec()) {
        let text = spec.to_string();
        prop_assert_eq!(text.parse::<QuantSpec>().unwrap(), spec);
        prop_assert_eq!(text.to_uppercase().parse::<QuantSpec>().unwrap(), spec);
        let json = serde_json::to_string(&spec).unwrap();
        prop_assert_eq!(&json, &format!("\"{text}\""));
        prop_assert_eq!(serde_json::from_str::<QuantSpec>(&json).unwrap(), spec);
    }

    #[test]
    fn any_text_is_read_or_refused(text in "[wag0-9sym]{0,12}") {
        if let Ok(spec) = text.parse::<QuantSpec>() {
            prop_assert_eq!(spec.to_string().parse::<QuantSpec>().unwrap(), spec);
        }
    }
}
