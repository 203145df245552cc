//! How the values of a tensor are stored, as floats or in blocks, and how blocks are dequantized.
//!
//! Expressions have the same order of operations as in llama.cpp and the `gguf` Python package (the scale is multiplied before the offset
//! is added, in f32), so that results are equal to the last bit.

use std::fmt;

use half::{bf16, f16};

use super::k_quants::{self, half_at};
use super::tables;

/// How the values of a tensor are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(non_camel_case_types, reason = "the names of llama.cpp")]
#[non_exhaustive]
pub enum TensorKind {
    /// 32-bit floats.
    F32,
    /// 16-bit floats.
    F16,
    /// bfloat16.
    Bf16,
    /// Blocks of 32: f16 scale, 4-bit codes centred at 8.
    Q4_0,
    /// Blocks of 32: f16 scale and minimum, 4-bit codes.
    Q4_1,
    /// Blocks of 32: f16 scale, 5-bit codes centred at 16.
    Q5_0,
    /// Blocks of 32: f16 scale and minimum, 5-bit codes.
    Q5_1,
    /// Blocks of 32: f16 scale, signed bytes.
    Q8_0,
    /// Blocks of 256: 2-bit codes, a 4-bit scale and minimum per 16.
    Q2_K,
    /// Blocks of 256: 3-bit codes centred at 4, a 6-bit scale per 16.
    Q3_K,
    /// Blocks of 256: 4-bit codes, a 6-bit scale and minimum per 32.
    Q4_K,
    /// Blocks of 256: 5-bit codes, a 6-bit scale and minimum per 32.
    Q5_K,
    /// Blocks of 256: 6-bit codes centred at 32, an 8-bit scale per 16.
    Q6_K,
    /// Blocks of 32: f16 scale, 4-bit codes of a table.
    IQ4_NL,
    /// Blocks of 256: 4-bit codes of a table, a 6-bit scale per 32.
    IQ4_XS,
    /// Blocks of 32: a power of two, 4-bit floats.
    MXFP4,
}

use TensorKind::{Bf16, F16, F32, IQ4_NL, IQ4_XS, MXFP4, Q2_K, Q3_K, Q4_0, Q4_1, Q4_K, Q5_0, Q5_1, Q5_K, Q6_K, Q8_0};

/// Supported types: number in the file, kind, name, values per block, bytes per block.
const KINDS: [(u32, TensorKind, &str, usize, usize); 16] = [
    (0, F32, "F32", 1, 4),
    (1, F16, "F16", 1, 2),
    (2, Q4_0, "Q4_0", 32, 18),
    (3, Q4_1, "Q4_1", 32, 20),
    (6, Q5_0, "Q5_0", 32, 22),
    (7, Q5_1, "Q5_1", 32, 24),
    (8, Q8_0, "Q8_0", 32, 34),
    (10, Q2_K, "Q2_K", 256, 84),
    (11, Q3_K, "Q3_K", 256, 110),
    (12, Q4_K, "Q4_K", 256, 144),
    (13, Q5_K, "Q5_K", 256, 176),
    (14, Q6_K, "Q6_K", 256, 210),
    (20, IQ4_NL, "IQ4_NL", 32, 18),
    (23, IQ4_XS, "IQ4_XS", 256, 136),
    (30, Bf16, "BF16", 1, 2),
    (39, MXFP4, "MXFP4", 32, 17),
];

/// Unsupported types, by number in the file.
const UNREAD: [(u32, &str); 17] = [
    (9, "Q8_1"),
    (15, "Q8_K"),
    (16, "IQ2_XXS"),
    (17, "IQ2_XS"),
    (18, "IQ3_XXS"),
    (19, "IQ1_S"),
    (21, "IQ3_S"),
    (22, "IQ2_S"),
    (24, "I8"),
    (25, "I16"),
    (26, "I32"),
    (27, "I64"),
    (28, "F64"),
    (29, "IQ1_M"),
    (34, "TQ1_0"),
    (35, "TQ2_0"),
    (40, "NVFP4"),
];

impl TensorKind {
    /// The kind with this number in a file, or the name of an unsupported type.
    pub(super) fn from_id(id: u32) -> Result<Self, String> {
        if let Some(&(_, kind, ..)) = KINDS.iter().find(|row| row.0 == id) {
            return Ok(kind);
        }
        Err(UNREAD.iter().find(|row| row.0 == id).map_or_else(|| format!("number {id}"), |row| row.1.to_owned()))
    }

    fn row(self) -> &'static (u32, Self, &'static str, usize, usize) {
        KINDS.iter().find(|row| row.1 == self).expect("every kind has its row")
    }

    /// Its number in a file.
    pub(super) fn id(self) -> u32 {
        self.row().0
    }

    /// Its name in llama.cpp.
    pub fn name(self) -> &'static str {
        self.row().2
    }

    /// Values per block; 1 for floats.
    pub fn block_values(self) -> usize {
        self.row().3
    }

    /// Bytes per block.
    pub fn block_bytes(self) -> usize {
        self.row().4
    }

    /// Names of all supported types.
    pub(super) fn names() -> String {
        KINDS.map(|row| row.2).join(", ")
    }

    /// Dequantizes whole blocks: `bytes` [n * block_bytes] -> `out` [n * block_values].
    pub(super) fn dequantize(self, bytes: &[u8], out: &mut [f32]) {
        debug_assert_eq!(bytes.len() / self.block_bytes() * self.block_values(), out.len());
        match self {
            F32 => each::<4>(bytes, out, f32::from_le_bytes),
            F16 => each::<2>(bytes, out, |b| f16::from_le_bytes(b).to_f32()),
            Bf16 => each::<2>(bytes, out, |b| bf16::from_le_bytes(b).to_f32()),
            Q4_0 => blocks::<18, 32>(bytes, out, q4_0),
            Q4_1 => blocks::<20, 32>(bytes, out, q4_1),
            Q5_0 => blocks::<22, 32>(bytes, out, q5_0),
            Q5_1 => blocks::<24, 32>(bytes, out, q5_1),
            Q8_0 => blocks::<34, 32>(bytes, out, q8_0),
            Q2_K => blocks::<84, 256>(bytes, out, k_quants::q2_k),
            Q3_K => blocks::<110, 256>(bytes, out, k_quants::q3_k),
            Q4_K => blocks::<144, 256>(bytes, out, k_quants::q4_k),
            Q5_K => blocks::<176, 256>(bytes, out, k_quants::q5_k),
            Q6_K => blocks::<210, 256>(bytes, out, k_quants::q6_k),
            IQ4_NL => blocks::<18, 32>(bytes, out, tables::iq4_nl),
            IQ4_XS => blocks::<136, 256>(bytes, out, tables::iq4_xs),
            MXFP4 => blocks::<17, 32>(bytes, out, tables::mxfp4),
        }
    }
}

impl fmt::Display for TensorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

fn each<const B: usize>(bytes: &[u8], out: &mut [f32], value: fn([u8; B]) -> f32) {
    for (bytes, out) in bytes.as_chunks().0.iter().zip(out) {
        *out = value(*bytes);
    }
}

fn blocks<const B: usize, const N: usize>(bytes: &[u8], out: &mut [f32], block: fn(&[u8; B], &mut [f32; N])) {
    for (bytes, out) in bytes.as_chunks().0.iter().zip(out.as_chunks_mut().0) {
        block(bytes, out);
    }
}

/// 32 codes of 4 or 5 bits. Value i is in the low half of byte i, value 16 + i in its high half, and their fifth bits are in `fifth`, one
/// bit per value.
fn codes(nibbles: &[u8], fifth: u32, out: &mut [f32; 32], value: impl Fn(f32) -> f32) {
    let (low, high) = out.split_at_mut(16);
    for (i, ((byte, low), high)) in nibbles.iter().zip(low).zip(high).enumerate() {
        let bit = |i: usize| ((fifth >> i) as u8 & 1) << 4;
        *low = value(f32::from(byte & 15 | bit(i)));
        *high = value(f32::from(byte >> 4 | bit(16 + i)));
    }
}

fn fifth_bits(block: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([block[at], block[at + 1], block[at + 2], block[at + 3]])
}

fn q4_0(block: &[u8; 18], out: &mut [f32; 32]) {
    let step = half_at(block, 0);
    codes(&block[2..], 0, out, |q| step * (q - 8.0));
}

fn q4_1(block: &[u8; 20], out: &mut [f32; 32]) {
    let (step, min) = (half_at(block, 0), half_at(block, 2));
    codes(&block[4..], 0, out, |q| step * q + min);
}

fn q5_0(block: &[u8; 22], out: &mut [f32; 32]) {
    let step = half_at(block, 0);
    codes(&block[6..], fifth_bits(block, 2), out, |q| step * (q - 16.0));
}

fn q5_1(block: &[u8; 24], out: &mut [f32; 32]) {
    let (step, min) = (half_at(block, 0), half_at(block, 2));
    codes(&block[8..], fifth_bits(block, 4), out, |q| step * q + min);
}

fn q8_0(block: &[u8; 34], out: &mut [f32; 32]) {
    let step = half_at(block, 0);
    for (out, &byte) in out.iter_mut().zip(&block[2..]) {
        *out = step * f32::from(byte.cast_signed());
    }
}
