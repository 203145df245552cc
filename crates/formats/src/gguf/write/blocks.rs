//! Blocks from codes, scales and minima: the inverse of what the reader decodes.
//!
//! A group of the source may be as large as a row. Its scale is repeated in each of its blocks; in K types, every sub-block then has the
//! factor 1 and the super-block has the scale.

use half::f16;

/// Codes, scale and minimum of one block of 32.
pub(super) struct Block32<'a> {
    /// 32 codes.
    pub(super) codes: &'a [u8],
    pub(super) scale: f16,
    /// Added to scale * code; only Q4_1 and Q5_1 have it.
    pub(super) min: f16,
}

/// Codes, scales and minima of one block of 256.
pub(super) struct Block256<'a> {
    /// 256 codes.
    pub(super) codes: &'a [u8],
    /// Factors of `scale`, one per sub-block of 16 or 32.
    pub(super) scales: [i8; 16],
    /// Factors of `min`, one per sub-block.
    pub(super) minima: [u8; 16],
    pub(super) scale: f16,
    /// Subtracted; Q3_K and Q6_K have none.
    pub(super) min: f16,
}

/// Value i in the low half of byte i, value 16 + i in its high half.
fn nibbles(codes: &[u8], out: &mut Vec<u8>) {
    out.extend((0..16).map(|i| codes[i] & 15 | (codes[16 + i] & 15) << 4));
}

/// The fifth bits, one bit per value.
fn fifths(codes: &[u8], out: &mut Vec<u8>) {
    let bits = codes.iter().enumerate().fold(0u32, |bits, (i, code)| bits | u32::from(code >> 4 & 1) << i);
    out.extend(bits.to_le_bytes());
}

pub(super) fn q4_0(block: &Block32<'_>, out: &mut Vec<u8>) {
    out.extend(block.scale.to_le_bytes());
    nibbles(block.codes, out);
}

pub(super) fn q4_1(block: &Block32<'_>, out: &mut Vec<u8>) {
    out.extend(block.scale.to_le_bytes());
    out.extend(block.min.to_le_bytes());
    nibbles(block.codes, out);
}

pub(super) fn q5_0(block: &Block32<'_>, out: &mut Vec<u8>) {
    out.extend(block.scale.to_le_bytes());
    fifths(block.codes, out);
    nibbles(block.codes, out);
}

pub(super) fn q5_1(block: &Block32<'_>, out: &mut Vec<u8>) {
    out.extend(block.scale.to_le_bytes());
    out.extend(block.min.to_le_bytes());
    fifths(block.codes, out);
    nibbles(block.codes, out);
}

/// Codes are centred at 128.
pub(super) fn q8_0(block: &Block32<'_>, out: &mut Vec<u8>) {
    out.extend(block.scale.to_le_bytes());
    out.extend(block.codes.iter().map(|code| code.wrapping_sub(128)));
}

/// 32 four-bit floats under `2^(exponent - 127)`.
pub(super) fn mxfp4(codes: &[u8], exponent: u8, out: &mut Vec<u8>) {
    out.push(exponent);
    nibbles(codes, out);
}

/// Bits `2 * plane..` of 256 codes, two of each: 32 bytes serve 128 values, shifted by two bits for each 32 values.
fn pairs_of_bits(codes: &[u8], plane: usize, out: &mut Vec<u8>) {
    for half in codes.chunks_exact(128) {
        out.extend((0..32).map(|i| (0..4).fold(0, |byte, q| byte | (half[32 * q + i] >> (2 * plane) & 3) << (2 * q))));
    }
}

pub(super) fn q2_k(block: &Block256<'_>, out: &mut Vec<u8>) {
    out.extend(block.scales.iter().zip(block.minima).map(|(&scale, min)| scale as u8 & 15 | min << 4));
    pairs_of_bits(block.codes, 0, out);
    out.extend(block.scale.to_le_bytes());
    out.extend(block.min.to_le_bytes());
}

pub(super) fn q3_k(block: &Block256<'_>, out: &mut Vec<u8>) {
    // Third bits: byte i has those of values i, 32 + i, 64 + i and so on.
    out.extend((0..32).map(|i| (0..8).fold(0, |byte, q| byte | (block.codes[32 * q + i] >> 2 & 1) << q)));
    pairs_of_bits(block.codes, 0, out);
    // The low four bits of 16 scales in the halves of eight bytes, the high two bits in four more bytes.
    let stored: Vec<u8> = block.scales.iter().map(|&scale| (scale + 32) as u8).collect();
    out.extend((0..8).map(|i| stored[i] & 15 | (stored[8 + i] & 15) << 4));
    out.extend((0..4).map(|i| (0..4).fold(0, |byte, q| byte | (stored[4 * q + i] >> 4) << (2 * q))));
    out.extend(block.scale.to_le_bytes());
}

/// The two f16 scales, then eight scales and minima of 6 bits. The first four are in the low six bits of a byte. The last four are split
/// between a half of bytes 8..12 and the top two bits that the first four leave free.
fn scales_and_minima(block: &Block256<'_>, out: &mut Vec<u8>) {
    out.extend(block.scale.to_le_bytes());
    out.extend(block.min.to_le_bytes());
    let (scales, minima) = (block.scales.map(|scale| scale as u8), &block.minima);
    out.extend((0..4).map(|i| scales[i] | scales[4 + i] >> 4 << 6));
    out.extend((0..4).map(|i| minima[i] | minima[4 + i] >> 4 << 6));
    out.extend((4..8).map(|i| scales[i] & 15 | (minima[i] & 15) << 4));
}

/// 64 values to 32 bytes: the first 32 in low halves, the others in high halves.
fn wide_nibbles(codes: &[u8], out: &mut Vec<u8>) {
    for pair in codes.chunks_exact(64) {
        out.extend((0..32).map(|i| pair[i] & 15 | (pair[32 + i] & 15) << 4));
    }
}

pub(super) fn q4_k(block: &Block256<'_>, out: &mut Vec<u8>) {
    scales_and_minima(block, out);
    wide_nibbles(block.codes, out);
}

pub(super) fn q5_k(block: &Block256<'_>, out: &mut Vec<u8>) {
    scales_and_minima(block, out);
    out.extend((0..32).map(|i| (0..8).fold(0, |byte, q| byte | (block.codes[32 * q + i] >> 4 & 1) << q)));
    wide_nibbles(block.codes, out);
}

pub(super) fn q6_k(block: &Block256<'_>, out: &mut Vec<u8>) {
    for half in block.codes.chunks_exact(128) {
        out.extend((0..64).map(|i| half[i] & 15 | (half[64 + i] & 15) << 4));
    }
    pairs_of_bits(block.codes, 2, out);
    out.extend(block.scales.map(i8::cast_unsigned));
    out.extend(block.scale.to_le_bytes());
}

#[cfg(test)]
mod tests {
    use oq_quant_core::Block;

    use super::*;
    use crate::gguf::TensorKind;

    /// Codes and factors that touch every bit, differently in each block.
    fn numbers(seed: u32, max: u8) -> impl Iterator<Item = u8> {
        let mut state = seed.wrapping_mul(2_654_435_769) | 1;
        std::iter::repeat_with(move || {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            (state >> 9) as u8 % max.saturating_add(1)
        })
    }

    /// The values of encoded blocks, by the reader.
    fn decoded(kind: TensorKind, bytes: &[u8], values: usize) -> Vec<f32> {
        assert_eq!(bytes.len(), kind.block_bytes(), "{kind}");
        let mut out = vec![0.0; values];
        kind.dequantize(bytes, &mut out);
        out
    }

    #[track_caller]
    fn check_32(kind: TensorKind, max: u8, encode: fn(&Block32<'_>, &mut Vec<u8>), value: fn(f32, f32, f32) -> f32) {
        for seed in 1..50 {
            let codes: Vec<u8> = numbers(seed, max).take(32).collect();
            let (scale, min) = (f16::from_f32(0.013 * seed as f32 - 0.3), f16::from_f32(0.7 - 0.02 * seed as f32));
            let mut bytes = Vec::new();
            encode(&Block32 { codes: &codes, scale, min }, &mut bytes);
            let expected: Vec<f32> =
                codes.iter().map(|&code| value(scale.to_f32(), f32::from(code), min.to_f32())).collect();
            assert_eq!(decoded(kind, &bytes, 32), expected, "{kind}");
        }
    }

    #[test]
    fn blocks_of_32_are_read_as_they_were() {
        check_32(TensorKind::Q4_0, 15, q4_0, |scale, code, _| scale * (code - 8.0));
        check_32(TensorKind::Q4_1, 15, q4_1, |scale, code, min| scale * code + min);
        check_32(TensorKind::Q5_0, 31, q5_0, |scale, code, _| scale * (code - 16.0));
        check_32(TensorKind::Q5_1, 31, q5_1, |scale, code, min| scale * code + min);
        check_32(TensorKind::Q8_0, 255, q8_0, |scale, code, _| scale * (code - 128.0));
    }

    #[test]
    fn four_bit_floats_are_read_as_they_were() {
        let codes: Vec<u8> = (0..32).map(|i| i * 7 % 16).collect();
        let magnitudes = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0];
        for exponent in [0, 1, 2, 126, 127, 128, 251] {
            let mut bytes = Vec::new();
            mxfp4(&codes, exponent, &mut bytes);
            let scale = 2f64.powi(i32::from(exponent) - 127);
            let value = |code: &u8| {
                let magnitude = magnitudes[usize::from(code & 7)] * scale;
                (if code & 8 == 0 { magnitude } else { -magnitude }) as f32
            };
            assert_eq!(decoded(TensorKind::MXFP4, &bytes, 32), codes.iter().map(value).collect::<Vec<_>>());
        }
    }

    /// `centre` is subtracted from codes.
    #[track_caller]
    fn check_256(kind: TensorKind, encode: fn(&Block256<'_>, &mut Vec<u8>), [code, scale, min]: [u8; 3], signed: bool) {
        let group = 256 / if matches!(kind, TensorKind::Q4_K | TensorKind::Q5_K) { 8 } else { 16 };
        for seed in 1..50 {
            let codes: Vec<u8> = numbers(seed, code).take(256).collect();
            let mut scales = [0i8; 16];
            let mut minima = [0u8; 16];
            for (to, from) in scales.iter_mut().zip(numbers(seed + 99, scale)) {
                *to = if signed { from.wrapping_sub(scale / 2 + 1).cast_signed() } else { from as i8 };
            }
            for (to, from) in minima.iter_mut().zip(numbers(seed + 999, min)) {
                *to = from;
            }
            let (d, dmin) = (f16::from_f32(0.003 * seed as f32 - 0.07), f16::from_f32(0.002 * seed as f32));
            let mut bytes = Vec::new();
            encode(&Block256 { codes: &codes, scales, minima, scale: d, min: dmin }, &mut bytes);
            let centre = if signed { f32::from(code / 2 + 1) } else { 0.0 };
            let expected: Vec<f32> = (0..256)
                .map(|i| {
                    let (scale, min) = (scales[i / group], minima[i / group]);
                    let step = d.to_f32() * f32::from(scale);
                    step * (f32::from(codes[i]) - centre) - if signed { 0.0 } else { dmin.to_f32() * f32::from(min) }
                })
                .collect();
            assert_eq!(decoded(kind, &bytes, 256), expected, "{kind}");
        }
    }

    #[test]
    fn blocks_of_256_are_read_as_they_were() {
        check_256(TensorKind::Q2_K, q2_k, [3, 15, 15], false);
        check_256(TensorKind::Q3_K, q3_k, [7, 63, 0], true);
        check_256(TensorKind::Q4_K, q4_k, [15, 63, 63], false);
        check_256(TensorKind::Q5_K, q5_k, [31, 63, 63], false);
        check_256(TensorKind::Q6_K, q6_k, [63, 255, 0], true);
        assert_eq!(Block::ALL.len(), 10, "a block type without a test here");
    }
}
