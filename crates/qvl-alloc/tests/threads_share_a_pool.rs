//! Many threads allocate, hand each other their buffers, free and trim: nobody gets what another has, and all comes
//! back, whichever goes first of the pool, its owners and its buffers.

#![expect(unsafe_code, reason = "a backing of no memory")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;

use qvl_alloc::backing::{Heap, Pages, Region};
use qvl_alloc::{Backing, Pool, PoolSettings, Result};

#[test]
fn nobody_gets_what_another_has() {
    let settings = PoolSettings {
        budget_bytes: 64 << 20,
        cache_bytes_max_per_thread: 100_000,
        ..PoolSettings::default()
    };
    let pool = Pool::new(Pages::new(), settings).unwrap();
    let quota = 3 << 20;
    let owner = pool.owner("all", Some(quota));
    let (senders, receivers): (Vec<_>, Vec<_>) = (0..4).map(|_| mpsc::channel()).unzip();
    std::thread::scope(|scope| {
        for (thread, receiver) in receivers.into_iter().enumerate() {
            let (next, pool, owner) = (senders[(thread + 1) % senders.len()].clone(), &pool, &owner);
            scope.spawn(move || {
                for round in 0..5000usize {
                    let bytes = 1 + round * 7919 % [200, 9000, 70_000, 1_500_000][round % 4];
                    if let Ok(mut buffer) = pool.bytes(owner, bytes, 64) {
                        let byte = (thread * 64 + round % 64) as u8;
                        buffer.fill(byte);
                        let _ = next.send((buffer, byte));
                    }
                    assert!(owner.in_use_bytes() <= quota, "over the quota");
                    for (buffer, byte) in receiver.try_iter() {
                        assert!(buffer.iter().all(|&read| read == byte), "somebody else wrote to it");
                    }
                    if round % 1000 == 0 {
                        pool.trim();
                    }
                }
            });
        }
    });
    drop(senders);
    assert_eq!((owner.in_use_bytes(), pool.stats().in_use_bytes), (0, 0));
    pool.trim();
    assert_eq!(pool.stats().reserved_bytes, 0);
}

/// A card, to the pool: addresses that the host must not touch. Counts what it gave.
struct Card {
    mapped_bytes: Arc<AtomicUsize>,
}

// SAFETY: its addresses are of no memory, and it says that the host does not reach them.
unsafe impl Backing for Card {
    fn name(&self) -> &str {
        "card"
    }

    fn is_host(&self) -> bool {
        false
    }

    fn granularity(&self) -> usize {
        2 << 20
    }

    fn map(&self, bytes: usize) -> Result<Region> {
        let before = self.mapped_bytes.fetch_add(bytes, Ordering::Relaxed);
        Ok(Region { first: NonNull::without_provenance((before + (1 << 40)).try_into().unwrap()), bytes })
    }

    unsafe fn unmap(&self, region: Region) {
        self.mapped_bytes.fetch_sub(region.bytes, Ordering::Relaxed);
    }
}

#[test]
fn the_last_that_refers_to_a_pool_ends_it() {
    for order in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
        let mapped = Arc::new(AtomicUsize::new(0));
        let pool = Pool::new(Card { mapped_bytes: mapped.clone() }, PoolSettings::default()).unwrap();
        let owner = pool.owner("one", None);
        let buffer = pool.bytes(&owner, 5000, 4096).unwrap();
        assert_eq!(buffer.first().as_ptr().addr() % 4096, 0);
        let (mut pool, mut owner, mut buffer) = (Some(pool), Some(owner), Some(buffer));
        for who in order {
            assert!(mapped.load(Ordering::Relaxed) > 0, "gone too early: {order:?}");
            match who {
                0 => pool = None,
                1 => owner = None,
                _ => buffer = None,
            }
        }
        assert!(pool.is_none() && owner.is_none() && buffer.is_none());
        assert_eq!(mapped.load(Ordering::Relaxed), 0, "left behind: {order:?}");
    }
}

#[test]
fn owners_come_and_go() {
    let pool = Pool::new(Heap::default(), PoolSettings::default()).unwrap();
    let buffers: Vec<_> = (0..100)
        .map(|number| pool.bytes(&pool.owner(format!("request {number}"), None), 100, 1).unwrap())
        .collect();
    assert_eq!(pool.stats().owners.len(), 101, "a buffer keeps its owner");
    assert_eq!(buffers[7].owner().name(), "request 7");
    drop(buffers);
    assert_eq!(pool.stats().owners.len(), 1);
}
