//! Everything in the header of a weight file comes from outside: each thing that can be wrong with it is one
//! error that names the file, the tensor and the numbers, and no bytes panic.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod common;

use common::{Random, Stored, Weights, write_weights};
use proptest::prelude::*;
use qvl_model::Error;
use qvl_model::checkpoint::SafetensorsFile;
use safetensors::Dtype;

/// A file with the given header and that many bytes of data.
fn file(header: &str, data_bytes: usize) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(header.as_bytes());
    bytes.extend((0..data_bytes).map(|index| index as u8));
    bytes
}

/// Opens the bytes as a file, which must fail with a one-line message that has all the `parts` and the path.
#[track_caller]
fn check(bytes: &[u8], parts: &[&str]) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    std::fs::write(&path, bytes).unwrap();
    let error = SafetensorsFile::open(&path).unwrap_err();
    assert!(matches!(error, Error::Header { .. }), "{error:?}");
    let message = error.to_string();
    assert!(!message.contains('\n'), "{message:?} is more than a line");
    for part in parts.iter().copied().chain([path.to_str().unwrap()]) {
        assert!(message.contains(part), "{message:?} does not say {part:?}");
    }
}

/// A valid file of three tensors of different types.
fn valid() -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("valid.safetensors");
    let weights: Weights = [
        ("first".to_owned(), Stored::new(Dtype::F32, &[2, 3], &[1.0, -2.0, 3.0, -4.0, 5.0, -6.0])),
        ("second".to_owned(), Stored::new(Dtype::BF16, &[4], &[0.5, 1.5, -0.25, 8.0])),
        ("third".to_owned(), Stored::new(Dtype::F16, &[1, 2, 1], &[0.5, -1.5])),
    ]
    .into();
    write_weights(&path, &weights);
    std::fs::read(path).unwrap()
}

#[test]
fn a_valid_file_is_read() {
    let file = SafetensorsFile::from_static("valid", valid().leak()).unwrap();
    assert_eq!(file.get("first").unwrap().to_f32(), [1.0, -2.0, 3.0, -4.0, 5.0, -6.0]);
    assert_eq!(file.get("second").unwrap().to_f32(), [0.5, 1.5, -0.25, 8.0]);
    assert_eq!(file.get("third").unwrap().to_f32(), [0.5, -1.5]);
    assert_eq!(file.get("third").unwrap().shape(), [1, 2, 1]);
    assert_eq!(file.get("first").unwrap().entry(1).unwrap().to_f32(), [-4.0, 5.0, -6.0]);
    assert!(file.get("first").unwrap().entry(2).is_none());
    assert!(file.get("fourth").is_none());
}

#[test]
fn no_bytes() {
    check(b"", &["the file is empty"]);
}

#[test]
fn three_bytes() {
    check(b"abc", &["3 bytes are too few"]);
}

#[test]
fn a_header_longer_than_the_file() {
    let mut bytes = file("{}", 20);
    bytes[0] = 200;
    check(&bytes, &["claims 200 bytes", "only 22 follow"]);
}

#[test]
fn a_header_of_the_largest_length_there_is() {
    let mut bytes = file("{}", 20);
    bytes[..8].fill(0xff);
    check(&bytes, &["claims 18446744073709551615 bytes", "at most 100000000"]);
}

#[test]
fn a_header_that_is_not_json() {
    check(&file("hello there", 4), &["line 1 column 1"]);
    check(&file("[1, 2]", 4), &["an object of tensors"]);
    check(&file("", 4), &["EOF"]);
    check(&file("{\"a\": 1}", 4), &["tensor a"]);
    let mut not_utf8 = file("{\"aaa\": 1}", 4);
    not_utf8[10] = 0xff;
    check(&not_utf8, &["line 1 column"]);
    // Deeper than any stack.
    let nested = "[".repeat(100_000);
    check(&file(&format!("{{\"__metadata__\": {nested}"), 0), &["EOF"]);
    check(&file(&format!("{{\"a\": {nested}"), 0), &["tensor a"]);
}

#[test]
fn an_entry_without_its_fields() {
    check(&file(r#"{"a": {"dtype": "F32", "shape": [1]}}"#, 4), &["tensor a", "data_offsets"]);
    check(&file(r#"{"a": {"dtype": "F32", "data_offsets": [0, 4]}}"#, 4), &["tensor a", "shape"]);
    check(&file(r#"{"a": {"shape": [1], "data_offsets": [0, 4]}}"#, 4), &["tensor a", "dtype"]);
    check(&file(r#"{"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}"#, 4), &["tensor a", "-1"]);
    check(&file(r#"{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4, 8]}}"#, 8), &["tensor a"]);
    check(
        &file(r#"{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4.5]}}"#, 8),
        &["tensor a", "4.5"],
    );
}

#[test]
fn a_file_cut_off_anywhere() {
    let bytes = valid();
    for length in 0..bytes.len() {
        check(&bytes[..length], &[]);
    }
    let cut = &bytes[..bytes.len() - 1];
    check(cut, &["ends at byte 36 of the data", "has only 35", "truncated"]);
}

#[test]
fn tensors_that_overlap() {
    let header = r#"{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
                     "b": {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]}}"#;
    check(&file(header, 12), &["a [0, 8]", "b [4, 12]", "overlap"]);
    let inside = r#"{"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]},
                     "b": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]},
                     "c": {"dtype": "F32", "shape": [1], "data_offsets": [16, 20]}}"#;
    check(&file(inside, 20), &["a [0, 16]", "b [4, 8]", "overlap"]);
    let unreadable = r#"{"a": {"dtype": "I8", "shape": [8], "data_offsets": [0, 8]},
                         "b": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}"#;
    check(&file(unreadable, 8), &["a [0, 8]", "b [4, 8]", "overlap"]);
}

#[test]
fn offsets_that_run_backwards() {
    check(
        &file(r#"{"a": {"dtype": "F32", "shape": [1], "data_offsets": [8, 4]}}"#, 8),
        &["tensor a", "[8, 4]"],
    );
    check(
        &file(r#"{"a": {"dtype": "I64", "shape": [1], "data_offsets": [8, 0]}}"#, 8),
        &["tensor a", "[8, 0]", "backwards"],
    );
    let most = u64::MAX;
    check(
        &file(
            &format!(r#"{{"a": {{"dtype": "F32", "shape": [1], "data_offsets": [{}, {most}]}}}}"#, most - 4),
            8,
        ),
        &["tensor a", "ends at byte 18446744073709551615", "only 8"],
    );
}

#[test]
fn a_size_that_does_not_fit_the_shape() {
    check(
        &file(r#"{"a": {"dtype": "BF16", "shape": [2, 3], "data_offsets": [0, 10]}}"#, 10),
        &["tensor a", "[0, 10]", "12 bytes", "BF16", "[2, 3]"],
    );
}

#[test]
fn a_shape_that_overflows() {
    let side = usize::MAX / 2;
    check(
        &file(&format!(r#"{{"a": {{"dtype": "F32", "shape": [{side}, 4], "data_offsets": [0, 4]}}}}"#), 4),
        &["tensor a", "overflows", &side.to_string()],
    );
}

#[test]
fn a_tensor_written_twice() {
    let header = r#"{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},
                     "a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}"#;
    check(&file(header, 8), &["tensor a is written twice"]);
}

#[test]
fn a_type_that_is_not_read_is_no_error_until_it_is_needed() {
    let header = r#"{"__metadata__": {"format": "pt"},
                     "a": {"dtype": "I64", "shape": [1], "data_offsets": [0, 8]},
                     "b": {"dtype": "F32", "shape": [], "data_offsets": [8, 12]}}"#;
    let file = SafetensorsFile::from_static("mixed", file(header, 12).leak()).unwrap();
    assert_eq!(file.unreadable_dtype("a"), Some("I64"));
    assert!(file.get("a").is_none());
    assert_eq!(file.get("b").unwrap().to_f32().len(), 1);
    assert_eq!(file.names().collect::<Vec<_>>(), ["b"]);
}

/// Opens bytes whatever they are; looks at everything that was accepted.
fn survive(bytes: Vec<u8>) {
    // A small leak for each case: the bytes must outlive the file.
    let Ok(file) = SafetensorsFile::from_static("random", bytes.leak()) else { return };
    for name in file.names() {
        let view = file.get(name).unwrap();
        let count: usize = view.shape().iter().product();
        assert_eq!(view.to_f32().len(), count);
        assert_eq!(view.bytes().len(), count * view.dtype().bytes());
        for index in 0..view.shape().first().copied().unwrap_or(0).min(4) {
            assert!(view.entry(index).is_some());
        }
    }
}

proptest! {
    #[test]
    fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        survive(bytes);
    }

    #[test]
    fn random_headers_never_panic(header in "[\\[\\]{}\":,a-c0-9 F6BIdtypeshapdata_offsets-]{0,120}") {
        survive(file(&header, 16));
    }

    #[test]
    fn random_entries_never_panic(
        dtype in prop::sample::select(vec!["F32", "BF16", "F16", "I64", "F8_E4M3", ""]),
        shape in prop::collection::vec(prop_oneof![0u64..5, any::<u64>()], 0..4),
        begin in prop_oneof![0u64..40, any::<u64>()],
        end in prop_oneof![0u64..40, any::<u64>()],
    ) {
        let entry = format!(r#"{{"dtype": "{dtype}", "shape": {shape:?}, "data_offsets": [{begin}, {end}]}}"#);
        survive(file(&format!(r#"{{"a": {entry}, "b": {{"dtype": "F32", "shape": [2], "data_offsets": [8, 16]}}}}"#), 32));
    }

    #[test]
    fn a_valid_file_with_a_few_bytes_changed_never_panics(seed in any::<u64>()) {
        let mut bytes = valid();
        let mut random = Random::new(&seed.to_string());
        for _ in 0..=random.below(4) {
            let place = random.below(bytes.len() as u64) as usize;
            match random.below(4) {
                0 => bytes[place] = random.below(256) as u8,
                // A digit for a digit keeps the header JSON and makes its numbers wrong.
                1 => if bytes[place].is_ascii_digit() { bytes[place] = b'0' + random.below(10) as u8 },
                2 => { bytes.remove(place); }
                _ => bytes.insert(place, b'9'),
            }
        }
        survive(bytes);
    }
}
