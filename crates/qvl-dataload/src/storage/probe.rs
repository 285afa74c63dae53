//! Measuring a drive with the files that are on it.

mod choose;

use std::fmt;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

pub use choose::{Measurements, Point, Rate, choose};

use super::file::Mode;
use super::{DataFile, Done, Engine, Extent, Reader, Request, Storage, window};
use crate::buffer::{Buffer, Recycled};
use crate::source::shown;
use crate::{Error, Result};
use choose::speed;

/// What a drive can do, and how to read from it. Its `Display` is a table.
#[derive(Clone, Debug)]
pub struct Drive {
    /// The file or folder that was given.
    pub path: PathBuf,
    /// What was measured.
    pub measured: Measurements,
    /// Bytes to have in flight.
    pub readahead_bytes: usize,
    /// How to read these files.
    pub choice: Storage,
    /// Why, in a sentence.
    pub because: String,
}

impl Drive {
    /// Measures with a file, or with the files under a folder, which are taken for those that will be read. It is
    /// done within about `limit`; a few seconds give figures that repeat, less gives fewer of them.
    ///
    /// It reads only. It drops these files from the page cache first, so whoever uses them meanwhile waits for the
    /// drive. Caches below the system (of the drive, of the host of a virtual machine) are beyond its reach. So each
    /// figure is measured on the next part of the files, and what is compared with direct reads before and after
    /// them; but with files that are few and small, all figures are too high.
    ///
    /// # Errors
    /// [`Error::NoSamples`] if there is no file of 4 KiB or more; [`Error::Missing`] and [`Error::Read`].
    pub fn probe(path: &Path, limit: Duration) -> Result<Self> {
        let deadline = Instant::now() + limit;
        let found = Found::under(path, Instant::now() + limit / 20)?;
        Self::of(path, found, deadline)
    }

    /// The same with a file of `bytes` that is written into `folder` first and removed after, for a drive with no
    /// files yet. The time for writing is not part of `limit`.
    ///
    /// # Errors
    /// [`Error::Storage`] if it cannot be written; as [`Drive::probe`].
    pub fn probe_scratch(folder: &Path, bytes: u64, limit: Duration) -> Result<Self> {
        let scratch = Scratch::write(folder, bytes)?;
        let found = Found::under(&scratch.path, Instant::now() + limit)?;
        Self::of(folder, Found { all_bytes: None, ..found }, Instant::now() + limit)
    }

    fn of(path: &Path, found: Found, deadline: Instant) -> Result<Self> {
        let mut measured = Measurements {
            data_bytes: found.all_bytes,
            memory_bytes: available_bytes(),
            in_memory: found.files.first().map_or(Ok(false), |(file, _)| in_memory(file))?,
            ..Measurements::default()
        };
        let mut bench =
            Bench { blocks: found.blocks(), files: found.files, buffers: Recycled::new(BUFFERS_BYTES) };
        bench.run(&mut measured, deadline)?;
        let (choice, because) = choose(&measured);
        let readahead_bytes = measured.readahead_bytes();
        Ok(Self { path: path.to_owned(), measured, readahead_bytes, choice, because })
    }
}

/// The files to measure with.
struct Found {
    files: Vec<(DataFile, u64)>,
    /// Bytes of all files there, should these not be all.
    all_bytes: Option<u64>,
}

impl Found {
    /// Files under a path in the order of their names, until there are enough.
    fn under(path: &Path, deadline: Instant) -> Result<Self> {
        let failed = |path: &Path, e| DataFile::once(path).failed(e);
        let mut paths = vec![path.to_owned()];
        let (mut found, mut all_bytes, mut complete) = (Vec::new(), 0u64, true);
        while let Some(next) = paths.pop() {
            // Links lead out of the folder or round in circles; only the path that was given may be one.
            let metadata = if next == path { next.metadata() } else { next.symlink_metadata() };
            let metadata = metadata.map_err(|e| failed(&next, e))?;
            if metadata.is_dir() {
                let entries = next.read_dir().map_err(|e| failed(&next, e))?;
                let inside: std::io::Result<Vec<PathBuf>> = entries.map(|e| e.map(|e| e.path())).collect();
                let mut inside = inside.map_err(|e| failed(&next, e))?;
                inside.sort_by(|a, b| b.cmp(a));
                paths.extend(inside);
            } else if metadata.is_file() {
                all_bytes += metadata.len();
                if metadata.len() >= BLOCK_BYTES_MIN && found.len() < FILES_MAX {
                    found.push((next, metadata.len()));
                }
            }
            if Instant::now() > deadline && !found.is_empty() {
                complete = false;
                break;
            }
        }
        if found.is_empty() {
            let what = "no file of 4 KiB or more to measure with".to_owned();
            return Err(Error::NoSamples { name: shown(path), what });
        }
        // Opening is part of reading many files, and a few stay open as they would.
        let file = if found.len() <= FILES_OPEN_MAX { DataFile::kept } else { DataFile::once };
        let files = found.into_iter().map(|(path, bytes)| (file(path), bytes)).collect();
        Ok(Self { files, all_bytes: complete.then_some(all_bytes) })
    }

    fn blocks(&self) -> Blocks {
        Blocks { files: self.files.clone(), file: 0, offset: 0 }
    }
}

/// One block after the other through all files, and round again.
struct Blocks {
    files: Vec<(DataFile, u64)>,
    file: usize,
    offset: u64,
}

impl Blocks {
    /// The next block of at most `bytes`; a file ends with a shorter one. Whether it is the last before going round.
    fn next(&mut self, bytes: usize) -> (Extent, bool) {
        let (file, len) = &self.files[self.file];
        let bytes = (len - self.offset).min(bytes as u64) as usize;
        let extent = Extent { file: file.clone(), offset: self.offset, bytes };
        self.offset += bytes as u64;
        let ends = self.offset >= *len;
        if ends {
            (self.file, self.offset) = ((self.file + 1) % self.files.len(), 0);
        }
        (extent, ends && self.file == 0)
    }
}

struct Bench {
    blocks: Blocks,
    files: Vec<(DataFile, u64)>,
    buffers: Recycled,
}

impl Bench {
    /// Measures until the deadline, what decides first.
    fn run(&mut self, measured: &mut Measurements, deadline: Instant) -> Result<()> {
        // Shares of the time: two for each of the four runs through an empty cache.
        let points = DEPTHS.len() * BLOCKS_BYTES.len();
        let share = deadline.saturating_duration_since(Instant::now()) / (points as u32 + 10);
        self.buffered(measured, 2 * share)?;
        measured.uring = Storage::Uring { depth: 1, direct: true }.start().is_ok();
        match self.latency(share) {
            Ok(latency) => measured.latency = latency,
            Err(e @ Error::Storage { .. }) => measured.direct_refused = Some(e.to_string()),
            Err(e) => return Err(e),
        }
        if measured.direct_refused.is_none() {
            for block_bytes in BLOCKS_BYTES {
                for depth in DEPTHS {
                    if Instant::now() + share / 2 > deadline {
                        break;
                    }
                    let storage = match measured.uring {
                        true => Storage::Uring { depth, direct: true },
                        false => Storage::Pool { threads: depth, direct: true },
                    };
                    let mut engine = storage.start()?;
                    if let Some(rate) = self.rate(&mut *engine, storage, depth, block_bytes, share, false)? {
                        measured.direct.push(Point { depth, block_bytes, rate });
                    }
                }
            }
        }
        // Once more: if caches below the system have the files by now, they have helped the direct reads too.
        self.buffered(measured, 2 * share)?;
        measured.buffered_warm = self.warm(share)?;
        Ok(())
    }

    /// Through an empty page cache; what is faster than it was replaces it.
    fn buffered(&mut self, measured: &mut Measurements, time: Duration) -> Result<()> {
        if !can_evict() {
            return Ok(());
        }
        let faster = |before: Option<Rate>, now: Option<Rate>| match (before, now) {
            (Some(before), Some(now)) if before.bytes_per_s > now.bytes_per_s => Some(before),
            (before, now) => now.or(before),
        };
        let plain = Storage::Buffered { readahead_bytes: 0 };
        let cold = self.cold(plain, || Ok(Box::new(Plain::default())), time)?;
        measured.buffered_cold = faster(measured.buffered_cold, cold);
        let ahead = Storage::default();
        let told = self.cold(ahead, || ahead.start(), time)?;
        measured.buffered_ahead = faster(measured.buffered_ahead, told);
        Ok(())
    }

    /// With an empty page cache, at each of several times.
    fn cold(
        &mut self,
        storage: Storage,
        start: impl Fn() -> Result<Box<dyn Engine>>,
        time: Duration,
    ) -> Result<Option<Rate>> {
        let mut parts = Parts::default();
        let deadline = Instant::now() + time;
        for part in 0..PARTS {
            for (file, _) in &self.files {
                evict(file)?;
            }
            let mut engine = start()?;
            let (depth, block_bytes) = (engine.depth(), COLD_BLOCK_BYTES);
            let left = deadline.saturating_duration_since(Instant::now()) / (PARTS - part);
            self.part(&mut parts, &mut *engine, storage, depth, block_bytes, left, true)?;
        }
        Ok(parts.rate())
    }

    fn warm(&mut self, time: Duration) -> Result<Option<Rate>> {
        let (file, len) = self.files[0].clone();
        let bytes = len.min(WARM_BYTES) as usize;
        let extent = Extent { file, offset: 0, bytes };
        let mut parts = Parts::default();
        let deadline = Instant::now() + time;
        let mut reader = Reader::new(&self.buffers);
        // Once to fill the cache and to touch the buffer.
        drop(reader.read(&extent)?);
        for part in 0..PARTS {
            let (since, mut read_bytes) = (Instant::now(), 0);
            let left = deadline.saturating_duration_since(since) / (PARTS - part);
            while read_bytes == 0 || since.elapsed() < left {
                read_bytes += reader.read(&extent)?.len() as u64;
            }
            parts.add(read_bytes, since.elapsed());
        }
        Ok(parts.rate())
    }

    fn latency(&mut self, time: Duration) -> Result<Option<Duration>> {
        let storage = Storage::Pool { threads: 1, direct: true };
        let mut times = Vec::new();
        let deadline = Instant::now() + time;
        while times.len() < 5 || (Instant::now() < deadline && times.len() < 1000) {
            // One small read in each large block, so that the drive has not read it ahead for the last one.
            let (block, _) = self.blocks.next(1 << 20);
            let extent = Extent { bytes: block.bytes.min(BLOCK_BYTES_MIN as usize), ..block };
            let buffer = Buffer::take(&self.buffers, storage.room_bytes(&extent))?;
            // By this thread: handing it to another would be measured too.
            let since = Instant::now();
            drop(window::read(&extent, Mode::Direct, buffer, || true)?);
            times.push(since.elapsed());
        }
        times.sort();
        Ok(times.get(times.len() / 2).copied())
    }

    fn rate(
        &mut self,
        engine: &mut dyn Engine,
        storage: Storage,
        depth: usize,
        block_bytes: usize,
        time: Duration,
        one_round: bool,
    ) -> Result<Option<Rate>> {
        let mut parts = Parts::default();
        for _ in 0..PARTS {
            self.part(&mut parts, engine, storage, depth, block_bytes, time / PARTS, one_round)?;
        }
        Ok(parts.rate())
    }

    /// Keeps `depth` reads in flight for some time, or until the files have been read once.
    fn part(
        &mut self,
        parts: &mut Parts,
        engine: &mut dyn Engine,
        storage: Storage,
        depth: usize,
        block_bytes: usize,
        time: Duration,
        one_round: bool,
    ) -> Result<()> {
        self.warm_up(storage, depth, block_bytes)?;
        let since = Instant::now();
        let (mut in_flight, mut bytes, mut ended) = (0, 0, false);
        loop {
            while in_flight < depth && !ended {
                let (extent, last) = self.blocks.next(block_bytes);
                let buffer = Buffer::take(&self.buffers, storage.room_bytes(&extent))?;
                engine.submit(Request { tag: 0, extent, buffer });
                in_flight += 1;
                ended = last && one_round;
            }
            let Some(done) = engine.complete(true) else { break };
            in_flight -= 1;
            bytes += done.result?.len() as u64;
            ended = ended || since.elapsed() >= time;
        }
        parts.add(bytes, since.elapsed());
        Ok(())
    }

    /// Touches the buffers that will be used: fresh memory would be measured instead of the drive.
    fn warm_up(&self, storage: Storage, depth: usize, block_bytes: usize) -> Result<()> {
        let (file, _) = &self.files[0];
        let extent = Extent { file: file.clone(), offset: 0, bytes: block_bytes };
        let room = storage.room_bytes(&extent);
        let touched: Result<Vec<Buffer>> = (0..depth)
            .map(|_| {
                let mut buffer = Buffer::take(&self.buffers, room)?;
                buffer.fill(1);
                Ok(buffer)
            })
            .collect();
        touched.map(drop)
    }
}

/// Repetitions of one measurement.
#[derive(Default)]
struct Parts {
    count: u32,
    bytes: u64,
    time: Duration,
    slowest: Option<f64>,
    fastest: f64,
}

impl Parts {
    fn add(&mut self, bytes: u64, time: Duration) {
        let seconds = time.as_secs_f64();
        if bytes == 0 || seconds == 0.0 {
            return;
        }
        let rate = bytes as f64 / seconds;
        self.count += 1;
        self.bytes += bytes;
        self.time += time;
        self.slowest = Some(self.slowest.unwrap_or(rate).min(rate));
        self.fastest = self.fastest.max(rate);
    }

    fn rate(&self) -> Option<Rate> {
        let slowest = self.slowest?;
        let bytes_per_s = self.bytes as f64 / self.time.as_secs_f64();
        Some(Rate { bytes_per_s, spread: 1.0 - slowest / self.fastest })
    }
}

/// The engine of somebody who does not read ahead.
#[derive(Default)]
struct Plain {
    request: Option<Request>,
}

impl Engine for Plain {
    fn depth(&self) -> usize {
        1
    }

    fn submit(&mut self, request: Request) {
        self.request = Some(request);
    }

    fn complete(&mut self, _: bool) -> Option<Done> {
        let Request { tag, extent, buffer } = self.request.take()?;
        let since = Instant::now();
        let result = window::read(&extent, Mode::Buffered, buffer, || true);
        Some(Done { tag, result, elapsed: since.elapsed() })
    }
}

/// A file that is removed again.
struct Scratch {
    path: PathBuf,
}

impl Scratch {
    fn write(folder: &Path, bytes: u64) -> Result<Self> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = folder.join(format!(".qvl-probe-{}-{number}", std::process::id()));
        let failed = |e: std::io::Error| Error::Storage {
            what: "a file to probe with",
            why: format!("{}: cannot be written: {e}", shown(&path)),
        };
        let mut file = File::create_new(&path).map_err(failed)?;
        let scratch = Self { path: path.clone() };
        // Bytes that no drive or file system can shorten: xorshift.
        let mut state = 0x9e37_79b9_7f4a_7c15u64;
        let mut block = vec![0u8; 1 << 20];
        let mut left = bytes;
        while left > 0 {
            for word in block.chunks_exact_mut(8) {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                word.copy_from_slice(&state.to_le_bytes());
            }
            let count = left.min(block.len() as u64);
            file.write_all(&block[..count as usize]).map_err(failed)?;
            left -= count;
        }
        // What is not written yet cannot be dropped from the page cache.
        file.sync_all().map_err(failed)?;
        Ok(scratch)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // It may have been removed already.
        let _ = std::fs::remove_file(&self.path);
    }
}

fn can_evict() -> bool {
    cfg!(target_os = "linux")
}

/// Drops the pages of a file that are the same on the drive.
#[cfg(target_os = "linux")]
fn evict(file: &DataFile) -> Result<()> {
    file.with(|file| Ok(rustix::fs::fadvise(file, 0, None, rustix::fs::Advice::DontNeed)?))
}

#[cfg(not(target_os = "linux"))]
fn evict(_: &DataFile) -> Result<()> {
    Ok(())
}

/// Whether a file system keeps its files in memory, without a drive.
#[cfg(target_os = "linux")]
fn in_memory(file: &DataFile) -> Result<bool> {
    const TMPFS: u64 = 0x0102_1994;
    const RAMFS: u64 = 0x8584_58f6;
    file.with(|file| Ok(matches!(rustix::fs::fstatfs(file)?.f_type as u64 & 0xffff_ffff, TMPFS | RAMFS)))
}

#[cfg(not(target_os = "linux"))]
fn in_memory(_: &DataFile) -> Result<bool> {
    Ok(false)
}

/// Memory that the page cache could take, as Linux says it.
fn available_bytes() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

impl fmt::Display for Drive {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let measured = &self.measured;
        writeln!(f, "{}", self.path.display())?;
        let rate = |rate: Option<Rate>| match rate {
            Some(rate) => format!("{} (varies by {:.0} %)", speed(rate.bytes_per_s), rate.spread * 100.0),
            None => "not measured".to_owned(),
        };
        writeln!(f, "  page cache empty           {}", rate(measured.buffered_cold))?;
        writeln!(f, "  page cache empty, told     {}", rate(measured.buffered_ahead))?;
        writeln!(f, "  page cache full            {}", rate(measured.buffered_warm))?;
        match &measured.direct_refused {
            Some(why) => writeln!(f, "  direct                     {why}")?,
            None => {
                let by = if measured.uring { "io_uring" } else { "threads" };
                write!(f, "  direct, by {by:<8} at depth")?;
                DEPTHS.iter().try_for_each(|depth| write!(f, " {depth:>7}"))?;
                writeln!(f)?;
                for block_bytes in BLOCKS_BYTES {
                    write!(f, "    {:>5} KiB, GB/s           ", block_bytes / 1024)?;
                    for depth in DEPTHS {
                        let at = |p: &&Point| p.depth == depth && p.block_bytes == block_bytes;
                        match measured.direct.iter().find(at) {
                            Some(point) => write!(f, " {:>7.2}", point.rate.bytes_per_s / 1e9)?,
                            None => write!(f, " {:>7}", "-")?,
                        }
                    }
                    writeln!(f)?;
                }
            }
        }
        if let Some(latency) = measured.latency {
            writeln!(f, "  4 KiB at depth 1           {:.1} us", latency.as_secs_f64() * 1e6)?;
        }
        writeln!(
            f,
            "  to have in flight          {:.1} MiB",
            self.readahead_bytes as f64 / f64::from(1 << 20)
        )?;
        write!(f, "  choice                     {}: {}", self.choice, self.because)
    }
}

const DEPTHS: [usize; 5] = [1, 4, 8, 16, 32];
const BLOCKS_BYTES: [usize; 3] = [64 << 10, 256 << 10, 1 << 20];
/// A block of reads through the page cache, about that of a large picture.
const COLD_BLOCK_BYTES: usize = 1 << 20;
const BLOCK_BYTES_MIN: u64 = 4096;
/// Times that each speed is measured.
const PARTS: u32 = 3;
/// Files that are measured with: more tell nothing new, and looking at them takes time.
const FILES_MAX: usize = 10_000;
const FILES_OPEN_MAX: usize = 64;
/// What is read again and again out of the page cache: more than the caches of a processor hold.
const WARM_BYTES: u64 = 64 << 20;
/// Buffers of the largest depth and block, and the one for the page cache.
const BUFFERS_BYTES: usize = 256 << 20;
