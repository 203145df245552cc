//! f32 to bf16 and back, as the `half` crate does it but without branches, so that loops are vectors: what writes weights in bf16 takes a
//! sixth longer with that crate's.

use half::bf16;

/// The nearest bf16; of two the even one. NaN stays NaN.
#[inline(always)]
pub fn to_bf16(value: f32) -> bf16 {
    let bits = value.to_bits();
    let nearest = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
    bf16::from_bits(if value.is_nan() { bits >> 16 | 0x40 } else { nearest } as u16)
}

/// The same number.
#[inline(always)]
pub fn from_bf16(value: bf16) -> f32 {
    f32::from_bits(u32::from(value.to_bits()) << 16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equals_the_half_crate() {
        // All numbers of bf16, and what lies just below, at and just above the middle to the next.
        for upper in 0..=u32::from(u16::MAX) {
            for lower in [0, 1, 0x7fff, 0x8000, 0x8001, 0xffff] {
                let value = f32::from_bits(upper << 16 | lower);
                assert_eq!(to_bf16(value).to_bits(), bf16::from_f32(value).to_bits(), "{value:e}");
            }
            let value = bf16::from_bits(upper as u16);
            assert!(from_bf16(value) == value.to_f32() || value.is_nan() && from_bf16(value).is_nan(), "{value:e}");
        }
    }
}
