//! A stream gives its segments in order, whole, round after round, within its budget, and goes on after a failure.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use common::{bytes, seen, text};
use proptest::prelude::*;
use qvl_transfer::device::link::{Faults, LinkSettings};
use qvl_transfer::source::{Fill, Memory};
use qvl_transfer::{DriveFile, HostDevice, HostMemory, LayerStream, LinkDevice, Settings, TransferEngine};

fn engine(budget_bytes: u64) -> Arc<TransferEngine<HostDevice>> {
    let settings = Settings { chunk_bytes: 4096, staging_bytes: 65_536, depth: 3, ..Settings::default() };
    Arc::new(TransferEngine::new(HostDevice::new(budget_bytes), settings).unwrap())
}

fn charge(len: usize) -> u64 {
    HostMemory::charge(len) as u64
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whole_and_within_the_budget(
        lens in prop::collection::vec(prop_oneof![Just(0usize), Just(30_000usize), 1usize..80_000], 1..9),
        share in 0.0f64..1.2,
        rounds in 1usize..5,
        pauses in prop::collection::vec(0u64..300, 1..5),
    ) {
        // The device has no more than the stream may take: an error in counting is an error of the device.
        let all: u64 = lens.iter().map(|&len| charge(len)).sum();
        let mut sorted: Vec<u64> = lens.iter().map(|&len| charge(len)).collect();
        sorted.sort_unstable();
        let least: u64 = sorted.iter().rev().take(2).sum();
        let budget = least + ((all.saturating_sub(least)) as f64 * share) as u64;
        let engine = engine(budget);
        let sources = lens.iter().enumerate().map(|(seed, &len)| Memory::new(bytes(len, seed as u64)));
        let mut stream = LayerStream::builder(engine.clone(), budget).segments(sources).build().unwrap();
        for step in 0..rounds * lens.len() {
            let index = step % lens.len();
            let guard = stream.next().unwrap();
            prop_assert_eq!(guard.index(), index);
            prop_assert!(guard[..] == bytes(lens[index], index as u64)[..]);
            std::thread::sleep(std::time::Duration::from_micros(pauses[step % pauses.len()]));
        }
        let stats = stream.stats();
        prop_assert!(stats.held_bytes_max <= budget, "{:?}", stats);
        prop_assert!(engine.device().usage().high_water_bytes <= budget);
        if budget >= all {
            let once: u64 = lens.iter().map(|&len| len as u64).sum();
            prop_assert_eq!(stats.streamed_bytes, once, "all stay when there is room for all: {:?}", stream.plan());
        }
        drop(stream);
        drop(engine);
    }
}

#[test]
fn a_segment_that_fails_is_tried_again() {
    let engine = engine(1 << 20);
    let tries = Arc::new(AtomicUsize::new(0));
    let flaky = {
        let tries = tries.clone();
        Fill::new("flaky", 5000, move |at, into: &mut [u8]| {
            if at == 0 && tries.fetch_add(1, Ordering::Relaxed) == 0 {
                return Err("not now".to_owned());
            }
            into.fill(9);
            Ok(())
        })
    };
    let mut stream = LayerStream::builder(engine, 4 * charge(5000))
        .segment(Memory::new(bytes(5000, 1)))
        .segment(flaky)
        .segment(Memory::new(bytes(5000, 2)))
        .build()
        .unwrap();
    assert!(stream.next().unwrap()[..] == bytes(5000, 1)[..]);
    assert_eq!(text(&stream.next().unwrap_err()), "the source flaky failed at 0: not now");
    assert_eq!(stream.position(), 1);
    assert!(stream.next().unwrap().iter().all(|&byte| byte == 9));
    assert!(stream.next().unwrap()[..] == bytes(5000, 2)[..]);
    assert!(stream.next().unwrap()[..] == bytes(5000, 1)[..]);
}

#[test]
fn a_segment_with_another_checksum_is_refused() {
    let engine = engine(1 << 20);
    let right = bytes(5000, 1);
    let crc32 = crc32fast::hash(&right);
    let build = |crc32| {
        LayerStream::builder(engine.clone(), 1 << 20)
            .checked_segment(Memory::new(right.clone()), crc32)
            .build()
            .unwrap()
    };
    assert!(build(crc32).next().unwrap()[..] == right[..]);
    let said = text(&build(crc32 ^ 1).next().unwrap_err());
    assert_eq!(said, format!("memory: its CRC-32 is {crc32:08x}, expected {:08x}", crc32 ^ 1));
}

#[test]
fn it_goes_on_from_another_segment() {
    let engine = engine(1 << 20);
    let sources = (0..6).map(|seed| Memory::new(bytes(9000, seed)));
    let mut stream = LayerStream::builder(engine, 3 * charge(9000)).segments(sources).build().unwrap();
    for (seek, then) in
        [(Some(4), 4), (None, 5), (None, 0), (Some(0), 0), (Some(1), 1), (Some(1), 1), (None, 2)]
    {
        if let Some(index) = seek {
            stream.seek(index).unwrap();
        }
        let guard = stream.next().unwrap();
        assert_eq!(guard.index(), then);
        assert!(guard[..] == bytes(9000, then as u64)[..]);
    }
    assert_eq!(
        text(&stream.seek(6).unwrap_err()),
        "the stream's segments: 1 bytes at 6 are not inside its 6 bytes"
    );
}

#[test]
fn more_budget_never_means_more_reading() {
    let mut before = u64::MAX;
    for segments in 2..=8 {
        let budget = segments * charge(20_000);
        let sources = (0..8).map(|seed| Memory::new(bytes(20_000, seed)));
        let mut stream = LayerStream::builder(engine(budget), budget).segments(sources).build().unwrap();
        for _ in 0..40 {
            drop(stream.next().unwrap());
        }
        // The last ones ahead may be counted or not.
        let streamed = stream.stats().streamed_bytes / 20_000;
        assert!(streamed <= before, "{streamed} segments of 40 with room for {segments}, {before} with less");
        before = streamed;
    }
    assert_eq!(before, 8, "with room for all, each comes once");
}

#[test]
fn a_budget_that_cannot_hold_a_walk_is_refused_with_what_it_takes() {
    let engine = engine(1 << 20);
    let sources = || [Memory::new(vec![1; 50_000]), Memory::new(vec![2; 100_000])];
    let build = |budget| LayerStream::builder(engine.clone(), budget).segments(sources()).build();
    let said = text(&build(charge(100_000) - 1).map(|_| ()).unwrap_err());
    assert!(said.contains(&(charge(100_000) - 1).to_string()), "{said}");
    assert!(said.contains(&charge(100_000).to_string()), "{said}");
    let none: [Memory<Vec<u8>>; 0] = [];
    assert!(LayerStream::builder(engine.clone(), 1 << 20).segments(none).build().is_err());
    let wrong =
        LayerStream::builder(engine.clone(), 1 << 20).segments(sources()).times(1e9, vec![1.0]).build();
    assert_eq!(
        text(&wrong.map(|_| ()).unwrap_err()),
        "compute_s is 1 times: one for each of the 2 segments is needed"
    );
}

#[test]
fn a_guard_that_is_leaked_leaks_its_segment_and_nothing_else() {
    let engine = engine(1 << 20);
    let sources = (0..6).map(|seed| Memory::new(bytes(9000, seed)));
    let mut stream =
        LayerStream::builder(engine.clone(), 4 * charge(9000)).segments(sources).build().unwrap();
    let mut then = 0;
    for _ in 0..3 {
        std::mem::forget(stream.next().unwrap());
        for _ in 0..13 {
            then = (then + 1) % 6;
            let guard = stream.next().unwrap();
            assert!(guard[..] == bytes(9000, then as u64)[..]);
        }
        then = (then + 1) % 6;
    }
    assert!(stream.stats().held_bytes_max <= 4 * charge(9000));
    drop(stream);
    drop(engine);
}

/// From memory, from a closure, and from a file, to a device that only copies reach.
#[test]
fn over_a_link_with_room_for_some() {
    let file = tempfile::NamedTempFile::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let content: Vec<u8> = (0..6).flat_map(|seed| bytes(9000, seed)).collect();
    std::fs::write(file.path(), &content).unwrap();
    let drive = DriveFile::open(file.path()).unwrap();
    for room in 2..=7 {
        let memory_bytes = room * charge(9000);
        let link = LinkSettings { bytes_per_s: 4e9, memory_bytes, ..LinkSettings::default() };
        let settings = Settings { chunk_bytes: 4096, staging_bytes: 65_536, depth: 3, ..Settings::default() };
        let engine = Arc::new(TransferEngine::new(LinkDevice::new(link).unwrap(), settings).unwrap());
        let mut builder = LayerStream::builder(engine.clone(), memory_bytes);
        for seed in 0..6 {
            let sent = bytes(9000, seed);
            builder = match seed % 3 {
                0 => builder.segment(Memory::new(sent)),
                1 => builder.segment(Fill::new("made", 9000, move |at, into: &mut [u8]| {
                    into.copy_from_slice(&sent[at as usize..][..into.len()]);
                    Ok(())
                })),
                _ => builder.segment(drive.range(seed * 9000, 9000).unwrap()),
            };
        }
        let mut stream = builder.build().unwrap();
        for step in 0..30 {
            let guard = stream.next().unwrap();
            assert_eq!(guard.index(), step % 6);
            let what = format!("room for {room}, step {step}");
            assert!(seen(engine.device(), &guard) == bytes(9000, step as u64 % 6), "{what}");
            drop(guard);
            if step == 13 && room < 6 {
                // Whichever it hits says so and comes again. A new plan may drop the one that it hit.
                let failed = (0..20).find_map(|_| {
                    engine.device().set_faults(Faults { failed_copy_at: Some(2), ..Faults::default() });
                    (0..12).find_map(|_| stream.next().map(drop).err())
                });
                assert!(text(&failed.unwrap()).contains("a fault that was set"), "{what}");
                engine.device().set_faults(Faults::default());
                stream.seek(2).unwrap();
            }
        }
        assert!(stream.stats().held_bytes_max <= memory_bytes);
        drop(stream);
        let device = engine.device().clone();
        // Waits for what was on its way.
        drop(engine);
        assert_eq!((device.usage().in_use_bytes, device.staging_usage().in_use_bytes), (0, 0));
    }
}
