//! Bytes of a value's file in a cold tier through the parser of its header.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if let Ok(header) = qvl_cache::cold::format::Header::parse(bytes, 1 << 20) {
        assert!(header.lead_bytes() as u64 <= header.file_bytes());
    }
});
