//! Whatever is done in whatever order: a key gives its last value, or none; and budgets hold.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use proptest::prelude::*;
use qvl_cache::{Budgets, Clock, PolicyName, TieredCache};

mod common;
use common::{Shelf, value, version_of};

#[derive(Clone, Debug)]
enum Op {
    Insert(u64, usize),
    Get(u64),
    GetOrLoad(u64, usize),
    Remove(u64),
    Pin(u64),
    Unpin(u64),
    Prefetch(u64),
    Resize(u64),
    Advance(u64),
    Flush,
}

fn op() -> impl Strategy<Value = Op> {
    let key = 0u64..12;
    let len = 16usize..3000;
    prop_oneof![
        5 => (key.clone(), len.clone()).prop_map(|(key, len)| Op::Insert(key, len)),
        5 => key.clone().prop_map(Op::Get),
        3 => (key.clone(), len).prop_map(|(key, len)| Op::GetOrLoad(key, len)),
        2 => key.clone().prop_map(Op::Remove),
        1 => key.clone().prop_map(Op::Pin),
        1 => key.clone().prop_map(Op::Unpin),
        1 => key.prop_map(Op::Prefetch),
        1 => (0u64..12_000).prop_map(Op::Resize),
        1 => (0u64..4000).prop_map(Op::Advance),
        1 => Just(Op::Flush),
    ]
}

fn policy() -> impl Strategy<Value = PolicyName> {
    prop::sample::select(PolicyName::ALL.to_vec())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn with_a_cold_tier(ops in prop::collection::vec(op(), 1..120), policy in policy(), shelf in any::<bool>()) {
        let (clock, hand) = Clock::manual();
        let mut builder = TieredCache::<u64, Bytes>::builder()
            .hot_bytes(8000)
            .policy(policy)
            .clock(clock)
            .cost(|_, _| Duration::from_millis(50))
            .threads(0);
        if shelf {
            builder = builder.cold_shared(Shelf::new());
        }
        let cache = builder.build().unwrap();
        let mut model: HashMap<u64, u64> = HashMap::new();
        let mut budget = 8000;
        for (number, op) in ops.into_iter().enumerate() {
            let number = number as u64 + 1;
            match op {
                Op::Insert(key, len) => {
                    cache.insert(key, value(key, number, len)).unwrap();
                    model.insert(key, number);
                }
                Op::Get(key) => {
                    let found = cache.get(&key).unwrap().map(|bytes| version_of(key, &bytes));
                    let expected = model.get(&key).copied();
                    prop_assert!(found == expected || (found.is_none() && !shelf), "{found:?}, expected {expected:?}");
                }
                Op::GetOrLoad(key, len) => {
                    let got = cache.get_or_load(&key, || {
                        hand.advance(Duration::from_millis(50));
                        Ok::<_, std::io::Error>(value(key, number, len))
                    });
                    let got = version_of(key, &got.unwrap());
                    let expected = model.get(&key).copied().unwrap_or(number);
                    prop_assert!(got == expected || (got == number && !shelf), "{got}, expected {expected}");
                    model.insert(key, got);
                }
                Op::Remove(key) => {
                    cache.remove(&key).unwrap();
                    model.remove(&key);
                    prop_assert_eq!(cache.get(&key).unwrap(), None);
                }
                Op::Pin(key) => {
                    let pinned = cache.pin(&key).unwrap();
                    prop_assert!(!pinned || model.contains_key(&key));
                }
                Op::Unpin(key) => {
                    cache.unpin(&key);
                }
                Op::Prefetch(key) => {
                    cache.prefetch([key]).unwrap();
                }
                Op::Resize(bytes) => {
                    cache.resize(Budgets { hot_bytes: Some(bytes), ..Budgets::default() }).unwrap();
                    budget = bytes;
                }
                Op::Advance(by) => hand.advance(Duration::from_millis(by)),
                Op::Flush => cache.flush().unwrap(),
            }
            let stats = cache.stats();
            prop_assert!(
                stats.hot.bytes <= budget.max(stats.hot.pinned_bytes),
                "{} bytes, {} pinned, budget {budget}", stats.hot.bytes, stats.hot.pinned_bytes
            );
            prop_assert_eq!(stats.transit_bytes, 0);
            prop_assert_eq!(stats.lost, 0);
        }
        cache.close().unwrap();
    }
}

#[test]
fn by_many_threads_at_once() {
    let shelf = Shelf::new();
    let cache = TieredCache::<u64, Bytes>::builder()
        .hot_bytes(64 << 10)
        .transit_bytes(32 << 10)
        .write_behind(Some(Duration::from_millis(1)))
        .cost(|_, _| Duration::from_secs(1))
        .cold_shared(Arc::clone(&shelf) as _)
        .build()
        .unwrap();
    // Each key is written by one thread only, so that thread knows what it must find.
    std::thread::scope(|scope| {
        for thread in 0..4u64 {
            let cache = &cache;
            scope.spawn(move || {
                let mut last = HashMap::new();
                let mut state = thread + 1;
                for step in 1..4000u64 {
                    state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    let key = ((state >> 33) % 40) * 4 + thread;
                    match (state >> 20) % 8 {
                        0..3 => {
                            cache.insert(key, value(key, step, 16 + (state >> 40) as usize % 8000)).unwrap();
                            last.insert(key, step);
                        }
                        3 => {
                            cache.remove(&key).unwrap();
                            last.remove(&key);
                        }
                        4 => {
                            // Somebody else's: any version, but whole.
                            let other = key ^ 1;
                            if let Some(bytes) = cache.get(&other).unwrap() {
                                version_of(other, &bytes);
                            }
                        }
                        _ => {
                            let found = cache.get(&key).unwrap().map(|bytes| version_of(key, &bytes));
                            assert_eq!(found, last.get(&key).copied(), "key {key} at step {step}");
                        }
                    }
                }
            });
        }
    });
    cache.flush().unwrap();
    let stats = cache.stats();
    assert_eq!((stats.transit_bytes, stats.flights, stats.lost), (0, 0, 0), "{stats:?}");
    assert!(stats.hot.bytes_high <= 64 << 10);
    cache.close().unwrap();
    assert!(matches!(cache.get(&1), Err(qvl_cache::Error::Closed)));
}
