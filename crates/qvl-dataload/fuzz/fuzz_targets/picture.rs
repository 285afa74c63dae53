//! Bytes of a picture file, of any format, through the decoder.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    qvl_dataload::fuzzing::picture(bytes);
});
