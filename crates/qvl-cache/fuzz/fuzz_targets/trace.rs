//! Bytes of a recorded trace through its decoder; what is accepted says the same when it is encoded again.

#![no_main]

use std::path::Path;

use qvl_cache::trace::Trace;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if let Ok(trace) = Trace::decode(Path::new("fuzz"), bytes) {
        let again = Trace::decode(Path::new("again"), &trace.encode());
        assert!(again.is_ok_and(|again| again.requests == trace.requests));
    }
});
