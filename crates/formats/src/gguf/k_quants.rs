//! K-quants: blocks of 256 values, in sub-blocks of 16 or 32 with small integer scales (and minima), which are multiplied by one or two f16
//! scales of the block.

use half::f16;

/// Values per block.
const BLOCK: usize = 256;

/// The f16 at offset `at` of a block.
pub(super) fn half_at(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

/// Bytes 0..16 scale (low half) and minimum (high half) per sub-block of 16, 16..80 codes, then the block's two f16 scales.
pub(super) fn q2_k(block: &[u8; 84], out: &mut [f32; BLOCK]) {
    let (scale, min_scale) = (half_at(block, 80), half_at(block, 82));
    for (sub, out) in out.chunks_exact_mut(16).enumerate() {
        let (step, min) = (scale * f32::from(block[sub] & 15), min_scale * f32::from(block[sub] >> 4));
        let (bytes, shift) = two_bit_codes(&block[16..80], sub);
        for (out, byte) in out.iter_mut().zip(bytes) {
            *out = step * f32::from(byte >> shift & 3) - min;
        }
    }
}

/// Bytes 0..32 third bits of the codes, 32..96 their low two bits, 96..108 6-bit scales, 108 the block's f16 scale.
pub(super) fn q3_k(block: &[u8; 110], out: &mut [f32; BLOCK]) {
    let scale = half_at(block, 108);
    let steps = &block[96..108];
    for (sub, out) in out.chunks_exact_mut(16).enumerate() {
        // The low four bits of 16 scales are in the halves of eight bytes, the high two bits in four more bytes.
        let low = steps[sub % 8] >> (4 * (sub / 8)) & 15;
        let high = steps[8 + sub % 4] >> (2 * (sub / 4)) & 3;
        let step = scale * (f32::from(low | high << 4) - 32.0);
        let (bytes, shift) = two_bit_codes(&block[32..96], sub);
        let third = &block[16 * (sub % 2)..][..16];
        for ((out, byte), third) in out.iter_mut().zip(bytes).zip(third) {
            let code = byte >> shift & 3 | (third >> (sub / 2) & 1) << 2;
            *out = step * (f32::from(code) - 4.0);
        }
    }
}

/// Position of the two-bit codes of sub-block `sub` of 16: 32 bytes serve 128 values, shifted by two bits for each 32 values.
fn two_bit_codes(codes: &[u8], sub: usize) -> (&[u8], usize) {
    (&codes[32 * (sub / 8) + 16 * (sub % 2)..][..16], 2 * (sub % 8 / 2))
}

/// Bytes 0..4 two f16 scales, 4..16 scales and minima, 16..144 codes.
pub(super) fn q4_k(block: &[u8; 144], out: &mut [f32; BLOCK]) {
    for (sub, out) in out.chunks_exact_mut(32).enumerate() {
        let (step, min) = step_and_min(block, sub);
        let nibbles = &block[16 + 32 * (sub / 2)..][..32];
        for (out, byte) in out.iter_mut().zip(nibbles) {
            *out = step * f32::from(byte >> (4 * (sub % 2)) & 15) - min;
        }
    }
}

/// Bytes 0..4 two f16 scales, 4..16 scales and minima, 16..48 fifth bits, 48..176 low four bits.
pub(super) fn q5_k(block: &[u8; 176], out: &mut [f32; BLOCK]) {
    for (sub, out) in out.chunks_exact_mut(32).enumerate() {
        let (step, min) = step_and_min(block, sub);
        let nibbles = &block[48 + 32 * (sub / 2)..][..32];
        for ((out, byte), fifth) in out.iter_mut().zip(nibbles).zip(&block[16..48]) {
            let code = byte >> (4 * (sub % 2)) & 15 | (fifth >> sub & 1) << 4;
            *out = step * f32::from(code) - min;
        }
    }
}

/// Scale and minimum of sub-block `sub` of 32: 6 bits each. The first four are in the low six bits of a byte. The last four are split
/// between a half of bytes 8..12 and the top two bits that the first four leave free.
fn step_and_min(block: &[u8], sub: usize) -> (f32, f32) {
    let (scale, min_scale) = (half_at(block, 0), half_at(block, 2));
    let packed = &block[4..16];
    let (step, min) = match sub {
        0..4 => (packed[sub] & 63, packed[4 + sub] & 63),
        _ => (packed[4 + sub] & 15 | packed[sub - 4] >> 6 << 4, packed[4 + sub] >> 4 | packed[sub] >> 6 << 4),
    };
    (scale * f32::from(step), min_scale * f32::from(min))
}

/// Bytes 0..128 low four bits, 128..192 high two bits, 192..208 signed scales, 208 the block's f16 scale.
pub(super) fn q6_k(block: &[u8; 210], out: &mut [f32; BLOCK]) {
    let scale = half_at(block, 208);
    for (sub, out) in out.chunks_exact_mut(16).enumerate() {
        let step = scale * f32::from(block[192 + sub].cast_signed());
        // 128 values take 64 bytes of low bits (the second 64 values in their high halves) and 32 bytes of high bits.
        let (half, within) = (sub / 8, sub % 8);
        let low = &block[64 * half + 16 * (within % 4)..][..16];
        let high = &block[128 + 32 * half + 16 * (within % 2)..][..16];
        for ((out, low), high) in out.iter_mut().zip(low).zip(high) {
            let code = low >> (4 * (within / 4)) & 15 | (high >> (2 * (within / 2)) & 3) << 4;
            *out = step * (f32::from(code) - 32.0);
        }
    }
}
