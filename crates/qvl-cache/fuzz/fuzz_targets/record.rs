//! Bytes of an index record through its decoder.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    qvl_cache::fuzzing::record(bytes);
});
