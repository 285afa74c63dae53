//! Whatever becomes of tickets, and wherever something fails, memory of the card, page-locked memory and locks come
//! back, nothing is used after it was freed, and the engine goes on.
#![cfg(feature = "cuda")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod stand_in;

use std::sync::Arc;

use qvl_transfer::device::cuda::{CudaMemory, CudaSettings, PinnedKind, Registered};
use qvl_transfer::device::{Device, Fence};
use qvl_transfer::source::{Fill, Memory};
use qvl_transfer::{CudaDevice, Error, Priority, Settings, Source, Transfer, TransferEngine};
use stand_in::{Dice, StandIn, noise, turn};

type Engine = TransferEngine<CudaDevice>;

fn small() -> Settings {
    Settings { chunk_bytes: 16 << 10, staging_bytes: 160 << 10, depth: 4, ..Settings::default() }
}

fn engine(device: &CudaDevice) -> Engine {
    Engine::new(device.clone(), small()).unwrap()
}

/// All of what the stand-in and the device count is back, once everything is dropped.
fn assert_nothing_is_left(device: CudaDevice, stand_in: StandIn, leaked_bytes: u64) {
    let usage = device.usage();
    assert_eq!(usage.memory.in_use_bytes, leaked_bytes);
    assert_eq!((usage.pinned.in_use_bytes, usage.registered.in_use_bytes), (0, 0), "{usage:?}");
    assert_eq!(stand_in.get("device_bytes"), leaked_bytes);
    device.trim();
    let usage = device.usage();
    assert_eq!((usage.pinned.idle_bytes, usage.registered.idle_bytes), (0, 0), "{usage:?}");
    assert_eq!((stand_in.get("pinned_bytes"), stand_in.get("registered_bytes")), (0, 0));
    drop(device);
    if leaked_bytes == 0 {
        let left = ["device_bytes", "streams", "events", "pools", "contexts"].map(|name| stand_in.get(name));
        assert_eq!(left, [0; 5]);
    }
    stand_in.assert_no_violation();
}

/// A source of one of the kinds there are.
fn source(
    dice: &mut Dice,
    device: &CudaDevice,
    registered: &Registered<Vec<u8>>,
    bytes: usize,
) -> Arc<dyn Source> {
    match dice.roll(4) {
        0 => Arc::new(Memory::new(noise(bytes, 1))),
        1 if bytes > 0 => match device.pinned(bytes, PinnedKind::Cached) {
            Ok(pinned) => Arc::new(Memory::new(pinned)),
            Err(_) => Arc::new(Memory::new(noise(bytes, 1))),
        },
        1 | 2 => match registered.lock(0..bytes) {
            Ok(locked) => Arc::new(Memory::new(locked)),
            Err(_) => Arc::new(Memory::new(noise(bytes, 1))),
        },
        _ => Arc::new(Fill::new("made", bytes as u64, |at: u64, into: &mut [u8]| {
            into.fill(at as u8);
            Ok(())
        })),
    }
}

#[test]
fn by_thousands_of_tickets_dropped_cancelled_and_leaked() {
    let _turn = turn();
    let Some(stand_in) = stand_in::stand_in() else { return };
    // Leaked tickets leave their memory in use for good: in a process of its own.
    if !stand_in::is_child("by_thousands_of_tickets_dropped_cancelled_and_leaked", |_| {}) {
        return;
    }
    let settings = CudaSettings {
        memory_bytes: Some(8 << 20),
        pinned_bytes: 2 << 20,
        registered_bytes: 256 << 10,
        ..CudaSettings::default()
    };
    let device = CudaDevice::new(0, settings).unwrap();
    stand_in.set("latency_us", 20);
    let engine = engine(&device);
    let registered = device.register(Arc::new(noise(200_000, 1)));
    let (mut leaked_bytes, mut ended) = (0, [0u32; 3]);
    let mut dice = Dice::new(5);
    let mut kept = Vec::new();
    // `QVL_TRANSFER_SOAK=1000000` is the long run.
    let rounds = std::env::var("QVL_TRANSFER_SOAK").map_or(4000, |text| text.parse().expect("a number"));
    for round in 0..rounds {
        let bytes = dice.roll(90_000);
        let memory = match device.allocate(bytes) {
            Ok(memory) => memory,
            // Those that are under way have it all: let some of them end.
            Err(Error::OutOfMemory { .. }) => {
                kept.clear();
                continue;
            }
            Err(error) => panic!("{error}"),
        };
        // A third goes out.
        if dice.roll(3) == 0 {
            let Ok(host) = device.staging(bytes) else { continue };
            let ticket = engine.fetch(memory, 0, host, Priority::Normal).unwrap();
            match dice.roll(3) {
                0 => drop(ticket),
                1 => ticket.cancel(),
                _ => ended[0] += u32::from(ticket.wait().is_ok()),
            }
            continue;
        }
        let priority = if round % 5_u32 == 0 { Priority::Urgent } else { Priority::Normal };
        let transfer = Transfer::new(source(&mut dice, &device, &registered, bytes), memory);
        let ticket = engine.submit(transfer.priority(priority)).unwrap();
        match dice.roll(8) {
            0 | 1 => drop(ticket),
            2 => ticket.cancel(),
            3 => {
                ticket.cancel();
                match ticket.wait() {
                    Ok(_) => ended[1] += 1,
                    Err(failed) => {
                        assert!(matches!(failed.error, Error::Cancelled), "{}", failed.error);
                        ended[2] += 1;
                    }
                }
            }
            4 if leaked_bytes < 4 << 20 => {
                // It keeps its memory and its source: one that is in memory of its own.
                drop(ticket);
                let memory = device.allocate(5000).unwrap_or_else(|_| device.allocate(0).unwrap());
                leaked_bytes += device.charge(memory.len()) as u64;
                let ticket =
                    engine.submit(Transfer::new(Memory::new(vec![1u8; memory.len()]), memory)).unwrap();
                std::mem::forget(ticket);
            }
            5 => kept.push(ticket),
            _ => ended[0] += u32::from(ticket.wait().is_ok()),
        }
    }
    assert!(ended.iter().all(|&count| count > 0), "each way of ending happened: {ended:?}");
    assert!(leaked_bytes > 0);
    drop(kept);
    // Ends what is under way.
    drop(engine);
    drop(registered);
    assert_nothing_is_left(device, stand_in, leaked_bytes);
}

#[test]
fn when_the_card_has_no_memory_in_the_middle() {
    let _turn = turn();
    let Some(stand_in) = stand_in::stand_in() else { return };
    let device = CudaDevice::new(0, CudaSettings::default()).unwrap();
    let engine = engine(&device);
    let mut tickets = Vec::new();
    let mut refused = 0;
    for round in 0..40 {
        // Refused twice: when it is asked for, and again after the pool was trimmed.
        if round % 8 == 3 {
            stand_in.set("fail_allocation", 1);
        }
        match device.allocate(100_000) {
            Ok(memory) => {
                tickets
                    .push(engine.submit(Transfer::new(Memory::new(noise(100_000, round)), memory)).unwrap());
            }
            Err(error) => {
                let text = error.to_string();
                assert!(matches!(error, Error::OutOfMemory { .. }), "{text}");
                assert!(text.contains("CUDA_ERROR_OUT_OF_MEMORY (2)") && text.contains("are free"), "{text}");
                refused += 1;
            }
        }
    }
    // A trim made room each time.
    assert_eq!((refused, tickets.len()), (0, 40));
    for ticket in tickets {
        ticket.wait().unwrap();
    }
    // More than there is, of a budget that is larger than the card.
    let greedy = CudaSettings { memory_bytes: Some(1 << 40), ..CudaSettings::default() };
    let greedy = CudaDevice::new(0, greedy).unwrap();
    let total = greedy.total_bytes().unwrap() as usize;
    let half = greedy.allocate(total / 2).unwrap();
    let error = greedy.allocate(total / 2 + 1).unwrap_err();
    let text = error.to_string();
    assert!(text.contains("CUDA_ERROR_OUT_OF_MEMORY (2)") && text.contains("Other programs"), "{text}");
    drop(half);
    // What the pool keeps of it is ours to use in other sizes.
    drop(greedy.allocate(total / 2 + 1).unwrap());
    drop(greedy);
    // Without a budget, a twentieth stays free for others, however often memory is asked for.
    let mut all = Vec::new();
    while let Ok(memory) = device.allocate(1 << 20) {
        all.push(memory);
    }
    assert!(device.free_bytes().unwrap() as usize >= total / 20, "{}", device.free_bytes().unwrap());
    assert!(all.len() > 200, "{}", all.len());
    drop((all, engine));
    assert_nothing_is_left(device, stand_in, 0);
}

#[test]
fn when_a_copy_is_refused() {
    let _turn = turn();
    let Some(stand_in) = stand_in::stand_in() else { return };
    let device = CudaDevice::new(0, CudaSettings::default()).unwrap();
    let engine = engine(&device);
    for round in 0..30u64 {
        stand_in.set("fail_copy", 1 + round % 7);
        let tickets: Vec<_> = (0..4)
            .map(|seed| {
                let memory = device.allocate(60_000).unwrap();
                engine.submit(Transfer::new(Memory::new(noise(60_000, seed)), memory)).unwrap()
            })
            .collect();
        let mut failed = 0;
        for (seed, ticket) in tickets.into_iter().enumerate() {
            match ticket.wait() {
                Ok(done) => {
                    let host = device.staging(60_000).unwrap();
                    let done = engine.fetch(done.memory, 0, host, Priority::Normal).unwrap().wait();
                    // The error may reach this one, if all that came before were done.
                    match done {
                        Ok(done) => assert!(done.memory.1[..] == noise(60_000, seed as u64)[..]),
                        Err(_) => failed += 1,
                    }
                }
                Err(refused) => {
                    let text = refused.error.to_string();
                    assert!(matches!(refused.error, Error::Device { lost: false, .. }), "{text}");
                    assert!(text.contains("begin a copy") && text.contains("(2)"), "{text}");
                    failed += 1;
                }
            }
        }
        assert_eq!(failed, 1, "round {round}: the error reached one ticket, its own");
        stand_in.set("fail_copy", 0);
    }
    drop(engine);
    assert_nothing_is_left(device, stand_in, 0);
}

#[test]
fn both_directions_go_at_once() {
    let _turn = turn();
    let Some(stand_in) = stand_in::stand_in() else { return };
    let device = CudaDevice::new(0, CudaSettings::default()).unwrap();
    let engine = engine(&device);
    let before = stand_in.get("overlapped");
    stand_in.set("latency_us", 2000);
    let pairs: Vec<_> = (0..12)
        .map(|seed| {
            let host = device.staging(32 << 10).unwrap();
            let memory = device.allocate(32 << 10).unwrap();
            let out = engine.fetch(memory, 0, host, Priority::Normal).unwrap();
            let memory = device.allocate(32 << 10).unwrap();
            let into = engine.submit(Transfer::new(Memory::new(noise(32 << 10, seed)), memory)).unwrap();
            (out, into)
        })
        .collect();
    for (out, into) in pairs {
        out.wait().unwrap();
        into.wait().unwrap();
    }
    stand_in.set("latency_us", 0);
    // 24 copies each way: if one direction waited for the other, none would overlap.
    let overlapped = stand_in.get("overlapped") - before;
    assert!(overlapped > 10, "{overlapped} copies were begun while one of the other direction was under way");
    drop(engine);
    assert_nothing_is_left(device, stand_in, 0);
}

#[test]
fn by_copies_that_nobody_waits_for() {
    let _turn = turn();
    let Some(stand_in) = stand_in::stand_in() else { return };
    let device = CudaDevice::new(0, CudaSettings::default()).unwrap();
    stand_in.set("latency_us", 500);
    for round in 0..50 {
        let memory: CudaMemory = device.allocate(50_000).unwrap();
        let mut pinned = device.pinned(50_000, PinnedKind::Cached).unwrap();
        pinned.copy_from_slice(&noise(50_000, round));
        begin_and_forget_to_wait(&device, &pinned, &memory);
        // The fence was dropped, which waits: both sides may go.
        drop((pinned, memory));
        device.trim();
    }
    stand_in.set("latency_us", 0);
    assert_nothing_is_left(device, stand_in, 0);
}

#[test]
#[expect(unsafe_code, reason = "copies without the engine")]
fn what_is_copied_from_stays_locked_until_the_copy_has_ended() {
    let _turn = turn();
    let Some(stand_in) = stand_in::stand_in() else { return };
    let settings = CudaSettings { registered_bytes: 64 << 10, ..CudaSettings::default() };
    let device = CudaDevice::new(0, settings).unwrap();
    let owner = Arc::new(noise(200_000, 1));
    let memory = device.allocate(10_000).unwrap();
    let registered = device.register(owner.clone());
    drop(registered.lock(0..40_000).unwrap());
    assert_eq!(device.usage().registered.in_use_bytes, 0);
    stand_in.set("latency_us", 50_000);
    // SAFETY: both sides are kept until the fence.
    let fence = unsafe { device.copy_in(owner[1000..].as_ptr(), 10_000, &memory, 0) }.unwrap();
    assert!(device.usage().registered.in_use_bytes > 0);
    // Nobody has it locked but the copy: others find no room, and neither they nor a drop unlock it.
    assert!(registered.lock(100_000..140_000).is_err());
    drop(registered);
    assert!(stand_in.get("registered_bytes") > 0);
    fence.wait().unwrap();
    stand_in.set("latency_us", 0);
    assert_eq!((stand_in.get("registered_bytes"), Arc::strong_count(&owner)), (0, 1));
    // SAFETY: as above; now it is copied as any other memory.
    unsafe { device.copy_in(owner[1000..].as_ptr(), 10_000, &memory, 0) }.unwrap().wait().unwrap();
    drop(memory);
    assert_nothing_is_left(device, stand_in, 0);
}

#[expect(unsafe_code, reason = "a copy without the engine")]
fn begin_and_forget_to_wait(device: &CudaDevice, from: &[u8], to: &CudaMemory) {
    // SAFETY: both sides are kept until the fence was dropped, which waits for it.
    drop(unsafe { device.copy_in(from.as_ptr(), from.len(), to, 0) }.unwrap());
}
