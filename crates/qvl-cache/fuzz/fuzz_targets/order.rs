//! Bytes of the saved order through its decoder.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    qvl_cache::fuzzing::order(bytes);
});
