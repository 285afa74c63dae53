//! With its checks on, a pool finds what was written to freed memory and beside an allocation; without, and for those
//! who write where they may, it finds nothing.

#![expect(unsafe_code, reason = "the faults that are looked for")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use qvl_alloc::backing::Heap;
use qvl_alloc::pool::{Stats, ViolationKind};
use qvl_alloc::{Debug, Pool, PoolSettings};

fn pool(debug: Debug) -> Pool<Heap> {
    let settings = PoolSettings { budget_bytes: 16 << 20, debug, ..PoolSettings::default() };
    Pool::new(Heap::default(), settings).unwrap()
}

fn kinds(stats: &Stats) -> Vec<(ViolationKind, String)> {
    stats.violations_first.iter().map(|found| (found.kind, found.owner.clone())).collect()
}

#[test]
fn a_write_after_the_free_is_found_at_the_next_allocation() {
    for bytes in [64, 1000, 100_000, 3 << 20] {
        let pool = pool(Debug::Poison);
        let owner = pool.owner("next", None);
        let buffer = pool.bytes(&owner, bytes, 64).unwrap();
        let first = buffer.first();
        drop(buffer);
        // SAFETY: none: this is the fault that is looked for. The region stays mapped, and no other thread is here.
        unsafe { first.add(bytes / 2).write_volatile(3) };
        let buffer = pool.bytes(&owner, bytes, 64).unwrap();
        assert_eq!(buffer.first(), first, "what was freed last is used first");
        let stats = pool.stats();
        assert_eq!(kinds(&stats), [(ViolationKind::WrittenAfterFree, "next".to_owned())]);
        assert_eq!(stats.violations_first[0].at_byte, bytes / 2);
    }
}

#[test]
fn a_write_beside_an_allocation_is_found_at_its_free() {
    for (bytes, align) in [(1, 1), (100, 64), (1000, 4096), (100_000, 64), (3 << 20, 2 << 20)] {
        let pool = pool(Debug::Guard);
        let owner = pool.owner("careless", None);
        let mut buffer = pool.bytes(&owner, bytes, align).unwrap();
        buffer.fill(9);
        let first = buffer.first();
        // SAFETY: none: this is the fault that is looked for. The guard is there, before and behind.
        unsafe {
            first.add(bytes).write_volatile(1);
            first.sub(1).write_volatile(1);
        }
        assert_eq!(pool.stats().violations, 0, "not yet");
        drop(buffer);
        let careless = || "careless".to_owned();
        let expected =
            [(ViolationKind::WrittenBefore, careless()), (ViolationKind::WrittenBehind, careless())];
        assert_eq!(kinds(&pool.stats()), expected);
        assert_eq!(pool.stats().violations_first[1].at_byte, 0);
        drop(pool.bytes(&owner, bytes, align).unwrap());
        assert_eq!(pool.stats().violations, 2, "found once");
    }
}

#[test]
fn who_writes_where_he_may_is_not_accused() {
    for debug in [Debug::Off, Debug::Poison, Debug::Guard] {
        let pool = pool(debug);
        for round in 0..20 {
            for bytes in [0, 1, 63, 64, 65, 5000, 300_000, 2_000_000] {
                pool.bytes(pool.default_owner(), bytes, 1 << (round % 13)).unwrap().fill(0xff);
            }
            pool.trim();
        }
        assert_eq!(pool.stats().violations, 0, "{debug:?}");
    }
}
