//! The warm tier behind the door: what was flushed is there again, and folders that are not ours are left alone.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
#![cfg(feature = "rocksdb")]

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use proptest::prelude::*;
use qvl_cache::{Budgets, Clock, Error, Placed, PolicyName, TieredCache, WarmOptions};

mod common;
use common::{Shelf, value, version_of};

fn cache(folder: &std::path::Path, hot_bytes: u64, warm_bytes: u64) -> TieredCache<u64, Bytes> {
    TieredCache::builder()
        .hot_bytes(hot_bytes)
        .warm(WarmOptions::new(folder, warm_bytes).fingerprint("model 1"))
        .cost(|_, _| Duration::from_secs(1))
        .build()
        .unwrap()
}

#[test]
fn what_was_flushed_is_there_again_with_its_hit_rate() {
    let dir = tempfile::tempdir().unwrap();
    let sizes = [16, 4000, 20_000, 300_000, 3_000_000];
    {
        let cache = cache(dir.path(), 100_000, 1 << 30);
        for key in 0..50 {
            cache.insert(key, value(key, 1, sizes[key as usize % 5])).unwrap();
        }
        cache.flush().unwrap();
        cache.close().unwrap();
    }
    let cache = cache(dir.path(), 100_000, 1 << 30);
    for key in 0..50 {
        let bytes = cache.get(&key).unwrap().unwrap();
        assert_eq!((version_of(key, &bytes), bytes.len()), (1, sizes[key as usize % 5]));
    }
    let stats = cache.stats();
    assert_eq!((stats.misses, stats.warm.as_ref().unwrap().hits), (0, 50));
}

#[test]
fn a_folder_that_is_in_use_or_not_ours_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let open = |fingerprint: &str, folder: &std::path::Path| {
        TieredCache::<u64, Bytes>::builder()
            .warm(WarmOptions::new(folder, 1 << 20).fingerprint(fingerprint))
            .build()
    };
    let ours = dir.path().join("ours");
    let first = open("model 1", &ours).unwrap();
    let second = open("model 1", &ours);
    assert!(matches!(&second, Err(Error::InUse { path }) if *path == ours), "{second:?}");
    first.insert(1, value(1, 1, 30_000)).unwrap();
    first.close().unwrap();
    assert!(matches!(open("model 2", &ours), Err(Error::Fingerprint { .. })));
    assert_eq!(version_of(1, &open("model 1", &ours).unwrap().get(&1).unwrap().unwrap()), 1);

    let file = dir.path().join("file");
    std::fs::write(&file, "a letter").unwrap();
    assert!(matches!(open("", &file), Err(Error::NotAFolder { .. })));
    let foreign = dir.path().join("foreign");
    std::fs::create_dir(&foreign).unwrap();
    std::fs::write(foreign.join("letter.txt"), "dear").unwrap();
    let refused = open("", &foreign);
    assert!(
        matches!(&refused, Err(Error::Foreign { found, .. }) if found.contains("letter.txt")),
        "{refused:?}"
    );
    assert_eq!(std::fs::read_dir(&foreign).unwrap().count(), 1);
}

#[test]
fn a_value_larger_than_every_tier_is_refused_and_evicts_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let cache = cache(dir.path(), 50_000, 200_000);
    for key in 0..6 {
        cache.insert(key, value(key, 1, 20_000)).unwrap();
    }
    cache.flush().unwrap();
    assert_eq!(cache.insert(9, value(9, 1, 1_000_000)).unwrap(), Placed::Below);
    cache.flush().unwrap();
    assert_eq!(cache.get(&9).unwrap(), None);
    for key in 0..6 {
        assert!(cache.get(&key).unwrap().is_some(), "{key}");
    }
    assert_eq!(cache.stats().not_stored, 1);
}

#[test]
fn what_is_damaged_is_found_below_and_repaired() {
    let dir = tempfile::tempdir().unwrap();
    let key_bytes = |key: u64| key.to_le_bytes().to_vec();
    let shelf = Shelf::new();
    for key in 0..4u64 {
        shelf.values.lock().unwrap().insert(key_bytes(key), value(key, 1, 200_000));
    }
    let (clock, hand) = Clock::manual();
    let slow = hand.clone();
    let cache = TieredCache::<u64, Bytes>::builder()
        .hot_bytes(0)
        .threads(0)
        // Each look takes a second, so that the shelf is held to be slow.
        .clock(Clock::from_fn(move || {
            slow.advance(Duration::from_secs(1));
            clock.now()
        }))
        .warm(WarmOptions::new(dir.path(), 1 << 30))
        .cold_shared(Arc::clone(&shelf) as _)
        .build()
        .unwrap();
    let _ = hand;
    let gets = || shelf.gets.load(std::sync::atomic::Ordering::SeqCst);
    for key in 0..4 {
        assert_eq!(version_of(key, &cache.get(&key).unwrap().unwrap()), 1);
    }
    assert_eq!(gets(), 4);
    for key in 0..4 {
        cache.get(&key).unwrap().unwrap();
    }
    assert_eq!(gets(), 4, "the drive has them now");
    for file in files(dir.path()).into_iter().filter(|file| file.starts_with(dir.path().join("values"))) {
        let mut bytes = std::fs::read(&file).unwrap();
        bytes[77_777] ^= 1;
        std::fs::write(&file, bytes).unwrap();
    }
    for _ in 0..2 {
        for key in 0..4 {
            assert_eq!(version_of(key, &cache.get(&key).unwrap().unwrap()), 1);
        }
    }
    assert_eq!(gets(), 8, "each was repaired once");
    assert_eq!(cache.stats().warm.unwrap().damaged, 4);
}

fn files(folder: &std::path::Path) -> Vec<std::path::PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { found.extend(files(&path)) } else { found.push(path) }
    }
    found
}

#[derive(Clone, Debug)]
enum Op {
    Insert(u64, usize),
    Get(u64),
    Remove(u64),
    Hot(u64),
    Warm(u64),
    Flush,
    Restart,
}

fn op() -> impl Strategy<Value = Op> {
    let key = 0u64..16;
    prop_oneof![
        6 => (key.clone(), prop_oneof![16usize..5000, 17_000usize..60_000]).prop_map(|(key, len)| Op::Insert(key, len)),
        6 => key.clone().prop_map(Op::Get),
        2 => key.prop_map(Op::Remove),
        1 => (0u64..80_000).prop_map(Op::Hot),
        1 => (0u64..400_000).prop_map(Op::Warm),
        1 => Just(Op::Flush),
        1 => Just(Op::Restart),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_key_has_its_last_value_or_none_across_restarts(
        ops in prop::collection::vec(op(), 1..60),
        policy in prop::sample::select(PolicyName::ALL.to_vec()),
        threads in 0usize..3,
    ) {
        let dir = tempfile::tempdir().unwrap();
        let build = || {
            TieredCache::<u64, Bytes>::builder()
                .hot_bytes(60_000)
                .policy(policy)
                .threads(threads)
                .cost(|_, _| Duration::from_secs(1))
                .warm(WarmOptions::new(dir.path(), 300_000))
                .build()
                .unwrap()
        };
        let mut cache = build();
        let mut model: HashMap<u64, u64> = HashMap::new();
        for (number, op) in ops.into_iter().enumerate() {
            match op {
                Op::Insert(key, len) => {
                    cache.insert(key, value(key, number as u64, len)).unwrap();
                    model.insert(key, number as u64);
                }
                Op::Get(key) => {
                    let found = cache.get(&key).unwrap().map(|bytes| version_of(key, &bytes));
                    prop_assert!(found.is_none() || found == model.get(&key).copied(), "{found:?}, {:?}", model.get(&key));
                }
                Op::Remove(key) => {
                    cache.remove(&key).unwrap();
                    model.remove(&key);
                }
                Op::Hot(bytes) => cache.resize(Budgets { hot_bytes: Some(bytes), ..Budgets::default() }).unwrap(),
                Op::Warm(bytes) => cache.resize(Budgets { warm_bytes: Some(bytes), ..Budgets::default() }).unwrap(),
                Op::Flush => cache.flush().unwrap(),
                Op::Restart => {
                    cache.close().unwrap();
                    drop(cache);
                    cache = build();
                }
            }
            let stats = cache.stats();
            prop_assert!(stats.hot.bytes <= stats.hot.budget_bytes);
            let warm = stats.warm.unwrap();
            prop_assert!(warm.bytes <= warm.budget_bytes, "{} of {}", warm.bytes, warm.budget_bytes);
            prop_assert_eq!(warm.damaged, 0);
        }
        cache.close().unwrap();
    }
}
