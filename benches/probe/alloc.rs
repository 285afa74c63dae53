//! Memory: pairs of allocate and free, a trace of tensors with three allocators, fragmentation in the long run, what trim
//! gives back, how soon pressure is noticed, and what watching costs.

#![expect(unsafe_code, reason = "touches memory that an allocator gave")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::hint::black_box;
use std::ops::RangeInclusive;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use parking_lot::Mutex;
use qvl_alloc::backing::Pages;
use qvl_alloc::owner::Owner;
use qvl_alloc::plan::Trace;
use qvl_alloc::pool::PoolSettings;
use qvl_alloc::pressure::Level;
use qvl_alloc::{Buffer, Pool, Pressure, Watch};
use serde_json::json;

use crate::emit;
use crate::group::Group;

#[derive(clap::Args)]
pub(crate) struct PairArgs {
    /// Bytes of each.
    #[arg(long, value_name = "N")]
    bytes: usize,
    /// Threads at once.
    #[arg(long, value_name = "N", default_value_t = 1)]
    threads: usize,
    /// Pairs of each thread.
    #[arg(long, value_name = "N", default_value_t = 4_000_000)]
    pairs: u32,
}

#[derive(clap::Args)]
pub(crate) struct LongArgs {
    /// Taking and giving back are two.
    #[arg(long, value_name = "N", default_value_t = 10_000_000)]
    operations: u64,
}

#[derive(clap::Args)]
pub(crate) struct TrimArgs {
    /// Bytes that are taken before half of them go.
    #[arg(long, value_name = "MIB", default_value_t = 512)]
    mebibytes: usize,
}

#[derive(clap::Args)]
pub(crate) struct TraceArgs {
    /// pool, system or mimalloc.
    #[arg(long, value_name = "WHO")]
    allocator: String,
    /// Threads, each with the whole trace.
    #[arg(long, value_name = "N", default_value_t = 1)]
    threads: usize,
}

#[derive(clap::Args)]
pub(crate) struct ReactionArgs {
    /// The limit of the group.
    #[arg(long, value_name = "MIB", default_value_t = 256)]
    limit_mebibytes: u64,
    /// How fast it is filled.
    #[arg(long, value_name = "MIB/S", default_value_t = 500)]
    mebibytes_per_s: u64,
    /// How often.
    #[arg(long, value_name = "N", default_value_t = 5)]
    times: usize,
}

#[derive(clap::Args)]
pub(crate) struct WatchArgs {
    /// How long nothing happens.
    #[arg(long, value_name = "S", default_value_t = 20)]
    seconds: u64,
}

/// The events of the traces in turn: which piece is taken, or given back.
struct Replay {
    /// `(piece, bytes)`; 0 bytes give it back.
    events: Vec<(usize, usize)>,
    pieces: usize,
}

impl Replay {
    /// Of the committed traces, one after another, the tensors of these sizes.
    fn of(sizes: RangeInclusive<u64>) -> Result<Self> {
        let (mut events, mut pieces) = (Vec::new(), 0);
        for (name, text) in TRACES {
            let trace = Trace::parse(Path::new(name), text)?;
            let mut moments = Vec::new();
            for allocation in
                trace.allocations().iter().filter(|allocation| sizes.contains(&allocation.bytes))
            {
                // At the same moment what ends makes room for what begins.
                moments.push((allocation.birth, 1, pieces, usize::try_from(allocation.bytes)?));
                moments.push((allocation.death, 0, pieces, 0));
                pieces += 1;
            }
            moments.sort_unstable();
            events.extend(moments.into_iter().map(|(_, _, piece, bytes)| (piece, bytes)));
        }
        ensure!(pieces > 0, "no trace has a tensor of {sizes:?} bytes");
        Ok(Self { events, pieces })
    }
}

/// Who gives memory.
trait Gives {
    type Piece;

    fn take(&self, bytes: usize) -> Result<Self::Piece>;

    fn first(piece: &mut Self::Piece) -> *mut u8;

    fn give_back(&self, piece: Self::Piece);
}

struct FromPool {
    pool: Pool<Pages>,
    owner: Owner<Pages>,
}

impl Gives for FromPool {
    type Piece = Buffer<u8, Pages>;

    fn take(&self, bytes: usize) -> Result<Self::Piece> {
        Ok(self.pool.bytes(&self.owner, bytes, ALIGN)?)
    }

    fn first(piece: &mut Self::Piece) -> *mut u8 {
        piece.as_mut_ptr()
    }

    fn give_back(&self, piece: Self::Piece) {
        drop(piece);
    }
}

/// Any allocator of the language's interface.
struct From<A>(A);

impl<A: GlobalAlloc> Gives for From<A> {
    type Piece = (*mut u8, Layout);

    fn take(&self, bytes: usize) -> Result<Self::Piece> {
        let layout = Layout::from_size_align(bytes, ALIGN)?;
        // SAFETY: the size is not 0.
        let first = unsafe { self.0.alloc(layout) };
        ensure!(!first.is_null(), "no memory for {bytes} bytes");
        Ok((first, layout))
    }

    fn first(piece: &mut Self::Piece) -> *mut u8 {
        piece.0
    }

    fn give_back(&self, (first, layout): Self::Piece) {
        // SAFETY: it is from `take`, with this layout, and given back once since it is moved in.
        unsafe { self.0.dealloc(first, layout) };
    }
}

/// Takes and gives back one size.
pub(crate) fn pair(args: &PairArgs) -> Result<()> {
    let pool = pool()?;
    let owner = pool.owner("pairs", None);
    let one_thread = || -> Result<f64> {
        // What comes first finds nothing that is kept.
        for _ in 0..1000 {
            black_box(pool.bytes(&owner, args.bytes, ALIGN)?);
        }
        let start = Instant::now();
        for _ in 0..args.pairs {
            black_box(pool.bytes(&owner, black_box(args.bytes), ALIGN)?);
        }
        Ok(start.elapsed().as_secs_f64() / f64::from(args.pairs))
    };
    let times = std::thread::scope(|scope| -> Result<Vec<f64>> {
        let threads: Vec<_> = (0..args.threads).map(|_| scope.spawn(one_thread)).collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap_or_else(|_| bail!("a thread panicked")))
            .collect()
    })?;
    let longest = times.iter().copied().fold(0.0, f64::max);
    emit(&json!({ "metric": "alloc-pair", "nanoseconds": longest * 1e9 }))
}

/// All sizes of the traces for a long time; in between, sequences that overlap in other ways.
pub(crate) fn long(args: &LongArgs) -> Result<()> {
    let replay = Replay::of(1..=u64::MAX)?;
    let pool = pool()?;
    let owner = pool.owner("long", None);
    // A decoding beside an encoding: two runs of the traces that do not keep step.
    let mut pieces: [Vec<Option<Buffer<u8, Pages>>>; 2] = Default::default();
    pieces.iter_mut().for_each(|pieces| pieces.resize_with(replay.pieces, || None));
    let mut at = [0, replay.events.len() / 3];
    let (mut operations, mut live, mut live_peak, mut worst) = (0_u64, 0_usize, 0_usize, 0.0_f64);
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    while operations < args.operations {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        let run = (random >> 60) as usize & 1;
        let (piece, bytes) = replay.events[at[run]];
        at[run] = (at[run] + 1) % replay.events.len();
        let place = &mut pieces[run][piece];
        match bytes {
            0 => live -= place.take().map_or(0, |piece| piece.len()),
            _ => {
                // Its end may not have come: a run began in the middle.
                live -= place.take().map_or(0, |piece| piece.len());
                *place = Some(pool.bytes(&owner, bytes, ALIGN)?);
                live += bytes;
                live_peak = live_peak.max(live);
            }
        }
        operations += 1;
        if operations.is_multiple_of(LOOK_EACH) {
            worst = worst.max(pool.stats().fragmentation);
        }
    }
    let stats = pool.stats();
    emit(&json!({
        "metric": "alloc-long",
        "fragmentation": stats.fragmentation,
        "worst_fragmentation": worst,
        "peak_over_live": stats.reserved_peak_bytes as f64 / live_peak as f64,
        "live_peak_mib": live_peak >> 20,
        "operations": operations,
    }))
}

/// Mixed sizes, every second of them given back, and then what nobody uses given back to the system.
pub(crate) fn trim(args: &TrimArgs) -> Result<()> {
    let before = resident_bytes()?;
    let pool = pool()?;
    let owner = pool.owner("trim", None);
    let (mut pieces, mut taken, mut random) = (Vec::new(), 0, 0x2545_f491_4f6c_dd1d_u64);
    while taken < args.mebibytes << 20 {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        // From 4 KiB to 8 MiB, each doubling as often.
        let bytes = 4096_usize << ((random >> 32 & 0xfff) % 12);
        let mut piece = pool.bytes(&owner, bytes + (random as usize & 0xfff), ALIGN)?;
        piece.fill(1);
        taken += piece.len();
        pieces.push(piece);
    }
    let mut number = 0_u32;
    pieces.retain(|_| {
        number += 1;
        number.is_multiple_of(2)
    });
    let live: usize = pieces.iter().map(Buffer::len).sum();
    let untrimmed = resident_bytes()?;
    let given_back = pool.trim();
    let resident = resident_bytes()?;
    emit(&json!({
        "metric": "alloc-trim",
        "rss_over_live": (resident - before) as f64 / live as f64,
        "before_trim_over_live": (untrimmed - before) as f64 / live as f64,
        "given_back_mib": given_back >> 20,
        "live_mib": live >> 20,
        "kept": pieces.len(),
    }))
}

fn pool() -> Result<Pool<Pages>> {
    Ok(Pool::new(Pages::default(), PoolSettings { budget_bytes: 8 << 30, ..PoolSettings::default() })?)
}

fn resident_bytes() -> Result<u64> {
    let text = read(Path::new("/proc/self/statm"))?;
    let pages: u64 = text.split_whitespace().nth(1).context("statm has no second figure")?.parse()?;
    Ok(pages * PAGE as u64)
}

/// Replays the tensors of 64 KiB to 64 MiB, touching each page, over and over.
pub(crate) fn trace(args: &TraceArgs) -> Result<()> {
    match args.allocator.as_str() {
        "pool" => {
            let pool = pool()?;
            let owner = pool.owner("trace", None);
            replay(args, &FromPool { pool, owner })
        }
        "system" => replay(args, &From(System)),
        "mimalloc" => replay(args, &From(mimalloc::MiMalloc)),
        other => bail!("--allocator {other}: pool, system or mimalloc"),
    }
}

fn replay<G: Gives + Sync>(args: &TraceArgs, gives: &G) -> Result<()> {
    let replay = Replay::of(64 << 10..=64 << 20)?;
    let once = |pieces: &mut Vec<Option<G::Piece>>| -> Result<u64> {
        let mut sum = 0_u64;
        for &(piece, bytes) in &replay.events {
            if bytes == 0 {
                if let Some(piece) = pieces[piece].take() {
                    gives.give_back(piece);
                }
                continue;
            }
            let mut taken = gives.take(bytes)?;
            let first = G::first(&mut taken);
            for at in (0..bytes).step_by(PAGE) {
                // SAFETY: inside the piece, which is ours.
                unsafe { first.add(at).write_volatile(piece as u8) };
            }
            // SAFETY: as above; it was just written.
            sum += u64::from(unsafe { first.read_volatile() });
            pieces[piece] = Some(taken);
        }
        Ok(sum)
    };
    let one_thread = || -> Result<(f64, u64)> {
        let mut pieces = Vec::new();
        pieces.resize_with(replay.pieces, || None);
        // The first round fills whatever is kept.
        let sum = once(&mut pieces)?;
        let start = Instant::now();
        let mut rounds = 0_u32;
        while start.elapsed() < TRACE_TIME {
            ensure!(once(&mut pieces)? == sum, "another sum");
            rounds += 1;
        }
        Ok((f64::from(rounds) / start.elapsed().as_secs_f64(), sum))
    };
    let results = std::thread::scope(|scope| -> Result<Vec<(f64, u64)>> {
        let threads: Vec<_> = (0..args.threads).map(|_| scope.spawn(one_thread)).collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap_or_else(|_| bail!("a thread panicked")))
            .collect()
    })?;
    let rate: f64 = results.iter().map(|(rate, _)| rate).sum();
    let sum = results.first().map_or(0, |(_, sum)| *sum);
    emit(&json!({ "metric": "alloc-trace", "traces_per_s": rate, "sum": sum, "pieces": replay.pieces }))
}

/// Fills a group until the watch says that it is critical, empties it, and again.
pub(crate) fn reaction(args: &ReactionArgs) -> Result<()> {
    let limit = args.limit_mebibytes << 20;
    let group = Group::enter(limit)?;
    let told: Arc<Mutex<Option<Instant>>> = Arc::default();
    let critical = Arc::new(AtomicBool::new(false));
    let watch = {
        let (told, critical) = (told.clone(), critical.clone());
        Watch::builder(Pressure::live())
            .on_change(move |change| {
                if change.to == Level::Critical {
                    told.lock().get_or_insert_with(Instant::now);
                }
                critical.store(change.to == Level::Critical, Ordering::Release);
            })
            .start()?
    };
    let pressure = Pressure::live();
    let enter = qvl_alloc::pressure::Thresholds::default().critical_enter;
    let pause = Duration::from_secs_f64(1.0 / args.mebibytes_per_s as f64);
    let (mut longest, mut taken) = (Duration::ZERO, 0_u64);
    for _ in 0..args.times {
        while critical.load(Ordering::Acquire) {
            std::thread::sleep(Duration::from_millis(5));
        }
        *told.lock() = None;
        let (mut held, mut crossed) = (Vec::new(), None);
        let mut due = Instant::now();
        while !critical.load(Ordering::Acquire) {
            held.push(vec![1_u8; 1 << 20]);
            taken += 1;
            if crossed.is_none() && pressure.read().share.is_some_and(|share| share >= enter) {
                crossed = Some(Instant::now());
            }
            due += pause;
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
            ensure!((held.len() as u64) < 2 * args.limit_mebibytes, "the watch says nothing");
        }
        // Sooner than the filler itself saw it is no time at all.
        if let Some((told, crossed)) = told.lock().zip(crossed) {
            longest = longest.max(told.saturating_duration_since(crossed));
        }
    }
    emit(&json!({
        "metric": "pressure-reaction",
        "milliseconds": longest.as_secs_f64() * 1e3,
        "taken_mib": taken,
        "how": format!("{}; {}", group.kind(), watch.how()),
    }))
}

/// Watches while nothing happens.
pub(crate) fn watch(args: &WatchArgs) -> Result<()> {
    let watch = Watch::builder(Pressure::live()).start()?;
    std::thread::sleep(Duration::from_secs(1));
    let before = thread_seconds("qvl-pressure")?;
    let start = Instant::now();
    std::thread::sleep(Duration::from_secs(args.seconds));
    let share = (thread_seconds("qvl-pressure")? - before) / start.elapsed().as_secs_f64();
    emit(&json!({
        "metric": "watch-share",
        "share": share,
        "looks": watch.stats().looks,
        "how": watch.how().to_string(),
    }))
}

/// Processor seconds of a thread of this process, to the nanosecond.
fn thread_seconds(name: &str) -> Result<f64> {
    for entry in std::fs::read_dir("/proc/self/task")? {
        let task = entry?.path();
        if read(&task.join("comm"))?.trim() == name {
            let text = read(&task.join("schedstat"))?;
            let nanoseconds = text.split_whitespace().next().context("an empty schedstat")?;
            return Ok(nanoseconds.parse::<f64>()? / 1e9);
        }
    }
    anyhow::bail!("no thread {name}")
}

fn read(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).with_context(|| path.display().to_string())
}

/// What the network allocates, as qvl-alloc's plans are tested with.
const TRACES: [(&str, &str); 3] = [
    ("prefill", include_str!("../../crates/qvl-alloc/traces/prefill_512.txt")),
    ("vision", include_str!("../../crates/qvl-alloc/traces/vision_1024x768.txt")),
    ("decode", include_str!("../../crates/qvl-alloc/traces/decode_16.txt")),
];
const ALIGN: usize = 64;
const PAGE: usize = 4096;
const TRACE_TIME: Duration = Duration::from_secs(2);
/// Operations between two looks at the fragmentation.
const LOOK_EACH: u64 = 10_007;
