//! Moving bytes: a drive streamed through segments beside plain reads, overlap with computing, a walk under a memory
//! limit beside a mapped file, a link of a set speed, and what a chunk costs.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::hint::black_box;
use std::io::Write;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use memmap2::MmapMut;
use qvl_transfer::device::Device;
use qvl_transfer::device::link::{LinkMemory, LinkSettings};
use qvl_transfer::drive::{DriveFile, FileRange, ReadMode};
use qvl_transfer::source::Memory;
use qvl_transfer::{
    HostDevice, Io, LayerStream, LinkDevice, Settings, Ticket, Trace, Transfer, TransferEngine,
};
use serde_json::json;

use crate::emit;
use crate::group::Group;

#[derive(clap::Args)]
pub(crate) struct FileArgs {
    /// The file to read; `transfer-file` writes it.
    #[arg(long, value_name = "FILE")]
    file: PathBuf,
}

#[derive(clap::Args)]
pub(crate) struct WriteArgs {
    #[command(flatten)]
    file: FileArgs,
    /// Its length.
    #[arg(long, value_name = "MIB")]
    mebibytes: u64,
}

#[derive(clap::Args)]
pub(crate) struct ReadArgs {
    #[command(flatten)]
    file: FileArgs,
    /// Threads, each with one read under way.
    #[arg(long, value_name = "N")]
    depth: usize,
    /// Bytes of a read.
    #[arg(long, value_name = "KIB")]
    kibibytes: usize,
    /// Bytes of memory that all threads read into in turn; 0 is a read's for each.
    #[arg(long, value_name = "MIB", default_value_t = 0)]
    memory_mebibytes: usize,
}

/// How the engine reads; the default is its own.
#[derive(clap::Args)]
pub(crate) struct EngineArgs {
    /// Segments that the file is cut into.
    #[arg(long, value_name = "N", default_value_t = 36)]
    segments: u64,
    /// Chunks under way; 0 is the default.
    #[arg(long, value_name = "N", default_value_t = 0)]
    depth: usize,
    /// Bytes of a chunk; 0 is the default.
    #[arg(long, value_name = "KIB", default_value_t = 0)]
    chunk_kibibytes: usize,
    /// auto, threads or uring.
    #[arg(long, value_name = "HOW", default_value = "auto")]
    io: String,
}

#[derive(clap::Args)]
pub(crate) struct StreamArgs {
    #[command(flatten)]
    file: FileArgs,
    #[command(flatten)]
    engine: EngineArgs,
    /// Segments that there is memory for.
    #[arg(long, value_name = "N", default_value_t = 4)]
    window: u64,
}

#[derive(clap::Args)]
pub(crate) struct OverlapArgs {
    #[command(flatten)]
    file: FileArgs,
    #[command(flatten)]
    engine: EngineArgs,
}

#[derive(clap::Args)]
pub(crate) struct WalkArgs {
    #[command(flatten)]
    file: FileArgs,
    #[command(flatten)]
    engine: EngineArgs,
    /// Through a mapping of the file, in place of streaming it.
    #[arg(long)]
    mapped: bool,
    /// Bytes of memory that the process may have, the page cache that it fills included.
    #[arg(long, value_name = "MIB")]
    limit_mebibytes: u64,
    /// Bytes that segments may take.
    #[arg(long, value_name = "MIB")]
    budget_mebibytes: u64,
    /// How often the file is walked.
    #[arg(long, value_name = "N", default_value_t = 6)]
    rounds: usize,
}

#[derive(clap::Args)]
pub(crate) struct LinkArgs {
    /// The link's speed.
    #[arg(long, value_name = "GB/S")]
    gigabytes: f64,
    /// Bytes in all.
    #[arg(long, value_name = "MIB", default_value_t = 1024)]
    mebibytes: usize,
    /// Bytes of a copy.
    #[arg(long, value_name = "KIB", default_value_t = 1024)]
    chunk_kibibytes: usize,
}

#[derive(clap::Args)]
pub(crate) struct OverheadArgs {
    /// Chunks in all.
    #[arg(long, value_name = "N", default_value_t = 400_000)]
    chunks: usize,
}

/// Writes bytes that do not compress, the same each time.
pub(crate) fn write(args: &WriteArgs) -> Result<()> {
    let path = &args.file.file;
    let bytes = args.mebibytes << 20;
    if path.metadata().is_ok_and(|metadata| metadata.len() == bytes) {
        return Ok(());
    }
    // Renamed at the end, so an interrupted run is not taken for a whole one.
    let part = path.with_extension("part");
    let mut file = File::create(&part).with_context(|| part.display().to_string())?;
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut block = vec![0; 1 << 20];
    for _ in 0..args.mebibytes {
        for word in block.chunks_exact_mut(8) {
            // xorshift64: G. Marsaglia, "Xorshift RNGs", 2003.
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            word.copy_from_slice(&state.to_le_bytes());
        }
        file.write_all(&block)?;
    }
    file.sync_all()?;
    std::fs::rename(&part, path)?;
    Ok(())
}

/// A plain loop of a few threads: each reads the next block past the page cache into its own memory, which lies in large
/// pages, as ours does: with small ones a virtual drive gets many short parts in place of one request.
pub(crate) fn read(args: &ReadArgs) -> Result<()> {
    ensure!(args.depth > 0 && args.kibibytes > 0, "nothing to read");
    let path = &args.file.file;
    let file = OpenOptions::new().read(true).custom_flags(O_DIRECT).open(path);
    let file = file.with_context(|| format!("{}, past the page cache", path.display()))?;
    let len = file.metadata()?.len();
    let block = args.kibibytes << 10;
    let next = AtomicU64::new(0);
    let room = block.max((args.memory_mebibytes << 20) / args.depth).next_multiple_of(LARGE_PAGE);
    let mut memory = crate::limits::buffer(args.depth * room + LARGE_PAGE)?;
    memory.fill(1);
    let first = memory.as_ptr().align_offset(LARGE_PAGE);
    let buffers: Vec<&mut [u8]> = memory[first..].chunks_exact_mut(room).take(args.depth).collect();
    let read = |buffer: &mut [u8]| -> Result<()> {
        // All of a large memory is used only if it is read into from its beginning to its end, and again.
        let mut rooms = (0..if args.memory_mebibytes > 0 { buffer.len() / block } else { 1 }).cycle();
        loop {
            let offset = next.fetch_add(block as u64, Ordering::Relaxed);
            if offset >= len {
                return Ok(());
            }
            let first = rooms.next().unwrap_or(0) * block;
            let wanted = usize::try_from(len - offset)?.min(block);
            let mut filled = 0;
            while filled < wanted {
                match file.read_at(&mut buffer[first..first + block][filled..], offset + filled as u64)? {
                    0 => bail!("{} became shorter", path.display()),
                    bytes => filled += bytes,
                }
            }
        }
    };
    let read = &read;
    let start = Instant::now();
    std::thread::scope(|scope| -> Result<()> {
        let threads: Vec<_> = buffers.into_iter().map(|buffer| scope.spawn(move || read(buffer))).collect();
        threads
            .into_iter()
            .try_for_each(|thread| thread.join().unwrap_or_else(|_| bail!("a reader panicked")))
    })?;
    let seconds = start.elapsed().as_secs_f64();
    emit(&json!({ "metric": "drive-read", "bytes_per_s": len as f64 / seconds }))
}

/// The whole file once through a [`LayerStream`], by a consumer who only looks at the first byte.
pub(crate) fn stream(args: &StreamArgs) -> Result<()> {
    let file = open(&args.file.file)?;
    let segments = segments(&file, &args.engine)?;
    let device = HostDevice::new(u64::MAX);
    let largest = segments.iter().map(|segment| device.charge(segment.bytes() as usize)).max().unwrap_or(0);
    let engine = Arc::new(TransferEngine::new(device, settings(&args.engine, None)?)?);
    warm_pages(&engine, largest, args.window as usize)?;
    let budget = largest as u64 * args.window;
    let count = segments.len();
    let start = Instant::now();
    let mut stream = LayerStream::builder(engine.clone(), budget).segments(segments).build()?;
    for _ in 0..count {
        black_box(stream.next()?.first().copied());
    }
    let seconds = start.elapsed().as_secs_f64();
    emit(&json!({
        "metric": "drive-stream",
        "bytes_per_s": file.len() as f64 / seconds,
        "io": engine.stats().io,
        "read": file.explain(),
        "chunks": engine.stats().chunks,
    }))
}

/// The file through segments, with as much computing as reading: each read and then computed with, and read ahead.
pub(crate) fn overlap(args: &OverlapArgs) -> Result<()> {
    let file = open(&args.file.file)?;
    let segments = segments(&file, &args.engine)?;
    let trace = Trace::new(1 << 18);
    let device = HostDevice::new(u64::MAX);
    let largest = segments.iter().map(|segment| device.charge(segment.bytes() as usize)).max().unwrap_or(0);
    let engine = Arc::new(TransferEngine::new(device, settings(&args.engine, Some(trace.clone()))?)?);
    warm_pages(&engine, largest, WINDOW)?;
    let fetch = |segment: &FileRange| -> Result<_> {
        let memory = engine.device().allocate(segment.bytes() as usize)?;
        Ok(engine
            .submit(Transfer::new(segment.clone(), memory))
            .map_err(|failed| failed.error)?
            .wait()?
            .memory)
    };
    // What a read takes, from every third segment.
    let mut times = Vec::new();
    for segment in segments.iter().step_by(3) {
        let start = Instant::now();
        drop(fetch(segment)?);
        times.push(start.elapsed());
    }
    times.sort();
    let compute = times[times.len() / 2];
    // Both in one process and with the same times: what the drive gives differs from process to process.
    let bytes = file.len() as f64;
    trace.clear();
    let start = Instant::now();
    for segment in &segments {
        let memory = fetch(segment)?;
        let began = Instant::now();
        work(&memory, compute);
        trace.record(qvl_transfer::trace::Stage::Compute, 0, 0, 0, began, Instant::now());
    }
    let blocking = (bytes / start.elapsed().as_secs_f64(), trace.overlap_ratio());
    trace.clear();
    let (budget, count) = (largest as u64 * WINDOW as u64, segments.len());
    let start = Instant::now();
    let mut stream =
        LayerStream::builder(engine.clone(), budget).segments(segments).trace(trace.clone()).build()?;
    for _ in 0..count {
        work(&stream.next()?, compute);
    }
    let ahead = (bytes / start.elapsed().as_secs_f64(), trace.overlap_ratio());
    emit(&json!({
        "metric": "drive-overlap",
        "blocking_bytes_per_s": blocking.0,
        "blocking_overlap_ratio": blocking.1,
        "ahead_bytes_per_s": ahead.0,
        "ahead_overlap_ratio": ahead.1,
        "compute_s": compute.as_secs_f64(),
    }))
}

/// Sums segments up in a circle under a limit of memory.
pub(crate) fn walk(args: &WalkArgs) -> Result<()> {
    let limit = args.limit_mebibytes << 20;
    // What is in the page cache already is charged to another group, and would be read from there without limit.
    drop_from_cache(&args.file.file)?;
    let group = Group::enter(limit)?;
    let file = open(&args.file.file)?;
    let segments = segments(&file, &args.engine)?;
    let (mut total, mut peak_before, mut stats) = (0_u64, 0, None);
    let start;
    if args.mapped {
        let plain = File::open(&args.file.file)?;
        // SAFETY: nobody changes the file while it is measured.
        #[expect(unsafe_code, reason = "the file is the bench's own")]
        let map = unsafe { memmap2::Mmap::map(&plain)? };
        #[cfg(target_os = "linux")]
        map.advise(memmap2::Advice::Sequential)?;
        start = Instant::now();
        for _ in 0..args.rounds {
            for segment in &segments {
                let first = segment.offset() as usize;
                total = total.wrapping_add(sum(&map[first..first + segment.bytes() as usize]));
            }
        }
    } else {
        let budget = args.budget_mebibytes << 20;
        let engine = Arc::new(TransferEngine::new(HostDevice::new(budget), settings(&args.engine, None)?)?);
        let count = segments.len();
        peak_before = resident_bytes("VmRSS")?;
        start = Instant::now();
        let mut stream = LayerStream::builder(engine, budget).segments(segments).build()?;
        for _ in 0..args.rounds * count {
            total = total.wrapping_add(sum(&stream.next()?));
        }
        stats = Some(stream.stats());
    }
    let seconds = start.elapsed().as_secs_f64();
    let bytes = (file.len() * args.rounds as u64) as f64;
    let peak = resident_bytes("VmHWM")?;
    let over = (peak as f64 - (args.budget_mebibytes << 20) as f64) / f64::from(1 << 20);
    emit(&json!({
        "metric": "drive-walk",
        "bytes_per_s": bytes / seconds,
        "sum": total,
        "limit": group.kind(),
        "peak_over_budget_mib": over,
        "before_mib": peak_before >> 20,
        "resident_hits": stats.as_ref().map(|stats| stats.resident_hits),
        "wait_s": stats.as_ref().map(|stats| stats.wait_seconds),
        "compute_s": stats.as_ref().map(|stats| stats.compute_seconds),
        "plans": stats.as_ref().map(|stats| stats.plans),
    }))
}

/// Copies from a ring of memory, as page-locked memory is, over a link of a set speed.
pub(crate) fn link(args: &LinkArgs) -> Result<()> {
    let piece = RING_MEBIBYTES << 20;
    let count = (args.mebibytes / RING_MEBIBYTES).max(1);
    let device = LinkDevice::new(LinkSettings {
        bytes_per_s: args.gigabytes * 1e9,
        latency: Duration::from_micros(10),
        copies_from_anywhere: true,
        ..LinkSettings::default()
    })?;
    let chunk_bytes = args.chunk_kibibytes << 10;
    let settings = Settings { chunk_bytes, staging_bytes: 4 * chunk_bytes, ..Settings::default() };
    let engine = TransferEngine::new(device, settings)?;
    let source = Arc::new(Memory::new(touched(piece)?));
    let mut rate = 0.0;
    // The first round touches the device's pages.
    for pieces in [4, count] {
        let mut under_way = VecDeque::new();
        let start = Instant::now();
        for _ in 0..pieces {
            let memory =
                if under_way.len() < 3 { engine.device().allocate(piece)? } else { next(&mut under_way)? };
            let ticket =
                engine.submit(Transfer::new(source.clone(), memory)).map_err(|failed| failed.error)?;
            under_way.push_back(ticket);
        }
        while !under_way.is_empty() {
            drop(next(&mut under_way)?);
        }
        rate = (pieces * piece) as f64 / start.elapsed().as_secs_f64();
    }
    emit(&json!({ "metric": "link-rate", "bytes_per_s": rate, "share": rate / (args.gigabytes * 1e9) }))
}

/// The memory of the transfer that was begun first.
fn next(under_way: &mut VecDeque<Ticket<LinkDevice>>) -> Result<LinkMemory> {
    Ok(under_way.pop_front().context("nothing is under way")?.wait()?.memory)
}

/// Chunks of a block from memory to memory: nearly nothing to copy.
pub(crate) fn overhead(args: &OverheadArgs) -> Result<()> {
    let bytes = args.chunks * BLOCK;
    let device = HostDevice::new(u64::MAX);
    // One worker: the time of a chunk, not how many there are at once.
    let settings = Settings { chunk_bytes: BLOCK, depth: 1, ..Settings::default() };
    let engine = TransferEngine::new(device, settings)?;
    let small = Arc::new(touched(64 * BLOCK)?);
    let source = qvl_transfer::source::Fill::new("blocks", bytes as u64, move |at, into: &mut [u8]| {
        let from = (at as usize / BLOCK % 64) * BLOCK;
        into.copy_from_slice(&small[from..from + into.len()]);
        Ok(())
    });
    let source = Arc::new(source);
    let memory = engine.device().allocate(bytes)?;
    let memory =
        engine.submit(Transfer::new(source.clone(), memory)).map_err(|failed| failed.error)?.wait()?.memory;
    let start = Instant::now();
    let memory = engine.submit(Transfer::new(source, memory)).map_err(|failed| failed.error)?.wait()?.memory;
    let all = start.elapsed().as_secs_f64();
    // The copies themselves, by a plain loop.
    let mut to = memory;
    let small = touched(64 * BLOCK)?;
    let start = Instant::now();
    for (index, block) in to.chunks_exact_mut(BLOCK).enumerate() {
        block.copy_from_slice(black_box(&small[(index % 64) * BLOCK..][..BLOCK]));
    }
    let plain = start.elapsed().as_secs_f64();
    let microseconds = (all - plain) / args.chunks as f64 * 1e6;
    emit(&json!({ "metric": "chunk-overhead", "microseconds": microseconds }))
}

fn open(path: &Path) -> Result<DriveFile> {
    Ok(DriveFile::with_mode(path, ReadMode::Direct)?)
}

fn segments(file: &DriveFile, args: &EngineArgs) -> Result<Vec<FileRange>> {
    ensure!(args.segments > 0, "no segments");
    // Whole blocks but for the last, as in a checkpoint that was written for streaming.
    let bytes = file.len().div_ceil(args.segments).next_multiple_of(BLOCK as u64);
    (0..file.len().div_ceil(bytes))
        .map(|index| Ok(file.range(index * bytes, bytes.min(file.len() - index * bytes))?))
        .collect()
}

fn settings(args: &EngineArgs, trace: Option<Trace>) -> Result<Settings> {
    let mut settings = Settings { trace, ..Settings::default() };
    settings.io = match args.io.as_str() {
        "auto" => Io::Auto,
        "threads" => Io::Threads,
        "uring" => Io::Uring,
        other => bail!("--io {other}: auto, threads or uring"),
    };
    if args.depth > 0 {
        settings.depth = args.depth;
    }
    if args.chunk_kibibytes > 0 {
        settings.chunk_bytes = args.chunk_kibibytes << 10;
        settings.staging_bytes = settings.staging_bytes.max(2 * settings.chunk_bytes);
    }
    Ok(settings)
}

/// Touches the memory that will be used, as a process that runs for longer has.
fn warm_pages(engine: &TransferEngine<HostDevice>, bytes: usize, count: usize) -> Result<()> {
    let mut all = Vec::new();
    for _ in 0..count {
        let mut memory = engine.device().allocate(bytes)?;
        memory.fill(1);
        all.push(memory);
    }
    Ok(())
}

/// Memory in large pages where there are such.
fn touched(bytes: usize) -> Result<MmapMut> {
    let mut map = MmapMut::map_anon(bytes)?;
    #[cfg(target_os = "linux")]
    let _ = map.advise(memmap2::Advice::HugePage);
    map.fill(1);
    Ok(map)
}

#[cfg(target_os = "linux")]
fn drop_from_cache(path: &Path) -> Result<()> {
    let file = File::open(path)?;
    // Only what the drive has already can be dropped.
    file.sync_all()?;
    Ok(rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed)?)
}

#[cfg(not(target_os = "linux"))]
fn drop_from_cache(_: &Path) -> Result<()> {
    bail!("how the page cache is emptied of a file is known for Linux only")
}

fn sum(bytes: &[u8]) -> u64 {
    bytes.chunks_exact(8).fold(0, |sum, word| sum.wrapping_add(word.try_into().map_or(0, u64::from_le_bytes)))
}

/// Computes with all bytes, for so long: with each part again and again while it is in the caches, as a product of many
/// rows does, which is what takes as long as reading.
fn work(bytes: &[u8], time: Duration) -> u64 {
    let start = Instant::now();
    let parts = bytes.chunks(PART);
    let share = time.as_secs_f64() / parts.len().max(1) as f64;
    let mut total = 0_u64;
    for (index, part) in parts.enumerate() {
        let until = Duration::from_secs_f64(share * (index + 1) as f64);
        loop {
            total = total.wrapping_add(sum(black_box(part)));
            if start.elapsed() >= until {
                break;
            }
        }
    }
    black_box(total)
}

fn resident_bytes(field: &str) -> Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))
        .context("no such figure")?;
    let kibibytes: u64 = line.trim().trim_end_matches("kB").trim().parse()?;
    Ok(kibibytes << 10)
}

/// Segments that there is memory for in the measurement of overlap.
const WINDOW: usize = 4;
/// Memory that copies over a link come from.
const RING_MEBIBYTES: usize = 16;
const BLOCK: usize = 4096;
/// What is computed with at once.
const PART: usize = 128 << 10;
const LARGE_PAGE: usize = 2 << 20;
#[cfg(any(target_arch = "x86_64", target_arch = "x86"))]
const O_DIRECT: i32 = 0o40000;
#[cfg(not(any(target_arch = "x86_64", target_arch = "x86")))]
const O_DIRECT: i32 = 0o200000;
