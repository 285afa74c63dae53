//! Files that exist already as a cold tier: their ranges come back as they are, and never other than they were.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a failed unwrap is a failed test")]

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use qvl_cache::Error;
use qvl_cache::cold::ranges::Ranges;
use qvl_cache::cold::{Cold, Kept, Refusal};
use tempfile::TempDir;

/// A folder with a file of 100,000 different bytes.
fn file() -> (TempDir, PathBuf, Vec<u8>) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("weights.bin");
    let bytes: Vec<u8> = (0..100_000u64).map(|i| ((i * i) >> 5) as u8).collect();
    std::fs::write(&path, &bytes).unwrap();
    (folder, path, bytes)
}

/// Changes one byte, and leaves length and time as they were.
fn change(path: &Path, at: usize) {
    let modified = path.metadata().unwrap().modified().unwrap();
    let mut bytes = std::fs::read(path).unwrap();
    bytes[at] ^= 1;
    std::fs::write(path, bytes).unwrap();
    std::fs::File::options().write(true).open(path).unwrap().set_modified(modified).unwrap();
}

fn malformed(error: Error) -> (PathBuf, String) {
    match error {
        Error::Malformed { path, what } => (path, what),
        other => panic!("{other}"),
    }
}

#[test]
fn every_range_comes_back_as_it_is_and_nothing_can_be_put() {
    let (_folder, path, bytes) = file();
    let ranges = [(0, 0), (0, 1), (1, 4096), (4095, 5000), (99_999, 1), (100_000, 0), (0, 100_000)];
    let mut builder = Ranges::builder();
    for (i, (offset, len)) in ranges.iter().enumerate() {
        builder = builder.range([i as u8], &path, *offset, *len);
    }
    let tier = builder.build().unwrap();
    for _ in 0..2 {
        for (i, (offset, len)) in ranges.iter().enumerate() {
            let value = tier.get(&[i as u8]).unwrap().unwrap();
            assert_eq!(value, bytes[*offset as usize..][..*len as usize]);
            assert!(value.is_empty() || (value.as_ptr() as usize).is_multiple_of(4096));
        }
    }
    assert_eq!(tier.get(b"no such key").unwrap(), None);
    assert!(!tier.writable());
    assert_eq!(tier.put(b"new", &Bytes::new(), 0.0).unwrap(), Kept::Refused(Refusal::ReadOnly));
    assert_eq!(tier.put(&[0], &Bytes::new(), 0.0).unwrap(), Kept::AlreadyThere);
    tier.remove(&[1]).unwrap();
    assert!(tier.contains(&[1]).unwrap());
    let stats = tier.stats();
    assert_eq!((stats.values, stats.hits, stats.misses, stats.damaged), (7, 14, 1, 0));
    tier.close().unwrap();
    assert!(matches!(tier.get(&[0]), Err(Error::Closed)));
}

#[test]
fn a_byte_that_changed_after_the_first_read_is_a_counted_miss() {
    let (_folder, path, bytes) = file();
    let tier = Ranges::builder().range(b"a", &path, 0, 100).range(b"b", &path, 100, 100).build().unwrap();
    tier.get(b"a").unwrap().unwrap();
    tier.get(b"b").unwrap().unwrap();
    change(&path, 99);
    assert_eq!(tier.get(b"a").unwrap(), None);
    assert_eq!((tier.stats().damaged, tier.stats().misses), (1, 1));
    assert_eq!(tier.get(b"b").unwrap().unwrap(), bytes[100..200], "the others are as they were");
    change(&path, 99);
    assert_eq!(tier.get(b"a").unwrap().unwrap(), bytes[..100]);
}

#[test]
fn a_file_with_another_time_or_length_is_not_read() {
    let (_folder, path, bytes) = file();
    let tier = Ranges::builder().range(b"a", &path, 0, 100).build().unwrap();
    let modified = path.metadata().unwrap().modified().unwrap();
    let set = |time: SystemTime| {
        std::fs::File::options().write(true).open(&path).unwrap().set_modified(time).unwrap();
    };
    set(modified + Duration::from_secs(5));
    assert_eq!(tier.get(b"a").unwrap(), None);
    std::fs::write(&path, &bytes[..50_000]).unwrap();
    set(modified);
    assert_eq!(tier.get(b"a").unwrap(), None);
    assert_eq!(tier.stats().damaged, 2);
    std::fs::write(&path, &bytes).unwrap();
    set(modified);
    assert_eq!(tier.get(b"a").unwrap().unwrap(), bytes[..100]);
    std::fs::remove_file(&path).unwrap();
    assert!(matches!(tier.get(b"a"), Err(Error::Io { .. })));
}

#[test]
fn with_sums_a_change_between_two_runs_is_seen() {
    let (folder, path, bytes) = file();
    let sums = folder.path().join("sums");
    let open =
        || Ranges::builder().range(b"a", &path, 0, 100).range(b"b", &path, 100, 100).sums(&sums).build();
    let tier = open().unwrap();
    tier.get(b"a").unwrap().unwrap();
    tier.close().unwrap();
    change(&path, 5);
    let tier = open().unwrap();
    assert_eq!(tier.get(b"a").unwrap(), None, "its sum is known from the first run");
    assert_eq!(tier.get(b"b").unwrap().unwrap(), bytes[100..200]);
    drop(tier);
    change(&path, 5);
    change(&path, 150);
    let tier = open().unwrap();
    assert_eq!(tier.get(b"a").unwrap().unwrap(), bytes[..100]);
    assert_eq!(tier.get(b"b").unwrap(), None, "its sum is known from the second run");
    drop(tier);

    std::fs::write(&path, &bytes[..99_999]).unwrap();
    let (at, what) = malformed(open().map(drop).unwrap_err());
    assert_eq!(at, sums);
    assert!(what.contains("100000 bytes") && what.contains("99999"), "{what}");
}

#[test]
fn a_damaged_file_of_sums_is_an_error_at_opening() {
    let (folder, path, _) = file();
    let sums = folder.path().join("sums");
    let open = || Ranges::builder().range(b"a", &path, 0, 100).sums(&sums).build();
    let tier = open().unwrap();
    tier.get(b"a").unwrap().unwrap();
    tier.close().unwrap();
    let whole = std::fs::read(&sums).unwrap();
    for at in 0..whole.len() {
        let mut damaged = whole.clone();
        damaged[at] ^= 1;
        std::fs::write(&sums, damaged).unwrap();
        assert_eq!(malformed(open().map(drop).unwrap_err()).0, sums, "byte {at}");
    }
    for len in 0..whole.len() {
        std::fs::write(&sums, &whole[..len]).unwrap();
        assert_eq!(malformed(open().map(drop).unwrap_err()).0, sums, "{len} bytes");
    }
    std::fs::write(&sums, &whole).unwrap();
    open().unwrap();
}

#[test]
fn ranges_that_do_not_fit_are_errors_that_name_them() {
    let (folder, path, _) = file();
    let error =
        |builder: qvl_cache::cold::ranges::RangesBuilder| malformed(builder.build().map(drop).unwrap_err());
    let (at, what) = error(Ranges::builder().range(b"layer", &path, 99_999, 2));
    assert_eq!(at, path);
    assert!(what.contains("\"layer\"") && what.contains("100000"), "{what}");
    error(Ranges::builder().range(b"layer", &path, u64::MAX, 2));
    error(Ranges::builder().range(b"layer", &path, 2, u64::MAX));
    let twice = Ranges::builder().range(b"layer", &path, 0, 2).range(b"layer", &path, 2, 2);
    assert!(error(twice).1.contains("\"layer\" is also in"));
    let missing = folder.path().join("missing");
    let missing = Ranges::builder().range(b"layer", &missing, 0, 2).build().map(drop).unwrap_err();
    assert!(matches!(missing, Error::Io { operation: "open", .. }));
}

#[cfg(feature = "safetensors")]
mod safetensors {
    use serde_json::{Value, json};

    use super::*;

    fn write(path: &Path, header: &str, data: &[u8]) {
        let length = (header.len() as u64).to_le_bytes();
        std::fs::write(path, [&length, header.as_bytes(), data].concat()).unwrap();
    }

    fn tensor(dtype: &str, shape: Value, start: u64, end: u64) -> Value {
        json!({"dtype": dtype, "shape": shape, "data_offsets": [start, end]})
    }

    #[test]
    fn the_tensors_of_a_file_are_its_ranges() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.safetensors");
        let header = json!({
            "__metadata__": {"format": "pt"},
            "a": tensor("F32", json!([2, 3]), 0, 24),
            "b": tensor("BF16", json!([]), 24, 26),
            "empty": tensor("F32", json!([0, 3]), 26, 26),
            "of another time": tensor("F4", json!([5]), 26, 29),
        });
        let data: Vec<u8> = (0..29).collect();
        write(&path, &header.to_string(), &data);
        for from in [&path, folder.path()] {
            let tier = Ranges::safetensors(from).unwrap();
            for (name, range) in [("a", 0..24), ("b", 24..26), ("empty", 26..26), ("of another time", 26..29)]
            {
                assert_eq!(tier.get(name.as_bytes()).unwrap().unwrap(), data[range], "{name}");
            }
            assert_eq!((tier.keys().count(), tier.stats().bytes), (4, 29));
        }
        let tier = Ranges::builder().safetensors(&path, "model/").unwrap().build().unwrap();
        assert_eq!(tier.get(b"model/b").unwrap().unwrap(), data[24..26]);
    }

    #[test]
    fn the_tensors_of_all_shards_are_found_by_the_index() {
        let folder = tempfile::tempdir().unwrap();
        let shard = |name: &str, tensors: Value, data: &[u8]| {
            write(&folder.path().join(name), &tensors.to_string(), data);
        };
        shard(
            "one.safetensors",
            json!({"a": tensor("U8", json!([2]), 0, 2), "c": tensor("U8", json!([1]), 2, 3)}),
            b"abc",
        );
        shard("two.safetensors", json!({"b": tensor("U8", json!([4]), 0, 4)}), b"defg");
        let index = folder.path().join("model.safetensors.index.json");
        let map = |map: Value| std::fs::write(&index, json!({"weight_map": map}).to_string()).unwrap();
        map(json!({"a": "one.safetensors", "b": "two.safetensors"}));
        let tier = Ranges::safetensors(folder.path()).unwrap();
        assert_eq!(tier.get(b"a").unwrap().unwrap(), b"ab"[..]);
        assert_eq!(tier.get(b"b").unwrap().unwrap(), b"defg"[..]);
        assert_eq!(tier.get(b"c").unwrap(), None, "the index does not name it");

        let wrong = |wrong: Value| {
            map(wrong);
            let (path, what) = malformed(Ranges::safetensors(folder.path()).map(drop).unwrap_err());
            assert_eq!(path, index);
            what
        };
        assert!(wrong(json!({"b": "one.safetensors"})).contains("\"b\""));
        for shard in ["../one.safetensors", "/etc/passwd", "..", "", "sub/one.safetensors", "sub\\one"] {
            assert!(wrong(json!({"a": shard})).contains("no name of a file"), "{shard}");
        }
        map(json!({"a": "three.safetensors"}));
        assert!(matches!(Ranges::safetensors(folder.path()), Err(Error::Io { .. })));
        for text in ["", "[]", "{}", r#"{"weight_map": {"a": 1}}"#] {
            std::fs::write(&index, text).unwrap();
            assert_eq!(malformed(Ranges::safetensors(folder.path()).map(drop).unwrap_err()).0, index);
        }
        std::fs::write(&index, r#"{"weight_map": {"a": "one.safetensors", "a": "one.safetensors"}}"#)
            .unwrap();
        assert!(malformed(Ranges::safetensors(folder.path()).map(drop).unwrap_err()).1.contains("twice"));
    }

    #[test]
    fn a_header_that_does_not_fit_its_file_is_an_error_that_names_the_tensor() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.safetensors");
        let wrong = |header: &str, expected: &str| {
            write(&path, header, &[0; 16]);
            let (at, what) = malformed(Ranges::safetensors(&path).map(drop).unwrap_err());
            assert_eq!(at, path);
            assert!(what.contains(expected), "{header}: {what}");
        };
        let one = |tensor: Value| json!({"the tensor": tensor}).to_string();
        wrong(&one(tensor("F32", json!([4]), 1, 17)), "\"the tensor\" lies at 1 to 17");
        wrong(&one(tensor("F32", json!([4]), 8, 4)), "\"the tensor\" lies at 8 to 4");
        wrong(&one(tensor("F32", json!([4]), 0, u64::MAX)), "\"the tensor\"");
        wrong(&one(tensor("F32", json!([3]), 0, 16)), "takes 12 bytes, but has 16");
        wrong(&one(tensor("F32", json!([u64::MAX, u64::MAX]), 0, 16)), "impossible shape");
        wrong(&one(tensor("F64", json!([1u64 << 61]), 0, 0)), "impossible shape");
        wrong(&one(json!({"dtype": "F32", "shape": [-1], "data_offsets": [0, 16]})), "\"the tensor\"");
        wrong(&one(json!({"dtype": "F32", "shape": [4], "data_offsets": [0, 8, 16]})), "\"the tensor\"");
        wrong(&one(json!(5)), "\"the tensor\"");
        let entry = tensor("F32", json!([4]), 0, 16);
        wrong(&format!(r#"{{"the tensor": {entry}, "the tensor": {entry}}}"#), "twice");
        for text in ["", "{", "[]", "null", "{} trailing", &"[".repeat(100_000)] {
            wrong(text, "its header cannot be read");
        }
        for length in [17, 1 << 40, u64::MAX] {
            std::fs::write(&path, [&u64::to_le_bytes(length)[..], b"{}"].concat()).unwrap();
            let (_, what) = malformed(Ranges::safetensors(&path).map(drop).unwrap_err());
            assert!(what.contains(&length.to_string()), "{what}");
        }
        for len in 0..8 {
            std::fs::write(&path, vec![0; len]).unwrap();
            malformed(Ranges::safetensors(&path).map(drop).unwrap_err());
        }
    }
}
