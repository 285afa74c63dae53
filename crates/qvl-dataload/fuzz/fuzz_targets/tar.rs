//! Bytes of a tar archive through the scan for its members.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    qvl_dataload::fuzzing::tar(bytes);
});
