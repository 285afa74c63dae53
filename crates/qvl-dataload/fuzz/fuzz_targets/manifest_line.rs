//! A line of a manifest through its parser.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    qvl_dataload::fuzzing::manifest_line(bytes);
});
