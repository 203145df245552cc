//! Types whose codes are indices into a table: 4 bits per value, in groups of 32.

use half::f16;

use super::k_quants::half_at;

/// Values of the codes of IQ4_NL and IQ4_XS.
const NON_LINEAR: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];
/// Twice the values of the codes of MXFP4: four bits as a float, with a sign, two bits of exponent and one of mantissa.
const TWICE_E2M1: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];

/// 32 codes: value i is in the low half of byte i, value 16 + i in its high half.
fn values(nibbles: &[u8], step: f32, table: &[i8; 16], out: &mut [f32]) {
    let (low, high) = out.split_at_mut(16);
    for ((byte, low), high) in nibbles.iter().zip(low).zip(high) {
        *low = step * f32::from(table[usize::from(byte & 15)]);
        *high = step * f32::from(table[usize::from(byte >> 4)]);
    }
}

/// Bytes 0..2 the f16 scale, 2..18 codes.
pub(super) fn iq4_nl(block: &[u8; 18], out: &mut [f32; 32]) {
    values(&block[2..], half_at(block, 0), &NON_LINEAR, out);
}

/// Bytes 0..2 the f16 scale, 2..4 the high two bits of eight 6-bit scales, 4..8 their low four bits, 8..136 codes.
pub(super) fn iq4_xs(block: &[u8; 136], out: &mut [f32; 256]) {
    let scale = f16::from_le_bytes([block[0], block[1]]).to_f32();
    let high = u16::from_le_bytes([block[2], block[3]]);
    for (sub, out) in out.chunks_exact_mut(32).enumerate() {
        let low = block[4 + sub / 2] >> (4 * (sub % 2)) & 15;
        let step = f32::from(low | ((high >> (2 * sub) & 3) as u8) << 4) - 32.0;
        values(&block[8 + 16 * sub..][..16], scale * step, &NON_LINEAR, out);
    }
}

/// Byte 0 the exponent of the scale 2^(e - 127), 1..17 codes.
pub(super) fn mxfp4(block: &[u8; 17], out: &mut [f32; 32]) {
    values(&block[1..], half_of_power(block[0]), &TWICE_E2M1, out);
}

/// `2^(exponent - 128)`, for the doubled table.
fn half_of_power(exponent: u8) -> f32 {
    match exponent {
        // Below the normal numbers: 2^-128 is bit 21.
        0 | 1 => f32::from_bits(1 << (21 + u32::from(exponent))),
        _ => f32::from_bits(u32::from(exponent - 1) << 23),
    }
}
