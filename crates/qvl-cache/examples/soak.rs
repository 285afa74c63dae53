//! Runs a cache with all tiers for as long as asked, and fails if memory or files grow, or if anything wrong comes back.
//!
//! ```text
//! cargo run --release --example soak -- --minutes 10
//! cargo run --release --example soak -- --minutes 1440 --folder /mnt/nvme/soak
//! ```
//!
//! Four threads read, insert, remove, pin and prefetch values of 64 bytes to 2 MiB, by a Zipf distribution over four
//! times what the drive's tier holds; budgets change every few seconds, and the cache is closed and opened again every
//! half minute. Each line is a tenth of the time, at least ten seconds. Growth is judged from the second fifth on: the
//! most of the last half may be a tenth, and 32 MiB, over the most before.

#![allow(clippy::print_stdout, reason = "a program that shows what it saw")]

use std::error::Error;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use qvl_cache::cold::folder::{FolderSettings, FolderTier};
use qvl_cache::{Budgets, PolicyName, TieredCache, WarmOptions};

type Anything = Box<dyn Error + Send + Sync>;

const MIB: u64 = 1 << 20;
const HOT_BYTES: u64 = 32 * MIB;
const WARM_BYTES: u64 = 256 * MIB;
const COLD_BYTES: u64 = 256 * MIB;
const KEYS: u64 = 6000;
const THREADS: u64 = 4;

fn main() -> Result<(), Anything> {
    let (mut minutes, mut folder) = (1.0, None);
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        let value = args.next().ok_or_else(|| format!("{arg} needs a value"))?;
        match arg.as_str() {
            "--minutes" => minutes = value.parse()?,
            "--folder" => folder = Some(PathBuf::from(value)),
            _ => return Err(format!("{arg}: not known; known are --minutes N and --folder DIR").into()),
        }
    }
    let scratch = tempfile::tempdir()?;
    let folder = folder.unwrap_or_else(|| scratch.path().to_owned());
    let time = Duration::from_secs_f64(60.0 * minutes);
    let step = (time / 50).max(Duration::from_secs(2));
    let (begun, mut lines, mut samples) = (Instant::now(), Instant::now(), Vec::new());
    let asked = AtomicU64::new(0);
    println!(
        "{:>8} {:>10} {:>10} {:>10} {:>12} {:>7}",
        "seconds", "memory MB", "files MB", "warm MB", "requests", "hits %"
    );
    while begun.elapsed() < time {
        let cache = open(&folder)?;
        let until = Instant::now() + Duration::from_secs(30).min(time.saturating_sub(begun.elapsed()));
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| -> Result<(), Anything> {
            let workers: Vec<_> = (0..THREADS)
                .map(|thread| {
                    let (cache, stop, asked) = (&cache, &stop, &asked);
                    let seed = begun.elapsed().as_nanos() as u64 ^ thread << 40;
                    scope.spawn(move || work(cache, seed, stop, asked))
                })
                .collect();
            let mut turn = 0;
            while Instant::now() < until && workers.iter().all(|worker| !worker.is_finished()) {
                std::thread::sleep(step.min(Duration::from_secs(2)));
                turn += 1;
                let part = 2 + turn % 3;
                let budgets = Budgets {
                    hot_bytes: Some(HOT_BYTES * part / 4),
                    warm_bytes: Some(WARM_BYTES * part / 4),
                    cold_bytes: None,
                };
                cache.resize(budgets)?;
                if lines.elapsed() >= step {
                    lines = Instant::now();
                    let stats = cache.stats();
                    let sample = (memory_bytes()?, folder_bytes(&folder)?);
                    let warm = stats.warm.as_ref().map_or(0, |warm| warm.bytes);
                    println!(
                        "{:>8.0} {:>10.1} {:>10.1} {:>10.1} {:>12} {:>7.1}",
                        begun.elapsed().as_secs_f64(),
                        sample.0 as f64 / 1e6,
                        sample.1 as f64 / 1e6,
                        warm as f64 / 1e6,
                        asked.load(Ordering::Relaxed),
                        100.0 * stats.hit_share(),
                    );
                    samples.push((begun.elapsed(), sample));
                    let damaged = stats.warm.map_or(0, |warm| warm.damaged);
                    if damaged + stats.lost + stats.undecodable > 0 {
                        return Err(format!("{damaged} damaged, {} lost", stats.lost).into());
                    }
                }
            }
            stop.store(true, Ordering::Relaxed);
            for worker in workers {
                worker.join().map_err(|_| "a worker panicked")??;
            }
            Ok(())
        })?;
        cache.close()?;
    }
    judge("memory", time, samples.iter().map(|&(at, (memory, _))| (at, memory)))?;
    judge("files", time, samples.iter().map(|&(at, (_, files))| (at, files)))
}

fn open(folder: &Path) -> Result<TieredCache<u64, Bytes>, Anything> {
    let cold =
        FolderTier::open(folder.join("cold"), FolderSettings::new(COLD_BYTES), PolicyName::Auto.build())?;
    Ok(TieredCache::builder()
        .hot_bytes(HOT_BYTES)
        .warm(WarmOptions::new(folder.join("warm"), WARM_BYTES).fingerprint("soak"))
        .cold(cold)
        .cost(|_, value: &Bytes| Duration::from_micros(2000 + value.len() as u64 / 20))
        .write_behind(Some(Duration::from_millis(200)))
        .build()?)
}

fn work(
    cache: &TieredCache<u64, Bytes>,
    seed: u64,
    stop: &AtomicBool,
    asked: &AtomicU64,
) -> Result<(), Anything> {
    let mut state = seed | 1;
    let mut random = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        state >> 33
    };
    let mut pinned = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        // About Zipf with an exponent of 1.
        let key = (KEYS as f64).powf(random() as f64 / (1u64 << 31) as f64) as u64;
        match random() % 100 {
            0..15 => drop(cache.insert(key, value(key, random()))?),
            15..18 => cache.remove(&key)?,
            18 if cache.pin(&key)? => pinned.push(key),
            19..22 => drop(cache.prefetch((key..key + 8).filter(|key| *key < KEYS))?),
            22 => cache.flush()?,
            _ => {
                let version = random();
                let got = cache.get_or_load(&key, || Ok::<_, std::io::Error>(value(key, version)))?;
                check(key, &got)?;
            }
        }
        if pinned.len() > 4 {
            cache.unpin(&pinned.remove(0));
        }
        asked.fetch_add(1, Ordering::Relaxed);
    }
    for key in pinned {
        cache.unpin(&key);
    }
    Ok(())
}

/// 64 bytes to 2 MiB by the key, most of them small; every word tells key and version.
fn value(key: u64, version: u64) -> Bytes {
    let words = 4 << (key.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 60);
    let pair = [key.to_le_bytes(), version.to_le_bytes()].concat();
    Bytes::from(pair.repeat(words))
}

fn check(key: u64, bytes: &Bytes) -> Result<(), Anything> {
    let version = bytes.get(8..16).and_then(|version| Some(u64::from_le_bytes(version.try_into().ok()?)));
    match version {
        Some(version) if *bytes == value(key, version) => Ok(()),
        _ => Err(format!("key {key}: {} bytes that were never its value", bytes.len()).into()),
    }
}

/// Bytes of this process in memory.
fn memory_bytes() -> Result<u64, Anything> {
    let statm = std::fs::read_to_string("/proc/self/statm")?;
    let pages: u64 = statm.split(' ').nth(1).ok_or("no second field in /proc/self/statm")?.parse()?;
    Ok(pages * 4096)
}

fn folder_bytes(folder: &Path) -> Result<u64, Anything> {
    let mut bytes = 0;
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        // What goes while it is listed does not count.
        let Ok(metadata) = entry.metadata() else { continue };
        bytes += if metadata.is_dir() { folder_bytes(&entry.path()).unwrap_or(0) } else { metadata.len() };
    }
    Ok(bytes)
}

fn judge(
    what: &str,
    time: Duration,
    samples: impl Iterator<Item = (Duration, u64)> + Clone,
) -> Result<(), Anything> {
    let most = |from: f64, to: f64| {
        let within = samples.clone().filter(|(at, _)| *at >= time.mul_f64(from) && *at < time.mul_f64(to));
        within.map(|(_, bytes)| bytes).max()
    };
    let (Some(before), Some(after)) = (most(0.2, 0.5), most(0.5, 2.0)) else {
        println!("{what}: too short a time to judge");
        return Ok(());
    };
    let (before, after) = (before as f64 / 1e6, after as f64 / 1e6);
    println!("{what}: at most {before:.1} MB before the middle, {after:.1} MB after it");
    if after > 1.1 * before + 33.6 { Err(format!("{what} grew").into()) } else { Ok(()) }
}
