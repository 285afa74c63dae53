//! What is brought to a card and back is what it was, from and to every kind of memory, from several threads, and next
//! to others who use the card.
#![cfg(feature = "cuda")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod common;
mod stand_in;

use std::io::Write;
use std::sync::Arc;

use cudarc::driver::{CudaStream, sys};
use qvl_transfer::device::cuda::{CudaMemory, CudaSettings, Pinned, PinnedKind, RefusedLock};
use qvl_transfer::device::{Device, HostWindow};
use qvl_transfer::source::{Fill, Memory};
use qvl_transfer::{
    CudaDevice, DriveFile, Error, LayerStream, Priority, Settings, Source, Transfer, TransferEngine,
};
use stand_in::{Dice, StandIn, assert_no_violation, noise, turn};

type Engine = TransferEngine<CudaDevice>;

fn small() -> Settings {
    Settings { chunk_bytes: 64 << 10, staging_bytes: 512 << 10, depth: 4, ..Settings::default() }
}

fn fetched(engine: &Engine, memory: CudaMemory, at: usize, bytes: usize) -> (CudaMemory, Vec<u8>) {
    let host = engine.device().staging(bytes).unwrap();
    let done = engine.fetch(memory, at, host, Priority::Normal).unwrap().wait().unwrap();
    let (memory, host) = done.memory;
    (memory, host.to_vec())
}

fn brought(engine: &Engine, source: impl Source, memory: CudaMemory, at: usize) -> CudaMemory {
    engine.submit(Transfer::new(source, memory).at(at)).unwrap().wait().unwrap().memory
}

fn mapped(bytes: &[u8]) -> Arc<memmap2::Mmap> {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    // SAFETY: nobody else has this file.
    #[expect(unsafe_code, reason = "a file that is mapped")]
    Arc::new(unsafe { memmap2::Mmap::map(&file) }.unwrap())
}

#[test]
fn of_any_size_to_any_place() {
    let _turn = turn();
    let Some(device) = stand_in::device(CudaSettings::default()) else { return };
    let engine = Engine::new(device, small()).unwrap();
    let mut dice = Dice::new(7);
    for round in 0..60 {
        let bytes = match round % 4 {
            0 => dice.roll(20),
            1 => dice.roll(70_000),
            2 => (64 << 10) * (1 + dice.roll(4)),
            _ => dice.roll(900_000),
        };
        let (before, behind) = (dice.roll(5000), dice.roll(5000));
        let expected = noise(bytes, round);
        let memory = engine.device().allocate(before + bytes + behind).unwrap();
        // What is around it, to see that it stays.
        let around = noise(before + bytes + behind, 1000 + round);
        let memory = brought(&engine, Memory::new(around.clone()), memory, 0);
        let memory = match round % 3 {
            0 => brought(&engine, Memory::new(expected.clone()), memory, before),
            1 => {
                let made = expected.clone();
                let fill = move |at: u64, into: &mut [u8]| {
                    into.copy_from_slice(&made[at as usize..][..into.len()]);
                    Ok(())
                };
                brought(&engine, Fill::new("made", bytes as u64, fill), memory, before)
            }
            _ => {
                let mut file = tempfile::NamedTempFile::new().unwrap();
                file.write_all(&expected).unwrap();
                brought(&engine, DriveFile::open(file.path()).unwrap().whole(), memory, before)
            }
        };
        let (memory, inside) = fetched(&engine, memory, before, bytes);
        assert!(inside == expected, "round {round}: {bytes} bytes at {before}");
        let (memory, all) = fetched(&engine, memory, 0, before + bytes + behind);
        assert!(all[..before] == around[..before], "round {round}: before");
        assert!(all[before + bytes..] == around[before + bytes..], "round {round}: behind");
        drop(memory);
    }
    assert_eq!(engine.device().usage().memory.in_use_bytes, 0);
    assert_no_violation();
}

#[test]
fn from_page_locked_memory_without_staging() {
    let _turn = turn();
    let Some(device) = stand_in::device(CudaSettings::default()) else { return };
    let engine = Engine::new(device.clone(), small()).unwrap();
    for kind in [PinnedKind::Cached, PinnedKind::WriteCombined] {
        let expected = noise(300_001, 3);
        let mut pinned = match kind {
            PinnedKind::Cached => Pinned::cached(&device, 300_001).unwrap(),
            PinnedKind::WriteCombined => Pinned::write_combined(&device, 300_001).unwrap(),
        };
        assert_eq!(pinned.as_ptr() as usize % 4096, 0);
        assert_eq!(pinned.kind(), kind);
        pinned.copy_from_slice(&expected);
        assert!(device.copies_from(&pinned) && device.copies_from(&pinned[17..]));
        assert!(!device.copies_from(&expected));
        let memory = device.allocate(300_001).unwrap();
        let done = engine.submit(Transfer::new(Memory::new(pinned), memory)).unwrap().wait().unwrap();
        assert_eq!((done.report.bytes, done.report.staged_chunks), (300_001, 0));
        let (_, all) = fetched(&engine, done.memory, 0, 300_001);
        assert!(all == expected);
    }
    assert_eq!(engine.stats().staging_bytes, 0);
    assert_no_violation();
}

#[test]
fn page_locked_memory_is_used_again_and_given_back() {
    let _turn = turn();
    let settings = CudaSettings { pinned_bytes: 64 << 10, ..CudaSettings::default() };
    let Some(device) = stand_in::device(settings) else { return };
    let first = device.pinned(30_000, PinnedKind::Cached).unwrap();
    let address = first.as_ptr();
    drop(first);
    assert_eq!(device.usage().pinned.idle_bytes, 32 << 10);
    let again = device.pinned(29_000, PinnedKind::Cached).unwrap();
    assert_eq!(again.as_ptr(), address);
    // Another kind is another memory, and both are within the budget.
    let other = device.pinned(30_000, PinnedKind::WriteCombined).unwrap();
    assert_eq!(device.usage().pinned.in_use_bytes, 64 << 10);
    let error = device.pinned(1, PinnedKind::Cached).unwrap_err();
    let text = error.to_string();
    assert!(text.contains("65536 of 65536 are in use") && text.contains("pinned_bytes"), "{text}");
    drop((again, other));
    // What is kept gives way to what is needed.
    let large = device.pinned(60_000, PinnedKind::Cached).unwrap();
    assert_eq!(device.usage().pinned.idle_bytes, 0);
    drop(large);
    device.trim();
    assert_eq!(device.usage().pinned.idle_bytes, 0);
    assert_no_violation();
}

#[test]
fn from_a_mapped_file_that_is_locked_part_by_part() {
    let _turn = turn();
    let settings = CudaSettings { registered_bytes: 256 << 10, ..CudaSettings::default() };
    let Some(device) = stand_in::device(settings) else { return };
    let engine = Engine::new(device.clone(), small()).unwrap();
    let expected = noise(1_000_003, 5);
    let file = mapped(&expected);
    let registered = device.register(file.clone());
    assert!(!device.copies_from(&file));
    let memory = device.allocate(expected.len()).unwrap();
    let mut memory = Some(memory);
    let (mut at, mut patience) = (0, 50_000);
    let mut dice = Dice::new(11);
    while at < expected.len() {
        let bytes = (1 + dice.roll(150_000)).min(expected.len() - at);
        let locked = match registered.lock(at..at + bytes) {
            Ok(locked) => locked,
            // A worker lets go of its source a moment after the ticket has ended.
            Err(Error::OutOfMemory { in_use_bytes, .. }) if in_use_bytes > 0 && patience > 0 => {
                patience -= 1;
                std::thread::sleep(std::time::Duration::from_micros(100));
                continue;
            }
            // Of a real driver, on a file system whose pages it does not lock.
            Err(error) if stand_in::stand_in().is_none() => {
                return println!("skipped: mapped files cannot be locked here: {error}");
            }
            Err(error) => panic!("{error}"),
        };
        assert!(locked.is_locked() && device.copies_from(locked.as_ref()));
        let usage = device.usage().registered;
        assert!(usage.in_use_bytes + usage.idle_bytes <= 256 << 10, "{usage:?}");
        let done = engine.submit(Transfer::new(Memory::new(locked), memory.take().unwrap()).at(at));
        let done = done.unwrap().wait().unwrap();
        assert_eq!(done.report.staged_chunks, 0);
        memory = Some(done.memory);
        at += bytes;
    }
    let (_, all) = fetched(&engine, memory.unwrap(), 0, expected.len());
    assert!(all == expected);
    // Its workers let go of what they have.
    drop(engine);
    let usage = device.usage().registered;
    assert!(usage.in_use_bytes == 0 && usage.idle_bytes > 0, "{usage:?}");
    // The owner is kept while any of it is locked, and no longer.
    assert!(Arc::strong_count(&file) > 2);
    drop(registered);
    assert_eq!(Arc::strong_count(&file), 1);
    assert_eq!(device.usage().registered.idle_bytes, 0);
    assert_no_violation();
}

#[test]
fn from_memory_of_which_a_part_is_locked() {
    let _turn = turn();
    let Some(device) = stand_in::device(CudaSettings::default()) else { return };
    let engine = Engine::new(device.clone(), small()).unwrap();
    let expected = Arc::new(noise(500_000, 9));
    let registered = device.register(expected.clone());
    // Two ranges with a gap, each rounded to pages; then what lies across them, and across their edges.
    let first = registered.lock(10_000..60_000).unwrap();
    let second = registered.lock(100_000..200_000).unwrap();
    for range in [0..500_000, 20_000..150_000, 55_000..120_000, 0..10_000, 199_000..201_000, 30_000..40_000] {
        struct Part(Arc<Vec<u8>>, std::ops::Range<usize>);
        impl AsRef<[u8]> for Part {
            fn as_ref(&self) -> &[u8] {
                &self.0[self.1.clone()]
            }
        }
        let memory = device.allocate(range.len()).unwrap();
        let part = Memory::new(Part(expected.clone(), range.clone()));
        let memory = brought(&engine, part, memory, 0);
        // And without the engine, which would stage what is not locked as a whole.
        copied_directly(&device, &expected[range.clone()], &memory);
        let (_, all) = fetched(&engine, memory, 0, range.len());
        assert!(all == expected[range.clone()], "{range:?}");
    }
    // What both need is locked once, and the gap between them beside it.
    let across = registered.lock(50_000..110_000).unwrap();
    assert!(device.copies_from(across.as_ref()));
    drop(first);
    drop(second);
    assert!(device.copies_from(across.as_ref()));
    drop((across, registered));
    assert_eq!(device.usage().registered.in_use_bytes + device.usage().registered.idle_bytes, 0);
    assert_no_violation();
}

#[expect(unsafe_code, reason = "a copy without the engine")]
fn copied_directly(device: &CudaDevice, from: &[u8], to: &CudaMemory) {
    use qvl_transfer::Fence;
    // SAFETY: both sides are kept until the fence.
    let fence = unsafe { device.copy_in(from.as_ptr(), from.len(), to, 0) }.unwrap();
    fence.wait().unwrap();
}

#[test]
fn ranges_that_are_used_are_not_unlocked_for_others() {
    let _turn = turn();
    let settings = CudaSettings { registered_bytes: 128 << 10, ..CudaSettings::default() };
    let Some(device) = stand_in::device(settings) else { return };
    let registered = device.register(Arc::new(noise(400_000, 2)));
    let used = registered.lock(0..70_000).unwrap();
    let error = registered.lock(200_000..300_000).unwrap_err();
    assert!(matches!(error, Error::OutOfMemory { .. }), "{error}");
    assert!(error.to_string().contains("registered_bytes"), "{error}");
    assert!(used.is_locked() && device.copies_from(used.as_ref()));
    drop(used);
    assert!(registered.lock(200_000..300_000).unwrap().is_locked());
    assert!(matches!(registered.lock(399_999..400_001).unwrap_err(), Error::Range { .. }));
    assert_no_violation();
}

#[test]
fn from_several_threads_in_both_directions() {
    let _turn = turn();
    let settings = CudaSettings { registered_bytes: 512 << 10, ..CudaSettings::default() };
    let Some(device) = stand_in::device(settings) else { return };
    let engine = Engine::new(device.clone(), small()).unwrap();
    let shared = Arc::new(noise(2_000_000, 42));
    let registered = device.register(shared.clone());
    std::thread::scope(|scope| {
        for thread in 0..6 {
            let (engine, device, shared, registered) = (&engine, &device, &shared, &registered);
            scope.spawn(move || {
                let mut dice = Dice::new(100 + thread);
                for round in 0..40 {
                    let start = dice.roll(1_900_000);
                    let bytes = 1 + dice.roll(90_000);
                    let memory = device.allocate(bytes).unwrap();
                    let memory = match round % 3 {
                        // Five ranges of this size fit, the others wait their turn by staging.
                        0 => match registered.lock(start..start + bytes) {
                            Ok(locked) => brought(engine, Memory::new(locked), memory, 0),
                            Err(Error::OutOfMemory { .. }) => {
                                let part = shared[start..start + bytes].to_vec();
                                brought(engine, Memory::new(part), memory, 0)
                            }
                            Err(error) => panic!("{error}"),
                        },
                        1 => {
                            let mut pinned = device.pinned(bytes, PinnedKind::Cached).unwrap();
                            pinned.copy_from_slice(&shared[start..start + bytes]);
                            brought(engine, Memory::new(pinned), memory, 0)
                        }
                        _ => {
                            // Parts of it may be locked by others meanwhile, and unlocked.
                            copied_directly(device, &shared[start..start + bytes], &memory);
                            memory
                        }
                    };
                    let (_, all) = fetched(engine, memory, 0, bytes);
                    assert!(all == shared[start..start + bytes], "thread {thread}, round {round}");
                }
            });
        }
    });
    drop((registered, engine));
    let usage = device.usage();
    assert_eq!(usage.memory.in_use_bytes, 0);
    assert_eq!(usage.registered.in_use_bytes + usage.registered.idle_bytes, 0);
    assert!(usage.registered.high_water_bytes <= 512 << 10);
    assert_no_violation();
}

/// Sets bytes of a card on a stream: computing, as far as a transfer can tell.
#[expect(unsafe_code, reason = "calls the driver")]
fn set(memory: &CudaMemory, stream: &Arc<CudaStream>, value: u8) {
    let pointer = memory.pointer(0..memory.len()).unwrap();
    stream.context().bind_to_thread().unwrap();
    // SAFETY: the range is inside the memory, which is kept until the stream has done this (`used_by`).
    let code = unsafe { sys::cuMemsetD8Async(pointer, value, memory.len(), stream.cu_stream()) };
    code.result().unwrap();
    memory.used_by(stream).unwrap();
}

#[test]
fn transfers_wait_on_the_card_for_who_computes() {
    let _turn = turn();
    let Some(device) = stand_in::device(CudaSettings::default()) else { return };
    let engine = Engine::new(device.clone(), small()).unwrap();
    let (one, two) = (device.context().new_stream().unwrap(), device.context().new_stream().unwrap());
    for round in 0..50u8 {
        let memory = device.allocate(200_000).unwrap();
        set(&memory, &one, round);
        // The second stream computes on what the first did.
        memory.wait_on(&two).unwrap();
        set(&memory, &two, round ^ 0xff);
        let (memory, all) = fetched(&engine, memory, 0, 200_000);
        assert!(all.iter().all(|&byte| byte == round ^ 0xff), "round {round}");
        // What computes with the bytes is not overwritten.
        set(&memory, &one, 1);
        let memory = brought(&engine, Memory::new(noise(200_000, 8)), memory, 0);
        let (memory, all) = fetched(&engine, memory, 0, 200_000);
        assert!(all == noise(200_000, 8), "round {round}");
        // Dropped while it is computed with: freed after that.
        set(&memory, &two, 2);
        drop(memory);
    }
    device.context().synchronize().unwrap();
    assert_eq!(device.usage().memory.in_use_bytes, 0);
    assert_no_violation();
}

#[test]
fn memory_that_is_computed_with_counts_until_it_is_free() {
    let _turn = turn();
    let settings = CudaSettings { memory_bytes: Some(1 << 20), ..CudaSettings::default() };
    let Some(device) = stand_in::device(settings) else { return };
    let stream = device.context().new_stream().unwrap();
    for round in 0..100 {
        // One at a time has room: each waits for the one before it.
        let memory = device.allocate(600_000).unwrap();
        set(&memory, &stream, round);
    }
    assert!(device.usage().memory.high_water_bytes <= 1 << 20);
    let kept = device.allocate(600_000).unwrap();
    let error = device.allocate(600_000).unwrap_err();
    let text = error.to_string();
    assert!(text.contains("bytes are free") && text.contains("of 1048576 are in use"), "{text}");
    drop(kept);
    assert_no_violation();
}

#[test]
fn a_context_is_shared_and_what_was_current_stays_so() {
    let _turn = turn();
    let Some(device) = stand_in::device(CudaSettings::default()) else { return };
    let context = device.context().clone();
    let other = CudaDevice::with_context(context.clone(), CudaSettings::default()).unwrap();
    let engine = Engine::new(other, small()).unwrap();
    let stream = context.new_stream().unwrap();
    // cudarc's own memory, beside ours.
    let theirs = stream.clone_htod(&noise(50_000, 4)).unwrap();
    let memory =
        brought(&engine, Memory::new(noise(50_000, 6)), engine.device().allocate(50_000).unwrap(), 0);
    assert!(stream.clone_dtoh(&theirs).unwrap() == noise(50_000, 4));
    let (memory, all) = fetched(&engine, memory, 0, 50_000);
    assert!(all == noise(50_000, 6));
    // The memory outlives the engine and the devices.
    drop((engine, device));
    drop(memory);
    drop((theirs, stream));
    assert_eq!(Arc::strong_count(&context), 1);
    assert_no_violation();
}

#[test]
fn another_card_is_another_device() {
    let _turn = turn();
    if stand_in::stand_in().is_none() {
        return;
    }
    let two = |command: &mut std::process::Command| _ = command.env("QVL_STAND_IN_CARDS", "2");
    if !stand_in::is_child("another_card_is_another_device", two) {
        return;
    }
    let first = CudaDevice::new(0, CudaSettings::default()).unwrap();
    let second = CudaDevice::new(1, CudaSettings::default()).unwrap();
    assert_eq!((first.name(), second.name()), ("Stand-in (cuda:0)", "Stand-in (cuda:1)"));
    // A thread of the caller's that works with the first is not moved to the second.
    first.context().bind_to_thread().unwrap();
    let memory = second.allocate(1000).unwrap();
    assert_eq!(cudarc::driver::result::ctx::get_current().unwrap(), Some(first.context().cu_ctx()));
    // Nor is a stream of the one taken for one of the other.
    let error = memory.used_by(&first.context().new_stream().unwrap()).unwrap_err();
    assert!(matches!(error, Error::Setting { name: "stream", .. }), "{error}");
    let engines = [first, second].map(|device| Engine::new(device, small()).unwrap());
    let there = brought(&engines[1], Memory::new(noise(1000, 1)), memory, 0);
    let here =
        brought(&engines[0], Memory::new(noise(1000, 2)), engines[0].device().allocate(1000).unwrap(), 0);
    assert!(fetched(&engines[1], there, 0, 1000).1 == noise(1000, 1));
    assert!(fetched(&engines[0], here, 0, 1000).1 == noise(1000, 2));
    StandIn.assert_no_violation();
}

#[test]
fn memory_that_cannot_be_locked_is_an_error_or_a_warning() {
    let _turn = turn();
    let Some(stand_in) = stand_in::stand_in() else { return };
    let device = CudaDevice::new(0, CudaSettings::default()).unwrap();
    let lenient = CudaSettings { refused_lock: RefusedLock::Pageable, ..CudaSettings::default() };
    let lenient = CudaDevice::new(0, lenient).unwrap();
    let data = Arc::new(noise(300_000, 12));
    stand_in.set("lock_refused", 1);
    for error in [
        device.pinned(1000, PinnedKind::Cached).unwrap_err(),
        device.staging(1000).unwrap_err(),
        device.register(data.clone()).lock(0..1000).unwrap_err(),
    ] {
        let text = error.to_string();
        assert!(text.contains("CUDA_ERROR_OUT_OF_MEMORY (2)") && text.contains("ulimit -l"), "{text}");
        assert!(cfg!(not(target_os = "linux")) || text.contains("RLIMIT_MEMLOCK is "), "{text}");
    }
    // The engine says so by the ticket.
    let engine = Engine::new(device.clone(), small()).unwrap();
    let memory = device.allocate(1000).unwrap();
    let failed =
        engine.submit(Transfer::new(Memory::new(vec![1u8; 1000]), memory)).unwrap().wait().unwrap_err();
    assert!(matches!(failed.error, Error::OutOfMemory { .. }), "{}", failed.error);
    assert!(device.warnings().is_empty());

    let engine = Engine::new(lenient.clone(), small()).unwrap();
    let registered = lenient.register(data.clone());
    for _ in 0..3 {
        let locked = registered.lock(1000..201_000).unwrap();
        assert!(!locked.is_locked() && !lenient.copies_from(locked.as_ref()));
        let memory = brought(&engine, Memory::new(locked), lenient.allocate(200_000).unwrap(), 0);
        let (_, all) = fetched(&engine, memory, 0, 200_000);
        assert!(all == data[1000..201_000]);
    }
    let warnings = lenient.warnings();
    assert_eq!(warnings.len(), 2, "one for each kind: {warnings:#?}");
    assert!(warnings.iter().all(|text| text.contains("ulimit -l")), "{warnings:#?}");
    assert_eq!(lenient.usage().registered.idle_bytes, 0);
    stand_in.set("lock_refused", 0);
    assert!(registered.lock(0..1000).unwrap().is_locked());
    stand_in.assert_no_violation();
}

#[test]
fn staging_is_aligned_whatever_the_driver_returns() {
    let _turn = turn();
    let Some(stand_in) = stand_in::stand_in() else { return };
    let device = CudaDevice::new(0, CudaSettings::default()).unwrap();
    stand_in.set("misaligned_host", 1);
    let mut staging = device.staging(5000).unwrap();
    stand_in.set("misaligned_host", 0);
    assert_eq!((staging.as_ptr() as usize % 4096, staging.len()), (0, 5000));
    assert!(staging.is_pinned() && staging.iter().all(|&byte| byte == 0));
    staging.fill(7);
    let engine = Engine::new(device.clone(), small()).unwrap();
    let (_, all) = {
        let memory = brought(&engine, Memory::new(staging), device.allocate(5000).unwrap(), 0);
        fetched(&engine, memory, 0, 5000)
    };
    assert!(all.iter().all(|&byte| byte == 7));
    drop(engine);
    drop(device);
    assert_eq!(stand_in.get("pinned_bytes"), 0);
    stand_in.assert_no_violation();
}

#[test]
fn the_host_has_no_window_into_a_card() {
    let _turn = turn();
    let Some(device) = stand_in::device(CudaSettings::default()) else { return };
    let memory = device.allocate(4096).unwrap();
    let window: Option<HostWindow> = device.window(&memory);
    assert!(window.is_none());
    assert_eq!((device.bytes(&memory), device.charge(1)), (4096, 512));
    let empty = device.allocate(0).unwrap();
    assert!(empty.is_empty() && empty.pointer(0..0).is_ok());
    assert!(matches!(memory.pointer(4000..4097).unwrap_err(), Error::Range { .. }));
    assert!(device.free_bytes().unwrap() <= device.total_bytes().unwrap());
}

#[test]
fn layers_that_stream_through_a_budget() {
    let _turn = turn();
    let Some(device) = stand_in::device(CudaSettings::default()) else { return };
    let layers: Vec<Vec<u8>> = (0..7).map(|seed| noise(150_000 + 1000 * seed as usize, seed)).collect();
    let mut file = tempfile::NamedTempFile::new().unwrap();
    layers.iter().for_each(|layer| file.write_all(layer).unwrap());
    let drive = DriveFile::open(file.path()).unwrap();
    let largest = device.charge(layers.iter().map(Vec::len).max().unwrap()) as u64;
    for room in [2, 3, 5, 8] {
        let engine = Arc::new(Engine::new(device.clone(), small()).unwrap());
        let mut builder = LayerStream::builder(engine.clone(), room * largest);
        let mut at = 0;
        for (index, layer) in layers.iter().enumerate() {
            let len = layer.len() as u64;
            builder = match index % 3 {
                0 => builder.segment(Memory::new(layer.clone())),
                1 => {
                    let mut pinned = Pinned::cached(&device, layer.len()).unwrap();
                    pinned.copy_from_slice(layer);
                    builder.segment(Memory::new(pinned))
                }
                _ => builder.segment(drive.range(at, len).unwrap()),
            };
            at += len;
        }
        let mut stream = builder.build().unwrap();
        for step in 0..4 * layers.len() {
            let guard = stream.next().unwrap();
            let layer = &layers[step % layers.len()];
            assert!(common::seen(&device, &guard) == *layer, "room for {room}, step {step}");
        }
        assert!(stream.stats().held_bytes_max <= room * largest);
        drop(stream);
        // Waits for what was on its way.
        drop(engine);
        assert_eq!(device.usage().memory.in_use_bytes, 0);
    }
    assert_no_violation();
}
