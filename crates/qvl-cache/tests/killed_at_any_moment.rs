//! A process that is killed in the middle of anything: what is read afterwards is what was written, or a miss, and what
//! a flush acknowledged is there.
//!
//! The test runs itself as a child that does random things to a cache and says so before and after each; it is killed
//! after a random time, and another opens what is left. `QVL_CACHE_KILLS` says how often [default: 30].

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "a failed unwrap is a failed test"
)]
#![cfg(all(feature = "rocksdb", unix))]

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use bytes::Bytes;
use qvl_cache::{Budgets, TieredCache, WarmOptions};

mod common;
use common::{value, version_of};

const KEYS: u64 = 48;

fn open(folder: &Path, hot_bytes: u64, warm_bytes: u64) -> TieredCache<u64, Bytes> {
    TieredCache::builder()
        .hot_bytes(hot_bytes)
        .transit_bytes(200_000)
        .write_behind(Some(Duration::from_millis(2)))
        .cost(|_, _| Duration::from_secs(1))
        .warm(WarmOptions::new(folder, warm_bytes))
        .build()
        .unwrap()
}

/// The constants of Knuth's MMIX.
fn random(state: &mut u64) -> u64 {
    *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    *state >> 24
}

/// The child: says `i KEY VERSION`, `r KEY` before what it does, `f` before and `F` after a flush.
#[test]
fn child() {
    let Ok(folder) = std::env::var("QVL_CACHE_CHILD") else { return };
    let number = |name: &str| std::env::var(name).unwrap().parse::<u64>().unwrap();
    let (mut state, mut version, warm_bytes) = (number("SEED"), number("VERSION"), number("WARM_BYTES"));
    let cache = open(Path::new(&folder), 150_000, warm_bytes);
    let mut out = std::io::stdout();
    let mut say =
        |line: String| out.write_all(format!("\n@{line}\n").as_bytes()).and_then(|()| out.flush()).unwrap();
    loop {
        let key = random(&mut state) % KEYS;
        match random(&mut state) % 20 {
            0..9 => {
                version += 1;
                let len = match random(&mut state) % 10 {
                    // With a footer in a second file.
                    0 => (256 << 10) + random(&mut state) % 100_000,
                    1..4 => 16 + random(&mut state) % 5000,
                    4..7 => 17_000 + random(&mut state) % 10_000,
                    _ => 16 + random(&mut state) % 100_000,
                };
                say(format!("i {key} {version}"));
                cache.insert(key, value(key, version, len as usize)).unwrap();
            }
            9 => {
                say(format!("r {key}"));
                cache.remove(&key).unwrap();
            }
            10..12 => {
                say("f".to_owned());
                cache.flush().unwrap();
                say("F".to_owned());
            }
            12 => {
                let hot_bytes = Some(50_000 + random(&mut state) % 200_000);
                cache.resize(Budgets { hot_bytes, ..Budgets::default() }).unwrap();
            }
            13 if warm_bytes < 10_000_000 => {
                let warm_bytes = Some(warm_bytes / 2 + random(&mut state) % warm_bytes);
                cache.resize(Budgets { warm_bytes, ..Budgets::default() }).unwrap();
            }
            _ => {
                if let Some(bytes) = cache.get(&key).unwrap() {
                    version_of(key, &bytes);
                }
            }
        }
    }
}

/// What may be found of a key.
#[derive(Default, Debug, Clone)]
struct Known {
    /// Versions whose insertion began since the last one that is sure.
    begun: BTreeSet<u64>,
    /// The version that a flush acknowledged, or that was read after a kill, with nothing done since.
    sure: Option<u64>,
    /// The key may be gone.
    may_miss: bool,
}

#[test]
fn nothing_wrong_and_nothing_acknowledged_is_lost() {
    let kills: u32 = std::env::var("QVL_CACHE_KILLS").map_or(30, |kills| kills.parse().unwrap());
    // One where everything fits, so that nothing that was acknowledged may be missing; one where most does not.
    for (warm_bytes, kills) in [(1 << 30, kills.div_ceil(2)), (600_000, kills / 2)] {
        let dir = tempfile::tempdir().unwrap();
        let mut known: BTreeMap<u64, Known> = BTreeMap::new();
        let mut version = 0;
        let mut state = 12345 + warm_bytes;
        let (mut found, mut flushes) = (0, 0);
        for kill in 0..kills {
            let mut child = Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "child", "--nocapture"])
                .env("QVL_CACHE_CHILD", dir.path())
                .env("SEED", random(&mut state).to_string())
                .env("VERSION", version.to_string())
                .env("WARM_BYTES", warm_bytes.to_string())
                .stdout(Stdio::piped())
                .stderr(Stdio::null())
                .spawn()
                .unwrap();
            let lines = BufReader::new(child.stdout.take().unwrap());
            let wait = Duration::from_micros(random(&mut state) % 200_000);
            let killer = std::thread::spawn(move || {
                std::thread::sleep(wait);
                child.kill().unwrap();
                child.wait().unwrap();
            });
            let mut pending: BTreeMap<u64, Known> = BTreeMap::new();
            for line in lines.lines() {
                let Ok(line) = line else { break };
                let Some(line) = line.strip_prefix('@') else { continue };
                let mut words = line.split(' ');
                match (words.next().unwrap(), words.next().map(|w| w.parse::<u64>().unwrap()), words.next()) {
                    ("i", Some(key), Some(inserted)) => {
                        version = inserted.parse().unwrap();
                        let known = known.entry(key).or_default();
                        known.begun.insert(version);
                        known.may_miss = true;
                        pending.entry(key).or_default().sure = Some(version);
                    }
                    ("r", Some(key), _) => {
                        known.entry(key).or_default().may_miss = true;
                        pending.entry(key).or_default().sure = None;
                    }
                    ("f", ..) => {}
                    ("F", ..) => {
                        flushes += 1;
                        for (key, done) in std::mem::take(&mut pending) {
                            let may_miss = done.sure.is_none() || warm_bytes < 10_000_000;
                            let begun = done.sure.into_iter().collect();
                            known.insert(key, Known { begun, sure: done.sure, may_miss });
                        }
                    }
                    _ => panic!("{line}"),
                }
            }
            killer.join().unwrap();
            let cache = open(dir.path(), 150_000, warm_bytes);
            for key in 0..KEYS {
                let read = cache.get(&key).unwrap().map(|bytes| version_of(key, &bytes));
                let known = known.entry(key).or_insert(Known { may_miss: true, ..Known::default() });
                match read {
                    Some(read) => {
                        assert!(known.begun.contains(&read), "kill {kill}: key {key} has {read}: {known:?}");
                    }
                    None => assert!(known.may_miss, "kill {kill}: key {key} is missing: {known:?}"),
                }
                found += u64::from(read.is_some());
            }
            let stats = cache.stats().warm.unwrap();
            assert!(stats.bytes <= warm_bytes, "{stats:?}");
            assert_eq!((stats.damaged, &stats.index_rebuilt), (0, &None), "kill {kill}: {stats:?}");
            cache.close().unwrap();
        }
        eprintln!(
            "{kills} kills with {warm_bytes} bytes: {found} values found again, {flushes} flushes acknowledged"
        );
        assert!(kills < 10 || (found > 0 && flushes > 0), "the child did nothing");
    }
}
