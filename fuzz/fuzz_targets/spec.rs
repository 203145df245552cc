//! The bytes are a setting such as `w3a16g64`; what is parsed is written as it is parsed.

#![no_main]

use libfuzzer_sys::fuzz_target;
use oq_quant_core::QuantSpec;

fuzz_target!(|text: &str| {
    match text.parse::<QuantSpec>() {
        Ok(spec) => assert_eq!(spec.to_string().parse(), Ok(spec)),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
});
