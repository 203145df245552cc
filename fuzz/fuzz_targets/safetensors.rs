//! Gives the fuzzer's bytes to `oq_fuzz::safetensors`.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    oq_fuzz::safetensors::read(bytes);
});
