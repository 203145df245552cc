//! The bytes are a setting such as `w3a16g64`; what is parsed is written as it is parsed.

use oq_quant_core::QuantSpec;

/// Whether it is a setting.
pub fn read(bytes: &[u8]) -> bool {
    let Ok(text) = str::from_utf8(bytes) else { return false };
    match text.parse::<QuantSpec>() {
        Ok(spec) => {
            assert_eq!(spec.to_string().parse(), Ok(spec));
            true
        }
        Err(error) => {
            assert!(!error.to_string().is_empty());
            false
        }
    }
}
