//! Whatever is allocated, freed, trimmed and bounded, in any order: nothing overlaps, contents stay, quotas and budgets
//! hold, and all is free at the end.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use proptest::prelude::*;
use qvl_alloc::backing::{Heap, Pages};
use qvl_alloc::{Buffer, Debug, Error, HostBacking, Pool, PoolSettings};

#[derive(Clone, Debug)]
enum Step {
    Allocate { owner: usize, bytes: usize, align: u32 },
    Zeroed { owner: usize, len: usize },
    Free { number: usize },
    Trim,
    Quota { owner: usize, bytes: Option<u64> },
}

fn step() -> impl Strategy<Value = Step> {
    let bytes = prop_oneof![
        4 => 0usize..2000,
        3 => 2000usize..20_000,
        2 => 20_000usize..1_200_000,
        1 => 1_000_000usize..9_000_000,
    ];
    let align = prop_oneof![5 => 0u32..7, 1 => 7u32..22];
    prop_oneof![
        6 => (0usize..3, bytes, align).prop_map(|(owner, bytes, align)| Step::Allocate { owner, bytes, align }),
        1 => (0usize..3, 0usize..5000).prop_map(|(owner, len)| Step::Zeroed { owner, len }),
        5 => any::<usize>().prop_map(|number| Step::Free { number }),
        1 => Just(Step::Trim),
        1 => (0usize..3, proptest::option::of(0u64..6_000_000))
            .prop_map(|(owner, bytes)| Step::Quota { owner, bytes }),
    ]
}

struct Live<B: HostBacking> {
    buffer: Buffer<u8, B>,
    owner: usize,
    byte: u8,
}

impl<B: HostBacking> Live<B> {
    fn range(&self) -> std::ops::Range<usize> {
        let first = self.buffer.as_ptr().addr();
        first..first + self.buffer.len()
    }

    fn check(&self) {
        assert!(self.buffer.iter().all(|&byte| byte == self.byte), "its contents changed");
    }
}

const BUDGET_BYTES: usize = 24 << 20;

fn grains(bytes: usize) -> u64 {
    bytes.next_multiple_of(64) as u64
}

fn check<B: HostBacking>(backing: B, debug: Debug, cache_bytes: usize, steps: &[Step]) {
    let settings = PoolSettings {
        budget_bytes: BUDGET_BYTES,
        region_bytes_min: 4 << 20,
        cache_bytes_max_per_thread: cache_bytes,
        debug,
        ..PoolSettings::default()
    };
    let pool = Pool::new(backing, settings).unwrap();
    let owners = ["a", "b", "c"].map(|name| pool.owner(name, None));
    let mut quotas = [None; 3];
    let mut used = [0u64; 3];
    let mut live: Vec<Live<B>> = Vec::new();
    for (number, step) in steps.iter().enumerate() {
        match *step {
            Step::Allocate { owner, bytes, align } => {
                let fits_quota = quotas[owner].is_none_or(|quota| used[owner] + grains(bytes) <= quota);
                match pool.bytes(&owners[owner], bytes, 1 << align) {
                    Ok(mut buffer) => {
                        assert!(fits_quota || bytes == 0, "over the quota");
                        assert_eq!(buffer.len(), bytes);
                        assert_eq!(buffer.as_ptr().addr() % (1 << align), 0);
                        used[owner] += grains(bytes);
                        let byte = number as u8 | 1;
                        buffer.fill(byte);
                        let new = Live { buffer, owner, byte };
                        let (a, b) = (new.range().start, new.range().end);
                        assert!(
                            live.iter().all(|old| old.range().end <= a || b <= old.range().start),
                            "overlap"
                        );
                        live.push(new);
                    }
                    Err(Error::OutOfMemory(why)) => {
                        assert_eq!(why.over_quota_bytes.is_some(), !fits_quota, "{why}");
                        assert!(why.fits_bytes < grains(bytes), "{why}");
                        assert!(fits_quota == why.over_quota_bytes.is_none());
                    }
                    Err(error) => panic!("{error}"),
                }
            }
            Step::Zeroed { owner, len } => {
                if let Ok(mut buffer) = pool.zeroed::<u64>(&owners[owner], len) {
                    assert!(buffer.iter().all(|&number| number == 0));
                    buffer.fill(u64::MAX);
                }
            }
            Step::Free { number } if !live.is_empty() => {
                let old = live.swap_remove(number % live.len());
                old.check();
                used[old.owner] -= grains(old.buffer.len());
            }
            Step::Free { .. } => {}
            Step::Trim => _ = pool.trim(),
            Step::Quota { owner, bytes } => {
                quotas[owner] = bytes;
                owners[owner].set_quota(bytes);
            }
        }
        for (owner, &used) in owners.iter().zip(&used) {
            assert_eq!(owner.in_use_bytes(), used);
            assert!(owner.peak_bytes() >= used);
        }
        let stats = pool.stats();
        assert!(stats.reserved_bytes <= BUDGET_BYTES as u64, "over the budget");
        assert_eq!(stats.in_use_bytes + stats.cached_bytes + stats.free_bytes, stats.reserved_bytes);
        assert!(stats.in_use_bytes >= used.iter().sum());
        assert!(stats.largest_free_bytes <= stats.free_bytes);
    }
    live.iter().for_each(Live::check);
    drop(live);
    assert_eq!(pool.stats().in_use_bytes, 0);
    pool.trim();
    let stats = pool.stats();
    assert_eq!((stats.reserved_bytes, stats.cached_bytes, stats.violations), (0, 0, 0), "{stats:?}");
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn on_the_heap(steps in proptest::collection::vec(step(), 1..120), cache in 0usize..3_000_000) {
        check(Heap::default(), Debug::Off, cache, &steps);
    }

    #[test]
    fn on_pages(steps in proptest::collection::vec(step(), 1..120), cache in 0usize..3_000_000) {
        check(Pages::new(), Debug::Off, cache, &steps);
    }

    #[test]
    fn poisoned(steps in proptest::collection::vec(step(), 1..60)) {
        check(Heap::default(), Debug::Poison, 1 << 20, &steps);
    }

    #[test]
    fn guarded(steps in proptest::collection::vec(step(), 1..60)) {
        check(Pages::small(), Debug::Guard, 1 << 20, &steps);
    }
}
