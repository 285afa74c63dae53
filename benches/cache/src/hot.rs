//! Hits in memory, and whether memory's budget holds, beside moka.

use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, ensure};
use bytes::Bytes;
use clap::ValueEnum;
use serde_json::{Value, json};

use crate::requests::{SplitMix, Zipf, make};

/// Of an entry's value.
const ENTRY_BYTES: usize = 4 << 10;
/// What ours counts beside it.
const ENTRY_EXTRA_BYTES: u64 = 408;
/// Keys each thread draws before the clock runs; asked for again and again.
const DRAWN: usize = 1 << 20;

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Side {
    Moka,
    #[cfg(feature = "qvl")]
    Qvl,
}

#[derive(clap::Args)]
pub(crate) struct HitArgs {
    #[arg(long, value_enum)]
    side: Side,
    #[arg(long, value_name = "N", default_value_t = 1)]
    threads: usize,
    /// As long as this at least.
    #[arg(long, value_name = "S", default_value_t = 1.0)]
    seconds: f64,
    /// Entries that are resident.
    #[arg(long, value_name = "N", default_value_t = 100_000, value_parser = clap::value_parser!(u64).range(1..))]
    entries: u64,
    /// Of 1,000 requests so many insert a new entry, for which others must go: memory then holds as many as are resident.
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u64).range(..=1000))]
    inserts: u64,
}

#[derive(clap::Args)]
pub(crate) struct OvershootArgs {
    #[arg(long, value_enum)]
    side: Side,
    #[arg(long, value_name = "MiB", default_value_t = 64)]
    budget_mebibytes: u64,
    /// Values that come in one after the other.
    #[arg(long, value_name = "N", default_value_t = 500)]
    values: u64,
}

pub(crate) fn hit(args: &HitArgs) -> Result<Value> {
    // Each value has memory of its own: with one for all, two threads would only meet at its reference count.
    let values = (0..args.entries).map(|key| (key, make(key, ENTRY_BYTES)));
    // Room for all and as much again, so that nobody has to evict; with insertions, room for about as many.
    let share = if args.inserts == 0 { 2 } else { 1 };
    let budget_bytes = share * args.entries * (ENTRY_BYTES as u64 + ENTRY_EXTRA_BYTES);
    let new = make(u64::MAX, ENTRY_BYTES);
    let (nanoseconds, told) = match args.side {
        Side::Moka => {
            let cache = moka_of(budget_bytes);
            values.for_each(|(key, value)| cache.insert(key, value));
            cache.run_pending_tasks();
            let put = |key| {
                cache.insert(key, new.clone());
                Ok(())
            };
            (measure(args, |key| Ok(cache.get(&key)), put)?, None)
        }
        #[cfg(feature = "qvl")]
        Side::Qvl => {
            let cache = crate::qvl_side::in_memory(budget_bytes)?;
            for (key, value) in values {
                cache.insert(key, value)?;
            }
            let put = |key| Ok(cache.insert(key, new.clone()).map(drop)?);
            let nanoseconds = measure(args, |key| Ok(cache.get(&key)?), put)?;
            // Hits are noted and told later; this tells all that are still known.
            cache.explain(&0);
            let hot = cache.stats().hot;
            (nanoseconds, Some(1.0 - hot.uses_forgotten as f64 / hot.hits as f64))
        }
    };
    Ok(json!({
        "metric": "hot_hit",
        "threads": args.threads,
        "nanoseconds": nanoseconds,
        // Share of the hits that the policy was told of; where it is not counted, nothing.
        "told_share": told,
    }))
}

/// moka as its documentation sets it up for values of many sizes.
fn moka_of(budget_bytes: u64) -> moka::sync::Cache<u64, Bytes> {
    moka::sync::Cache::builder()
        .weigher(|_: &u64, value: &Bytes| u32::try_from(value.len()).unwrap_or(u32::MAX))
        .max_capacity(budget_bytes)
        .build()
}

/// Nanoseconds of a thread for one request. Without insertions it fails if anything is not resident.
fn measure(
    args: &HitArgs,
    get: impl Fn(u64) -> Result<Option<Bytes>> + Sync,
    put: impl Fn(u64) -> Result<()> + Sync,
) -> Result<f64> {
    let new_keys = AtomicU64::new(args.entries);
    let (time, zipf) = (Duration::from_secs_f64(args.seconds), Zipf::new(usize::try_from(args.entries)?));
    let keys: Vec<Vec<u64>> = (0..args.threads as u64)
        .map(|thread| {
            let mut random = SplitMix(thread);
            (0..DRAWN).map(|_| zipf.draw(&mut random)).collect()
        })
        .collect();
    let work = |keys: &[u64]| -> Result<f64> {
        let pass = || -> Result<()> {
            for (at, &key) in keys.iter().enumerate() {
                if (at as u64) % 1000 < args.inserts {
                    put(new_keys.fetch_add(1, Ordering::Relaxed))?;
                    continue;
                }
                let value = get(key)?;
                ensure!(value.is_some() || args.inserts > 0, "{key} is not resident");
                black_box(&value);
            }
            Ok(())
        };
        pass()?;
        let (start, mut passes) = (Instant::now(), 0);
        while passes == 0 || start.elapsed() < time {
            pass()?;
            passes += 1;
        }
        Ok(start.elapsed().as_nanos() as f64 / (f64::from(passes) * keys.len() as f64))
    };
    let times: Vec<Result<f64>> = std::thread::scope(|scope| {
        let handles: Vec<_> = keys.iter().map(|keys| scope.spawn(|| work(keys))).collect();
        let join = |handle: std::thread::ScopedJoinHandle<'_, Result<f64>>| {
            handle.join().unwrap_or_else(|_| Err(anyhow!("a thread panicked")))
        };
        handles.into_iter().map(join).collect()
    });
    let times = times.into_iter().collect::<Result<Vec<f64>>>()?;
    Ok(times.iter().sum::<f64>() / times.len() as f64)
}

/// Bytes of values that are alive.
type Live = Arc<AtomicU64>;

/// A value that counts while it lives.
struct Counted {
    value: Bytes,
    live: Live,
}

impl AsRef<[u8]> for Counted {
    fn as_ref(&self) -> &[u8] {
        &self.value
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.live.fetch_sub(self.value.len() as u64, Ordering::Relaxed);
    }
}

/// A value of 4 MiB that counts while anyone holds it.
fn counted(key: u64, live: &Live) -> Bytes {
    let value = make(key, 4 << 20);
    live.fetch_add(value.len() as u64, Ordering::Relaxed);
    Bytes::from_owner(Counted { value, live: Arc::clone(live) })
}

pub(crate) fn overshoot(args: &OvershootArgs) -> Result<Value> {
    let budget_bytes = args.budget_mebibytes << 20;
    let live = Live::default();
    let mut peak = 0;
    let mut burst = |insert: &mut dyn FnMut(u64, Bytes) -> Result<()>| -> Result<()> {
        for key in 0..args.values {
            insert(key, counted(key, &live))?;
            // After the call: what the caller brings is its own until then.
            peak = peak.max(live.load(Ordering::Relaxed));
        }
        Ok(())
    };
    match args.side {
        Side::Moka => {
            let cache = moka_of(budget_bytes);
            burst(&mut |key, value| {
                cache.insert(key, value);
                Ok(())
            })?;
        }
        #[cfg(feature = "qvl")]
        Side::Qvl => {
            let cache = crate::qvl_side::in_memory(budget_bytes)?;
            burst(&mut |key, value| Ok(cache.insert(key, value).map(drop)?))?;
        }
    }
    ensure!(peak > 0, "nothing was kept");
    let share = peak as f64 / budget_bytes as f64;
    Ok(json!({ "metric": "overshoot", "peak_bytes": peak, "budget_bytes": budget_bytes, "share": share }))
}
