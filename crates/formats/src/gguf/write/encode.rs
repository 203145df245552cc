//! Which block type holds a quantized matrix, and its blocks.
//!
//! A block type is chosen that holds every value exactly: the smallest, and of equally small ones the one that llama.cpp multiplies
//! faster. Groups of 32 fit the older types, and groups of 256 the K types too, whose inner scales are then 1.

use half::f16;
use oq_quant_core::{ActSpec, GroupSize, QuantSpec, QuantizedTensor, Storage, Stored, Symmetry, WeightSpec};
use rayon::prelude::*;

use super::blocks::{self, Block32, Block256};
use crate::gguf::TensorKind::{self, MXFP4, Q2_K, Q3_K, Q4_0, Q4_1, Q4_K, Q5_0, Q5_1, Q5_K, Q6_K, Q8_0};

/// What the codes of a block type stand for.
#[derive(Clone, Copy)]
enum Codes {
    /// `scale (code - centre)`.
    Centred(u8),
    /// `scale code - scale minimum`, with the largest code and the largest minimum.
    Shifted(u8, u8),
}

/// Block types for integer codes with an f16 scale and a zero point: the smallest first; of equal size the faster one in llama.cpp, which
/// rearranges Q4_0 and K types for its fast products.
const EXACT: [(TensorKind, Codes); 8] = [
    (Q2_K, Codes::Shifted(3, 15)),
    (Q3_K, Codes::Centred(4)),
    (Q4_0, Codes::Centred(8)),
    (Q4_K, Codes::Shifted(15, 63)),
    (Q5_K, Codes::Shifted(31, 63)),
    (Q5_0, Codes::Centred(16)),
    (Q6_K, Codes::Centred(32)),
    (Q8_0, Codes::Centred(128)),
];

impl Codes {
    fn hold(self, spec: WeightSpec) -> bool {
        let largest = spec.bits.max_code();
        match (self, spec.symmetry) {
            // With the zero point at one end, codes reach the other.
            (Self::Centred(centre), Symmetry::Asymmetric) => largest < centre,
            (Self::Centred(centre), Symmetry::Symmetric | Symmetry::FullRange) => spec.bits.centre() <= centre,
            (Self::Shifted(code, minimum), _) => largest <= code && largest <= minimum,
        }
    }
}

/// The block type for matrices that are quantized so, with rows of `in_features`. None if there is none. With `near`, zero points are
/// rounded to f16 minima if that takes a smaller block (Q4_1 instead of Q5_0, Q5_1 instead of Q8_0): values then move by less than a
/// hundredth of a step.
pub fn kind_of(spec: WeightSpec, in_features: usize, near: bool) -> Option<TensorKind> {
    let group = spec.group.len(in_features);
    let fits = |kind: TensorKind| group > 0 && group.is_multiple_of(kind.block_values());
    match spec.storage {
        Storage::Half => {
            let exact = EXACT.iter().find(|(kind, codes)| fits(*kind) && codes.hold(spec)).map(|(kind, _)| *kind);
            let smaller = match (spec.bits.get(), exact?) {
                (..=4, Q5_0) => Some(Q4_1),
                (5, Q8_0) => Some(Q5_1),
                _ => None,
            };
            smaller.filter(|_| near).or(exact)
        }
        Storage::HalfMin => Some(if spec.bits.get() == 4 { Q4_1 } else { Q5_1 }),
        Storage::Super => match spec.bits.get() {
            2 => Some(Q2_K),
            3 => Some(Q3_K),
            4 => Some(Q4_K),
            5 => Some(Q5_K),
            _ => Some(Q6_K),
        },
        Storage::E8m0 => Some(MXFP4),
        Storage::E4m3 => None,
    }
}

/// A setting like `spec` that has a block type, for errors.
pub(super) fn that_would_do(spec: WeightSpec, in_features: usize) -> String {
    let g32 = GroupSize::channels(32).expect("32 is not 0");
    let symmetric = Symmetry::Symmetric;
    let alike = [
        WeightSpec { group: g32, ..spec },
        WeightSpec { symmetry: symmetric, ..spec },
        WeightSpec { symmetry: symmetric, group: g32, ..spec },
    ];
    let whole_blocks = in_features.is_multiple_of(32);
    let found = alike.into_iter().find(|&spec| whole_blocks && kind_of(spec, in_features, false).is_some());
    match found {
        Some(spec) => QuantSpec::uniform(spec, ActSpec::Float).to_string(),
        None if whole_blocks => "q4_0, or mxfp4 for floating codes".to_owned(),
        None => "full precision: blocks have 32 weights of a row".to_owned(),
    }
}

/// Rows `rows` of a matrix as blocks of `kind`, which [`kind_of`] its spec gave; `source` is the matrix's row for each.
pub(super) fn encode(
    tensor: &QuantizedTensor,
    kind: TensorKind,
    rows: std::ops::Range<usize>,
    source: impl Fn(usize) -> usize + Sync,
) -> Vec<u8> {
    let cols = tensor.shape()[1];
    let rows = rows.into_par_iter().map_init(
        || vec![0; cols],
        |codes, row| {
            let row = source(row);
            tensor.row_codes(row, codes);
            let mut out = Vec::with_capacity(cols / kind.block_values() * kind.block_bytes());
            match kind.block_values() {
                32 => row_of_32(tensor, kind, row, codes, &mut out),
                _ => row_of_256(tensor, kind, row, codes, &mut out),
            }
            out
        },
    );
    rows.collect::<Vec<_>>().concat()
}

/// Codes around `zero_point`, moved around `centre`.
fn moved(codes: &[u8], zero_point: u8, centre: u8) -> Vec<u8> {
    codes.iter().map(|code| code.wrapping_sub(zero_point).wrapping_add(centre)).collect()
}

fn row_of_32(tensor: &QuantizedTensor, kind: TensorKind, row: usize, codes: &[u8], out: &mut Vec<u8>) {
    let len = codes.len() / tensor.groups();
    for (block, codes) in codes.chunks_exact(32).enumerate() {
        let group = row * tensor.groups() + block * 32 / len;
        let (scale, min, codes) = match tensor.stored() {
            Stored::Half { scales, zero_points } => {
                let (scale, zero) = (scales[group], zero_points[group]);
                let min = f16::from_f32(-scale.to_f32() * f32::from(zero));
                match centre(kind) {
                    Some(centre) => (scale, min, moved(codes, zero, centre)),
                    None => (scale, min, codes.to_vec()),
                }
            }
            Stored::HalfMin { scales, minima } => (scales[group], minima[group], codes.to_vec()),
            Stored::E8m0 { exponents } => {
                blocks::mxfp4(codes, exponents[group], out);
                continue;
            }
            _ => unreachable!("{kind} is not chosen for {}", tensor.spec()),
        };
        let block = Block32 { codes: &codes, scale, min };
        match kind {
            Q4_0 => blocks::q4_0(&block, out),
            Q4_1 => blocks::q4_1(&block, out),
            Q5_0 => blocks::q5_0(&block, out),
            Q5_1 => blocks::q5_1(&block, out),
            Q8_0 => blocks::q8_0(&block, out),
            _ => unreachable!("{kind} has no blocks of 32 that are written"),
        }
    }
}

/// The code that stands for zero; none if a minimum says it.
fn centre(kind: TensorKind) -> Option<u8> {
    EXACT.iter().find(|row| row.0 == kind).and_then(|row| match row.1 {
        Codes::Centred(centre) => Some(centre),
        Codes::Shifted(..) => None,
    })
}

fn row_of_256(tensor: &QuantizedTensor, kind: TensorKind, row: usize, codes: &[u8], out: &mut Vec<u8>) {
    let len = codes.len() / tensor.groups();
    let supers = codes.len() / 256;
    for (block_idx, codes) in codes.chunks_exact(256).enumerate() {
        let group = row * tensor.groups() + block_idx * 256 / len;
        let mut moved_codes = Vec::new();
        let block = match tensor.stored() {
            Stored::Half { scales, zero_points } => {
                let (scale, zero) = (scales[group], zero_points[group]);
                let codes = match centre(kind) {
                    Some(centre) => {
                        moved_codes = moved(codes, zero, centre);
                        &moved_codes
                    }
                    None => codes,
                };
                Block256 { codes, scales: [1; 16], minima: [zero; 16], scale, min: scale }
            }
            Stored::Super { scales, minima, outer_scales, outer_minima } => {
                let (outer, per_super) = (row * supers + block_idx, 256 / len);
                let mut block = Block256 {
                    codes,
                    scales: [0; 16],
                    minima: [0; 16],
                    scale: outer_scales[outer],
                    min: outer_minima.get(outer).copied().unwrap_or_default(),
                };
                block.scales[..per_super].copy_from_slice(&scales[group..][..per_super]);
                if let Some(minima) = minima.get(group..group + per_super) {
                    block.minima[..per_super].copy_from_slice(minima);
                }
                block
            }
            _ => unreachable!("{kind} is not chosen for {}", tensor.spec()),
        };
        match kind {
            Q2_K => blocks::q2_k(&block, out),
            Q3_K => blocks::q3_k(&block, out),
            Q4_K => blocks::q4_k(&block, out),
            Q5_K => blocks::q5_k(&block, out),
            Q6_K => blocks::q6_k(&block, out),
            _ => unreachable!("{kind} has no blocks of 256 that are written"),
        }
        drop(moved_codes);
    }
}

#[cfg(test)]
mod tests {
    use oq_quant_core::Block;

    use super::*;

    fn spec(text: &str) -> WeightSpec {
        text.parse::<QuantSpec>().unwrap().weight
    }

    fn weight(len: usize) -> Vec<f32> {
        (0..len).map(|i| (i as f32 * 0.731).sin() * (1.0 + (i / 32) as f32 * 0.07)).collect()
    }

    /// Quantizes, encodes with rows in reverse order, and reads the blocks.
    fn read_back(spec: WeightSpec, cols: usize, kind: TensorKind) -> (Vec<f32>, Vec<f32>) {
        let rows = 5;
        let tensor = QuantizedTensor::quantize(&weight(rows * cols), rows, cols, spec).unwrap();
        let bytes = encode(&tensor, kind, 0..rows, |row| rows - 1 - row);
        let mut values = vec![0.0; rows * cols];
        kind.dequantize(&bytes, &mut values);
        let ordered = values.chunks(cols).rev().flatten().copied().collect();
        (ordered, tensor.dequantize())
    }

    #[track_caller]
    fn check(text: &str, cols: usize, expected: TensorKind) {
        let spec = spec(text);
        assert_eq!(kind_of(spec, cols, false), Some(expected), "{text}");
        let (values, original) = read_back(spec, cols, expected);
        assert_eq!(values, original, "{text}");
    }

    #[test]
    fn every_setting_is_held_exactly_by_the_smallest_block() {
        for g in ["g32", "g64", "g128"] {
            check(&format!("w2a16{g}"), 256, Q4_0);
            check(&format!("w2a16{g}sym"), 256, Q4_0);
            check(&format!("w3a16{g}"), 256, Q4_0);
            check(&format!("w3a16{g}full"), 256, Q4_0);
            check(&format!("w4a16{g}"), 256, Q5_0);
            check(&format!("w4a16{g}sym"), 256, Q4_0);
            check(&format!("w4a16{g}full"), 256, Q4_0);
            check(&format!("w5a16{g}"), 256, Q8_0);
            check(&format!("w5a16{g}sym"), 256, Q5_0);
            check(&format!("w5a16{g}full"), 256, Q5_0);
            check(&format!("w6a16{g}"), 256, Q8_0);
            check(&format!("w6a16{g}full"), 256, Q8_0);
            check(&format!("w7a16{g}"), 256, Q8_0);
            check(&format!("w8a16{g}sym"), 256, Q8_0);
            check(&format!("w8a16{g}full"), 256, Q8_0);
        }
        for (g, cols) in [("g256", 512), ("g512", 512), ("", 768)] {
            check(&format!("w2a16{g}"), cols, Q2_K);
            check(&format!("w2a16{g}full"), cols, Q2_K);
            check(&format!("w3a16{g}"), cols, Q4_0);
            check(&format!("w3a16{g}sym"), cols, Q3_K);
            check(&format!("w3a16{g}full"), cols, Q3_K);
            check(&format!("w4a16{g}"), cols, Q4_K);
            check(&format!("w4a16{g}sym"), cols, Q4_0);
            check(&format!("w5a16{g}"), cols, Q5_K);
            check(&format!("w5a16{g}sym"), cols, Q5_K);
            check(&format!("w6a16{g}sym"), cols, Q6_K);
            check(&format!("w6a16{g}"), cols, Q8_0);
            check(&format!("w8a16{g}sym"), cols, Q8_0);
        }
        // One group per row of 96.
        check("w4a16", 96, Q5_0);
        check("mxfp4", 96, MXFP4);
        for block in Block::ALL {
            let kind = kind_of(block.spec(), 512, false).expect("a type of its own");
            assert!(kind.name().eq_ignore_ascii_case(block.name()), "{kind} for {block}");
            let (values, original) = read_back(block.spec(), 512, kind);
            assert_eq!(values, original, "{block}");
        }
    }

    #[test]
    fn smaller_blocks_are_nearly_exact() {
        for (text, kind, cols) in [("w4a16g32", Q4_1, 256), ("w4a16g128", Q4_1, 256), ("w5a16g64", Q5_1, 256)] {
            assert_eq!(kind_of(spec(text), cols, true), Some(kind), "{text}");
            let (values, original) = read_back(spec(text), cols, kind);
            let step = 2.0 / f32::from(spec(text).bits.max_code());
            let worst = values.iter().zip(&original).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(worst > 0.0 && worst < 0.01 * step * 1.6, "{text}: {worst} of a step of {step}");
        }
        assert_eq!(kind_of(spec("w4a16g64sym"), 256, true), Some(Q4_0), "exact, and no larger");
        assert_eq!(kind_of(spec("w4a16g256"), 256, true), Some(Q4_K), "exact, and smaller");
    }

    #[test]
    fn what_no_block_holds_is_told_what_would_do() {
        #[track_caller]
        fn check(text: &str, cols: usize, instead: &str) {
            assert_eq!(kind_of(spec(text), cols, false), None, "{text}");
            assert_eq!(that_would_do(spec(text), cols), instead, "{text}");
        }
        check("w8a16g32", 256, "w8a16g32sym");
        check("w8a16", 256, "w8a16sym");
        check("w4a16g16", 256, "w4a16g32");
        check("w8a16g16", 256, "w8a16g32sym");
        check("w4a16", 80, "full precision: blocks have 32 weights of a row");
        check("nvfp4", 256, "q4_0, or mxfp4 for floating codes");
    }
}
