//! Gives the fuzzer's bytes to `oq_fuzz::spec`.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    oq_fuzz::spec::read(bytes);
});
