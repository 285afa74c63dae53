//! A trace file gives back what was written; a cut or damaged one is an error that names it.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::path::Path;

use proptest::prelude::*;
use qvl_cache::Error;
use qvl_cache::trace::{Request, Trace};

fn requests() -> impl Strategy<Value = Vec<Request>> {
    let id = prop_oneof![0_u64..20, any::<u64>()];
    let bytes = prop_oneof![1_u64..10, 1..=u64::MAX / 128];
    let request = (id, bytes, any::<u32>(), any::<bool>());
    let request =
        request.prop_map(|(id, bytes, cost_micros, write)| Request { id, bytes, cost_micros, write });
    prop::collection::vec(request, 0..100)
}

/// A checksum that fits, so that what follows it is looked at.
fn sealed(mut bytes: Vec<u8>) -> Vec<u8> {
    let body = bytes.len().saturating_sub(8);
    let checksum = twox_hash::XxHash3_64::oneshot(&bytes[..body]);
    bytes[body..].copy_from_slice(&checksum.to_le_bytes());
    bytes
}

proptest! {
    #[test]
    fn what_was_written_comes_back(requests in requests()) {
        let trace = Trace { requests };
        prop_assert_eq!(Trace::decode(Path::new("a"), &trace.encode()).unwrap(), trace);
    }

    #[test]
    fn a_changed_byte_is_an_error(requests in requests(), at in any::<prop::sample::Index>(), bits in 1_u8..=255) {
        let mut bytes = Trace { requests }.encode();
        let at = at.index(bytes.len());
        bytes[at] ^= bits;
        prop_assert!(Trace::decode(Path::new("a"), &bytes).is_err());
    }

    #[test]
    fn a_cut_file_is_an_error(requests in requests(), at in any::<prop::sample::Index>()) {
        let bytes = Trace { requests }.encode();
        prop_assert!(Trace::decode(Path::new("a"), &bytes[..at.index(bytes.len())]).is_err());
    }

    #[test]
    fn no_bytes_panic(requests in requests(), changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8)) {
        let mut bytes = Trace { requests }.encode();
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            if at >= 12 {
                bytes[at] = byte;
            }
        }
        if let Ok(trace) = Trace::decode(Path::new("a"), &sealed(bytes)) {
            prop_assert!(trace.requests.iter().all(|request| request.bytes > 0));
        }
    }
}

#[test]
fn errors_name_the_file_and_what_is_wrong() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("some.trace");
    let good = Trace::cycle(3, 10).encode();
    let says = |bytes: &[u8]| {
        std::fs::write(&path, bytes).unwrap();
        let error = Trace::read(&path).unwrap_err();
        let text = error.to_string();
        let rest = text.strip_prefix(&path.display().to_string()).unwrap().to_owned();
        (rest, matches!(error, Error::Malformed { .. }))
    };
    assert_eq!(says(b""), (": does not begin with \"qvltrace\" and a version: no trace".to_owned(), true));
    assert_eq!(says(&good[..15]), (": cut: 15 bytes".to_owned(), true));
    let (text, malformed) = says(&good[..good.len() - 1]);
    assert!(malformed && text.contains("cut or damaged"), "{text}");
    let mut other = good.clone();
    other[8] = 9;
    let (text, malformed) = says(&other);
    assert!(!malformed && text.contains("format 9, this version reads 1"), "{text}");
    let mut many = good.clone();
    many[12] = 120;
    assert!(says(&sealed(many)).0.contains("120 requests in "));
    let mut empty = good.clone();
    let body = empty.len() - 8;
    empty.insert(body, 0);
    assert!(says(&sealed(empty)).0.contains(": 1 bytes after the last of 10 requests"));
    let request = Request { id: 1, bytes: u64::MAX / 2, cost_micros: 1, write: false };
    let (text, malformed) = says(&Trace { requests: vec![request; 3] }.encode());
    assert!(malformed && text.contains("request 2 of 3: all bytes so far"), "{text}");
    std::fs::remove_file(&path).unwrap();
    assert!(matches!(Trace::read(&path).unwrap_err(), Error::Io { .. }));
    Trace::cycle(3, 10).write(&path).unwrap();
    assert_eq!(Trace::read(&path).unwrap(), Trace::cycle(3, 10));
}

#[test]
fn a_loop_takes_about_a_byte_a_request() {
    let bytes = Trace::cycle(1000, 50_000).encode().len();
    assert!(bytes < 50_000 * 5 / 4, "{bytes}");
}
