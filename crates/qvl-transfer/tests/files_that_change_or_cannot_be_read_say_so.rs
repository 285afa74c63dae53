//! Files that are not there, are no files, become shorter or longer while they are read, or may not be read past the
//! page cache: the right bytes, or an error that names the file and the cause.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod on_files;

use std::io::Write;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use qvl_transfer::drive::{DriveFile, ReadMode};
use qvl_transfer::source::Source;
use qvl_transfer::{Device, Error, Transfer};

use on_files::{MODES, bytes, engine, file, folders, moved, ways};

#[test]
fn a_file_that_became_shorter() {
    let content = bytes(1_000_000);
    // Within a block, at its end, and to nothing.
    for shorter in [999_999, 999_424, 500_001, 4096, 1, 0] {
        for folder in folders() {
            let path = file(folder.path(), &content);
            for (mode, io) in ways(&path) {
                let path = file(folder.path(), &content);
                let open = DriveFile::with_mode(&path, mode).unwrap();
                let engine = engine(io, 65_536, 4);
                std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(shorter).unwrap();
                let failed = moved(&engine, open.whole()).unwrap_err();
                assert_eq!(failed.memory.len(), content.len());
                let Error::Truncated { path: named, len, .. } = &failed.error else {
                    panic!("{mode:?} {io:?} {shorter}: {}", failed.error)
                };
                assert_eq!((named, *len), (&path, shorter));
                // What is left of it can be read still.
                if shorter > 0 {
                    let done = moved(&engine, open.range(0, shorter).unwrap()).unwrap();
                    assert!(done.memory[..] == content[..shorter as usize], "{mode:?} {io:?} {shorter}");
                }
                let mut into = vec![0; 100_000];
                let at = shorter.saturating_sub(10).min(800_000);
                let error = open.whole().fill(at, &mut into[..]).map(|()| shorter);
                let there = shorter >= at + 100_000;
                assert_eq!(error.is_ok(), there, "{mode:?} {shorter}: {error:?}");
            }
        }
    }
}

#[test]
fn a_file_that_grows_while_it_is_read() {
    let content = bytes(300_000);
    for folder in folders() {
        let path = file(folder.path(), &content[..100_001]);
        for (mode, io) in ways(&path) {
            let path = file(folder.path(), &content[..100_001]);
            let open = DriveFile::with_mode(&path, mode).unwrap();
            let engine = engine(io, 16_384, 4);
            let read = AtomicBool::new(false);
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    let mut file = std::fs::OpenOptions::new().append(true).open(&path).unwrap();
                    for part in content[100_001..].chunks(777) {
                        file.write_all(part).unwrap();
                    }
                    while !read.load(Ordering::Relaxed) {
                        file.write_all(&[7; 777]).unwrap();
                        file.sync_data().unwrap();
                    }
                });
                for _ in 0..50 {
                    let done = moved(&engine, open.whole());
                    if done.as_ref().map_or(true, |done| done.memory[..] != content[..100_001]) {
                        read.store(true, Ordering::Relaxed);
                    }
                    assert!(done.unwrap().memory[..] == content[..100_001], "{mode:?} {io:?}");
                }
                read.store(true, Ordering::Relaxed);
            });
            assert_eq!(open.len(), 100_001);
            assert!(open.range(0, 100_002).is_err());
        }
    }
}

#[test]
fn what_is_no_file() {
    let folder = tempfile::tempdir().unwrap();
    for mode in MODES {
        let error = |path: &Path| DriveFile::with_mode(path, mode).unwrap_err();
        let missing = error(&folder.path().join("nothing"));
        assert!(
            matches!(&missing, Error::Io { operation: "open", source, .. } if source.kind() == std::io::ErrorKind::NotFound),
            "{missing:?}"
        );
        assert!(missing.to_string().ends_with("nothing: cannot open"), "{missing}");
        let a_folder = error(folder.path());
        assert!(matches!(a_folder, Error::NotAFile { what: "a folder", .. }), "{a_folder:?}");
    }
}

#[cfg(target_os = "linux")]
#[test]
fn a_pipe_and_a_device_are_no_files_and_nobody_waits_for_them() {
    let folder = tempfile::tempdir().unwrap();
    let pipe = folder.path().join("pipe");
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    for mode in MODES {
        let error = DriveFile::with_mode(&pipe, mode).unwrap_err();
        assert!(error.to_string().ends_with("pipe: is a pipe, and a file is needed"), "{error}");
        let error = DriveFile::with_mode("/dev/zero", mode).unwrap_err();
        assert_eq!(error.to_string(), "/dev/zero: is a device, and a file is needed");
    }
}

/// Files of the kernel are regular ones that cannot be read past the page cache, everywhere.
#[cfg(target_os = "linux")]
#[test]
fn a_file_system_that_refuses_to_be_read_past_the_page_cache() {
    let path = Path::new("/sys/devices/system/cpu/online");
    let error = DriveFile::with_mode(path, ReadMode::Direct).unwrap_err();
    assert!(matches!(&error, Error::DirectRefused { path: named, .. } if named == path), "{error:?}");
    let said = error.to_string();
    assert!(said.contains("O_DIRECT") && said.contains("ReadMode::Buffered"), "{said}");
    let open = DriveFile::open(path).unwrap();
    assert!(!open.is_direct());
    assert!(open.explain().contains("refused"), "{}", open.explain());
    let expected = std::fs::read(path).unwrap();
    let engine = engine(on_files::IOS[0], 4096, 1);
    let done = moved(&engine, open.range(0, expected.len() as u64).unwrap()).unwrap();
    assert_eq!(done.memory[..], expected);
    // It says that it has 4096 bytes, and has not.
    assert!(matches!(moved(&engine, open.whole()).unwrap_err().error, Error::Truncated { .. }));
}

#[cfg(target_os = "linux")]
#[test]
fn a_file_in_the_page_cache_is_read_from_there_and_another_is_not() {
    use rustix::fs::{Advice, fadvise};
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let content = bytes(5_000_000);
    let path = file(folder.path(), &content);
    let cached = DriveFile::open(&path).unwrap();
    assert!(!cached.is_direct(), "it was just written: {}", cached.explain());
    assert!(cached.explain().contains("100 % of it are there"), "{}", cached.explain());
    assert!(moved(&engine(on_files::IOS[0], 65_536, 2), cached.whole()).unwrap().memory[..] == content);
    assert!(!DriveFile::open(&path).unwrap().is_direct(), "what was there before stays");
    fadvise(std::fs::File::open(&path).unwrap(), 0, None, Advice::DontNeed).unwrap();
    let dropped = DriveFile::open(&path).unwrap();
    assert_eq!(dropped.is_direct(), on_files::reads_direct(&path), "{}", dropped.explain());
}

#[test]
fn a_transfer_that_is_cancelled_gives_its_memory_back() {
    let folder = &folders()[0];
    let content = bytes(8_000_000);
    let path = file(folder.path(), &content);
    for (mode, io) in ways(&path) {
        let engine = engine(io, 4096, 8);
        let open = DriveFile::with_mode(&path, mode).unwrap();
        // It may have arrived before it is cancelled, but not each time.
        let cancelled = |_| {
            let memory = engine.device().allocate(8_000_000).unwrap();
            let ticket = engine.submit(Transfer::new(open.whole(), memory)).unwrap();
            ticket.cancel();
            match ticket.wait() {
                Ok(done) => {
                    assert!(done.memory[..] == content);
                    false
                }
                Err(failed) => {
                    assert!(matches!(failed.error, Error::Cancelled), "{mode:?} {io:?}: {}", failed.error);
                    assert_eq!(failed.memory.len(), 8_000_000);
                    true
                }
            }
        };
        assert!((0..1000).any(cancelled), "{mode:?} {io:?}");
        // And a dropped ticket, and an engine that is dropped with chunks under way.
        let memory = engine.device().allocate(8_000_000).unwrap();
        drop(engine.submit(Transfer::new(open.whole(), memory)).unwrap());
        let memory = engine.device().allocate(8_000_000).unwrap();
        let ticket = engine.submit(Transfer::new(open.whole(), memory)).unwrap();
        drop(engine);
        match ticket.wait() {
            Ok(done) => assert_eq!(done.memory.len(), 8_000_000),
            Err(failed) => assert!(matches!(failed.error, Error::Closed), "{}", failed.error),
        }
    }
}
