//! An allocation that fails says whose memory it is and how much would fit, and so much does.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use qvl_alloc::backing::{Heap, Pages};
use qvl_alloc::{Backing, Buffer, Debug, Error, OutOfMemory, Owner, Pool, PoolSettings};

const GRAIN: usize = 64;

fn pool<B: Backing>(backing: B, budget_bytes: usize, debug: Debug) -> Pool<B> {
    let name = "test pool".to_owned();
    Pool::new(backing, PoolSettings { name, budget_bytes, debug, ..PoolSettings::default() }).unwrap()
}

fn refused<B: Backing>(pool: &Pool<B>, owner: &Owner<B>, bytes: usize, align: usize) -> OutOfMemory {
    match pool.bytes(owner, bytes, align) {
        Err(Error::OutOfMemory(why)) => *why,
        other => panic!("{other:?}"),
    }
}

/// What fits does at once, and a grain more does not.
fn check<B: Backing>(pool: &Pool<B>, owner: &Owner<B>, align: usize) {
    let why = refused(pool, owner, 1 << 40, align);
    let fits = why.fits_bytes as usize;
    let more = refused(pool, owner, fits + GRAIN, align);
    assert_eq!(more.fits_bytes as usize, fits, "{more}");
    drop(pool.bytes(owner, fits, align).unwrap_or_else(|error| panic!("{fits} at {align}: {error}")));
}

#[test]
fn what_fits_is_had_and_a_grain_more_is_not() {
    for debug in [Debug::Off, Debug::Poison, Debug::Guard] {
        for budget in [1 << 20, 3 << 20, 10_000_000, 48 << 20] {
            for align in [1, 64, 256, 4096, 65_536, 2 << 20] {
                let pool = pool(Heap::default(), budget, debug);
                let owner = pool.owner("everybody", None);
                check(&pool, &owner, align);
                // Fragments of all sizes: every second one is freed.
                let mut held: Vec<Option<Buffer<u8, Heap>>> = Vec::new();
                for number in 0..4000usize {
                    let bytes = [100, 700, 9000, 70_000, 400_000, 1_300_000][number % 6];
                    held.push(pool.bytes(&owner, bytes, 64).ok());
                }
                check(&pool, &owner, align);
                held.iter_mut().step_by(2).for_each(|buffer| *buffer = None);
                check(&pool, &owner, align);
                owner.set_quota(Some(owner.in_use_bytes() + 10_000));
                check(&pool, &owner, align);
            }
        }
    }
}

#[test]
fn it_names_who_has_it() {
    let pool = pool(Pages::new(), 16 << 20, Debug::Off);
    let (cache, model) = (pool.owner("kv cache", Some(8 << 20)), pool.owner("model", None));
    let _cached = pool.bytes(&cache, 3 << 20, 64).unwrap();
    let _weights = pool.bytes(&model, 9 << 20, 64).unwrap();
    let why = refused(&pool, &cache, 6 << 20, 64);
    assert_eq!(why.over_quota_bytes, Some(8 << 20));
    assert_eq!(why.owners[0].name, "model");
    assert_eq!((why.owners[1].name.as_str(), why.owners[1].in_use_bytes), ("kv cache", 3 << 20));
    assert_eq!(why.fits_bytes, 4 << 20, "what is left of the budget: {why}");
    let why = refused(&pool, &model, 5 << 20, 64);
    assert_eq!((why.over_quota_bytes, why.budget_bytes, why.in_use_bytes), (None, 16 << 20, 12 << 20));
    let text = why.to_string();
    for part in ["test pool", "5242880", "model 9437184", "kv cache 3145728", "4194304 bytes would fit"] {
        assert!(text.contains(part), "{part}: {text}");
    }
}

#[test]
fn a_quota_below_what_is_in_use_takes_nothing_away() {
    let pool = pool(Heap::default(), 1 << 20, Debug::Off);
    let owner = pool.owner("shrinking", None);
    let first = pool.bytes(&owner, 1000, 1).unwrap();
    owner.set_quota(Some(100));
    assert_eq!(refused(&pool, &owner, 1, 1).fits_bytes, 0);
    assert!(pool.bytes(&owner, 0, 1).is_ok(), "nothing takes nothing");
    assert_eq!((owner.in_use_bytes(), owner.quota_bytes()), (1024, Some(100)));
    drop(first);
    assert!(pool.bytes(&owner, 64, 1).is_ok());
    assert_eq!((owner.in_use_bytes(), owner.peak_bytes()), (0, 1024));
}

#[test]
fn what_is_cached_or_empty_is_given_back_before_an_error() {
    let pool = pool(Heap::default(), 8 << 20, Debug::Off);
    let owner = pool.default_owner();
    let small: Vec<_> = (0..1000).map(|_| pool.bytes(owner, 4000, 1).unwrap()).collect();
    drop(small);
    assert!(pool.stats().cached_bytes > 0);
    assert!(pool.bytes(owner, 8 << 20, 64).is_ok(), "all of the budget");
}

#[test]
fn settings_lengths_and_alignments_that_cannot_be_are_errors() {
    let good = PoolSettings::default;
    for (settings, name) in [
        (PoolSettings { budget_bytes: 0, ..good() }, "budget_bytes"),
        (PoolSettings { budget_bytes: usize::MAX, ..good() }, "budget_bytes"),
        (PoolSettings { small_bytes_max: 8193, ..good() }, "small_bytes_max"),
        (PoolSettings { medium_bytes_max: (1 << 20) + 1, ..good() }, "medium_bytes_max"),
        (PoolSettings { medium_bytes_max: 100, ..good() }, "medium_bytes_max"),
    ] {
        let error = Pool::new(Heap::default(), settings).unwrap_err();
        assert!(matches!(error, Error::Setting { name: got, .. } if got == name), "{error}");
    }
    let (pool, other) =
        (pool(Heap::default(), 1 << 20, Debug::Off), pool(Heap::default(), 1 << 20, Debug::Off));
    let owner = pool.default_owner();
    for (len, align) in [(1, 0), (1, 3), (1, 4 << 20), (usize::MAX, 1), (isize::MAX as usize, 64)] {
        let error = pool.bytes(owner, len, align).unwrap_err();
        assert!(matches!(error, Error::Setting { .. }), "{len} at {align}: {error}");
    }
    assert!(matches!(
        pool.zeroed::<u64>(owner, usize::MAX / 4).unwrap_err(),
        Error::Setting { name: "len", .. }
    ));
    let error = pool.bytes(other.default_owner(), 1, 1).unwrap_err();
    assert!(matches!(error, Error::Setting { name: "owner", .. }), "{error}");
}
