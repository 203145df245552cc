//! Gives the fuzzer's bytes to `oq_fuzz::parquet`.

#![no_main]

libfuzzer_sys::fuzz_target!(
    // The fuzzer's hook ends the process before a panic can be caught, as `oq-data` catches those of the library beneath. What is not
    // caught still ends it, one frame further up.
    init: std::panic::set_hook(Box::new(|_| {})),
    |bytes: &[u8]| {
        oq_fuzz::parquet::read(bytes);
    }
);
