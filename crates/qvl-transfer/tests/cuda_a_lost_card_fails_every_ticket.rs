//! A card that is lost fails every ticket with an error that says so; nothing waits for it, and nothing that it may
//! still write to is used again.
#![cfg(feature = "cuda")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod stand_in;

use std::sync::Arc;

use qvl_transfer::device::Device;
use qvl_transfer::device::cuda::{CudaSettings, PinnedKind};
use qvl_transfer::source::Memory;
use qvl_transfer::{CudaDevice, Error, Priority, Settings, Transfer, TransferEngine};
use stand_in::{StandIn, noise};

type Engine = TransferEngine<CudaDevice>;

fn child(test: &str) -> Option<(StandIn, CudaDevice, Engine)> {
    let stand_in = stand_in::stand_in()?;
    if !stand_in::is_child(test, |_| {}) {
        return None;
    }
    let settings =
        Settings { chunk_bytes: 16 << 10, staging_bytes: 160 << 10, depth: 4, ..Settings::default() };
    let device = CudaDevice::new(0, CudaSettings::default()).unwrap();
    let engine = Engine::new(device.clone(), settings).unwrap();
    Some((stand_in, device, engine))
}

fn assert_lost(error: &Error) {
    assert!(error.is_device_lost() && error.to_string().contains("(700)"), "{error}");
}

/// All that can be asked for is refused, and says why.
fn assert_all_is_lost(device: CudaDevice, engine: Engine) {
    assert_lost(&device.allocate(100).unwrap_err());
    assert_lost(&device.staging(100).unwrap_err());
    assert_lost(&device.pinned(100, PinnedKind::WriteCombined).unwrap_err());
    assert_lost(&device.free_bytes().unwrap_err());
    let registered = device.register(Arc::new(vec![1u8; 10_000]));
    assert_lost(&registered.lock(0..100).unwrap_err());
    drop(registered);
    device.trim();
    drop(engine);
    let usage = device.usage();
    assert_eq!(usage.memory.in_use_bytes, 0, "{usage:?}");
    assert_eq!((usage.pinned.in_use_bytes, usage.registered.in_use_bytes), (0, 0), "{usage:?}");
    drop(device);
    // A second device finds the context as it is.
    assert!(CudaDevice::new(0, CudaSettings::default()).is_err());
}

#[test]
fn by_a_copy_that_breaks_the_context() {
    let Some((stand_in, device, engine)) = child("by_a_copy_that_breaks_the_context") else { return };
    stand_in.set("latency_us", 300);
    let owner = Arc::new(noise(300_000, 4));
    let registered = device.register(owner.clone());
    let there: Vec<_> = (0..4).map(|_| device.allocate(100_000).unwrap()).collect();
    stand_in.set("fail_copy_later", 20);
    let mut inward = Vec::new();
    for round in 0..12 {
        let memory = device.allocate(100_000).unwrap();
        let transfer = if round % 2 == 0 {
            Transfer::new(Memory::new(registered.lock(0..100_000).unwrap()), memory)
        } else {
            Transfer::new(Memory::new(noise(100_000, round)), memory)
        };
        inward.push(engine.submit(transfer).unwrap());
    }
    let outward: Vec<_> = there
        .into_iter()
        .map(|memory| {
            let host = device.staging(100_000).unwrap();
            engine.fetch(memory, 0, host, Priority::Normal).unwrap()
        })
        .collect();
    let mut lost = 0;
    for ticket in inward {
        if let Err(failed) = ticket.wait() {
            assert_lost(&failed.error);
            lost += 1;
        }
    }
    for ticket in outward {
        if let Err(failed) = ticket.wait() {
            assert_lost(&failed.error);
            lost += 1;
        }
    }
    assert!(lost > 0, "the copy that failed had a ticket");
    // Those that are submitted now fail as well, and the memory comes back with them.
    drop(registered);
    assert_eq!(device.usage().registered.idle_bytes, 0);
    assert_all_is_lost(device, engine);
    assert_eq!(Arc::strong_count(&owner), 1);
    // What the card may still write to was not freed.
    assert!(stand_in.get("pinned_bytes") > 0);
    stand_in.assert_no_violation();
}

#[test]
fn while_nothing_is_under_way() {
    let Some((stand_in, device, engine)) = child("while_nothing_is_under_way") else { return };
    let memory = device.allocate(100_000).unwrap();
    let kept = device.allocate(100).unwrap();
    let pinned = device.pinned(1000, PinnedKind::Cached).unwrap();
    stand_in.set("lose", 700);
    let failed =
        engine.submit(Transfer::new(Memory::new(noise(100_000, 1)), memory)).unwrap().wait().unwrap_err();
    assert_lost(&failed.error);
    let again = engine.submit(Transfer::new(Memory::new(noise(10, 1)), failed.memory)).unwrap();
    assert_lost(&again.wait().unwrap_err().error);
    drop((kept, pinned));
    assert_all_is_lost(device, engine);
    stand_in.assert_no_violation();
}

#[test]
fn with_the_tickets_awaited_elsewhere() {
    let Some((stand_in, device, engine)) = child("with_the_tickets_awaited_elsewhere") else { return };
    stand_in.set("latency_us", 300);
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let (device, engine) = (&device, &engine);
            scope.spawn(move || {
                // Until the card is lost under it.
                loop {
                    let lost = device.allocate(50_000).and_then(|memory| {
                        let transfer = Transfer::new(Memory::new(noise(50_000, thread)), memory);
                        engine.submit(transfer)?.wait()?;
                        Ok(())
                    });
                    if let Err(error) = lost {
                        return assert_lost(&error);
                    }
                }
            });
        }
        std::thread::sleep(std::time::Duration::from_millis(30));
        stand_in.set("lose", 700);
    });
    assert_all_is_lost(device, engine);
    stand_in.assert_no_violation();
}
