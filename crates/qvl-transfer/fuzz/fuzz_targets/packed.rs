//! Bytes of a packed file through its reader.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    qvl_transfer::fuzzing::packed(bytes);
});
