//! Reads and inserts of values of many sizes, which memory holds a part of and the drive all.
//!
//! First every key is asked for once, so that the cache makes and stores all values; then requests are played that only
//! warm it up; then those that are measured. On a miss everywhere the value is made by [`requests::make`].

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use clap::ValueEnum;
use serde_json::{Map, Value, json};

use crate::foyer_side::{self, Foyer};
use crate::requests::{self, Request, Trace};
use crate::{Scratch, process};

#[derive(clap::Args)]
pub(crate) struct Args {
    #[arg(long, value_enum)]
    side: Side,
    /// Where the drive's part lies; emptied first, removed at the end.
    #[arg(long, value_name = "DIR")]
    folder: PathBuf,
    /// A recorded trace in place of the generated one; memory then holds a tenth of its values.
    #[cfg(feature = "qvl")]
    #[arg(long, value_name = "FILE", conflicts_with_all = ["hot_mebibytes", "data_mebibytes", "requests"])]
    trace: Option<PathBuf>,
    /// Memory's budget.
    #[arg(long, value_name = "MiB", default_value_t = 64)]
    hot_mebibytes: u64,
    /// Bytes of all values [default: ten times memory's budget].
    #[arg(long, value_name = "MiB")]
    data_mebibytes: Option<u64>,
    /// The drive's budget as a multiple of the bytes of all values.
    #[arg(long, value_name = "X", default_value_t = 1.25)]
    drive: f64,
    /// Requests that are measured; half as many warm up.
    #[arg(long, value_name = "N", default_value_t = 4000)]
    requests: usize,
    /// Clients, each with a thread of its own.
    #[arg(long, value_name = "N", default_value_t = 2)]
    threads: usize,
    /// Past the page cache.
    #[arg(long)]
    direct: bool,
    #[command(flatten)]
    foyer: foyer_side::Tuning,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Side {
    Foyer,
    #[cfg(feature = "qvl")]
    Qvl,
}

/// Where a cache keeps what, and how much.
pub(crate) struct Budget {
    pub(crate) folder: PathBuf,
    pub(crate) hot_bytes: u64,
    pub(crate) drive_bytes: u64,
    pub(crate) direct: bool,
}

/// A cache under these requests.
pub(crate) trait Cache: Sync {
    /// Does these requests one after the other and checks every value.
    fn client(&self, requests: &[Request]) -> Result<Client>;
    /// Waits until what is to be written is written.
    fn drain(&self) -> Result<()>;
    /// What it counts itself, since its beginning, by name.
    fn counters(&self) -> Vec<(&'static str, u64)>;
    fn close(self) -> Result<()>;
}

/// What a client saw.
#[derive(Default)]
pub(crate) struct Client {
    /// Of each request, in the order of the requests.
    times: Vec<Duration>,
    /// Reads that were answered from memory, from the drive, and by making the value; those that are known.
    pub(crate) memory: u64,
    pub(crate) drive: u64,
    pub(crate) made: u64,
    /// Of values that were put in or made.
    stored_bytes: u64,
}

impl Client {
    /// A request took so long. Making the value of an insert is the client's and not in it.
    pub(crate) fn took(&mut self, time: Duration) {
        self.times.push(time);
    }

    /// A value came in that the cache did not have.
    pub(crate) fn stored(&mut self, bytes: usize) {
        self.stored_bytes += bytes as u64;
    }
}

/// The least budget of the drive: foyer divides it into blocks larger than the largest value, and needs some dozen.
const DRIVE_BYTES_MIN: u64 = 512 << 20;

pub(crate) fn run(args: &Args) -> Result<Value> {
    let scratch = Scratch::new(&args.folder)?;
    let (trace, hot_bytes) = requests_of(args)?;
    let budget = Budget {
        folder: scratch.0.clone(),
        hot_bytes,
        drive_bytes: ((args.drive * trace.data_bytes() as f64) as u64).max(DRIVE_BYTES_MIN),
        direct: args.direct,
    };
    match args.side {
        Side::Foyer => play(Foyer::new(&budget, &args.foyer)?, &trace, args.threads),
        #[cfg(feature = "qvl")]
        Side::Qvl => play(crate::qvl_side::Qvl::new(&budget)?, &trace, args.threads),
    }
}

/// What is asked for, and memory's budget.
fn requests_of(args: &Args) -> Result<(Trace, u64)> {
    #[cfg(feature = "qvl")]
    if let Some(path) = &args.trace {
        let trace = Trace::recorded(path)?;
        let hot_bytes = trace.data_bytes() / 10;
        return Ok((trace, hot_bytes));
    }
    let data_mebibytes = args.data_mebibytes.unwrap_or(10 * args.hot_mebibytes);
    Ok((Trace::zipf(data_mebibytes << 20, args.requests), args.hot_mebibytes << 20))
}

fn play(cache: impl Cache, trace: &Trace, threads: usize) -> Result<Value> {
    for requests in [&trace.every_key(), &trace.warm_up] {
        clients(&cache, requests, threads)?;
        cache.drain()?;
    }
    process::sync()?;
    let (counted, written) = (cache.counters(), process::bytes_written()?);
    let (all, time) = clients(&cache, &trace.measured, threads)?;
    let start = Instant::now();
    cache.drain()?;
    let drain = start.elapsed();
    let written = process::bytes_written()? - written;
    let mut own = Map::new();
    for ((name, before), (_, now)) in counted.into_iter().zip(cache.counters()) {
        own.insert(name.to_owned(), json!(now.saturating_sub(before)));
    }
    // A cache that says of no single read where it came from counts them.
    let (memory, drive) = match (own.get("memory_hits"), own.get("drive_hits")) {
        (Some(memory), Some(drive)) => (memory.as_u64().unwrap_or(0), drive.as_u64().unwrap_or(0)),
        _ => (all.memory, all.drive),
    };
    let reads = trace.measured.iter().filter(|request| !request.insert).count() as f64;
    let mut times = all.times;
    let mut read_times: Vec<Duration> = Vec::new();
    for (time, request) in times.iter().zip(in_order(&trace.measured, threads)) {
        if !request.insert {
            read_times.push(*time);
        }
    }
    let measurement = json!({
        "metric": "mixed",
        "threads": threads,
        "keys": trace.sizes.len(),
        "data_bytes": trace.data_bytes(),
        "requests": trace.measured.len(),
        "seconds": time.as_secs_f64(),
        "requests_per_second": trace.measured.len() as f64 / time.as_secs_f64(),
        "p50_seconds": percentile(&mut times, 0.50)?,
        "p99_seconds": percentile(&mut times, 0.99)?,
        "max_seconds": percentile(&mut times, 1.0)?,
        "read_p50_seconds": percentile(&mut read_times, 0.50)?,
        "read_p99_seconds": percentile(&mut read_times, 0.99)?,
        "memory_share": memory as f64 / reads,
        "drive_share": drive as f64 / reads,
        "made_share": all.made as f64 / reads,
        "made": all.made,
        "stored_bytes": all.stored_bytes,
        "written_bytes": written,
        "drain_seconds": drain.as_secs_f64(),
        "peak_memory_bytes": process::peak_bytes()?,
        "own": own,
    });
    cache.close()?;
    Ok(measurement)
}

/// The requests of all clients, client by client: each takes every so-manieth.
fn in_order(requests: &[Request], threads: usize) -> impl Iterator<Item = &Request> {
    (0..threads).flat_map(move |client| requests.iter().skip(client).step_by(threads))
}

/// Plays requests with so many clients; what all of them saw, and the time until the last was done.
fn clients(cache: &impl Cache, requests: &[Request], threads: usize) -> Result<(Client, Duration)> {
    let all: Vec<Request> = in_order(requests, threads).copied().collect();
    let (mut parts, mut rest) = (Vec::new(), all.as_slice());
    for client in 0..threads {
        let (part, others) = rest.split_at(requests.iter().skip(client).step_by(threads).count());
        parts.push(part);
        rest = others;
    }
    let start = Instant::now();
    let seen: Vec<Result<Client>> = std::thread::scope(|scope| {
        let handles: Vec<_> = parts.into_iter().map(|part| scope.spawn(|| cache.client(part))).collect();
        let join = |handle: std::thread::ScopedJoinHandle<'_, Result<Client>>| {
            handle.join().unwrap_or_else(|_| Err(anyhow!("a client panicked")))
        };
        handles.into_iter().map(join).collect()
    });
    let time = start.elapsed();
    let mut sum = Client::default();
    for client in seen {
        let client = client?;
        sum.times.extend(client.times);
        sum.memory += client.memory;
        sum.drive += client.drive;
        sum.made += client.made;
        sum.stored_bytes += client.stored_bytes;
    }
    Ok((sum, time))
}

/// The time that so many do not exceed.
fn percentile(times: &mut [Duration], share: f64) -> Result<f64> {
    times.sort_unstable();
    let index = ((times.len() as f64 * share).ceil() as usize).clamp(1, times.len().max(1)) - 1;
    Ok(times.get(index).context("nothing was measured")?.as_secs_f64())
}

/// A value that is put in: made by the client, before the clock runs.
pub(crate) fn fresh(request: &Request) -> bytes::Bytes {
    requests::make(request.key, request.bytes)
}
