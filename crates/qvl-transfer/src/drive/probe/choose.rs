//! Which way of reading fits a drive, from what was measured. Pure.

use super::{Measured, Measurements, mib};
use crate::drive::ReadMode;
use crate::engine::{Io, Settings};
use crate::memory::BLOCK_BYTES;

/// A way of reading, and why.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Choice {
    /// Who reads.
    pub io: Io,
    /// How files are to be opened.
    pub mode: ReadMode,
    /// Bytes of a read.
    pub chunk_bytes: usize,
    /// Reads that are under way at once.
    pub depth: usize,
    /// What it was measured with, in bytes a second; 0 if nothing was.
    pub bytes_per_s: f64,
    /// Why, in a sentence.
    pub why: String,
}

impl Choice {
    /// Settings of an engine that reads in this way, with so many bytes of staging buffers. Chunks are smaller than
    /// what was chosen if a buffer would not fit.
    pub fn settings(&self, staging_bytes: usize) -> Settings {
        let fits = staging_bytes.saturating_sub(BLOCK_BYTES);
        let chunk_bytes = self.chunk_bytes.min(fits - fits % BLOCK_BYTES).max(BLOCK_BYTES);
        Settings { chunk_bytes, staging_bytes, depth: self.depth, io: self.io, trace: None }
    }
}

/// Prefers what has the least under way of all that is as fast as the fastest, within what the measuring is off by:
/// bytes under way are memory, and what comes next waits behind them. Reads past the page cache are preferred to those
/// through it, which cost a copy and drive out what others have there; of equals, the ring to threads, since it is one
/// thread and takes half the processor's time (20 ms a GB against 35 in reads of 1 MiB, 8 under way at 2 GB/s, on an AMD
/// EPYC with 2 processors). One read alone is chosen only if no two are as fast.
pub fn choose(measurements: &Measurements) -> Choice {
    let rows: Vec<&Measured> = measurements.rows.iter().filter(|row| row.median() > 0.0).collect();
    let faster = |a: &&&Measured, b: &&&Measured| a.median().total_cmp(&b.median());
    let Some(fastest) = rows.iter().max_by(faster) else {
        let Settings { chunk_bytes, depth, io, .. } = Settings::default();
        let why = "nothing was measured: these are the defaults".to_owned();
        return Choice { io, mode: ReadMode::Auto, chunk_bytes, depth, bytes_per_s: 0.0, why };
    };
    let noise = (fastest.spread() / 2.0).clamp(NOISE_MIN, NOISE_MAX);
    let enough = fastest.median() * (1.0 - noise);
    let is_enough = |row: &&&Measured| row.median() >= enough;
    // With one alone the drive has nothing to do while what arrived is handled, which no measuring of the drive shows.
    let overlapped = |row: &&&Measured| is_enough(row) && row.depth > 1;
    let preferred = |row: &&&Measured| {
        let faster_first = std::cmp::Reverse(row.median() as u64);
        (row.mode != ReadMode::Direct, row.bytes_in_flight(), row.io != Io::Uring, faster_first)
    };
    let chosen = rows.iter().filter(overlapped).min_by_key(preferred);
    let chosen = chosen.or_else(|| rows.iter().filter(is_enough).min_by_key(preferred)).unwrap_or(fastest);
    let percent = noise * 100.0;
    let mut why = if std::ptr::eq(*chosen, *fastest) {
        format!("{chosen} is the fastest, and nothing within {percent:.0} % of it is preferable")
    } else {
        format!("{chosen} is within {percent:.0} % of the fastest, {fastest}")
    };
    if chosen.bytes_in_flight() < fastest.bytes_in_flight() {
        let (less, more) = (mib(chosen.bytes_in_flight()), mib(fastest.bytes_in_flight()));
        why += &format!(", with {less} under way instead of {more}");
    }
    if chosen.mode != fastest.mode {
        why += ", and spares the page cache";
    }
    if let Some(refused) = &measurements.without_direct {
        why += &format!("; past the page cache: {refused}");
    }
    if let Some(refused) = &measurements.without_ring {
        why += &format!("; by the ring: {refused}");
    }
    let Measured { io, mode, chunk_bytes, depth, .. } = **chosen;
    // What was measured through the cache was cold. A file that is there already is read from there in any case.
    let mode = if mode == ReadMode::Direct { ReadMode::Auto } else { mode };
    Choice { io, mode, chunk_bytes, depth, bytes_per_s: chosen.median(), why }
}

/// Repeated measuring differs by that much at best.
const NOISE_MIN: f64 = 0.03;
/// What is slower than this is slower, however much the measuring is off.
const NOISE_MAX: f64 = 0.05;

#[cfg(test)]
mod tests {
    use super::*;

    const K: usize = 1 << 10;
    const M: usize = 1 << 20;
    use Io::{Threads, Uring};
    use ReadMode::{Auto, Buffered, Direct};

    type Row<'a> = (Io, ReadMode, usize, usize, &'a [f64]);

    fn measurements(rows: &[Row<'_>]) -> Measurements {
        let rows = rows.iter().map(|&(io, mode, chunk_bytes, depth, gb_per_s)| Measured {
            io,
            mode,
            chunk_bytes,
            depth,
            bytes_per_s: gb_per_s.iter().map(|rate| rate * 1e9).collect(),
        });
        Measurements { rows: rows.collect(), ..Measurements::default() }
    }

    #[test]
    fn the_least_under_way_of_the_fastest_is_chosen() {
        type Chosen = (Io, ReadMode, usize, usize);
        let cases: &[(&str, &[Row<'_>], Chosen)] = &[
            (
                "saturated from depth 4 on",
                &[
                    (Uring, Direct, M, 1, &[1.0, 1.0, 1.01]),
                    (Uring, Direct, M, 2, &[1.7, 1.8, 1.8]),
                    (Uring, Direct, M, 4, &[2.0, 2.0, 2.0]),
                    (Uring, Direct, M, 8, &[2.0, 2.03, 2.04]),
                ],
                (Uring, Auto, M, 4),
            ),
            (
                "a small gain that is more than the noise",
                &[(Uring, Direct, M, 4, &[2.0, 2.0, 2.0]), (Uring, Direct, M, 8, &[2.1, 2.1, 2.1])],
                (Uring, Auto, M, 8),
            ),
            (
                "the same gain in noise",
                &[(Uring, Direct, M, 4, &[2.0, 2.0, 2.0]), (Uring, Direct, M, 8, &[1.9, 2.1, 2.2])],
                (Uring, Auto, M, 4),
            ),
            (
                "noise does not make half the speed enough",
                &[(Uring, Direct, M, 1, &[1.0, 1.0, 1.0]), (Uring, Direct, M, 8, &[0.9, 2.0, 3.9])],
                (Uring, Auto, M, 8),
            ),
            (
                "threads, where they are faster",
                &[(Uring, Direct, M, 8, &[2.0]), (Threads, Direct, M, 8, &[2.5])],
                (Threads, Auto, M, 8),
            ),
            (
                "the ring, where both are as fast",
                &[(Threads, Direct, M, 8, &[2.02]), (Uring, Direct, M, 8, &[2.0])],
                (Uring, Auto, M, 8),
            ),
            (
                "the faster, of the same bytes under way",
                &[
                    (Uring, Direct, 256 * K, 16, &[2.0]),
                    (Uring, Direct, 2 * M, 2, &[2.01]),
                    (Uring, Direct, M, 4, &[1.99]),
                    (Uring, Direct, M, 8, &[2.02]),
                ],
                (Uring, Auto, 2 * M, 2),
            ),
            (
                "not one alone, if two are as fast",
                &[(Uring, Direct, 4 * M, 1, &[2.03]), (Threads, Direct, 4 * M, 2, &[2.0])],
                (Threads, Auto, 4 * M, 2),
            ),
            (
                "one alone, if two are slower",
                &[(Threads, Direct, 4 * M, 1, &[2.0]), (Threads, Direct, 4 * M, 2, &[1.5])],
                (Threads, Auto, 4 * M, 1),
            ),
            (
                "through the cache, where that is as fast, no",
                &[(Threads, Buffered, M, 1, &[2.02]), (Threads, Direct, M, 8, &[2.0])],
                (Threads, Auto, M, 8),
            ),
            (
                "through the cache, where that is faster",
                &[(Threads, Buffered, M, 4, &[3.0]), (Threads, Direct, M, 8, &[2.0])],
                (Threads, Buffered, M, 4),
            ),
            (
                "what is no number is no speed",
                &[
                    (Uring, Direct, M, 1, &[f64::NAN]),
                    (Uring, Direct, M, 2, &[]),
                    (Uring, Direct, M, 4, &[1.0]),
                ],
                (Uring, Auto, M, 4),
            ),
        ];
        for (name, rows, expected) in cases {
            let Choice { io, mode, chunk_bytes, depth, why, .. } = choose(&measurements(rows));
            assert_eq!((io, mode, chunk_bytes, depth), *expected, "{name}: {why}");
        }
    }

    #[test]
    fn it_says_why() {
        let mut measured = measurements(&[
            (Threads, Direct, M, 4, &[2.0, 2.0, 2.0]),
            (Threads, Direct, M, 8, &[2.02, 2.03, 2.04]),
        ]);
        measured.without_ring = Some("this kernel has none".to_owned());
        assert_eq!(
            choose(&measured).why,
            "threads past the page cache with 4 x 1 MiB (2.00 GB/s) is within 3 % of the fastest, threads past the \
             page cache with 8 x 1 MiB (2.03 GB/s), with 4 MiB under way instead of 8 MiB; by the ring: this kernel \
             has none"
        );
        assert!(choose(&Measurements::default()).why.contains("nothing was measured"));
    }

    #[test]
    fn settings_are_such_that_an_engine_takes_them() {
        let choice = choose(&measurements(&[(Threads, Direct, 4 * M, 8, &[2.0])]));
        assert_eq!(choice.settings(64 * M).chunk_bytes, 4 * M);
        for staging_bytes in [8192, 12_288, 12_289, 4 * M, 4 * M + 4096, 64 * M] {
            let settings = choice.settings(staging_bytes);
            assert_eq!((settings.depth, settings.io, settings.staging_bytes), (8, Threads, staging_bytes));
            crate::TransferEngine::new(crate::HostDevice::new(0), settings).unwrap();
        }
    }
}
