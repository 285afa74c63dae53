//! Every engine gives the bytes that the files hold, the errors of those that do not, and the buffers back.

#![allow(
    clippy::panic,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a failed unwrap is a failed test, and one left out says why"
)]

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use proptest::prelude::*;
use qvl_dataload::storage::{DataFile, Engine, Extent, Reader, Request, Storage};
use qvl_dataload::{Buffer, Buffers, Error, Recycled};

/// Each kind of engine, and each again past the page cache.
fn all() -> Vec<Storage> {
    vec![
        Storage::default(),
        Storage::Buffered { readahead_bytes: 0 },
        Storage::Pool { threads: 1, direct: false },
        Storage::Pool { threads: 4, direct: false },
        Storage::Pool { threads: 3, direct: true },
        Storage::Uring { depth: 1, direct: false },
        Storage::Uring { depth: 7, direct: false },
        Storage::Uring { depth: 16, direct: true },
    ]
}

/// Those of them that can be used with this file. What is refused must say so, and is printed.
fn usable(path: &Path) -> Vec<Storage> {
    all().into_iter().filter(|storage| is_usable(*storage, path)).collect()
}

fn is_usable(storage: Storage, path: &Path) -> bool {
    let refused = |error: Error| {
        assert!(matches!(error, Error::Storage { .. }), "{storage}: {error:?}");
        println!("{storage}: not tested, as {error}");
        false
    };
    let mut engine = match storage.start() {
        Ok(engine) => engine,
        Err(error) => return refused(error),
    };
    let extent = Extent { file: DataFile::once(path), offset: 0, bytes: 1 };
    engine.submit(request(storage, 0, extent, &heap()));
    match engine.complete(true).unwrap().result {
        Ok(_) => true,
        Err(error) => {
            assert!(error.to_string().contains(path.to_str().unwrap()), "{error}");
            refused(error)
        }
    }
}

fn heap() -> Recycled {
    Recycled::new(64 << 20)
}

fn request(storage: Storage, tag: u64, extent: Extent, buffers: &dyn Buffers) -> Request {
    let buffer = Buffer::take(buffers, storage.room_bytes(&extent)).unwrap();
    Request { tag, extent, buffer }
}

/// Files of these lengths, each with bytes of its own.
struct Files {
    _folder: tempfile::TempDir,
    paths: Vec<PathBuf>,
    contents: Vec<Vec<u8>>,
}

fn files(lengths: &[usize]) -> Files {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let paths: Vec<PathBuf> = (0..lengths.len()).map(|i| folder.path().join(format!("file {i}"))).collect();
    for (number, (path, len)) in paths.iter().zip(lengths).enumerate() {
        // Repeats with period 251, which no block is a multiple of.
        let bytes: Vec<u8> = (0..*len).map(|at| ((at + 7 * number) % 251) as u8).collect();
        std::fs::write(path, bytes).unwrap();
    }
    let contents = paths.iter().map(|path| std::fs::read(path).unwrap()).collect();
    Files { _folder: folder, paths, contents }
}

/// Reads all extents at once and compares each with what the file holds.
fn check(storage: Storage, files: &Files, handles: &[DataFile], extents: &[(usize, u64, usize)]) {
    let buffers = heap();
    let mut engine = storage.start().unwrap();
    for (tag, (file, offset, bytes)) in extents.iter().enumerate() {
        let extent = Extent { file: handles[*file].clone(), offset: *offset, bytes: *bytes };
        engine.submit(request(storage, tag as u64, extent, &buffers));
    }
    let mut got = HashMap::new();
    while let Some(done) = engine.complete(true) {
        assert!(got.insert(done.tag, done.result).is_none(), "{storage}: {} came twice", done.tag);
    }
    assert!(engine.complete(false).is_none());
    assert_eq!(got.len(), extents.len(), "{storage}");
    for (tag, (file, offset, bytes)) in extents.iter().enumerate() {
        let content = &files.contents[*file];
        let from = usize::try_from(*offset).unwrap_or(usize::MAX).min(content.len());
        let there = &content[from..content.len().min(from.saturating_add(*bytes))];
        let context = format!("{storage}: {bytes} bytes at {offset} of {}", content.len());
        match &got[&(tag as u64)] {
            Ok(buffer) => {
                assert_eq!(buffer.len(), *bytes, "{context}");
                assert!(buffer[..] == *there, "{context}: other bytes");
            }
            Err(Error::Shorter { name, offset: at, expected, got }) => {
                assert_eq!(name, files.paths[*file].to_str().unwrap());
                assert_eq!((*at, *expected, *got), (*offset, *bytes, there.len()), "{context}");
                assert!(there.len() < *bytes, "{context}: it is all there");
            }
            Err(error) => panic!("{context}: {error:?}"),
        }
    }
}

fn once(files: &Files) -> Vec<DataFile> {
    files.paths.iter().map(DataFile::once).collect()
}

fn kept(files: &Files) -> Vec<DataFile> {
    files.paths.iter().map(DataFile::kept).collect()
}

#[test]
fn the_edges_of_blocks_chunks_and_files() {
    // Around a block, around the chunk of a ring, and an empty file.
    let files = files(&[0, 1, 4095, 4096, 4097, (1 << 20) + 4096, (3 << 20) + 123]);
    for storage in usable(&files.paths[1]) {
        for handles in [once(&files), kept(&files)] {
            let mut extents = Vec::new();
            for (file, content) in files.contents.iter().enumerate() {
                let len = content.len();
                extents.extend([
                    (file, 0, len),
                    (file, 0, len + 1),
                    (file, len as u64, 0),
                    (file, len as u64, 1),
                ]);
                extents.extend([(file, 0, 0), (file, 1, len), (file, 1 << 40, 5), (file, u64::MAX, 9)]);
                for cut in [1, 511, 4095, 4096, 4097, (1 << 20) - 1, 1 << 20] {
                    if cut < len {
                        extents.extend([
                            (file, cut as u64, len - cut),
                            (file, 0, cut),
                            (file, cut as u64, 1),
                        ]);
                        extents.push((file, cut as u64, 3 << 20));
                    }
                }
            }
            check(storage, &files, &handles, &extents);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn any_extents_of_any_files(
        lengths in prop::collection::vec(0usize..3_000_000, 1..4),
        extents in prop::collection::vec((0usize..4, 0u64..3_200_000, 0usize..2_500_000), 1..24),
    ) {
        let files = files(&lengths);
        let extents: Vec<_> = extents.iter().map(|(file, at, bytes)| (file % lengths.len(), *at, *bytes)).collect();
        let probe = self::files(&[1]);
        for storage in usable(&probe.paths[0]) {
            check(storage, &files, &kept(&files), &extents);
            check(storage, &files, &once(&files), &extents);
        }
    }
}

#[test]
fn a_file_that_is_gone_harms_no_other() {
    let files = files(&[100_000, 200_000]);
    let gone = files.paths[0].with_file_name("gone");
    let folder = files.paths[0].parent().unwrap();
    for storage in usable(&files.paths[0]) {
        let mut engine = storage.start().unwrap();
        for (tag, path) in [&files.paths[0], &gone, &files.paths[1], &folder.to_owned(), &files.paths[0]]
            .into_iter()
            .enumerate()
        {
            for (copy, file) in [DataFile::once(path), DataFile::kept(path)].into_iter().enumerate() {
                let extent = Extent { file, offset: 5, bytes: 50_000 };
                engine.submit(request(storage, (2 * tag + copy) as u64, extent, &heap()));
            }
        }
        for _ in 0..10 {
            let done = engine.complete(true).unwrap();
            match (done.tag / 2, done.result) {
                (1, Err(Error::Missing { name })) => assert_eq!(name, gone.to_str().unwrap(), "{storage}"),
                (3, Err(Error::Folder { name })) => assert_eq!(name, folder.to_str().unwrap(), "{storage}"),
                // A file system may refuse to open a folder past the page cache at all.
                (3, Err(Error::Storage { .. })) if storage.is_direct() => {}
                (0 | 4, Ok(buffer)) => assert!(buffer[..] == files.contents[0][5..50_005], "{storage}"),
                (2, Ok(buffer)) => assert!(buffer[..] == files.contents[1][5..50_005], "{storage}"),
                (tag, result) => panic!("{storage}: {tag} gave {result:?}"),
            }
        }
        assert!(engine.complete(true).is_none());
    }
}

/// Rooms that are not aligned to anything. When one comes back its memory is kept, filled with `AFTER`.
#[derive(Clone, Default)]
struct Own {
    out: Arc<AtomicUsize>,
    back: Arc<Mutex<Vec<Vec<u8>>>>,
}

struct OwnRoom(Vec<u8>, Own);

const AFTER: u8 = 0xfe;

impl Own {
    fn out(&self) -> usize {
        self.out.load(Ordering::SeqCst)
    }

    fn rooms(&self) -> impl Buffers + use<> {
        let own = self.clone();
        move |bytes: usize| {
            own.out.fetch_add(1, Ordering::SeqCst);
            Some(OwnRoom(vec![0; bytes + 1], own.clone()))
        }
    }
}

impl AsRef<[u8]> for OwnRoom {
    fn as_ref(&self) -> &[u8] {
        &self.0[1..]
    }
}

impl AsMut<[u8]> for OwnRoom {
    fn as_mut(&mut self) -> &mut [u8] {
        &mut self.0[1..]
    }
}

impl Drop for OwnRoom {
    fn drop(&mut self) {
        let mut memory = std::mem::take(&mut self.0);
        memory.fill(AFTER);
        self.1.back.lock().unwrap().push(memory);
        self.1.out.fetch_sub(1, Ordering::SeqCst);
    }
}

#[test]
fn the_callers_own_buffers_are_used_wherever_they_begin_and_come_back() {
    let files = files(&[3_000_000]);
    for storage in usable(&files.paths[0]) {
        let own = Own::default();
        let rooms = own.rooms();
        let mut engine = storage.start().unwrap();
        for tag in 0..20 {
            let extent =
                Extent { file: DataFile::kept(&files.paths[0]), offset: 100_001 * tag, bytes: 999_999 };
            engine.submit(request(storage, tag, extent, &rooms));
        }
        assert_eq!(own.out(), 20);
        let mut results = Vec::new();
        while let Some(done) = engine.complete(true) {
            let offset = 100_001 * done.tag as usize;
            let buffer = done.result.unwrap();
            assert!(buffer[..] == files.contents[0][offset..][..999_999], "{storage} at {offset}");
            results.push(buffer);
        }
        assert_eq!(own.out(), 20, "{storage}: handed out, not copied");
        drop(results);
        assert_eq!(own.out(), 0, "{storage}");
    }
}

#[test]
fn an_engine_dropped_with_reads_in_flight_gives_every_buffer_back_after_them() {
    let files = files(&[6_000_000, 10_000]);
    for storage in usable(&files.paths[0]) {
        for round in 0..6 {
            let own = Own::default();
            let rooms = own.rooms();
            let mut engine = storage.start().unwrap();
            let kept = [DataFile::kept(&files.paths[0]), DataFile::kept(&files.paths[1])];
            for tag in 0..40 {
                let name = &files.paths[tag as usize % 2];
                let file = if tag % 4 < 2 { kept[tag as usize % 2].clone() } else { DataFile::once(name) };
                let extent =
                    Extent { file, offset: 50 * tag, bytes: if tag % 2 == 0 { 5_000_000 } else { 8_000 } };
                engine.submit(request(storage, tag, extent, &rooms));
            }
            for _ in 0..4 * round {
                drop(engine.complete(false));
            }
            drop(engine);
            assert_eq!(own.out(), 0, "{storage}: some are still out");
            // Whoever still wrote would write into memory that is somebody else's now.
            std::thread::sleep(Duration::from_millis(2));
            for memory in own.back.lock().unwrap().iter() {
                assert!(memory.iter().all(|byte| *byte == AFTER), "{storage}: written after it came back");
            }
        }
    }
}

#[test]
fn a_ring_outlives_the_thread_that_submitted() {
    let files = files(&[4_000_000]);
    for storage in usable(&files.paths[0]) {
        let path = files.paths[0].clone();
        let submit = move || {
            let mut engine = storage.start().unwrap();
            for tag in 0..30 {
                let extent = Extent { file: DataFile::once(&path), offset: tag, bytes: 3_000_000 };
                engine.submit(request(storage, tag, extent, &heap()));
            }
            engine
        };
        let mut engine: Box<dyn Engine> = std::thread::spawn(submit).join().unwrap();
        for _ in 0..30 {
            let done = engine.complete(true).unwrap();
            assert!(
                done.result.unwrap()[..] == files.contents[0][done.tag as usize..][..3_000_000],
                "{storage}"
            );
        }
        assert!(engine.complete(true).is_none());
    }
}

#[test]
fn a_buffer_that_is_too_small_is_an_error_of_its_request() {
    let files = files(&[100_000]);
    for storage in usable(&files.paths[0]) {
        let mut engine = storage.start().unwrap();
        let extent = |bytes| Extent { file: DataFile::once(&files.paths[0]), offset: 4000, bytes };
        engine.submit(Request { tag: 1, extent: extent(5000), buffer: Buffer::from(vec![0; 4999]) });
        engine.submit(request(storage, 2, extent(5000), &heap()));
        for _ in 0..2 {
            let done = engine.complete(true).unwrap();
            match (done.tag, done.result) {
                (1, Err(Error::NoBuffer { got: Some(4999), .. })) => {}
                (2, Ok(buffer)) => assert!(buffer[..] == files.contents[0][4000..9000]),
                (tag, result) => panic!("{storage}: {tag} gave {result:?}"),
            }
        }
    }
}

#[test]
fn memory_whose_code_panics_is_an_error_of_its_request() {
    struct Bad;
    impl AsRef<[u8]> for Bad {
        fn as_ref(&self) -> &[u8] {
            &[0; 20_000]
        }
    }
    impl AsMut<[u8]> for Bad {
        fn as_mut(&mut self) -> &mut [u8] {
            panic!("not today")
        }
    }
    let files = files(&[100]);
    let extent = Extent { file: DataFile::once(&files.paths[0]), offset: 0, bytes: 10 };
    for storage in usable(&files.paths[0]) {
        let mut engine = storage.start().unwrap();
        let buffer = Buffer::take(&|_: usize| Some(Bad), storage.room_bytes(&extent)).unwrap();
        engine.submit(Request { tag: 0, extent: extent.clone(), buffer });
        let error = engine.complete(true).unwrap().result.unwrap_err();
        assert!(matches!(&error, Error::Panicked { message, .. } if message == "not today"), "{error:?}");
        engine.submit(request(storage, 1, extent.clone(), &heap()));
        assert!(engine.complete(true).unwrap().result.is_ok(), "{storage}: it goes on");
    }
}

#[test]
fn a_kept_file_is_read_by_many_threads_at_once() {
    let files = files(&[2_000_000]);
    let file = DataFile::kept(&files.paths[0]);
    std::thread::scope(|scope| {
        for thread in 0..8u64 {
            let (file, content) = (file.clone(), &files.contents[0]);
            scope.spawn(move || {
                let buffers = heap();
                let mut reader = Reader::new(&buffers);
                for step in 0..200 {
                    let offset = (thread * 7919 + step * 104_729) % 1_900_000;
                    let got = reader.read(&Extent { file: file.clone(), offset, bytes: 70_000 }).unwrap();
                    assert!(got[..] == content[offset as usize..][..70_000]);
                }
            });
        }
    });
}

#[test]
fn settings_that_make_no_sense_are_errors() {
    for (storage, setting) in [
        (Storage::Pool { threads: 0, direct: false }, "threads"),
        (Storage::Pool { threads: 1_000_000, direct: false }, "threads"),
        (Storage::Uring { depth: 0, direct: false }, "depth"),
        (Storage::Uring { depth: 1 << 40, direct: false }, "depth"),
    ] {
        match storage.start().err() {
            Some(Error::Setting { setting: got, .. }) => assert_eq!(got, setting),
            // Where there is no ring its depth does not matter.
            Some(Error::Storage { what: "io_uring", .. }) if setting == "depth" => {}
            other => panic!("{storage}: {other:?}"),
        }
    }
}

/// Files of the kernel cannot be read past the page cache, whatever the drive.
#[test]
#[cfg(target_os = "linux")]
fn a_file_that_refuses_direct_reads_is_named() {
    let path = Path::new("/proc/version");
    for storage in all().into_iter().filter(Storage::is_direct) {
        let Ok(mut engine) = storage.start() else { continue };
        for file in [DataFile::once(path), DataFile::kept(path)] {
            let extent = Extent { file, offset: 0, bytes: 5 };
            engine.submit(request(storage, 0, extent, &heap()));
            let error = engine.complete(true).unwrap().result.unwrap_err();
            assert!(matches!(error, Error::Storage { .. }), "{storage}: {error:?}");
            assert!(error.to_string().contains("/proc/version"), "{storage}: {error}");
        }
    }
}

/// The feature is off, or the system refuses: either is an error and no other engine in its place.
#[test]
fn what_a_machine_does_not_offer_is_said() {
    match (Storage::Uring { depth: 8, direct: false }).start() {
        Ok(engine) => assert_eq!(engine.depth(), 8),
        Err(error) => {
            println!("{error}");
            assert!(matches!(error, Error::Storage { what: "io_uring", .. }), "{error:?}");
        }
    }
    let direct = Storage::Pool { threads: 2, direct: true }.start();
    assert!(direct.is_ok() == cfg!(target_os = "linux"));
}
