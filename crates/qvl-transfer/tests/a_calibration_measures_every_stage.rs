//! A calibration has a figure for every stage that bytes go through, and says which one everything waits for.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]
#![expect(unsafe_code, reason = "a device that is not the host's memory to look at")]

use std::io::Write;
use std::time::Duration;

use qvl_transfer::calibrate::{Bound, Calibration, Measured, Options, Origin};
use qvl_transfer::device::Reached;
use qvl_transfer::{Device, DriveFile, Error, HostDevice, HostMemory, Result, Settings, TransferEngine};

/// The host's memory as that of a card is: nothing goes there but by a copy from staging.
struct Card(HostDevice);

// SAFETY: what `HostDevice` keeps, this keeps.
unsafe impl Device for Card {
    type Memory = HostMemory;
    type Staging = HostMemory;
    type Fence = Reached;

    fn name(&self) -> &str {
        "card"
    }

    fn allocate(&self, bytes: usize) -> Result<HostMemory> {
        self.0.allocate(bytes)
    }

    fn bytes(&self, memory: &HostMemory) -> usize {
        self.0.bytes(memory)
    }

    fn staging(&self, bytes: usize) -> Result<HostMemory> {
        self.0.staging(bytes)
    }

    /// Staging begins at a block's beginning, what else there is in this test does not.
    fn copies_from(&self, bytes: &[u8]) -> bool {
        (bytes.as_ptr() as usize).is_multiple_of(4096)
    }

    unsafe fn copy_in(&self, from: *const u8, bytes: usize, to: &HostMemory, at: usize) -> Result<Reached> {
        // SAFETY: the caller's promise.
        unsafe { self.0.copy_in(from, bytes, to, at) }
    }

    unsafe fn copy_out(&self, from: &HostMemory, at: usize, to: *mut u8, bytes: usize) -> Result<Reached> {
        // SAFETY: the caller's promise.
        unsafe { self.0.copy_out(from, at, to, bytes) }
    }
}

fn file(bytes: usize) -> (tempfile::NamedTempFile, DriveFile) {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(&vec![3; bytes]).unwrap();
    file.as_file().sync_all().unwrap();
    let opened = DriveFile::open(file.path()).unwrap();
    (file, opened)
}

fn options(file: Option<&DriveFile>) -> Options {
    Options {
        file: file.map(DriveFile::whole),
        time: Duration::from_millis(30),
        sample_bytes: 2 << 20,
        ..Options::default()
    }
}

fn check(rate: Option<Measured>) {
    let rate = rate.expect("it was measured");
    assert!(rate.bytes_per_s > 0.0 && rate.bytes_per_s.is_finite() && rate.samples >= 3, "{rate:?}");
    assert!(rate.noise >= 0.0 && rate.at_least() <= rate.at_most(), "{rate:?}");
}

#[test]
fn of_the_host_itself() {
    let (_kept, file) = file(3 << 20);
    let engine = TransferEngine::new(HostDevice::new(64 << 20), Settings::default()).unwrap();
    let calibration = Calibration::measure(&engine, &options(Some(&file))).unwrap();
    check(calibration.drive);
    check(calibration.host_copy);
    check(calibration.link);
    assert!(calibration.drive_is_direct && calibration.memory_is_direct);
    assert_eq!(calibration.from_drive, calibration.drive);
    assert_eq!(calibration.from_memory, calibration.host_copy);
    assert!(calibration.latency_s > 0.0 && calibration.drive_latency_s > 0.0);

    // Nothing to compute: the only stage is what it waits for. With all the time there is, the computing.
    assert_eq!(calibration.predict(Origin::Drive, 1 << 20, 0.0).unwrap().bound_by, Bound::Drive);
    assert_eq!(calibration.predict(Origin::Drive, 1 << 20, 1e6).unwrap().bound_by, Bound::Compute);
    let table = calibration.to_string();
    for word in ["drive", "host copy", "link", "from drive", "from memory", "GB/s", "noise"] {
        assert!(table.contains(word), "{table}");
    }
    println!("{table}");
}

#[test]
fn of_a_card() {
    let (_kept, file) = file(3 << 20);
    let engine = TransferEngine::new(Card(HostDevice::new(64 << 20)), Settings::default()).unwrap();
    let calibration = Calibration::measure(&engine, &options(Some(&file))).unwrap();
    for rate in [calibration.drive, calibration.host_copy, calibration.link] {
        check(rate);
    }
    check(calibration.from_drive);
    check(calibration.from_memory);
    assert!(!calibration.drive_is_direct && !calibration.memory_is_direct);
    let (bound, slowest) = calibration.slowest(Origin::Drive).unwrap();
    assert!(matches!(bound, Bound::Drive | Bound::Link));
    let least = calibration.drive.unwrap().bytes_per_s.min(calibration.link.unwrap().bytes_per_s);
    assert_eq!(slowest.bytes_per_s, least);
}

#[test]
fn without_a_file_nothing_is_said_of_the_drive() {
    let engine = TransferEngine::new(HostDevice::new(64 << 20), Settings::default()).unwrap();
    let calibration = Calibration::measure(&engine, &options(None)).unwrap();
    check(calibration.link);
    assert_eq!(calibration.drive, None);
    let error = calibration.predict(Origin::Drive, 1, 0.0).unwrap_err();
    assert!(error.to_string().contains("no figure for the drive"), "{error}");
    assert!(calibration.predict(Origin::Staging, 1, 0.0).is_ok());
}

#[test]
fn what_cannot_be_measured_is_an_error() {
    let engine = TransferEngine::new(HostDevice::new(64 << 20), Settings::default()).unwrap();
    let (_kept, empty) = file(0);
    let error = Calibration::measure(&engine, &options(Some(&empty))).unwrap_err();
    assert!(matches!(error, Error::Setting { name: "file", .. }), "{error}");
    let small = Options { sample_bytes: 100, ..options(None) };
    let error = Calibration::measure(&engine, &small).unwrap_err();
    assert!(matches!(error, Error::Setting { name: "sample_bytes", .. }), "{error}");
    let engine = TransferEngine::new(HostDevice::new(1 << 20), Settings::default()).unwrap();
    let error = Calibration::measure(&engine, &options(None)).unwrap_err();
    assert!(matches!(error, Error::OutOfMemory { .. }), "{error}");
}
