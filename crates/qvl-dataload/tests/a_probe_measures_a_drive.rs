//! A probe measures what there is within its time, and says what it chose and why.

#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a failed unwrap is a failed test, and figures are of interest"
)]

use std::time::Duration;

use qvl_dataload::Error;
use qvl_dataload::storage::{Drive, choose};

fn check(drive: &Drive) {
    let text = drive.to_string();
    println!("{text}");
    let measured = &drive.measured;
    assert!(measured.buffered_warm.is_some());
    assert!(measured.direct.is_empty() || measured.direct_refused.is_none(), "measured or refused");
    for rate in measured.direct.iter().map(|point| point.rate).chain(measured.buffered_cold) {
        assert!(rate.bytes_per_s.is_finite() && rate.bytes_per_s > 0.0);
        assert!((0.0..=1.0).contains(&rate.spread), "{rate:?}");
    }
    assert_eq!((drive.choice, drive.because.clone()), choose(measured));
    assert!(text.contains(&drive.because));
    assert!(drive.readahead_bytes >= 1 << 20);
}

#[test]
fn a_folder_of_files() {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    std::fs::create_dir(folder.path().join("inside")).unwrap();
    for (name, bytes) in [("a", 3_000_000), ("b", 10), ("inside/c", 700_001), ("inside/d", 0)] {
        std::fs::write(folder.path().join(name), vec![1; bytes]).unwrap();
    }
    let drive = Drive::probe(folder.path(), Duration::from_millis(1500)).unwrap();
    check(&drive);
    assert_eq!(drive.measured.data_bytes, Some(3_700_011));
}

#[test]
fn a_file_of_its_own_is_removed() {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let drive = Drive::probe_scratch(folder.path(), 20 << 20, Duration::from_millis(1000)).unwrap();
    check(&drive);
    assert_eq!(drive.measured.data_bytes, None, "it is not what will be read");
    assert_eq!(folder.path().read_dir().unwrap().count(), 0);
    let nowhere = Drive::probe_scratch(&folder.path().join("no such folder"), 1, Duration::ZERO);
    assert!(matches!(nowhere, Err(Error::Storage { .. })), "{nowhere:?}");
}

#[test]
fn nothing_to_measure_with() {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    std::fs::write(folder.path().join("small"), "small").unwrap();
    let empty = Drive::probe(folder.path(), Duration::from_secs(1));
    assert!(matches!(empty, Err(Error::NoSamples { .. })), "{empty:?}");
    let gone = Drive::probe(&folder.path().join("gone"), Duration::from_secs(1));
    assert!(matches!(gone, Err(Error::Missing { .. })), "{gone:?}");
}

#[test]
fn no_time_at_all_still_gives_an_answer() {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    std::fs::write(folder.path().join("a"), vec![1; 100_000]).unwrap();
    let drive = Drive::probe(folder.path(), Duration::ZERO).unwrap();
    assert!(!drive.choice.is_direct(), "{drive}");
}
