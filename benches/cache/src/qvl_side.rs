//! qvl-cache, and what only it is asked: scans in a circle, and a restart.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use bytes::Bytes;
use qvl_cache::policy::PolicyName;
use qvl_cache::{Cause, ReadMode, TieredCache, WarmOptions};
use serde_json::{Value, json};

use crate::mixed::{Budget, Cache, Client, fresh};
use crate::requests::{Request, check, make};
use crate::{Scratch, clear};

type Tiered = TieredCache<u64, Bytes>;

/// Memory alone.
pub(crate) fn in_memory(hot_bytes: u64) -> Result<Tiered> {
    Ok(Tiered::builder().hot_bytes(hot_bytes).build()?)
}

/// The drive with so little memory that no value stays in it.
pub(crate) fn on_drive(folder: &Path, data_bytes: u64, direct: bool) -> Result<Tiered> {
    let warm = WarmOptions::new(folder, 2 * data_bytes).read_mode(read_mode(direct));
    Ok(Tiered::builder().hot_bytes(HOT_BYTES_TINY).warm(warm).build()?)
}

fn read_mode(direct: bool) -> ReadMode {
    if direct { ReadMode::Direct } else { ReadMode::Buffered }
}

const HOT_BYTES_TINY: u64 = 64 << 10;

/// Fails if values were served from memory that should have come from the drive.
pub(crate) fn came_from_the_drive(cache: &Tiered) -> Result<()> {
    let stats = cache.stats();
    let (memory, drive) =
        (stats.hot.hits + stats.transit_hits, stats.warm.as_ref().map_or(0, |warm| warm.hits));
    ensure!(memory == 0 && drive > 0, "{memory} hits in memory, {drive} on the drive");
    Ok(())
}

/// What may be on its way to the drive, beside memory's budget: as much as foyer has for it.
const TRANSIT_BYTES: u64 = 64 << 20;

/// Memory and drive under mixed requests.
pub(crate) struct Qvl(Tiered);

impl Qvl {
    pub(crate) fn new(budget: &Budget) -> Result<Self> {
        let warm = WarmOptions::new(&budget.folder, budget.drive_bytes).read_mode(read_mode(budget.direct));
        let builder = Tiered::builder().hot_bytes(budget.hot_bytes).transit_bytes(TRANSIT_BYTES).warm(warm);
        // The origin of this suite is a generator that is faster than any drive; values worth caching are dear.
        Ok(Self(builder.cost(|_, _| Duration::from_secs(1)).build()?))
    }
}

impl Cache for Qvl {
    fn client(&self, requests: &[Request]) -> Result<Client> {
        let mut seen = Client::default();
        for request in requests {
            let &Request { key, bytes, insert } = request;
            if insert {
                let value = fresh(request);
                let start = Instant::now();
                self.0.insert(key, value)?;
                seen.took(start.elapsed());
                seen.stored(bytes);
                continue;
            }
            let mut made = false;
            let start = Instant::now();
            let value = self.0.get_or_load(&key, || {
                made = true;
                Ok::<_, Cause>(make(key, bytes))
            })?;
            seen.took(start.elapsed());
            if made {
                seen.made += 1;
                seen.stored(bytes);
            }
            check(key, bytes, &value)?;
        }
        Ok(seen)
    }

    fn drain(&self) -> Result<()> {
        Ok(self.0.flush()?)
    }

    fn counters(&self) -> Vec<(&'static str, u64)> {
        let stats = self.0.stats();
        let warm = stats.warm.unwrap_or_default();
        vec![
            // On the way down a value is in memory too.
            ("memory_hits", stats.hot.hits + stats.transit_hits),
            ("drive_hits", warm.hits),
            ("drive_stored_bytes", warm.bytes_stored),
            // Values that are nowhere any more, since the drive failed or no tier wanted them.
            ("dropped", stats.lost + stats.not_stored),
            // Of these, those that are faster made again than read back.
            ("cheaper_to_make", stats.cheaper_to_make),
        ]
    }

    fn close(self) -> Result<()> {
        Ok(self.0.close()?)
    }
}

#[derive(clap::Args)]
pub(crate) struct ScanArgs {
    /// Who stays: lru, tinylfu, cost-aware, cyclic or auto.
    #[arg(long, value_name = "NAME", default_value_t = PolicyName::Auto)]
    policy: PolicyName,
}

/// Rounds of the scan. The first cannot have hits, and in the next two the loop is learned: they do not count.
const SCAN_ROUNDS: u64 = 23;
const SCAN_ROUNDS_LEARNING: u64 = 3;
const SCAN_BUDGET_BYTES: u64 = 64 << 20;
const SCAN_VALUE_BYTES: usize = 64 << 10;

pub(crate) fn scan(args: &ScanArgs) -> Result<Value> {
    let cache = Tiered::builder().hot_bytes(SCAN_BUDGET_BYTES).policy(args.policy).build()?;
    let keys = 2 * SCAN_BUDGET_BYTES / SCAN_VALUE_BYTES as u64;
    let (mut hits, mut requests) = (0_u64, 0_u64);
    for round in 0..SCAN_ROUNDS {
        for key in 0..keys {
            let mut made = false;
            let value = cache.get_or_load(&key, || {
                made = true;
                Ok::<_, Cause>(make(key, SCAN_VALUE_BYTES))
            })?;
            check(key, SCAN_VALUE_BYTES, &value)?;
            let counts = round >= SCAN_ROUNDS_LEARNING;
            requests += u64::from(counts);
            hits += u64::from(counts && !made);
        }
    }
    let hit_rate = hits as f64 / requests as f64;
    // Memory holds half of them.
    Ok(json!({ "metric": "scan", "hit_rate": hit_rate, "share_of_possible": hit_rate / 0.5 }))
}

#[derive(clap::Args)]
pub(crate) struct RestartArgs {
    /// Where the values lie: emptied by `restart-fill`, removed by `restart-open`.
    #[arg(long, value_name = "DIR")]
    folder: PathBuf,
    #[arg(long, value_name = "N", default_value_t = 100_000)]
    entries: u64,
}

const RESTART_VALUE_BYTES: usize = 4 << 10;

impl RestartArgs {
    fn open(&self) -> Result<Tiered> {
        let bytes = self.entries * RESTART_VALUE_BYTES as u64;
        let warm = WarmOptions::new(&self.folder, 2 * bytes);
        Ok(Tiered::builder().hot_bytes(bytes / 10).warm(warm).build()?)
    }

    /// Share of all keys that are there.
    fn hit_share(&self, cache: &Tiered) -> Result<f64> {
        let mut hits = 0_u64;
        for key in 0..self.entries {
            if let Some(value) = cache.get(&key)? {
                check(key, RESTART_VALUE_BYTES, &value)?;
                hits += 1;
            }
        }
        Ok(hits as f64 / self.entries as f64)
    }
}

pub(crate) fn restart_fill(args: &RestartArgs) -> Result<Value> {
    // The folder is left for the process that opens it.
    std::mem::forget(Scratch::new(&args.folder)?);
    let cache = args.open()?;
    for key in 0..args.entries {
        cache.insert(key, make(key, RESTART_VALUE_BYTES))?;
    }
    cache.flush()?;
    let hit_share = args.hit_share(&cache)?;
    cache.close()?;
    Ok(json!({ "metric": "restart_fill", "hit_share": hit_share }))
}

pub(crate) fn restart_open(args: &RestartArgs) -> Result<Value> {
    let start = Instant::now();
    let cache = args.open()?;
    let first = cache.get(&(args.entries / 2))?;
    let seconds = start.elapsed().as_secs_f64();
    check(args.entries / 2, RESTART_VALUE_BYTES, &first.context("the first value is gone")?)?;
    let hit_share = args.hit_share(&cache)?;
    cache.close()?;
    clear(&args.folder)?;
    Ok(json!({ "metric": "restart_open", "first_value_seconds": seconds, "hit_share": hit_share }))
}

#[derive(clap::Args)]
pub(crate) struct ReplayArgs {
    /// A recorded trace.
    #[arg(long, value_name = "FILE")]
    trace: PathBuf,
}

/// Budgets as shares of the bytes of all values: one in so many.
const REPLAY_BUDGETS: [u64; 5] = [32, 16, 8, 4, 2];

/// What the default policy makes of a trace, beside LRU and the best that is possible.
pub(crate) fn replay(args: &ReplayArgs) -> Result<Value> {
    use qvl_cache::policy::belady::{belady, simulate};
    let trace = qvl_cache::trace::Trace::read(&args.trace)?;
    let footprint = trace.footprint_bytes();
    // One request more on both sides, since LRU has no hit at all on a loop.
    let one_saves =
        simulate(PolicyName::Lru.build().as_mut(), &trace, 0).seconds_requested / trace.requests.len() as f64;
    let (mut hits_min, mut saved_min) = (f64::INFINITY, f64::INFINITY);
    let (mut gap, mut budgets) = (None, Vec::new());
    for share in REPLAY_BUDGETS {
        let budget = footprint / share;
        let run = |name: PolicyName| simulate(name.build().as_mut(), &trace, budget);
        let (auto, lru, best) = (run(PolicyName::Auto), run(PolicyName::Lru), belady(&trace, budget));
        hits_min = hits_min.min((auto.hits + 1) as f64 / (lru.hits + 1) as f64);
        saved_min = saved_min.min((auto.seconds_saved + one_saves) / (lru.seconds_saved + one_saves));
        if share == 4 {
            gap = Some(auto.hit_rate() / best.hit_rate());
        }
        budgets.push(json!({
            "budget_share": 1.0 / share as f64,
            "auto_hit_rate": auto.hit_rate(),
            "lru_hit_rate": lru.hit_rate(),
            "belady_hit_rate": best.hit_rate(),
        }));
    }
    Ok(json!({
        "metric": "replay",
        "requests": trace.requests.len(),
        "share_of_belady": gap.ok_or_else(|| anyhow!("no budget of a quarter"))?,
        "hits_vs_lru_min": hits_min,
        "saved_vs_lru_min": saved_min,
        "budgets": budgets,
    }))
}
