//! Everything in the header of a GGUF file comes from outside: each thing that can be wrong with it is one error
//! that names the file, the tensor or key and the numbers, and no bytes panic or ask for memory.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod common;

use common::Random;
use common::gguf::{File, Meta, Store, Tensor, string};
use proptest::prelude::*;
use qvl_model::Error;
use qvl_model::checkpoint::GgufFile;
use qvl_model::quant::BlockFormat;

/// A file with a key of each kind and tensors of several types.
fn valid() -> File {
    let mut file = File::default();
    file.set("a.number", Meta::U32(7));
    file.set("a.signed", Meta::I32(-7));
    file.set("a.long", Meta::U64(1 << 40));
    file.set("a.float", Meta::F32(0.5));
    file.set("a.switch", Meta::Bool(true));
    file.set("a.text", Meta::text("thé"));
    file.set("some.texts", Meta::Texts(vec!["one".to_owned(), String::new(), "three".to_owned()]));
    file.set("some.numbers", Meta::I32s(vec![1, 2, 3]));
    file.set("some.floats", Meta::F32s(vec![0.5, -0.5]));
    file.set("some.switches", Meta::Bools(vec![true, false]));
    let values: Vec<f32> = (0..128).map(|i| i as f32 - 64.0).collect();
    file.tensors = vec![
        Tensor::new("plain", Store::F32, &[2, 3], &values[..6]),
        Tensor::new("short", Store::Bf16, &[4], &values[..4]),
        Tensor::new("blocks", Store::Block(BlockFormat::Q8_0), &[2, 64], &values),
    ];
    file
}

/// Opens the bytes as a file, which must fail with a one-line message that has all the `parts` and the path.
#[track_caller]
fn check_bytes(bytes: &[u8], parts: &[&str]) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    std::fs::write(&path, bytes).unwrap();
    let error = GgufFile::open(&path).unwrap_err();
    assert!(matches!(error, Error::Header { .. }), "{error:?}");
    let message = error.to_string();
    assert!(!message.contains('\n'), "{message:?} is more than a line");
    for part in parts.iter().copied().chain([path.to_str().unwrap()]) {
        assert!(message.contains(part), "{message:?} does not say {part:?}");
    }
}

/// The same of a valid file with a change.
#[track_caller]
fn check(change: impl FnOnce(&mut File), parts: &[&str]) {
    let mut file = valid();
    change(&mut file);
    check_bytes(&file.bytes(), parts);
}

fn open(file: &File) -> GgufFile {
    GgufFile::from_static("valid", file.bytes().leak()).unwrap()
}

#[test]
fn a_valid_file_is_read() {
    for version in [2, 3] {
        let file = open(&File { version, ..valid() });
        assert_eq!(file.unsigned("a.number").unwrap(), Some(7));
        assert_eq!(file.unsigned("a.long").unwrap(), Some(1 << 40));
        assert_eq!(file.float("a.float").unwrap(), Some(0.5));
        assert_eq!(file.boolean("a.switch").unwrap(), Some(true));
        assert_eq!(file.text("a.text").unwrap(), Some("thé"));
        let texts: Vec<_> = file.texts("some.texts").unwrap().unwrap().map(Result::unwrap).collect();
        assert_eq!(texts, ["one", "", "three"]);
        assert_eq!(file.unsigneds("some.numbers").unwrap().unwrap(), [1, 2, 3]);
        assert_eq!(file.floats("some.floats").unwrap().unwrap(), [0.5, -0.5]);
        assert_eq!(file.booleans("some.switches").unwrap().unwrap(), [true, false]);
        assert_eq!(file.unsigned("absent").unwrap(), None);
        assert_eq!(file.keys().count(), 10);

        assert_eq!(file.get("plain").unwrap().shape(), [2, 3]);
        assert_eq!(file.get("plain").unwrap().to_f32(), [-64.0, -63.0, -62.0, -61.0, -60.0, -59.0]);
        assert_eq!(file.get("short").unwrap().to_f32(), [-64.0, -63.0, -62.0, -61.0]);
        let blocks = file.get("blocks").unwrap();
        assert_eq!((blocks.dtype().to_string().as_str(), blocks.bytes().len()), ("Q8_0", 4 * 34));
        assert_eq!(blocks.entry(1).unwrap().to_f32(), blocks.to_f32()[64..]);
        assert!(file.get("absent").is_none());
    }
}

#[test]
fn the_alignment_is_the_files_own() {
    for alignment in [1, 8, 64, 4096] {
        let mut file = File { alignment, ..valid() };
        file.set("general.alignment", Meta::U32(alignment as u32));
        assert_eq!(open(&file).get("short").unwrap().to_f32(), [-64.0, -63.0, -62.0, -61.0]);
    }
    for wrong in [0, 12, 1 << 30] {
        let value = Meta::U32(wrong);
        check(|file| file.set("general.alignment", value), &["general.alignment is", "a power of two"]);
    }
    check(|file| file.set("general.alignment", Meta::text("32")), &["general.alignment is a string"]);
}

#[test]
fn no_bytes_and_few() {
    check_bytes(b"", &["the file is empty"]);
    check_bytes(b"GG", &["needs 4 bytes", "only 2 follow"]);
    check_bytes(b"GGUF\x03\0\0\0", &["the number of tensors"]);
}

#[test]
fn another_kind_of_file() {
    check(|file| file.magic = *b"ggjt", &["it begins with \"ggjt\"", "not a GGUF file"]);
    check(|file| file.magic = [0, 1, 0xff, b'\n'], &["\"\\x00\\x01\\xff\\n\""]);
}

#[test]
fn another_version() {
    check(|file| file.version = 1, &["version 1 is not read", "convert the model again"]);
    check(|file| file.version = 4, &["version 4 is not known"]);
    check(|file| file.version = 0, &["version 0 is not known"]);
    check(|file| file.version = 3u32.swap_bytes(), &["big-endian", "version 3"]);
}

#[test]
fn counts_that_the_file_cannot_hold() {
    for count in [100, 1 << 40, u64::MAX] {
        check(|file| file.tensor_count = Some(count), &[&format!("claims {count} tensors")]);
        check(|file| file.metadata_count = Some(count), &[&format!("claims {count} metadata entries")]);
    }
}

#[test]
fn lengths_that_the_file_cannot_hold() {
    for length in [1 << 20, u64::MAX] {
        let text = Meta::Raw(8, length.to_le_bytes().to_vec());
        check(|file| file.set("a.text", text), &["metadata a.text", &length.to_string()]);
        for (kind, name) in [(0u32, "u8"), (4, "u32"), (8, "texts"), (12, "f64"), (9, "arrays")] {
            let bytes = [&kind.to_le_bytes()[..], &length.to_le_bytes()].concat();
            let parts = ["elements of metadata a.list", &length.to_string()];
            check(|file| file.set("a.list", Meta::Raw(9, bytes)), &parts);
            assert!(!name.is_empty());
        }
    }
    // A text within a list.
    let bytes = [&8u32.to_le_bytes()[..], &1u64.to_le_bytes(), &(1u64 << 50).to_le_bytes()].concat();
    check(|file| file.set("a.list", Meta::Raw(9, bytes)), &["a text needs 1125899906842624 bytes"]);
}

#[test]
fn types_that_do_not_exist() {
    check(
        |file| file.set("a.number", Meta::Raw(13, vec![0; 8])),
        &["metadata a.number: type 13 is not known"],
    );
    let bytes = [&99u32.to_le_bytes()[..], &1u64.to_le_bytes(), &[0; 8]].concat();
    check(|file| file.set("a.list", Meta::Raw(9, bytes)), &["metadata a.list: type 99 is not known"]);
    check(|file| file.set("a.switch", Meta::Raw(7, vec![2])), &["a.switch is 2, expected 0 or 1"]);
}

#[test]
fn lists_within_lists() {
    let nested = |depth: usize| {
        let mut bytes = Vec::new();
        for _ in 0..depth {
            bytes.extend(9u32.to_le_bytes());
            bytes.extend(1u64.to_le_bytes());
        }
        bytes.extend(4u32.to_le_bytes());
        bytes.extend(1u64.to_le_bytes());
        bytes.extend(5u32.to_le_bytes());
        Meta::Raw(9, bytes)
    };
    let mut file = valid();
    file.set("a.list", nested(2));
    assert_eq!(open(&file).unsigned("a.number").unwrap(), Some(7));
    check(|file| file.set("a.list", nested(5)), &["a.list", "nested more than 4 deep"]);
    check(|file| file.set("a.list", nested(100_000)), &["a.list", "nested more than 4 deep"]);
}

#[test]
fn texts_that_are_not_utf8() {
    let mut file = valid();
    file.set("a.text", Meta::Raw(8, string(b"\xff")));
    file.set(
        "some.texts",
        Meta::Raw(9, [&8u32.to_le_bytes()[..], &1u64.to_le_bytes(), &string(b"\xff")].concat()),
    );
    let file = open(&file);
    let error = file.text("a.text").unwrap_err();
    assert!(error.to_string().contains("a.text is not UTF-8"), "{error}");
    let error = file.texts("some.texts").unwrap().unwrap().next().unwrap().unwrap_err();
    assert!(error.to_string().contains("not UTF-8") && error.to_string().contains("item 0"), "{error}");

    let mut bytes = valid().bytes();
    let key = bytes.windows(8).position(|bytes| bytes == b"a.number").unwrap();
    bytes[key] = 0xff;
    check_bytes(&bytes, &["a metadata key at byte", "not UTF-8"]);
    let mut bytes = valid().bytes();
    let name = bytes.windows(5).position(|bytes| bytes == b"plain").unwrap();
    bytes[name] = 0xff;
    check_bytes(&bytes, &["a tensor's name at byte", "not UTF-8"]);
}

#[test]
fn values_of_another_type() {
    let file = open(&valid());
    let message = |result: qvl_model::Result<()>| result.unwrap_err().to_string();
    assert_eq!(
        message(file.unsigned("a.signed").map(drop)),
        "valid: a.signed is -7, expected a whole number from 0 on"
    );
    assert_eq!(
        message(file.unsigned("a.text").map(drop)),
        "valid: a.text is a string, expected a whole number from 0 on"
    );
    assert_eq!(message(file.text("a.number").map(drop)), "valid: a.number is 7, expected a text");
    assert_eq!(
        message(file.float("a.number").map(drop)),
        "valid: a.number is 7, expected a number with a point"
    );
    assert_eq!(message(file.boolean("a.number").map(drop)), "valid: a.number is 7, expected true or false");
    assert_eq!(
        message(file.unsigneds("some.floats").map(drop)),
        "valid: some.floats is an array of 2 values of type F32, expected a list of whole numbers from 0 on"
    );
    assert!(file.texts("some.numbers").is_err() && file.floats("a.float").is_err());
}

#[test]
fn the_same_name_twice() {
    check(
        |file| file.metadata.push(("a.number".to_owned(), Meta::U32(8))),
        &["metadata a.number is written twice"],
    );
    check(
        |file| {
            let again = file.tensors[0].clone();
            file.tensors.push(again);
        },
        &["tensor plain is written twice"],
    );
    check(
        |file| {
            let again = Tensor { type_id: 10, ..file.tensors[0].clone() };
            file.tensors.push(again);
        },
        &["tensor plain is written twice"],
    );
}

#[test]
fn shapes_that_cannot_be() {
    check(|file| file.tensor("plain").shape = vec![1; 5], &["tensor plain has 5 dimensions", "at most 4"]);
    check(|file| file.tensor("plain").shape = vec![1 << 40, 1 << 40], &["tensor plain", "overflows"]);
    check(|file| file.tensor("plain").shape = vec![u64::MAX, 2], &["tensor plain", "overflows"]);
    check(
        |file| file.tensor("blocks").shape = vec![4, 33],
        &["tensor blocks: a row has 33 values, expected a multiple of 32, the block of Q8_0"],
    );
    check(|file| file.tensor("blocks").shape = vec![], &["tensor blocks: a row has 1 values"]);
}

#[test]
fn tensors_that_are_not_in_the_file() {
    check(
        |file| file.tensor("plain").offset = Some(1 << 50),
        &["tensor plain begins at byte 1125899906842624"],
    );
    check(|file| file.tensor("plain").offset = Some(!31), &["tensor plain begins at byte"]);
    check(|file| file.tensor("plain").offset = Some(4), &["tensor plain", "a multiple of 32"]);
    check(
        |file| file.tensor("blocks").shape = vec![1 << 20, 64],
        &["tensor blocks ends at byte", "truncated"],
    );
    let bytes = valid().bytes();
    check_bytes(&bytes[..bytes.len() - 1], &["tensor blocks ends at byte 200", "only 199", "truncated"]);
    check(|file| file.tensor("short").offset = Some(0), &["plain [0, 24]", "short [0, 8]", "overlap"]);
}

#[test]
fn a_type_that_is_not_read_is_an_error_for_whoever_needs_it() {
    for (type_id, name) in [(10, "Q2_K"), (3, "Q4_1"), (23, "IQ4_XS"), (200, "type 200")] {
        let mut file = valid();
        file.tensor("short").type_id = type_id;
        let file = open(&file);
        assert!(file.get("short").is_none());
        assert_eq!(file.unreadable().collect::<Vec<_>>(), [("short", name)]);
        assert!(file.get("plain").is_some());
    }
}

#[test]
fn a_file_cut_anywhere_is_an_error() {
    let bytes = valid().bytes();
    for length in 0..bytes.len() {
        assert!(GgufFile::from_static("cut", bytes[..length].to_vec().leak()).is_err(), "{length} bytes");
    }
}

proptest! {
    #[test]
    fn changed_bytes_never_panic(seed in any::<u64>(), changes in 1usize..12) {
        let mut bytes = valid().bytes();
        let mut random = Random::new(&seed.to_string());
        for _ in 0..changes {
            let at = random.below(bytes.len() as u64) as usize;
            match random.below(4) {
                0 => bytes[at] = random.below(256) as u8,
                1 => bytes[at] ^= 1 << random.below(8),
                2 => bytes[at..].iter_mut().take(8).for_each(|byte| *byte = 0xff),
                _ => drop(bytes.splice(at..at, std::iter::repeat_n(0, random.below(9) as usize))),
            }
        }
        if let Ok(file) = GgufFile::from_static("changed", bytes.leak()) {
            for name in file.names() {
                let view = file.get(name).unwrap();
                prop_assert_eq!(view.to_f32().len(), view.shape().iter().product::<usize>());
            }
            for key in file.keys() {
                let _ = (file.text(key), file.unsigned(key), file.float(key), file.boolean(key));
                let _ = (file.unsigneds(key), file.floats(key), file.booleans(key));
                if let Ok(Some(texts)) = file.texts(key) {
                    texts.for_each(drop);
                }
            }
        }
    }

    #[test]
    fn any_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let bytes = [&b"GGUF\x03\0\0\0"[..], &bytes].concat();
        let _ = GgufFile::from_static("any", bytes.leak());
    }
}
