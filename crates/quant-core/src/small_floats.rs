//! Numbers of 4 and 8 bits with an exponent: e2m1, e4m3 and e8m0 (OCP Microscaling Formats 1.0, sections 5.3 and 5.4; OCP 8-bit Floating
//! Point, section 5).

/// The magnitudes of e2m1 numbers, by their three lowest bits. The highest bit of a code is the sign.
const E2M1: [f32; 8] = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0];
/// Largest e2m1 number.
pub const E2M1_MAX: f32 = 6.0;
/// Largest e4m3 number.
const E4M3_MAX: f32 = 448.0;

/// Value of an e2m1 code, `0..16`.
#[inline]
pub fn from_e2m1(code: u8) -> f32 {
    let magnitude = E2M1[usize::from(code & 7)];
    if code & 8 == 0 { magnitude } else { -magnitude }
}

/// The nearest e2m1 code; ties go to the even one, and numbers beyond the largest become the largest.
#[inline]
pub fn to_e2m1(value: f32) -> u8 {
    let size = value.abs();
    // Steps of 0.5 up to 2, of 1 up to 4, and of 2 from there. Codes are in the order of their magnitudes.
    let code = if size < 2.0 {
        (2.0 * size).round_ties_even() as u8
    } else if size < 4.0 {
        2 + size.round_ties_even() as u8
    } else {
        (4 + (size.min(E2M1_MAX) / 2.0).round_ties_even() as u8).min(7)
    };
    if value < 0.0 && code > 0 { code | 8 } else { code }
}

/// Value of a non-negative e4m3 byte, `0..=0x7e`.
pub fn from_e4m3(byte: u8) -> f32 {
    let (exponent, mantissa) = (i32::from(byte >> 3 & 15), f32::from(byte & 7) / 8.0);
    if exponent == 0 { mantissa * 2f32.powi(-6) } else { (1.0 + mantissa) * 2f32.powi(exponent - 7) }
}

/// The nearest positive e4m3 byte, for a number that is not negative; ties go to the even one. 0 becomes the smallest positive number.
pub fn to_e4m3(value: f32) -> u8 {
    let value = value.min(E4M3_MAX);
    let exponent = (exponent_of(value)).max(-6);
    let step = 2f32.powi(exponent - 3);
    let eighths = (value / step).round_ties_even() as u32;
    // A number that is rounded up to the next power of two has 16 eighths, which carries into the exponent by itself.
    let byte = (exponent + 6) as u32 * 8 + eighths;
    byte.clamp(1, 0x7e) as u8
}

/// Value of an e8m0 byte, `0..=254`.
pub fn from_e8m0(byte: u8) -> f32 {
    if byte == 0 { f32::from_bits(0x0040_0000) } else { f32::from_bits(u32::from(byte) << 23) }
}

/// The e8m0 byte of the scale of a group whose largest number is 6 times `scale`, as the format's definition has it: the power of two of
/// the largest number, less that of the largest e2m1 number. (Numbers between 6 and 8 times the scale are clamped.)
pub fn to_e8m0(scale: f32) -> u8 {
    (exponent_of(E2M1_MAX * scale) - 2 + 127).clamp(1, 254) as u8
}

/// `floor(log2(value))` of a positive, normal number; far below every exponent here for 0.
fn exponent_of(value: f32) -> i32 {
    (value.to_bits() >> 23) as i32 - 127
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn e2m1_is_the_nearest_of_its_sixteen_numbers() {
        for i in -8000..=8000 {
            let value = i as f32 / 1000.0;
            let nearest = (0..16).map(from_e2m1).map(|x| (x - value).abs()).fold(f32::MAX, f32::min);
            assert_eq!((from_e2m1(to_e2m1(value)) - value).abs(), nearest, "{value}");
        }
        assert_eq!(
            [0.25, 0.75, 1.25, 2.5, 3.5, 5.0, -5.0].map(|x| from_e2m1(to_e2m1(x))),
            [0.0, 1.0, 1.0, 2.0, 4.0, 4.0, -4.0]
        );
        assert_eq!(
            (0..16).map(|code| to_e2m1(from_e2m1(code))).collect::<Vec<_>>(),
            [0, 1, 2, 3, 4, 5, 6, 7, 0, 9, 10, 11, 12, 13, 14, 15]
        );
    }

    #[test]
    fn e4m3_is_the_nearest_of_its_positive_numbers() {
        assert!((0..0x7e).all(|byte| from_e4m3(byte) < from_e4m3(byte + 1)));
        assert_eq!(
            (from_e4m3(1), from_e4m3(8), from_e4m3(0x38), from_e4m3(0x7e)),
            (2f32.powi(-9), 2f32.powi(-6), 1.0, 448.0)
        );
        for i in 1..=5000 {
            let value = 1.003f32.powi(i - 2200);
            let nearest = (1..=0x7e).map(from_e4m3).map(|x| (x - value).abs()).fold(f32::MAX, f32::min);
            assert_eq!((from_e4m3(to_e4m3(value)) - value).abs(), nearest, "{value}");
        }
        assert!((1..=0x7e).all(|byte| to_e4m3(from_e4m3(byte)) == byte));
        assert_eq!(to_e4m3(0.0), 1);
    }

    #[test]
    fn e8m0_is_a_power_of_two() {
        assert_eq!([1, 127, 130, 254].map(from_e8m0), [2f32.powi(-126), 1.0, 8.0, 2f32.powi(127)]);
        assert_eq!(f64::from(from_e8m0(0)), 2f64.powi(-127));
    }
}
