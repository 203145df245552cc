//! Codes as a bit stream: least significant bit first, in 32-bit words.
//!
//! This one stream serves compressed-tensors' `weight_packed`, MLX's `weight` and, transposed, GPTQ's `qweight`.

use crate::spec::Bits;

/// Why codes were not packed or unpacked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PackError {
    /// The slice of words has the wrong length for that many codes.
    #[error("{codes} codes of {bits} bits need {expected} words, got {got}")]
    Length {
        /// Codes in the row.
        codes: usize,
        /// Width of a code.
        bits: u32,
        /// Words that the row needs.
        expected: usize,
        /// Words that were given.
        got: usize,
    },
    /// A code that does not fit the width.
    #[error("code {code} at position {index} does not fit {bits} bits")]
    Code {
        /// The code.
        code: u8,
        /// Its position.
        index: usize,
        /// Width of a code.
        bits: u32,
    },
}

/// Number of words for a row of `codes` codes. The stream is padded with zeros to a whole word.
pub fn packed_words(codes: usize, bits: Bits) -> usize {
    // 32 codes take `bits` words. Do not multiply `codes` itself: it may come from a hostile header.
    let width = bits.get() as usize;
    codes / 32 * width + (codes % 32 * width).div_ceil(32)
}

/// Packs one row of codes into `words`, which must be [`packed_words`] long.
pub fn pack_row(codes: &[u8], bits: Bits, words: &mut [u32]) -> Result<(), PackError> {
    check_len(codes.len(), bits, words.len())?;
    if let Some((index, &code)) = codes.iter().enumerate().find(|(_, code)| **code > bits.max_code()) {
        return Err(PackError::Code { code, index, bits: bits.get() });
    }
    let (mut buffer, mut filled, mut next) = (0u64, 0u32, 0);
    for &code in codes {
        buffer |= u64::from(code) << filled;
        filled += bits.get();
        if filled >= 32 {
            words[next] = buffer as u32;
            next += 1;
            buffer >>= 32;
            filled -= 32;
        }
    }
    if filled > 0 {
        words[next] = buffer as u32;
    }
    Ok(())
}

/// Unpacks one row of codes; `words` must be [`packed_words`] long.
pub fn unpack_row(words: &[u32], bits: Bits, codes: &mut [u8]) -> Result<(), PackError> {
    check_len(codes.len(), bits, words.len())?;
    let (mut buffer, mut filled, mut next) = (0u64, 0u32, 0);
    for code in codes {
        if filled < bits.get() {
            buffer |= u64::from(words[next]) << filled;
            next += 1;
            filled += 32;
        }
        *code = buffer as u8 & bits.max_code();
        buffer >>= bits.get();
        filled -= bits.get();
    }
    Ok(())
}

fn check_len(codes: usize, bits: Bits, got: usize) -> Result<(), PackError> {
    let expected = packed_words(codes, bits);
    if got == expected { Ok(()) } else { Err(PackError::Length { codes, bits: bits.get(), expected, got }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_a_row() {
        let bits = |n| Bits::new(n).unwrap();
        assert_eq!(packed_words(0, bits(3)), 0);
        assert_eq!(packed_words(1, bits(3)), 1);
        assert_eq!(packed_words(32, bits(3)), 3);
        assert_eq!(packed_words(33, bits(3)), 4);
        assert_eq!(packed_words(usize::MAX, bits(8)), usize::MAX / 4 + 1);
    }

    #[test]
    fn refuses_what_does_not_fit() {
        let bits = Bits::new(3).unwrap();
        let length = PackError::Length { codes: 11, bits: 3, expected: 2, got: 1 };
        assert_eq!(pack_row(&[0; 11], bits, &mut [0]), Err(length.clone()));
        assert_eq!(unpack_row(&[0], bits, &mut [0; 11]), Err(length));
        assert_eq!(pack_row(&[7, 0, 8, 9], bits, &mut [0]), Err(PackError::Code { code: 8, index: 2, bits: 3 }));
    }

    #[test]
    fn first_code_is_lowest() {
        let mut words = [0];
        pack_row(&[1, 2, 15], Bits::new(4).unwrap(), &mut words).unwrap();
        assert_eq!(words, [0xf21]);
    }
}
