//! Tickets dropped, leaked, cancelled and waited for at random: nothing is written to memory that somebody else has, and
//! all that was lent comes back.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod common;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use common::{back, bytes, carry};
use qvl_transfer::device::Device;
use qvl_transfer::device::link::{Faults, LinkSettings};
use qvl_transfer::source::{Fill, Memory};
use qvl_transfer::{
    DriveFile, Error, HostDevice, LinkDevice, Priority, Settings, Ticket, Transfer, TransferEngine,
};

/// Of each device; `QVL_TRANSFER_SOAK=1000000` is the long run.
fn operations() -> u64 {
    std::env::var("QVL_TRANSFER_SOAK").map_or(6000, |text| text.parse().expect("a number of operations"))
}

/// A generator that is enough for choices: xorshift64.
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % end
    }
}

fn soak<D: Device>(engine: &Arc<TransferEngine<D>>, fail: impl Fn(&mut Random) + Sync) {
    let leaked = AtomicU64::new(0);
    let file = tempfile::NamedTempFile::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let content = bytes(FILE_BYTES, 77);
    std::fs::write(file.path(), &content).unwrap();
    // So that it is read from the drive and not from the page cache, which takes another way.
    std::fs::File::open(file.path()).unwrap().sync_all().unwrap();
    let drive = DriveFile::open(file.path()).unwrap();
    std::thread::scope(|scope| {
        for thread in 1..=2_u64 {
            let (fail, leaked, content, drive) = (&fail, &leaked, &content, &drive);
            scope.spawn(move || {
                let mut random = Random(0x2545_f491_4f6c_dd1d * thread);
                let mut held: Vec<(Ticket<D>, Vec<u8>)> = Vec::new();
                for operation in 0..operations() / 2 {
                    let len = random.below(40_000) as usize;
                    let Ok(memory) = engine.device().allocate(len) else {
                        // The budget is used up by what is under way.
                        held.clear();
                        continue;
                    };
                    let priority =
                        [Priority::Background, Priority::Normal, Priority::Urgent][random.below(3) as usize];
                    let mut sent = bytes(len, operation);
                    let transfer = match random.below(3) {
                        0 => Transfer::new(Memory::new(sent.clone()), memory),
                        1 => {
                            let sent = sent.clone();
                            let fill = move |at: u64, into: &mut [u8]| {
                                into.copy_from_slice(&sent[at as usize..][..into.len()]);
                                Ok(())
                            };
                            Transfer::new(Fill::new("soak", len as u64, fill), memory)
                        }
                        _ => {
                            let at = random.below((FILE_BYTES - len) as u64);
                            sent = content[at as usize..][..len].to_vec();
                            Transfer::new(drive.range(at, len as u64).unwrap(), memory)
                        }
                    };
                    let ticket = engine.submit(transfer.priority(priority)).unwrap();
                    match random.below(16) {
                        0..4 => drop(ticket),
                        4..6 => {
                            ticket.cancel();
                            let _ = ticket.wait();
                        }
                        6 if leaked.fetch_add(1, Ordering::Relaxed) < 200 => std::mem::forget(ticket),
                        6..9 => {
                            if let Ok(done) = ticket.wait() {
                                assert!(back_or_lost(engine, done.memory).is_none_or(|all| all == sent));
                            }
                        }
                        9 => _ = ticket.wait_for(Duration::from_micros(random.below(200))),
                        _ => held.push((ticket, sent)),
                    }
                    if held.len() > 12 {
                        let (ticket, sent) = held.swap_remove(random.below(12) as usize);
                        if let Ok(done) = ticket.wait() {
                            assert!(back_or_lost(engine, done.memory).is_none_or(|all| all == sent));
                        }
                    }
                    fail(&mut random);
                }
            });
        }
    });
    settle(engine);
}

/// What is in memory, unless bringing it back failed.
fn back_or_lost<D: Device>(engine: &TransferEngine<D>, memory: D::Memory) -> Option<Vec<u8>> {
    let host = engine.device().staging(engine.device().bytes(&memory)).unwrap();
    let (_, host) = engine.fetch(memory, 0, host, Priority::Urgent).unwrap().wait().ok()?.memory;
    Some(host.as_ref().to_vec())
}

/// Waits until every transfer has ended.
fn settle<D: Device>(engine: &TransferEngine<D>) {
    for _ in 0..10_000 {
        let stats = engine.stats();
        if stats.arrived + stats.failed + stats.cancelled == stats.submitted {
            assert_eq!(stats.staging_in_use_bytes, 0, "{stats:?}");
            return;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    panic!("transfers that never end: {:?}", engine.stats());
}

/// Of the file that some are read from.
const FILE_BYTES: usize = 1 << 20;

fn settings() -> Settings {
    Settings { chunk_bytes: 4096, staging_bytes: 4 * 8192, depth: 4, ..Settings::default() }
}

#[test]
fn on_the_host() {
    let engine = Arc::new(TransferEngine::new(HostDevice::new(64 << 20), settings()).unwrap());
    soak(&engine, |_| ());
    let device = engine.device().clone();
    drop(engine);
    // What is in use still was leaked: at most 200 of at most 48 KiB.
    assert!(device.usage().in_use_bytes <= 200 * 49_152, "{:?}", device.usage());
}

#[test]
fn over_a_link_with_faults() {
    let link = LinkSettings { bytes_per_s: 8e9, latency: Duration::ZERO, ..LinkSettings::default() };
    let engine = Arc::new(TransferEngine::new(LinkDevice::new(link).unwrap(), settings()).unwrap());
    let device = engine.device().clone();
    soak(&engine, |random| {
        if random.below(40) == 0 {
            let at = |n| Some(n % 9);
            let faults = match random.below(3) {
                0 => Faults { failed_copy_at: at(random.below(9)), ..Faults::default() },
                1 => Faults { no_memory_at: at(random.below(9)), ..Faults::default() },
                _ => Faults::default(),
            };
            device.set_faults(faults);
        }
    });
    drop(engine);
    assert!(device.usage().in_use_bytes <= 200 * 49_152, "{:?}", device.usage());
    assert_eq!(device.staging_usage().in_use_bytes, 0);
}

/// An engine with one worker, which stands in the first transfer until told.
fn gated() -> (TransferEngine<HostDevice>, Ticket<HostDevice>, mpsc::Sender<()>) {
    let settings = Settings { depth: 1, ..settings() };
    let engine = TransferEngine::new(HostDevice::new(1 << 20), settings).unwrap();
    let (open, gate) = mpsc::channel();
    let (tell, told) = mpsc::channel();
    let shut = parking_lot::Mutex::new((gate, tell));
    let fill = move |_, into: &mut [u8]| {
        let shut = shut.lock();
        // Only the first is listened to.
        let _ = shut.1.send(());
        shut.0.recv().map_err(|error| error.to_string())?;
        into.fill(1);
        Ok(())
    };
    let memory = engine.device().allocate(8192).unwrap();
    let ticket = engine.submit(Transfer::new(Fill::new("gate", 8192, fill), memory)).unwrap();
    told.recv().unwrap();
    (engine, ticket, open)
}

#[test]
fn a_cancelled_transfer_ends_with_the_chunk_that_was_begun() {
    let (engine, ticket, open) = gated();
    ticket.cancel();
    assert!(!ticket.is_ended(), "its first chunk is being filled");
    open.send(()).unwrap();
    let failed = ticket.wait().unwrap_err();
    assert!(matches!(failed.error, Error::Cancelled));
    assert_eq!(failed.memory.len(), 8192);
    assert_eq!(engine.stats().chunks, 1);
}

#[test]
fn memory_of_a_dropped_ticket_is_free_when_its_chunk_has_ended_and_not_before() {
    let (engine, ticket, open) = gated();
    drop(ticket);
    assert_eq!(engine.device().usage().in_use_bytes, 12_288);
    open.send(()).unwrap();
    settle(&engine);
    while engine.device().usage().in_use_bytes > 0 {
        std::thread::yield_now();
    }
}

#[test]
fn the_urgent_goes_before_what_came_earlier() {
    let (engine, first, open) = gated();
    let order = Arc::new(parking_lot::Mutex::new(Vec::new()));
    let submit = |name: &'static str, priority| {
        let order = order.clone();
        let fill = move |_, into: &mut [u8]| {
            order.lock().push(name);
            into.fill(2);
            Ok(())
        };
        let memory = engine.device().allocate(4096).unwrap();
        engine.submit(Transfer::new(Fill::new(name, 4096, fill), memory).priority(priority)).unwrap()
    };
    let tickets = [
        submit("background", Priority::Background),
        submit("normal", Priority::Normal),
        submit("normal too", Priority::Normal),
        submit("urgent", Priority::Urgent),
    ];
    open.send(()).unwrap();
    open.send(()).unwrap();
    first.wait().unwrap();
    for ticket in tickets {
        ticket.wait().unwrap();
    }
    assert_eq!(*order.lock(), ["urgent", "normal", "normal too", "background"]);
}

#[test]
fn an_engine_that_goes_ends_what_is_under_way() {
    let (engine, ticket, open) = gated();
    let memory = engine.device().allocate(100).unwrap();
    let waiting = engine.submit(Transfer::new(Memory::new(vec![1; 100]), memory)).unwrap();
    open.send(()).unwrap();
    drop(engine);
    assert!(matches!(ticket.wait().unwrap_err().error, Error::Closed));
    assert!(matches!(waiting.wait().unwrap_err().error, Error::Closed));
}

#[test]
fn a_wait_gives_the_ticket_back_when_its_time_is_over() {
    let (_engine, ticket, open) = gated();
    let ticket = ticket.wait_for(Duration::from_millis(1)).unwrap_err();
    open.send(()).unwrap();
    open.send(()).unwrap();
    let done = ticket.wait_for(Duration::from_secs(60)).unwrap().unwrap();
    assert!(done.memory.iter().all(|&byte| byte == 1));
}

#[test]
fn staging_is_made_when_it_is_needed_and_given_back_when_asked() {
    let engine = TransferEngine::new(LinkDevice::new(LinkSettings::default()).unwrap(), settings()).unwrap();
    assert_eq!(engine.stats().staging_bytes, 0);
    let sent = bytes(100_000, 1);
    let memory = engine.device().allocate(sent.len()).unwrap();
    let (memory, report) = carry(&engine, Transfer::new(Memory::new(sent.clone()), memory)).unwrap();
    assert!(back(&engine, memory).1 == sent);
    let stats = engine.stats();
    assert!((8192..=stats.staging_budget_bytes).contains(&stats.staging_bytes), "{stats:?}");
    assert_eq!((report.staged_chunks, report.chunks), (25, 25));
    engine.trim();
    assert_eq!(engine.stats().staging_bytes, 0);
}
