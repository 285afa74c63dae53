//! What goes wrong with one transfer is told by its ticket, with the memory; the engine goes on.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod common;

use common::{back, bytes, carry, text};
use qvl_transfer::device::Device;
use qvl_transfer::device::link::{Faults, LinkSettings};
use qvl_transfer::source::{Fill, Memory};
use qvl_transfer::{Error, HostDevice, LinkDevice, Settings, Transfer, TransferEngine};

fn settings() -> Settings {
    Settings { chunk_bytes: 4096, staging_bytes: 32_768, depth: 3, ..Settings::default() }
}

fn link() -> TransferEngine<LinkDevice> {
    TransferEngine::new(LinkDevice::new(LinkSettings::default()).unwrap(), settings()).unwrap()
}

/// That a transfer arrives still.
fn goes_on<D: Device>(engine: &TransferEngine<D>) {
    let sent = bytes(20_000, 5);
    let memory = engine.device().allocate(sent.len()).unwrap();
    let (memory, _) = carry(engine, Transfer::new(Memory::new(sent.clone()), memory)).unwrap();
    assert!(back(engine, memory).1 == sent);
    assert_eq!(engine.stats().staging_in_use_bytes, 0);
}

#[test]
fn a_source_that_fails_or_panics() {
    let engine = TransferEngine::new(HostDevice::new(1 << 20), settings()).unwrap();
    for panics in [false, true] {
        let fill = move |at: u64, into: &mut [u8]| {
            into.fill(1);
            if at != 16_384 {
                Ok(())
            } else if panics {
                panic!("a bug of the caller")
            } else {
                Err("the socket is closed".to_owned())
            }
        };
        let memory = engine.device().allocate(50_000).unwrap();
        let failed = carry(&engine, Transfer::new(Fill::new("my source", 50_000, fill), memory)).unwrap_err();
        let why = if panics { "it panicked: a bug of the caller" } else { "the socket is closed" };
        assert_eq!(text(&failed.error), format!("the source my source failed at 16384: {why}"));
        assert_eq!(failed.memory.len(), 50_000, "the memory comes back");
        goes_on(&engine);
    }
    assert_eq!(engine.stats().failed, 2);
}

#[test]
fn a_copy_that_fails() {
    let engine = link();
    engine.device().set_faults(Faults { failed_copy_at: Some(2), ..Faults::default() });
    let first = engine.device().allocate(40_000).unwrap();
    let failed = carry(&engine, Transfer::new(Memory::new(bytes(40_000, 1)), first)).unwrap_err();
    assert_eq!(
        text(&failed.error),
        "link of 12.0 GB/s: copy to the device failed: the copy failed (a fault that was set)"
    );
    goes_on(&engine);
}

#[test]
fn a_device_without_memory_in_the_middle_of_much() {
    let engine = link();
    engine.device().set_faults(Faults { no_memory_at: Some(3), ..Faults::default() });
    let mut tickets = Vec::new();
    let mut refused = Vec::new();
    for seed in 0..6 {
        match engine.device().allocate(30_000) {
            Ok(memory) => {
                let sent = bytes(30_000, seed);
                tickets.push((seed, engine.submit(Transfer::new(Memory::new(sent), memory)).unwrap()));
            }
            Err(error) => refused.push((seed, error)),
        }
    }
    let [(3, Error::OutOfMemory { bytes: 30_000, .. })] = refused[..] else { panic!("{refused:?}") };
    for (seed, ticket) in tickets {
        let memory = ticket.wait().unwrap().memory;
        assert!(back(&engine, memory).1 == bytes(30_000, seed));
    }
    goes_on(&engine);
}

#[test]
fn a_budget_that_is_used_up_says_so_and_holds_again_when_memory_is_dropped() {
    let device = HostDevice::new(100_000);
    let first = device.allocate(60_000).unwrap();
    let error = device.allocate(60_000).unwrap_err();
    assert_eq!(
        text(&error),
        "the host's memory for transfers: no room for 65536 bytes: 65536 of 100000 are in use. Drop memory that is not \
         needed any more, or raise the budget"
    );
    drop(first);
    device.allocate(60_000).unwrap();
    assert!(device.usage().high_water_bytes <= 100_000);
}

#[test]
fn a_device_that_is_lost() {
    let engine = link();
    engine.device().set_faults(Faults { lost_at: Some(5), ..Faults::default() });
    let memory: Vec<_> = (0..8).map(|_| engine.device().allocate(20_000).unwrap()).collect();
    let submit =
        |(seed, memory)| engine.submit(Transfer::new(Memory::new(bytes(20_000, seed)), memory)).unwrap();
    let tickets: Vec<_> = (0..8).zip(memory).map(submit).collect();
    let ended: Vec<_> =
        tickets.into_iter().map(|ticket| ticket.wait().map_err(|failed| failed.error)).collect();
    let lost = ended.iter().filter(|end| matches!(end, Err(error) if error.is_device_lost())).count();
    assert!(lost >= 7, "{ended:?}");
    assert!(engine.device().allocate(1).unwrap_err().is_device_lost());
    assert_eq!(engine.stats().staging_in_use_bytes, 0);
}

#[test]
fn what_does_not_fit_behind_its_place_is_refused_with_the_memory() {
    let engine = TransferEngine::new(HostDevice::new(1 << 20), settings()).unwrap();
    let memory = engine.device().allocate(1000).unwrap();
    let transfer = Transfer::new(Memory::new(vec![0; 600]), memory).at(401);
    let failed = engine.submit(transfer).unwrap_err();
    assert_eq!(text(&failed.error), "the destination: 600 bytes at 401 are not inside its 1000 bytes");
    assert_eq!(failed.memory.len(), 1000);
    assert_eq!(engine.stats().submitted, 0);
}

#[test]
fn a_wrong_checksum() {
    let engine = link();
    let sent = bytes(30_000, 1);
    let crc32 = crc32fast::hash(&sent);
    let memory = engine.device().allocate(30_000).unwrap();
    let (memory, report) =
        carry(&engine, Transfer::new(Memory::new(sent.clone()), memory).expect_crc32(crc32)).unwrap();
    assert_eq!((report.crc32, report.bytes), (Some(crc32), 30_000));
    let wrong = carry(&engine, Transfer::new(Memory::new(sent), memory).expect_crc32(crc32 ^ 1)).unwrap_err();
    assert_eq!(text(&wrong.error), format!("memory: its CRC-32 is {crc32:08x}, expected {:08x}", crc32 ^ 1));
}

#[test]
fn settings_that_cannot_be() {
    let refused = |settings: Settings| {
        text(&TransferEngine::new(HostDevice::new(1 << 20), settings).map(|_| ()).unwrap_err())
    };
    for chunk_bytes in [0, 1000, 4097, usize::MAX & !4095] {
        let why = refused(Settings { chunk_bytes, staging_bytes: usize::MAX, ..Settings::default() });
        assert_eq!(
            why,
            format!("chunk_bytes is {chunk_bytes}: a multiple of 4096 up to 1073741824 is needed")
        );
    }
    assert_eq!(
        refused(Settings { staging_bytes: 1 << 20, ..Settings::default() }),
        "staging_bytes is 1048576: a chunk of 2093056 bytes and its block need 2097152: raise it, or lower chunk_bytes"
    );
    assert_eq!(refused(Settings { depth: 0, ..Settings::default() }), "depth is 0: 1 to 256 is needed");
    let link = LinkSettings { bytes_per_s: f64::NAN, ..LinkSettings::default() };
    assert_eq!(text(&LinkDevice::new(link).unwrap_err()), "bytes_per_s is NaN: a positive number is needed");
}
