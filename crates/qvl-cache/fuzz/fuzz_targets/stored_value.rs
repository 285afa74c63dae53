//! Bytes of a value's file through the check of its footer and its hash.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    qvl_cache::fuzzing::stored_value(bytes);
});
