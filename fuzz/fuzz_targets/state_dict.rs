//! Gives the fuzzer's bytes to `oq_fuzz::state_dict`.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    oq_fuzz::state_dict::read(bytes);
});
