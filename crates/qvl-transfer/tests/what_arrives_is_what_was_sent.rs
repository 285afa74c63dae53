//! Every byte of every source arrives at its place and nowhere else, on every device, however it is cut.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod common;

use std::sync::Arc;

use common::{back, bytes, carry};
use proptest::prelude::*;
use qvl_transfer::device::Device;
use qvl_transfer::device::link::LinkSettings;
use qvl_transfer::source::{Fill, Memory};
use qvl_transfer::{HostDevice, Io, LinkDevice, Settings, Transfer, TransferEngine};

#[derive(Clone, Copy, Debug)]
enum Kind {
    Memory,
    Fill,
}

fn check<D: Device>(
    device: D,
    settings: &Settings,
    kind: Kind,
    len: usize,
    at: usize,
    after: usize,
    seed: u64,
) {
    let engine = TransferEngine::new(device, settings.clone()).unwrap();
    let sent = bytes(len, seed);
    let around = bytes(at + len + after, seed + 1);
    let memory = engine.device().allocate(at + len + after).unwrap();
    let (memory, _) = carry(&engine, Transfer::new(Memory::new(around.clone()), memory)).unwrap();
    let transfer = match kind {
        Kind::Memory => Transfer::new(Memory::new(sent.clone()), memory),
        Kind::Fill => {
            let from = sent.clone();
            let fill = move |at: u64, into: &mut [u8]| {
                into.copy_from_slice(&from[at as usize..at as usize + into.len()]);
                Ok(())
            };
            Transfer::new(Fill::new("closure", len as u64, fill), memory)
        }
    };
    let (memory, report) = carry(&engine, transfer.at(at).checksum()).unwrap();
    assert_eq!(report.bytes, len as u64);
    assert_eq!(report.crc32, Some(crc32fast::hash(&sent)), "of {len} bytes in {} chunks", report.chunks);
    let (_, arrived) = back(&engine, memory);
    assert!(arrived[..at] == around[..at], "before it");
    assert!(arrived[at..at + len] == sent[..], "itself");
    assert!(arrived[at + len..] == around[at + len..], "behind it");
    assert_eq!(engine.stats().staging_in_use_bytes, 0);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn on_the_host_and_over_a_link(
        kind in prop::sample::select(vec![Kind::Memory, Kind::Fill]),
        len in prop_oneof![Just(0usize), 1usize..100, 4000usize..4200, 1usize..200_000],
        at in prop_oneof![Just(0usize), 1usize..9000],
        after in prop_oneof![Just(0usize), 1usize..9000],
        blocks in 1usize..9,
        depth in 1usize..5,
        slots in 1usize..4,
        host in any::<bool>(),
        anywhere in any::<bool>(),
        seed in 0u64..1000,
    ) {
        let chunk_bytes = blocks * 4096;
        let settings = Settings {
            chunk_bytes,
            staging_bytes: slots * (chunk_bytes + 4096),
            depth,
            io: Io::Threads,
            trace: None,
        };
        if host {
            check(HostDevice::new(1 << 30), &settings, kind, len, at, after, seed);
        } else {
            let link = LinkSettings { bytes_per_s: 5e9, copies_from_anywhere: anywhere, ..LinkSettings::default() };
            check(LinkDevice::new(link).unwrap(), &settings, kind, len, at, after, seed);
        }
    }
}

#[test]
fn many_transfers_from_many_threads_arrive() {
    let settings = Settings { chunk_bytes: 8192, staging_bytes: 40_000, ..Settings::default() };
    let engine =
        Arc::new(TransferEngine::new(LinkDevice::new(LinkSettings::default()).unwrap(), settings).unwrap());
    std::thread::scope(|scope| {
        for thread in 0..4_u64 {
            let engine = &engine;
            scope.spawn(move || {
                for round in 0..50 {
                    let sent = bytes(30_000 + 100 * thread as usize, thread * 100 + round);
                    let memory = engine.device().allocate(sent.len()).unwrap();
                    let (memory, _) =
                        carry(engine, Transfer::new(Memory::new(sent.clone()), memory)).unwrap();
                    assert!(back(engine, memory).1 == sent);
                }
            });
        }
    });
    let stats = engine.stats();
    assert_eq!((stats.arrived, stats.failed, stats.cancelled), (400, 0, 0));
}

#[test]
fn a_ticket_is_a_future_for_any_executor() {
    struct Unpark(std::thread::Thread);
    impl std::task::Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let engine = TransferEngine::new(HostDevice::new(1 << 20), Settings::default()).unwrap();
    let (open, gate) = std::sync::mpsc::channel::<()>();
    let gate = parking_lot::Mutex::new(gate);
    let fill = move |_, into: &mut [u8]| {
        gate.lock().recv().map_err(|error| error.to_string())?;
        into.fill(7);
        Ok(())
    };
    let memory = engine.device().allocate(100).unwrap();
    let mut ticket = engine.submit(Transfer::new(Fill::new("gate", 100, fill), memory)).unwrap();
    let waker = Arc::new(Unpark(std::thread::current())).into();
    let mut context = std::task::Context::from_waker(&waker);
    let mut ticket = std::pin::Pin::new(&mut ticket);
    assert!(Future::poll(ticket.as_mut(), &mut context).is_pending());
    open.send(()).unwrap();
    let done = loop {
        match Future::poll(ticket.as_mut(), &mut context) {
            std::task::Poll::Ready(done) => break done.unwrap(),
            std::task::Poll::Pending => std::thread::park(),
        }
    };
    assert!(done.memory.iter().all(|&byte| byte == 7));
}
