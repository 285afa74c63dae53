//! What is wrong with one file is the error of its sample, names it, and leaves the others alone.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

#[path = "common/sources.rs"]
mod sources;

use qvl_dataload::vision::{DecodeLimits, Still};
use qvl_dataload::{Error, Files, Source};
use sources::{Folder, extent_bytes, failure, read, said};

#[test]
fn a_picture_that_vanished_between_listing_and_reading() {
    let folder = Folder::new();
    let gone = folder.file("a.jpg", "1");
    folder.file("b.jpg", "2");
    let files = Files::folder(folder.path()).unwrap();
    std::fs::remove_file(&gone).unwrap();
    assert!(matches!(failure(&files, 0, &gone.display().to_string()), Error::Missing { .. }));
    assert!(matches!(said(&files, 0), Err(Error::Missing { .. })));
    assert_eq!(extent_bytes(&files, 0), 0);
    assert_eq!(read(&files, 1).unwrap().bytes[..], *b"2");
}

#[test]
fn a_folder_in_the_place_of_a_picture() {
    let folder = Folder::new();
    let path = folder.file("a.jpg", "1");
    let files = Files::folder(folder.path()).unwrap();
    std::fs::remove_file(&path).unwrap();
    std::fs::create_dir(&path).unwrap();
    assert!(matches!(failure(&files, 0, &path.display().to_string()), Error::Folder { .. }));
}

#[test]
fn a_picture_of_zero_bytes_is_read_and_refused_by_decoding() {
    let folder = Folder::new();
    folder.file("empty.jpg", "");
    let files = Files::folder(folder.path()).unwrap();
    let sample = read(&files, 0).unwrap();
    assert!(sample.bytes.is_empty());
    let error = Still::decode(&sample.bytes, &sample.name, &DecodeLimits::default()).unwrap_err();
    assert!(matches!(&error, Error::Empty { name } if name.ends_with("empty.jpg")));
}

#[test]
fn a_file_that_changes_its_length_is_read_as_it_is_then() {
    let folder = Folder::new();
    let path = folder.file("a.jpg", "12345");
    let files = Files::list([&path]).unwrap();
    let extent = files.extents(0).remove(0);
    std::fs::write(&path, "123").unwrap();
    assert_eq!(read(&files, 0).unwrap().bytes[..], *b"123");
    let buffers = qvl_dataload::Recycled::new(0);
    let error = qvl_dataload::storage::Reader::new(&buffers).read(&extent).unwrap_err();
    assert!(matches!(error, Error::Shorter { offset: 0, expected: 5, got: 3, .. }));
}

#[test]
fn a_file_over_the_limit_is_not_read() {
    let folder = Folder::new();
    folder.file("a.jpg", "12345");
    let files = Files::folder(folder.path()).unwrap();
    assert_eq!(read(&files.clone().max_file_bytes(5), 0).unwrap().bytes.len(), 5);
    let limited = files.max_file_bytes(4);
    assert!(matches!(failure(&limited, 0, "a.jpg"), Error::FileSize { bytes: 5, limit_bytes: 4, .. }));
}

#[test]
fn there_is_no_sample_beyond_the_last() {
    let folder = Folder::new();
    folder.file("a.jpg", "1");
    let files = Files::folder(folder.path()).unwrap();
    assert!(matches!(failure(&files, 1, "no number 1"), Error::Index { index: 1, len: 1, .. }));
    assert!(!files.name(1).is_empty());
}

#[cfg(unix)]
#[test]
fn a_file_without_permission_is_named() {
    use std::os::unix::fs::PermissionsExt;
    let folder = Folder::new();
    let path = folder.file("a.jpg", "1");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o000)).unwrap();
    if std::fs::File::open(&path).is_ok() {
        println!("skipped: this user may read everything");
        return;
    }
    let files = Files::folder(folder.path()).unwrap();
    assert!(matches!(failure(&files, 0, &path.display().to_string()), Error::Read { .. }));
}

/// Any user is refused here, so the error of the system is seen even where permissions count for nothing.
#[cfg(unix)]
#[test]
fn what_the_system_refuses_is_named() {
    let folder = Folder::new();
    let file = folder.file("a.jpg", "1");
    let files = Files::list([file.join("inside_a_file.jpg")]).unwrap();
    let error = failure(&files, 0, "inside_a_file.jpg");
    assert!(matches!(&error, Error::Read { .. }), "{error:?}");
    assert!(std::error::Error::source(&error).is_some());
}

/// Opening a pipe that nobody writes to waits for ever.
#[cfg(target_os = "linux")]
#[test]
fn a_device_is_not_waited_for() {
    let files = Files::list(["/dev/zero"]).unwrap();
    assert!(matches!(failure(&files, 0, "/dev/zero"), Error::Read { .. }));
}
