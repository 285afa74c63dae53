//! Measures how fast a drive is read in which way, and chooses one.
//!
//! The policy is in `choose`; here is what measures. Ways are measured in turns, so that what disturbs the machine for a
//! while disturbs all of them, and what counts is the median of the turns.

#![expect(unsafe_code, reason = "reads to memory through the ring")]

mod choose;

use std::fmt;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::uring::Ring;
use super::{DriveFile, ReadMode, io_error, system};
use crate::engine::Io;
use crate::memory::Region;
use crate::{Error, Result};

pub use choose::{Choice, choose};

/// A drive, as what is measured.
#[derive(Debug)]
pub enum Drive {}

/// How much is done to measure a drive.
#[derive(Clone, Debug)]
pub struct Effort {
    /// About how long it may read. Each way is measured once however long that takes.
    pub budget: Duration,
    /// How often each way is measured, if the budget is enough.
    pub repeats: usize,
    /// The length of the file that is made in a folder, which is read several times over. On a drive with a cache of
    /// its own, more than that has is needed, and so it is behind a hypervisor.
    pub file_bytes: u64,
    /// Bytes that are under way at most.
    pub bytes_in_flight_max: usize,
}

impl Default for Effort {
    /// 400 ms, 3 times, 256 MiB, and 32 MiB.
    fn default() -> Self {
        Self {
            budget: Duration::from_millis(400),
            repeats: 3,
            file_bytes: 256 << 20,
            bytes_in_flight_max: 32 << 20,
        }
    }
}

/// What was measured of a drive. Its text is a table.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Measurements {
    /// The file that was read.
    pub file: PathBuf,
    /// The length of it, in bytes.
    pub file_bytes: u64,
    /// One for each way.
    pub rows: Vec<Measured>,
    /// Why nothing was read past the page cache, if that is so.
    pub without_direct: Option<String>,
    /// Why nothing was read through the page cache, if that is so.
    pub without_buffered: Option<String>,
    /// Why nothing was read by the ring, if that is so.
    pub without_ring: Option<String>,
}

/// One way of reading and how fast it was.
#[derive(Clone, Debug, PartialEq)]
pub struct Measured {
    /// Who read.
    pub io: Io,
    /// [`ReadMode::Direct`] or [`ReadMode::Buffered`], the latter without anything in the cache.
    pub mode: ReadMode,
    /// Bytes of a read.
    pub chunk_bytes: usize,
    /// Reads that were under way at once.
    pub depth: usize,
    /// Each time it was measured.
    pub bytes_per_s: Vec<f64>,
}

impl Measured {
    /// The median of the times it was measured; 0 if it was not.
    pub fn median(&self) -> f64 {
        let mut rates: Vec<f64> = self.bytes_per_s.iter().copied().filter(|rate| rate.is_finite()).collect();
        rates.sort_by(f64::total_cmp);
        match rates.len() {
            0 => 0.0,
            len => (rates[(len - 1) / 2] + rates[len / 2]) / 2.0,
        }
    }

    /// By how much the fastest time is faster than the slowest, as a share of the median.
    pub fn spread(&self) -> f64 {
        let rates = || self.bytes_per_s.iter().copied().filter(|rate| rate.is_finite());
        let median = self.median();
        if median > 0.0 {
            (rates().fold(0.0, f64::max) - rates().fold(f64::INFINITY, f64::min)) / median
        } else {
            0.0
        }
    }

    /// Bytes that were under way at once.
    pub fn bytes_in_flight(&self) -> usize {
        self.chunk_bytes * self.depth
    }
}

impl fmt::Display for Measured {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { io, mode, chunk_bytes, depth, .. } = self;
        let (io, mode, chunk) = (name(*io), mode_name(*mode), mib(*chunk_bytes));
        write!(f, "{io} {mode} with {depth} x {chunk} ({:.2} GB/s)", self.median() / 1e9)
    }
}

impl fmt::Display for Measurements {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}, {} bytes", self.file.display(), self.file_bytes)?;
        writeln!(f, "{:<8} {:<22} {:>8} {:>6} {:>7} {:>7}", "by", "", "chunk", "depth", "GB/s", "spread")?;
        for row in &self.rows {
            writeln!(
                f,
                "{:<8} {:<22} {:>8} {:>6} {:>7.2} {:>5.0} %",
                name(row.io),
                mode_name(row.mode),
                mib(row.chunk_bytes),
                row.depth,
                row.median() / 1e9,
                row.spread() * 100.0
            )?;
        }
        for (what, why) in [
            ("past the page cache", &self.without_direct),
            ("through the page cache", &self.without_buffered),
            ("by the ring", &self.without_ring),
        ] {
            if let Some(why) = why {
                writeln!(f, "not {what}: {why}")?;
            }
        }
        Ok(())
    }
}

impl Drive {
    /// Measures how fast a file is read, or one that is made in a folder and removed: past the page cache with
    /// different lengths of a read and different numbers of them under way, by threads and by the kernel's ring, and
    /// through the page cache.
    ///
    /// Blocks for about the budget, and before that for as long as it takes to make a file. Reads from several
    /// threads. What a hypervisor or a controller has of the file in memory is read faster than what it has not: a file
    /// larger than that tells more.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::NotAFile`]; [`Error::Setting`] of a file too short to tell.
    pub fn probe(path: impl AsRef<Path>, effort: &Effort) -> Result<Measurements> {
        let path = path.as_ref();
        if path.is_dir() {
            let made = Made::new(path, effort.file_bytes)?;
            return measure(&made.path, effort);
        }
        measure(path, effort)
    }
}

fn measure(path: &Path, effort: &Effort) -> Result<Measurements> {
    let buffered = DriveFile::with_mode(path, ReadMode::Buffered)?;
    if buffered.len() < FILE_BYTES_MIN {
        return Err(Error::Setting {
            name: "path",
            got: format!("{} of {} bytes", path.display(), buffered.len()),
            expected: format!(
                "a file of at least {FILE_BYTES_MIN} bytes is needed, or a folder to make one in"
            ),
        });
    }
    let mut bench = Bench::new(effort)?;
    let mut measurements =
        Measurements { file: path.to_owned(), file_bytes: buffered.len(), ..Measurements::default() };
    let ring = Ring::<Arc<Region>>::new(1);
    measurements.without_ring = ring.as_ref().err().map(ToString::to_string);
    let direct = match DriveFile::with_mode(path, ReadMode::Direct) {
        Ok(direct) => Some(direct),
        Err(error @ Error::DirectRefused { .. }) => {
            measurements.without_direct = Some(error.to_string());
            None
        }
        Err(error) => return Err(error),
    };
    if let Some(direct) = direct {
        let ios: &[Io] = if ring.is_ok() { &[Io::Threads, Io::Uring] } else { &[Io::Threads] };
        for &io in ios {
            bench.deeper(&direct, ReadMode::Direct, io, &DEPTHS)?;
        }
        bench.again(&direct, ReadMode::Direct, 0.4)?;
        // What is enough under way in chunks of one length, in chunks of others.
        let first = choose(&Measurements { rows: bench.rows.clone(), ..Measurements::default() });
        for chunk_bytes in CHUNKS_BYTES {
            let depth = (first.depth * CHUNK_BYTES).div_ceil(chunk_bytes);
            for depth in [depth / 2, depth] {
                bench.way(&direct, ReadMode::Direct, first.io, chunk_bytes, depth)?;
            }
        }
        bench.again(&direct, ReadMode::Direct, 0.8)?;
    }
    match cached_share(&buffered) {
        // To drop it would be at the cost of who has it there.
        Some(share) if share > CACHED_SHARE_MAX => {
            let why =
                format!("{:.0} % of the file are there, which is not how fast the drive is", share * 100.0);
            measurements.without_buffered = Some(why);
        }
        _ => {
            bench.deeper(&buffered, ReadMode::Buffered, Io::Threads, &DEPTHS_BUFFERED)?;
            bench.again(&buffered, ReadMode::Buffered, 1.0)?;
        }
    }
    measurements.rows = bench.rows;
    Ok(measurements)
}

fn cached_share(file: &DriveFile) -> Option<f64> {
    #[cfg(target_os = "linux")]
    return file.inner.cache.as_ref().and_then(super::cached::PageCache::share);
    #[cfg(not(target_os = "linux"))]
    return {
        _ = file;
        None
    };
}

/// What has been measured so far, and what it takes to measure more.
struct Bench<'a> {
    effort: &'a Effort,
    /// How long it has read.
    spent: Duration,
    rows: Vec<Measured>,
    /// For threads.
    memory: Region,
    /// For the ring, whose reads keep it.
    lent: Arc<Region>,
    /// Where in the file the next read begins, so that not the same part is read again and again.
    cursor: AtomicU64,
}

impl<'a> Bench<'a> {
    fn new(effort: &'a Effort) -> Result<Self> {
        let memory = || -> Result<Region> {
            let bytes = effort.bytes_in_flight_max.max(CHUNK_BYTES);
            let no_memory = |error: std::io::Error| Error::OutOfMemory {
                what: format!("memory to measure a drive with (the system says: {error})"),
                bytes: bytes as u64,
                in_use_bytes: 0,
                budget_bytes: bytes as u64,
                remedy: "Lower bytes_in_flight_max",
            };
            let mut memory = Region::map(bytes).map_err(no_memory)?;
            // So that no read is the first to touch a page.
            memory.as_mut_slice().fill(1);
            Ok(memory)
        };
        Ok(Self {
            effort,
            spent: Duration::ZERO,
            rows: Vec::new(),
            memory: memory()?,
            lent: Arc::new(memory()?),
            cursor: AtomicU64::new(0),
        })
    }

    /// Measures with more and more under way, until twice as much gains nothing any more, twice.
    fn deeper(&mut self, file: &DriveFile, mode: ReadMode, io: Io, depths: &[usize]) -> Result<()> {
        let (mut best, mut in_vain) = (0.0, 0);
        for &depth in depths {
            let rate = self.way(file, mode, io, CHUNK_BYTES, depth)?;
            in_vain = if rate < best * GAIN_MIN { in_vain + 1 } else { 0 };
            best = rate.max(best);
            if in_vain == 2 {
                break;
            }
        }
        Ok(())
    }

    /// Measures one way for the first time, if it is one: 0 else.
    fn way(
        &mut self,
        file: &DriveFile,
        mode: ReadMode,
        io: Io,
        chunk_bytes: usize,
        depth: usize,
    ) -> Result<f64> {
        let fits = depth > 0 && depth * chunk_bytes <= self.lent.bytes();
        let is_there =
            |row: &Measured| (row.io, row.mode, row.chunk_bytes, row.depth) == (io, mode, chunk_bytes, depth);
        if !fits || self.rows.iter().any(is_there) {
            return Ok(0.0);
        }
        let rate = self.once(file, io, chunk_bytes, depth)?;
        self.rows.push(Measured { io, mode, chunk_bytes, depth, bytes_per_s: vec![rate] });
        Ok(rate)
    }

    /// Measures what was measured too seldom, in turns, until that share of the budget is spent.
    fn again(&mut self, file: &DriveFile, mode: ReadMode, share: f64) -> Result<()> {
        for turn in 1..self.effort.repeats {
            for row in 0..self.rows.len() {
                let Measured { io, chunk_bytes, depth, .. } = self.rows[row];
                let done = self.rows[row].mode != mode || self.rows[row].bytes_per_s.len() > turn;
                if done || self.spent > self.effort.budget.mul_f64(share) {
                    continue;
                }
                let rate = self.once(file, io, chunk_bytes, depth)?;
                self.rows[row].bytes_per_s.push(rate);
            }
        }
        Ok(())
    }

    fn once(&mut self, file: &DriveFile, io: Io, chunk_bytes: usize, depth: usize) -> Result<f64> {
        let begun = Instant::now();
        let mut ends = match io {
            Io::Uring => self.by_ring(file, chunk_bytes, depth)?,
            Io::Auto | Io::Threads => self.by_threads(file, chunk_bytes, depth)?,
        };
        self.spent += begun.elapsed();
        ends.sort();
        Ok(steady_rate(begun, &ends, chunk_bytes, depth))
    }

    /// Where the next read begins.
    fn next(&self, file: &DriveFile, chunk_bytes: usize) -> u64 {
        let bytes = chunk_bytes as u64;
        let at = self.cursor.fetch_add(bytes, Ordering::Relaxed);
        // In whole chunks of any length.
        let chunks = file.len() / bytes;
        at / bytes % chunks * bytes
    }

    /// Whether that many reads, begun then, are enough.
    fn is_enough(reads: usize, begun: Instant, depth: usize) -> bool {
        reads >= 4 * depth && begun.elapsed() >= SLICE
    }

    /// Reads by a thread for each that is under way; returns when each read ended.
    fn by_threads(&mut self, file: &DriveFile, chunk_bytes: usize, depth: usize) -> Result<Vec<Instant>> {
        let mut memory = std::mem::replace(&mut self.memory, Region::map(1).map_err(lost)?);
        let (reads, stop) = (AtomicUsize::new(0), AtomicBool::new(false));
        let ends = Mutex::new(Ok(Vec::new()));
        let begun = Instant::now();
        let bench = &*self;
        std::thread::scope(|scope| {
            for memory in memory.as_mut_slice().chunks_exact_mut(chunk_bytes).take(depth) {
                let (reads, stop, ends) = (&reads, &stop, &ends);
                let work = move || {
                    let mut own = Vec::new();
                    let mut read = || -> Result<()> {
                        while !stop.load(Ordering::Relaxed)
                            && !Self::is_enough(reads.fetch_add(1, Ordering::Relaxed), begun, depth)
                        {
                            file.read_at(bench.next(file, chunk_bytes), memory, chunk_bytes)?;
                            own.push(Instant::now());
                        }
                        Ok(())
                    };
                    let result = read();
                    let mut ends = ends.lock();
                    match (&mut *ends, result) {
                        (Ok(ends), Ok(())) => ends.append(&mut own),
                        (_, Err(error)) => {
                            stop.store(true, Ordering::Relaxed);
                            *ends = Err(error);
                        }
                        (Err(_), Ok(())) => {}
                    }
                };
                scope.spawn(work);
            }
        });
        self.memory = memory;
        ends.into_inner()
    }

    /// Reads by the ring; returns when each read ended.
    fn by_ring(&mut self, file: &DriveFile, chunk_bytes: usize, depth: usize) -> Result<Vec<Instant>> {
        let mut ring = Ring::new(depth)?;
        let (mut done, mut ends) = (Vec::with_capacity(depth), Vec::new());
        let begun = Instant::now();
        let mut reads = 0;
        let mut places: Vec<usize> = (0..depth).collect();
        loop {
            while !Self::is_enough(reads, begun, depth)
                && let Some(place) = places.pop()
            {
                // SAFETY: the memory is `bytes_in_flight_max` long at least, which `way` checked for `depth` chunks.
                let into = unsafe { self.lent.first().as_ptr().add(place * chunk_bytes) };
                let keep = (place, self.lent.clone());
                let offset = self.next(file, chunk_bytes);
                // SAFETY: as above; no other read has this place, and nobody looks at the memory. The read keeps it.
                unsafe { ring.submit(keep, file, offset, into, chunk_bytes, chunk_bytes) };
                reads += 1;
            }
            if ring.in_flight() == 0 {
                return Ok(ends);
            }
            ring.wait(&mut done);
            let now = Instant::now();
            for ((place, _), result) in done.drain(..) {
                result?;
                ends.push(now);
                places.push(place);
            }
        }
    }
}

fn lost(error: std::io::Error) -> Error {
    io_error(Path::new("memory to measure a drive with"), "map", 0, 1, error)
}

/// Bytes a second while as much was under way as there was to be: without the first reads, and without the last, which
/// have fewer beside them. Of so few that nothing is left, of all.
fn steady_rate(begun: Instant, ends: &[Instant], chunk_bytes: usize, depth: usize) -> f64 {
    let last = ends.len().saturating_sub(depth);
    let (reads, from, to) = match (ends.get(depth - 1), ends.get(last.saturating_sub(1)), ends.last()) {
        (Some(&from), Some(&to), _) if last > depth && to > from => (last - depth, from, to),
        (_, _, Some(&to)) => (ends.len(), begun, to),
        _ => return 0.0,
    };
    let seconds = (to - from).as_secs_f64();
    if seconds > 0.0 { (reads * chunk_bytes) as f64 / seconds } else { 0.0 }
}

/// A file that is made to be read, and removed.
struct Made {
    path: PathBuf,
}

impl Made {
    /// Of bytes that no drive can make shorter, on the drive and not in the page cache when it is there.
    fn new(folder: &Path, bytes: u64) -> Result<Self> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = folder.join(format!(".qvl-transfer-probe-{}-{number}", std::process::id()));
        let failed = |operation, error| io_error(&path, operation, 0, bytes, error);
        let mut file = std::fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .open(&path)
            .map_err(|error| failed("create", error))?;
        let made = Self { path: path.clone() };
        let mut state = 0x9e37_79b9_7f4a_7c15_u64 ^ number;
        let mut part = vec![0; CHUNK_BYTES];
        let mut left = bytes;
        while left > 0 {
            for word in part.chunks_exact_mut(8) {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                word.copy_from_slice(&state.to_le_bytes());
            }
            let now = left.min(part.len() as u64);
            file.write_all(&part[..now as usize]).map_err(|error| failed("write", error))?;
            left -= now;
        }
        // Before that, pages cannot be dropped.
        file.sync_all().map_err(|error| failed("write", error))?;
        system::drop_from_cache(&file);
        Ok(made)
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        // Whoever empties the folder before this does, did it as well.
        let _ = std::fs::remove_file(&self.path);
    }
}

fn name(io: Io) -> &'static str {
    match io {
        Io::Auto => "any",
        Io::Threads => "threads",
        Io::Uring => "the ring",
    }
}

fn mode_name(mode: ReadMode) -> &'static str {
    match mode {
        ReadMode::Auto => "in any mode",
        ReadMode::Direct => "past the page cache",
        ReadMode::Buffered => "through the page cache",
    }
}

/// A number of bytes as people say it.
fn mib(bytes: usize) -> String {
    if bytes.is_multiple_of(1 << 20) {
        format!("{} MiB", bytes >> 20)
    } else {
        format!("{} KiB", bytes >> 10)
    }
}

/// The length of reads with which the depth is found.
const CHUNK_BYTES: usize = 1 << 20;
/// The others that are tried.
const CHUNKS_BYTES: [usize; 5] = [256 << 10, 512 << 10, 2 << 20, 4 << 20, 8 << 20];
const DEPTHS: [usize; 6] = [1, 2, 4, 8, 16, 32];
/// Fewer: there are no better and worse lengths to find, and where this is slow it is very slow.
const DEPTHS_BUFFERED: [usize; 3] = [1, 4, 8];
/// What twice as much under way must gain to be worth a look at more.
const GAIN_MIN: f64 = 1.05;
/// How long a way is measured at least, each time.
const SLICE: Duration = Duration::from_millis(4);
/// Shorter files are over before anything is steady.
const FILE_BYTES_MIN: u64 = 16 << 20;
/// From this share of a file in the page cache on, reading through it says little about the drive.
const CACHED_SHARE_MAX: f64 = 0.02;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_steady_rate_is_that_between_the_first_reads_and_the_last() {
        let begun = Instant::now();
        let at = |ms: u64| begun + Duration::from_millis(ms);
        // Depth 2: the first two take 100 ms, then one each 10 ms, and the last two without company 50 ms.
        let ends = [at(100), at(100), at(110), at(120), at(130), at(180), at(180)];
        assert!((steady_rate(begun, &ends, 1000, 2) - 100_000.0).abs() < 1e-6);
        // Too few: all of them.
        assert!((steady_rate(begun, &ends[..3], 1100, 2) - 30_000.0).abs() < 1e-6);
        assert_eq!(steady_rate(begun, &[], 1000, 2), 0.0);
        assert_eq!(steady_rate(begun, &[begun], 1000, 1), 0.0);
    }

    #[test]
    fn medians_and_spreads() {
        let row = |rates: &[f64]| Measured {
            io: Io::Threads,
            mode: ReadMode::Direct,
            chunk_bytes: 1,
            depth: 1,
            bytes_per_s: rates.to_vec(),
        };
        for (rates, median, spread) in [
            (&[][..], 0.0, 0.0),
            (&[3.0], 3.0, 0.0),
            (&[4.0, 1.0, 2.0], 2.0, 1.5),
            (&[1.0, 3.0], 2.0, 1.0),
            (&[f64::NAN, 2.0, f64::INFINITY], 2.0, 0.0),
        ] {
            assert_eq!((row(rates).median(), row(rates).spread()), (median, spread), "{rates:?}");
        }
    }
}
