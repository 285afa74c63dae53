//! Single flight, seen from outside.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a failed unwrap is a failed test")]

use std::sync::Barrier;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use qvl_cache::{Cause, Codec, Error, Placed, Refusal, TieredCache};

mod common;
use common::{Shelf, value, version_of};

fn cache(hot_bytes: u64) -> TieredCache<u64, Bytes> {
    TieredCache::builder().hot_bytes(hot_bytes).build().unwrap()
}

#[test]
fn many_ask_and_one_loads() {
    let cache = cache(1 << 20);
    let (loads, start) = (AtomicUsize::new(0), Barrier::new(8));
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                start.wait();
                let got = cache.get_or_load(&1, || {
                    std::thread::sleep(Duration::from_millis(20));
                    loads.fetch_add(1, Ordering::SeqCst);
                    Ok::<_, std::io::Error>(value(1, 5, 1000))
                });
                assert_eq!(version_of(1, &got.unwrap()), 5);
            });
        }
    });
    assert_eq!(loads.into_inner(), 1);
    assert_eq!(cache.stats().loads, 1);
}

#[test]
fn all_who_wait_get_the_same_error_and_the_next_loads_anew() {
    let cache = cache(1 << 20);
    let (loads, start) = (AtomicUsize::new(0), Barrier::new(4));
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                start.wait();
                let failed = cache.get_or_load(&1, || {
                    std::thread::sleep(Duration::from_millis(50));
                    Err::<Bytes, _>(std::io::Error::other(loads.fetch_add(1, Ordering::SeqCst).to_string()))
                });
                let Err(Error::Load { key, source }) = failed else { panic!("{failed:?}") };
                assert_eq!(key, "0100000000000000");
                assert!(source.to_string().parse::<usize>().is_ok());
            });
        }
    });
    assert!(loads.load(Ordering::SeqCst) < 4, "nobody waited");
    assert_eq!(version_of(1, &cache.get_or_load(&1, || Ok::<_, Error>(value(1, 9, 32))).unwrap()), 9);
}

#[test]
fn a_loader_that_panics_leaves_the_others_to_load() {
    let cache = cache(1 << 20);
    let (calls, start) = (AtomicUsize::new(0), Barrier::new(4));
    let panicked = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                start.wait();
                let load = || {
                    std::thread::sleep(Duration::from_millis(10));
                    assert!(calls.fetch_add(1, Ordering::SeqCst) > 0, "the first loader panics");
                    Ok::<_, std::io::Error>(value(1, 3, 100))
                };
                match std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| cache.get_or_load(&1, load))) {
                    Ok(got) => assert_eq!(version_of(1, &got.unwrap()), 3),
                    Err(_) => drop(panicked.fetch_add(1, Ordering::SeqCst)),
                }
            });
        }
    });
    assert_eq!(panicked.into_inner(), 1);
    assert_eq!(cache.stats().flights, 0);
}

#[test]
fn a_value_larger_than_its_tier_evicts_nothing() {
    let cache = cache(10_000);
    assert_eq!(cache.insert(1, value(1, 1, 2000)).unwrap(), Placed::Hot);
    assert_eq!(cache.insert(2, value(2, 1, 20_000)).unwrap(), Placed::Refused(Refusal::TooLarge));
    assert!(cache.get(&1).unwrap().is_some());
    assert_eq!(cache.get(&2).unwrap(), None);
    // A key whose new value is refused has no old one either.
    assert_eq!(cache.insert(1, value(1, 2, 20_000)).unwrap(), Placed::Refused(Refusal::TooLarge));
    assert_eq!(cache.get(&1).unwrap(), None);
    // A loaded one is returned all the same.
    assert!(cache.get_or_load(&3, || Ok::<_, Error>(value(3, 1, 20_000))).is_ok());
}

#[test]
fn budgets_of_nothing_and_of_next_to_nothing_work() {
    for hot_bytes in [0, 1, 400, 423] {
        let shelf = Shelf::new();
        let cache = TieredCache::<u64, Bytes>::builder()
            .hot_bytes(hot_bytes)
            .transit_bytes(0)
            .cold_shared(shelf)
            .build()
            .unwrap();
        for key in 0..20 {
            assert_eq!(cache.insert(key, value(key, 1, 5000)).unwrap(), Placed::Below);
        }
        for key in 0..20 {
            assert_eq!(version_of(key, &cache.get(&key).unwrap().unwrap()), 1);
        }
        assert_eq!(cache.stats().hot.bytes_high, 0);
        cache.close().unwrap();
    }
}

#[test]
fn keys_of_64_kib_are_keys() {
    let cache = TieredCache::<Vec<u8>, Bytes>::builder()
        .hot_bytes(100_000)
        .threads(0)
        .cold_shared(Shelf::new())
        .build()
        .unwrap();
    let key = |last: u8| {
        let mut key = vec![7u8; 64 << 10];
        key.push(last);
        key
    };
    for last in 0..4 {
        cache.insert(key(last), value(u64::from(last), 1, 1000)).unwrap();
    }
    assert!(cache.stats().hot.bytes <= 100_000);
    for last in 0..4 {
        assert_eq!(version_of(last.into(), &cache.get(&key(last)).unwrap().unwrap()), 1);
    }
    let said = cache.explain(&key(0)).to_string();
    assert!(said.len() < 400 && said.contains("65537 bytes"), "{said}");
}

#[test]
fn a_failing_cold_tier_is_one_without_values_and_is_said_once() {
    let shelf = Shelf::new();
    let said = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
    let hear = std::sync::Arc::clone(&said);
    let cache = TieredCache::<u64, Bytes>::builder()
        .hot_bytes(3000)
        .threads(0)
        .on_notice(move |text| hear.lock().unwrap().push(text.to_owned()))
        .cold_shared(std::sync::Arc::clone(&shelf) as _)
        .build()
        .unwrap();
    cache.insert(1, value(1, 1, 2000)).unwrap();
    cache.flush().unwrap();
    cache.insert(2, value(2, 1, 2000)).unwrap();
    shelf.fails.store(true, Ordering::SeqCst);
    assert_eq!(cache.get(&1).unwrap(), None);
    assert_eq!(cache.get(&1).unwrap(), None);
    assert_eq!(cache.stats().cold_errors, 2);
    assert_eq!(*said.lock().unwrap(), ["a cold tier is gone without for now: the shelf: get failed"]);
    assert!(cache.flush().is_err(), "the second value cannot be stored");
    assert!(cache.get(&2).unwrap().is_some(), "it is in memory");
    shelf.fails.store(false, Ordering::SeqCst);
    cache.flush().unwrap();
    assert_eq!(version_of(1, &cache.get(&1).unwrap().unwrap()), 1);
    assert_eq!(said.lock().unwrap().len(), 4, "{said:?}");
    let late = cache.close().unwrap_err();
    assert!(late.count() >= 2 && late.errors()[0].to_string() == "the shelf: get failed", "{late:?}");
}

#[test]
fn what_a_read_only_tier_has_is_hidden_by_a_removal_and_by_a_later_value() {
    let shelf = Shelf::read_only([
        (1u64.to_le_bytes().to_vec(), value(1, 1, 100)),
        (2u64.to_le_bytes().to_vec(), value(2, 1, 100)),
    ]);
    let cache = TieredCache::<u64, Bytes>::builder().hot_bytes(2000).cold_shared(shelf).build().unwrap();
    assert_eq!(version_of(1, &cache.get(&1).unwrap().unwrap()), 1);
    cache.remove(&1).unwrap();
    assert_eq!(cache.get(&1).unwrap(), None);
    assert!(!cache.contains(&1).unwrap());
    cache.insert(2, value(2, 2, 100)).unwrap();
    for key in 10..40 {
        cache.insert(key, value(key, 1, 500)).unwrap();
    }
    assert_ne!(cache.get(&2).unwrap().map(|bytes| version_of(2, &bytes)), Some(1));
}

#[test]
fn an_explanation_says_where_and_why() {
    let cache = TieredCache::<String, Bytes>::builder()
        .hot_bytes(3000)
        .threads(0)
        .cold_shared(Shelf::new())
        .build()
        .unwrap();
    let key = "picture 1".to_owned();
    assert_eq!(cache.explain(&key).to_string(), "\"picture 1\": in no tier");
    cache.insert(key.clone(), value(1, 1, 2000)).unwrap();
    let said = cache.explain(&key);
    assert!(!said.stored && said.to_string().contains("hot; 2409 bytes, stored nowhere yet"), "{said}");
    cache.pin(&key).unwrap();
    cache.flush().unwrap();
    let said = cache.explain(&key);
    assert!(said.stored && said.pins == 1 && said.to_string().contains("hot, cold (the shelf)"), "{said}");
}

#[test]
fn what_is_named_is_brought_up_with_any_number_of_threads() {
    for threads in 0..4 {
        let shelf = Shelf::read_only((0..8u64).map(|key| (key.to_le_bytes().to_vec(), value(key, 1, 100))));
        let cache = TieredCache::<u64, Bytes>::builder()
            .threads(threads)
            .cold_shared(std::sync::Arc::clone(&shelf) as _)
            .build()
            .unwrap();
        assert_eq!(cache.prefetch(0..8).unwrap(), 8);
        while cache.stats().hot.entries < 8 {
            assert!(threads > 1, "it is done when the call returns");
            std::thread::yield_now();
        }
        let gets = shelf.gets.load(Ordering::SeqCst);
        for key in 0..8 {
            assert_eq!(version_of(key, &cache.get(&key).unwrap().unwrap()), 1);
        }
        assert_eq!(shelf.gets.load(Ordering::SeqCst), gets);
    }
    assert_eq!(cache(1 << 20).prefetch([1]).unwrap(), 0, "there is nothing to bring up from");
}

/// A codec that does not take a value of one byte.
struct Picky;

impl Codec<Bytes> for Picky {
    fn encode(&self, value: &Bytes) -> Result<Bytes, Cause> {
        assert!(value.len() != 1, "not this one");
        Ok(value.clone())
    }

    fn decode(&self, bytes: Bytes) -> Result<Bytes, Cause> {
        Ok(bytes)
    }

    fn bytes(&self, value: &Bytes) -> u64 {
        value.len() as u64
    }

    fn name(&self) -> &'static str {
        "picky"
    }
}

#[test]
fn a_codec_that_panics_costs_its_own_value_only() {
    let shelf = Shelf::new();
    let cache = TieredCache::<u64, Bytes>::builder_with(Picky)
        .hot_bytes(0)
        .cold_shared(std::sync::Arc::clone(&shelf) as _)
        .build()
        .unwrap();
    cache.insert(1, Bytes::from_static(b"x")).unwrap();
    while cache.stats().transit_entries > 0 {
        std::thread::yield_now();
    }
    cache.insert(2, value(2, 1, 100)).unwrap();
    cache.flush().unwrap();
    assert_eq!(shelf.values.lock().unwrap().len(), 1);
    assert_eq!(version_of(2, &cache.get(&2).unwrap().unwrap()), 1);
    assert_eq!(cache.close().unwrap_err().count(), 1);
}
