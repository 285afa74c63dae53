//! A drive that is full, that cannot be read, or whose clock jumps: no wrong value, no panic, and it is used again.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a failed unwrap is a failed test")]
#![cfg(feature = "rocksdb")]

use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use proptest::prelude::*;
use qvl_cache::storage::{Disk, Fault, Faulty, Operation, What};
use qvl_cache::{Clock, Error, ManualClock, TieredCache, WarmOptions};

mod common;
use common::{value, version_of};

const ENOSPC: i32 = 28;
const EIO: i32 = 5;

struct Bench {
    cache: TieredCache<u64, Bytes>,
    drive: Faulty,
    hand: ManualClock,
    said: Arc<Mutex<Vec<String>>>,
}

fn bench(folder: &std::path::Path, hot_bytes: u64) -> Bench {
    let drive = Faulty::new(Arc::new(Disk));
    let (clock, hand) = Clock::manual();
    let said = Arc::new(Mutex::new(Vec::new()));
    let hear = Arc::clone(&said);
    let cache = TieredCache::builder()
        .hot_bytes(hot_bytes)
        .threads(0)
        .clock(clock)
        .cost(|_, _| Duration::from_secs(1))
        .on_notice(move |text| hear.lock().unwrap().push(text.to_owned()))
        .warm(WarmOptions::new(folder, 1 << 30).storage(Arc::new(drive.clone())))
        .build()
        .unwrap();
    Bench { cache, drive, hand, said }
}

#[test]
fn a_full_drive_is_said_once_and_used_again_when_there_is_room() {
    let dir = tempfile::tempdir().unwrap();
    let Bench { cache, drive, hand, said } = bench(dir.path(), 1 << 20);
    cache.insert(1, value(1, 1, 100_000)).unwrap();
    cache.flush().unwrap();
    drive.fail(Fault::new(Operation::WriteNew, What::Errno(ENOSPC)));
    for key in 2..6 {
        cache.insert(key, value(key, 1, 100_000)).unwrap();
        hand.advance(Duration::from_millis(10));
    }
    let failed = cache.flush();
    assert!(matches!(&failed, Err(Error::Io { operation: "write", .. })), "{failed:?}");
    assert!(cache.flush().is_err(), "it is still full");
    for key in 1..6 {
        assert_eq!(
            version_of(key, &cache.get(&key).unwrap().unwrap()),
            1,
            "all are in memory, or were written"
        );
    }
    let degraded = cache.stats().warm.unwrap().degraded;
    assert!(degraded.as_ref().is_some_and(|why| why.contains("space")), "{degraded:?}");
    hand.advance(Duration::from_secs(3));
    cache.insert(9, value(9, 1, 100_000)).unwrap();
    hand.advance(Duration::from_secs(3));
    cache.get(&9).unwrap();
    cache.insert(10, value(10, 1, 100_000)).unwrap();
    {
        let said = said.lock().unwrap();
        assert!(said.len() == 1 && said[0].starts_with("values are kept in memory only: "), "{said:?}");
    }
    drive.heal();
    hand.advance(Duration::from_secs(200));
    cache.flush().unwrap();
    assert_eq!(said.lock().unwrap()[1..], ["values can be stored below memory again"]);
    assert_eq!(cache.stats().warm.unwrap().degraded, None);
    drop(cache);
    let Bench { cache, .. } = bench(dir.path(), 1 << 20);
    for key in [1, 2, 3, 4, 5, 9, 10] {
        assert_eq!(version_of(key, &cache.get(&key).unwrap().unwrap()), 1);
    }
}

#[test]
fn what_cannot_be_read_is_a_miss_that_is_made_again() {
    let dir = tempfile::tempdir().unwrap();
    let Bench { cache, drive, .. } = bench(dir.path(), 0);
    for key in 0..4 {
        cache.insert(key, value(key, 1, 100_000)).unwrap();
    }
    drive.fail(Fault { times: 2, ..Fault::new(Operation::Read, What::Errno(EIO)) });
    assert_eq!(cache.get(&0).unwrap(), None);
    let made = cache.get_or_load(&1, || Ok::<_, std::io::Error>(value(1, 2, 100_000))).unwrap();
    assert_eq!(version_of(1, &made), 2);
    drive.heal();
    assert_eq!(version_of(1, &cache.get(&1).unwrap().unwrap()), 2);
    assert_eq!(version_of(2, &cache.get(&2).unwrap().unwrap()), 1);
    let flip = Fault { times: 1, ..Fault::new(Operation::Read, What::Flip(123_456)) };
    drive.fail(flip);
    assert_eq!(cache.get(&3).unwrap(), None, "a flipped bit is a miss");
    assert!(cache.stats().warm.unwrap().damaged >= 1);
}

#[derive(Clone, Debug)]
enum Op {
    Insert(u64, usize),
    Get(u64),
    Remove(u64),
    Flush,
    Clock(u64),
    Break(usize, u64, u64),
    Heal,
}

fn op() -> impl Strategy<Value = Op> {
    let key = 0u64..8;
    prop_oneof![
        5 => (key.clone(), 16usize..60_000).prop_map(|(key, len)| Op::Insert(key, len)),
        5 => key.clone().prop_map(Op::Get),
        1 => key.prop_map(Op::Remove),
        1 => Just(Op::Flush),
        // Hours ahead, and back.
        2 => prop_oneof![0u64..100, 0u64..20_000].prop_map(Op::Clock),
        2 => (0usize..8, 0u64..3, 1u64..4).prop_map(|(what, skip, times)| Op::Break(what, skip, times)),
        1 => Just(Op::Heal),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_key_has_its_last_value_or_none_whatever_fails(ops in prop::collection::vec(op(), 1..80)) {
        let dir = tempfile::tempdir().unwrap();
        let Bench { cache, drive, hand, .. } = bench(dir.path(), 50_000);
        let mut last = [None; 8];
        for (number, op) in ops.into_iter().enumerate() {
            let number = number as u64;
            match op {
                Op::Insert(key, len) => {
                    cache.insert(key, value(key, number, len)).unwrap();
                    last[key as usize] = Some(number);
                }
                Op::Get(key) => {
                    let found = cache.get(&key).unwrap().map(|bytes| version_of(key, &bytes));
                    prop_assert!(found.is_none() || found == last[key as usize], "{found:?}, {:?}", last[key as usize]);
                }
                Op::Remove(key) => {
                    cache.remove(&key).unwrap();
                    last[key as usize] = None;
                }
                // It may fail, and then says so.
                Op::Flush => drop(cache.flush()),
                Op::Clock(seconds) => hand.set(Duration::from_secs(seconds)),
                Op::Break(what, skip, times) => {
                    let operation = [Operation::Open, Operation::Read, Operation::WriteNew, Operation::Sync][what % 4];
                    let what = [What::Errno(EIO), What::Errno(ENOSPC), What::Half, What::Flip(77)][what / 2];
                    drive.fail(Fault { skip, times, ..Fault::new(operation, what) });
                }
                Op::Heal => drive.heal(),
            }
            prop_assert!(cache.stats().hot.bytes <= 50_000);
        }
        drive.heal();
        drop(cache.close());
        drop(cache);
        let Bench { cache, .. } = bench(dir.path(), 50_000);
        for key in 0..8 {
            if let Some(bytes) = cache.get(&key).unwrap() {
                version_of(key, &bytes);
            }
        }
    }
}
