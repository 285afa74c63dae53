//! A probe measures ways of reading a file, leaves nothing behind, and an engine with what was chosen reads the file.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod on_files;

use std::time::Duration;

use qvl_transfer::drive::DriveFile;
use qvl_transfer::drive::probe::{Drive, Effort, choose};
use qvl_transfer::{Error, HostDevice, Io, TransferEngine};

use on_files::{bytes, file, folders, has_ring, moved, reads_direct};

fn effort() -> Effort {
    Effort {
        budget: Duration::from_millis(50),
        repeats: 2,
        file_bytes: 20 << 20,
        bytes_in_flight_max: 4 << 20,
    }
}

#[test]
fn of_a_file() {
    let content = bytes(20_000_001);
    for folder in folders() {
        let path = file(folder.path(), &content);
        let measured = Drive::probe(&path, &effort()).unwrap();
        assert_eq!((&measured.file, measured.file_bytes), (&path, 20_000_001));
        assert!(measured.rows.iter().all(|row| row.median() > 0.0 && row.bytes_in_flight() <= 4 << 20));
        let by = |io| measured.rows.iter().any(|row| row.io == io);
        assert_eq!(measured.without_direct.is_none(), reads_direct(&path), "{measured}");
        assert_eq!(measured.without_ring.is_none(), has_ring(), "{measured}");
        assert_eq!(by(Io::Uring), has_ring() && reads_direct(&path), "{measured}");
        // It was just written.
        #[cfg(target_os = "linux")]
        assert!(measured.without_buffered.is_some(), "{measured}");
        let choice = choose(&measured);
        let text = measured.to_string();
        assert_eq!(text.lines().filter(|line| line.ends_with(" %")).count(), measured.rows.len(), "{text}");
        if measured.rows.is_empty() {
            continue;
        }
        let engine = TransferEngine::new(HostDevice::new(1 << 30), choice.settings(32 << 20)).unwrap();
        let open = DriveFile::with_mode(&path, choice.mode).unwrap();
        assert!(moved(&engine, open.whole()).unwrap().memory[..] == content, "{}", choice.why);
    }
}

#[test]
fn of_a_folder_in_which_nothing_is_left() {
    for folder in folders() {
        let measured = Drive::probe(folder.path(), &effort()).unwrap();
        assert_eq!(measured.file_bytes, 20 << 20);
        assert!(measured.file.starts_with(folder.path()));
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}

#[test]
fn what_is_too_short_or_not_there_is_an_error() {
    let folder = &folders()[0];
    let path = file(folder.path(), &bytes(1000));
    let error = Drive::probe(&path, &effort()).unwrap_err();
    assert!(matches!(error, Error::Setting { name: "path", .. }), "{error:?}");
    assert!(error.to_string().contains("of 1000 bytes: a file of at least 16777216 bytes"), "{error}");
    let error = Drive::probe(folder.path().join("nothing"), &effort()).unwrap_err();
    assert!(matches!(error, Error::Io { operation: "open", .. }), "{error:?}");
    // A folder that nothing can be made in.
    #[cfg(target_os = "linux")]
    assert!(matches!(
        Drive::probe("/proc/self", &effort()).unwrap_err(),
        Error::Io { operation: "create", .. }
    ));
}
