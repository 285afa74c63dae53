//! Every byte of a range of a file arrives where it belongs, whatever the range, the chunks, the mode and the reader
//! are, and nothing else is touched.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod on_files;

use proptest::prelude::*;
use qvl_transfer::drive::DriveFile;
use qvl_transfer::source::Source;
use qvl_transfer::{Device, Transfer};

use on_files::{bytes, engine, file, folders, moved, ways};

const FILE_BYTES: usize = (3 << 20) + 1234;

/// Offsets and lengths that are near the ends of blocks and chunks more often than not.
fn near(most: usize) -> impl Strategy<Value = usize> {
    let edge = prop::sample::select(vec![0usize, 1, 512, 4096, 8192, 65_536, 1 << 20, FILE_BYTES]);
    prop_oneof![
        (edge, -3i64..4).prop_map(move |(edge, by)| (edge as i64 + by).clamp(0, most as i64) as usize),
        0..=most,
    ]
}

fn config(cases: u32) -> ProptestConfig {
    ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() }
}

#[test]
fn of_any_range_in_any_way() {
    let folders = folders();
    let paths: Vec<_> = folders.iter().map(|folder| file(folder.path(), content())).collect();
    // At 0 is its own case: then the memory may be shifted, and is the range's alone.
    let at = prop_oneof![Just(0), near(10_000)];
    let behind = prop_oneof![Just(0), near(10_000)];
    let chunk_bytes = prop::sample::select(vec![4096usize, 12_288, 65_536, 1 << 20]);
    let cases = (near(FILE_BYTES), near(FILE_BYTES), at, behind, chunk_bytes, 1usize..9, 0usize..100);
    proptest!(config(300), |((offset, len, at, behind, chunk_bytes, depth, way) in cases)| {
        let len = len.min(FILE_BYTES - offset);
        for path in &paths {
            let ways = ways(path);
            let (mode, io) = ways[way % ways.len()];
            let engine = engine(io, chunk_bytes, depth);
            let range = DriveFile::with_mode(path, mode).unwrap().range(offset as u64, len as u64).unwrap();
            let mut memory = engine.device().allocate(at + len + behind).unwrap();
            memory.fill(0xa5);
            let done = engine.submit(Transfer::new(range, memory).at(at).checksum()).unwrap().wait().unwrap();
            let expected = &content()[offset..offset + len];
            prop_assert!(done.memory[at..at + len] == *expected, "{mode:?} {io:?} {}", path.display());
            prop_assert!(done.memory[..at].iter().all(|&byte| byte == 0xa5), "{mode:?} {io:?}: before");
            prop_assert!(done.memory[at + len..].iter().all(|&byte| byte == 0xa5), "{mode:?} {io:?}: behind");
            prop_assert_eq!(done.report.crc32, Some(crc32fast::hash(expected)));
            prop_assert_eq!(done.report.bytes, len as u64);
        }
    });
}

#[test]
fn filled_by_hand_to_any_address() {
    let folders = folders();
    let paths: Vec<_> = folders.iter().map(|folder| file(folder.path(), content())).collect();
    proptest!(config(100), |(offset in near(FILE_BYTES), len in near(FILE_BYTES), shift in near(8192))| {
        let len = len.min(FILE_BYTES - offset);
        for path in &paths {
            for (mode, _) in ways(path) {
                let range = DriveFile::with_mode(path, mode).unwrap().range(offset as u64, len as u64).unwrap();
                let mut into = vec![0xa5; shift + len + 4096];
                range.fill(0, &mut into[shift..shift + len]).unwrap();
                prop_assert!(into[shift..shift + len] == content()[offset..offset + len], "{mode:?}");
                prop_assert!(into[..shift].iter().chain(&into[shift + len..]).all(|&byte| byte == 0xa5));
                // A part of it from within.
                let (from, to) = (len / 3, len - len / 4);
                range.fill(from as u64, &mut into[..to - from]).unwrap();
                prop_assert!(into[..to - from] == content()[offset + from..offset + to], "{mode:?}: a part");
            }
        }
    });
}

fn content() -> &'static [u8] {
    static CONTENT: std::sync::OnceLock<Vec<u8>> = std::sync::OnceLock::new();
    CONTENT.get_or_init(|| bytes(FILE_BYTES))
}

#[test]
fn of_no_bytes_at_all() {
    for folder in folders() {
        let path = file(folder.path(), &[]);
        for (mode, io) in ways(&path) {
            let empty = DriveFile::with_mode(&path, mode).unwrap();
            assert_eq!(empty.len(), 0);
            let done = moved(&engine(io, 4096, 2), empty.whole()).unwrap();
            assert_eq!((done.memory.len(), done.report.bytes), (0, 0));
            let error = empty.range(0, 1).unwrap_err().to_string();
            assert!(error.contains("1 bytes at 0 are not inside its 0 bytes"), "{error}");
        }
    }
}

#[test]
fn of_several_transfers_at_once() {
    for folder in folders() {
        let path = file(folder.path(), content());
        for (mode, io) in ways(&path) {
            let engine = engine(io, 65_536, 4);
            let open = DriveFile::with_mode(&path, mode).unwrap();
            let tickets: Vec<_> = (0..20)
                .map(|i| {
                    let (offset, len) = (i * 70_001, 200_000 + i * 511);
                    let range = open.range(offset as u64, len as u64).unwrap();
                    let memory = engine.device().allocate(len).unwrap();
                    (offset, len, engine.submit(Transfer::new(range, memory)).unwrap())
                })
                .collect();
            for (offset, len, ticket) in tickets {
                assert!(
                    ticket.wait().unwrap().memory[..] == content()[offset..offset + len],
                    "{mode:?} {io:?}"
                );
            }
        }
    }
}

#[test]
fn of_a_mapped_file() {
    for folder in folders() {
        let path = file(folder.path(), content());
        let open = DriveFile::open(&path).unwrap();
        // The file is this test's own: nobody changes it.
        #[expect(unsafe_code)]
        // SAFETY: nobody writes to the file or makes it shorter.
        let mapped = unsafe { open.map() }.unwrap();
        assert!(mapped.bytes().unwrap() == content());
        let mut part = [0; 100];
        mapped.fill(4090, &mut part).unwrap();
        assert_eq!(part, content()[4090..4190]);
        let error = mapped.fill(FILE_BYTES as u64 - 99, &mut part).unwrap_err().to_string();
        assert!(error.contains("100 bytes at 3146863 are not inside its 3146962 bytes"), "{error}");
        let done = moved(&engine(on_files::IOS[0], 65_536, 3), mapped).unwrap();
        assert!(done.memory[..] == *content());
    }
}
