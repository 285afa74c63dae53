//! From what was measured of a drive to how to read from it. Pure, so that each decision has a test.

use std::time::Duration;

use super::super::Storage;

/// What was measured of a drive; what could not be measured is absent.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Measurements {
    /// In sequence through the page cache with nothing in it, as the system reads ahead on its own.
    pub buffered_cold: Option<Rate>,
    /// The same with what comes next announced ([`Advise`](super::super::Advise)).
    pub buffered_ahead: Option<Rate>,
    /// Out of the page cache: the cost of the copy.
    pub buffered_warm: Option<Rate>,
    /// Past the page cache.
    pub direct: Vec<Point>,
    /// Why there is nothing in `direct`.
    pub direct_refused: Option<String>,
    /// Whether the reads of `direct` were made through io_uring; else by a thread each.
    pub uring: bool,
    /// One small read past the page cache, with nothing else in flight: the median.
    pub latency: Option<Duration>,
    /// Bytes of the files that are to be read; absent if they are not those that were measured.
    pub data_bytes: Option<u64>,
    /// Bytes of memory that the page cache could take.
    pub memory_bytes: Option<u64>,
    /// Whether the file system has no drive below it (tmpfs, ramfs).
    pub in_memory: bool,
}

/// A speed that was measured several times.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Rate {
    /// Bytes a second over all of the time.
    pub bytes_per_s: f64,
    /// From the slowest to the fastest part, as a share of the fastest.
    pub spread: f64,
}

/// The speed with so many reads of that size in flight.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Point {
    /// Reads in flight.
    pub depth: usize,
    /// Bytes of each.
    pub block_bytes: usize,
    /// How fast it was.
    pub rate: Rate,
}

impl Point {
    fn in_flight_bytes(&self) -> usize {
        self.depth.saturating_mul(self.block_bytes)
    }
}

impl Measurements {
    /// The fastest way to read through the page cache when nothing is in it.
    fn buffered(&self) -> Option<Rate> {
        self.buffered_cold.into_iter().chain(self.buffered_ahead).max_by(faster)
    }

    /// Of the points past the page cache that are about as fast as the fastest, the one with the least in flight.
    pub(super) fn direct(&self) -> Option<Point> {
        let best = self.direct.iter().map(|point| point.rate).max_by(faster)?;
        let enough = |point: &&Point| point.rate.bytes_per_s >= best.bytes_per_s * (1.0 - SAME);
        self.direct.iter().filter(enough).min_by_key(|point| point.in_flight_bytes()).copied()
    }

    /// Bytes to have in flight: as little as keeps the drive at its speed. That is speed times latency, or what the
    /// cheapest of the fast points had if that is more, and 1 MiB at least; the default if nothing was measured.
    pub fn readahead_bytes(&self) -> usize {
        let Some(point) = self.direct() else { return READAHEAD_BYTES };
        let latency_s = self.latency.unwrap_or_default().as_secs_f64();
        // A float becomes the nearest integer there is; negative and not-a-number become 0.
        let product = (point.rate.bytes_per_s * latency_s) as usize;
        product.max(point.in_flight_bytes()).clamp(READAHEAD_BYTES_MIN, READAHEAD_BYTES_MAX)
    }
}

fn faster(a: &Rate, b: &Rate) -> std::cmp::Ordering {
    a.bytes_per_s.total_cmp(&b.bytes_per_s)
}

/// Which storage to use, and why in a sentence.
///
/// Reading past the page cache is chosen if the files do not fit in memory, so that they come from the drive each
/// time, and it is faster than reading through it with an empty cache, by more than these measurements vary (a tenth
/// at least). Otherwise the page cache is used: it makes the second time free.
pub fn choose(measured: &Measurements) -> (Storage, String) {
    // At least as far ahead as it was measured: the system drops what is too far, but not soon.
    let buffered = Storage::Buffered { readahead_bytes: measured.readahead_bytes().max(READAHEAD_BYTES) };
    if measured.in_memory {
        return (buffered, "the file system is in memory: there is no drive to read from".to_owned());
    }
    let Some(direct) = measured.direct() else {
        let why = measured.direct_refused.as_deref().unwrap_or("none were measured");
        return (buffered, format!("there are no direct reads to compare with: {why}"));
    };
    if let (Some(data), Some(memory)) = (measured.data_bytes, measured.memory_bytes)
        && data <= memory / 2
    {
        let (data, memory) = (size(data as f64), size(memory as f64));
        let because =
            format!("the files ({data}) fit in memory ({memory} available): read once, they stay there");
        return (buffered, because);
    }
    let Some(through) = measured.buffered() else {
        return (buffered, "reading with an empty page cache could not be measured here".to_owned());
    };
    let noise = direct.rate.spread.max(through.spread).max(NOISE_MIN);
    let (past_s, through_s) = (direct.rate.bytes_per_s, through.bytes_per_s);
    let compared = format!(
        "{} past the page cache at depth {} against {} through it when it is empty",
        speed(past_s),
        direct.depth,
        speed(through_s)
    );
    // Not-a-number is not faster.
    if past_s > through_s * (1.0 + noise) {
        let depth = direct.depth;
        let storage = match measured.uring {
            true => Storage::Uring { depth, direct: true },
            false => Storage::Pool { threads: depth, direct: true },
        };
        return (storage, format!("{compared}, and the files do not stay in memory"));
    }
    (buffered, format!("{compared}: no gain beyond what these figures vary ({:.0} %)", noise * 100.0))
}

pub(super) fn speed(bytes_per_s: f64) -> String {
    format!("{:.2} GB/s", bytes_per_s / 1e9)
}

fn size(bytes: f64) -> String {
    format!("{:.1} GB", bytes / 1e9)
}

/// Speeds that are as good as the same.
const SAME: f64 = 0.05;
/// Less than that between two measurements of a drive means nothing, however alike its own repetitions are.
const NOISE_MIN: f64 = 0.1;
const READAHEAD_BYTES: usize = 16 << 20;
const READAHEAD_BYTES_MIN: usize = 1 << 20;
const READAHEAD_BYTES_MAX: usize = 256 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    fn rate(gb_per_s: f64, spread: f64) -> Rate {
        Rate { bytes_per_s: gb_per_s * 1e9, spread }
    }

    fn point(depth: usize, block_bytes: usize, gb_per_s: f64) -> Point {
        Point { depth, block_bytes, rate: rate(gb_per_s, 0.05) }
    }

    /// An NVMe drive: 3 GB/s past the cache with enough in flight, 1.5 through it.
    fn nvme() -> Measurements {
        Measurements {
            buffered_cold: Some(rate(1.5, 0.02)),
            buffered_ahead: Some(rate(1.4, 0.02)),
            buffered_warm: Some(rate(10.0, 0.1)),
            direct: vec![
                point(1, 65_536, 0.5),
                point(1, 1 << 20, 1.6),
                point(8, 1 << 20, 3.0),
                point(32, 262_144, 2.95),
                point(32, 1 << 20, 3.05),
            ],
            latency: Some(Duration::from_micros(90)),
            ..Measurements::default()
        }
    }

    #[test]
    fn direct_if_it_is_faster_and_files_are_read_once() {
        let (storage, because) = choose(&nvme());
        assert_eq!(storage, Storage::Pool { threads: 8, direct: true }, "{because}");
        assert!(because.contains("3.00 GB/s") && because.contains("1.50 GB/s"), "{because}");
        let (storage, _) = choose(&Measurements { uring: true, ..nvme() });
        assert_eq!(storage, Storage::Uring { depth: 8, direct: true });
    }

    #[test]
    fn buffered_if_the_files_fit_in_memory() {
        let fits =
            |data, memory| Measurements { data_bytes: Some(data), memory_bytes: Some(memory), ..nvme() };
        let (storage, because) = choose(&fits(8 << 30, 16 << 30));
        assert!(matches!(storage, Storage::Buffered { .. }), "{because}");
        let (storage, because) = choose(&fits(9 << 30, 16 << 30));
        assert!(storage.is_direct(), "{because}");
    }

    #[test]
    fn buffered_if_the_gain_is_within_the_noise() {
        for (cold, spread, direct) in
            [(2.9, 0.0, false), (2.0, 0.0, true), (2.0, 0.6, false), (4.0, 0.0, false)]
        {
            let measured = Measurements { buffered_cold: Some(rate(cold, spread)), ..nvme() };
            let (storage, because) = choose(&measured);
            assert_eq!(storage.is_direct(), direct, "{cold} {spread}: {because}");
        }
    }

    #[test]
    fn buffered_if_there_is_no_drive() {
        let (storage, because) = choose(&Measurements { in_memory: true, ..nvme() });
        assert_eq!(storage, Storage::default(), "{because}");
    }

    #[test]
    fn announcing_counts_as_reading_through_the_cache() {
        let measured = Measurements { buffered_ahead: Some(rate(2.9, 0.0)), ..nvme() };
        assert!(!choose(&measured).0.is_direct());
    }

    #[test]
    fn buffered_if_there_is_nothing_to_compare() {
        let refused =
            Measurements { direct: Vec::new(), direct_refused: Some("EINVAL".to_owned()), ..nvme() };
        let (storage, because) = choose(&refused);
        assert_eq!(storage, Storage::default());
        assert!(because.contains("EINVAL"));
        let no_cold = Measurements { buffered_cold: None, buffered_ahead: None, ..nvme() };
        assert!(!choose(&no_cold).0.is_direct());
        assert!(!choose(&Measurements::default()).0.is_direct());
    }

    #[test]
    fn figures_that_are_none_choose_nothing_new() {
        let mut measured = nvme();
        measured.direct = vec![point(4, 4096, f64::NAN)];
        assert!(!choose(&measured).0.is_direct());
        measured.direct = vec![point(4, 4096, 0.0)];
        assert!(!choose(&measured).0.is_direct());
    }

    #[test]
    fn what_is_in_flight_covers_the_latency() {
        assert_eq!(nvme().readahead_bytes(), 8 << 20, "the cheapest of the fast points");
        let far = Measurements { latency: Some(Duration::from_millis(10)), ..nvme() };
        assert_eq!(far.readahead_bytes(), 30_000_000, "3 GB/s for 10 ms");
    }
}
