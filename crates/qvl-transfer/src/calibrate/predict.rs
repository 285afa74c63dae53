//! What measured rates say of moving and computing together. Pure.

use std::fmt;

use crate::layer_stream::plan::Link;
use crate::{Error, Report, Result};

/// A rate that was measured several times.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Measured {
    /// The median, in bytes a second.
    pub bytes_per_s: f64,
    /// Half of the distance between the quartiles, as a share of the median.
    pub noise: f64,
    /// How many samples.
    pub samples: usize,
}

impl Measured {
    /// The median and the spread of rates in bytes a second. `None` of none.
    pub fn of(mut rates: Vec<f64>) -> Option<Self> {
        rates.retain(|rate| rate.is_finite() && *rate > 0.0);
        rates.sort_by(f64::total_cmp);
        let last = rates.len().checked_sub(1)?;
        // Between two samples, in proportion.
        let quantile = |part: f64| {
            let place = part * last as f64;
            let (below, above) = (rates[place.floor() as usize], rates[place.ceil() as usize]);
            below + (above - below) * place.fract()
        };
        let bytes_per_s = quantile(0.5);
        let noise = (quantile(0.75) - quantile(0.25)) / 2.0 / bytes_per_s;
        Some(Self { bytes_per_s, noise, samples: rates.len() })
    }

    /// The rate that it is at least, as far as its noise tells.
    pub fn at_least(&self) -> f64 {
        self.bytes_per_s * (1.0 - self.noise).max(0.0)
    }

    /// The rate that it is at most, as far as its noise tells.
    pub fn at_most(&self) -> f64 {
        self.bytes_per_s * (1.0 + self.noise)
    }
}

/// Where bytes are before they are moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Origin {
    /// In a file.
    Drive,
    /// In ordinary memory of the host.
    Memory,
    /// In memory of the host that the device copies from at full speed.
    Staging,
}

/// What everything else waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Bound {
    /// Reading the file.
    Drive,
    /// Copying within the host's memory, to staging.
    HostCopy,
    /// Copying to the device.
    Link,
    /// The computing: all of the moving is hidden behind it.
    Compute,
}

impl fmt::Display for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Drive => "drive",
            Self::HostCopy => "host copy",
            Self::Link => "link",
            Self::Compute => "compute",
        })
    }
}

/// What each stage does alone, and which stages bytes go through on their way to the device.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Rates {
    /// From a file to the host's memory.
    pub drive: Option<Measured>,
    /// From the host's memory to the host's memory.
    pub host_copy: Option<Measured>,
    /// From staging memory to the device.
    pub link: Option<Measured>,
    /// Whether a file is read straight to where the bytes belong, without the link.
    pub drive_is_direct: bool,
    /// Whether ordinary memory is copied straight to the device, without staging.
    pub memory_is_direct: bool,
    /// Seconds that a transfer of one block from memory takes: what each costs beside its bytes.
    pub latency_s: f64,
    /// The same from a file.
    pub drive_latency_s: f64,
}

/// What is expected of one segment after another, each computed with while the next one is moved.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct Prediction {
    /// Seconds that a segment takes: the slower of moving and computing.
    pub seconds: f64,
    /// Bytes a second.
    pub rate_bytes_per_s: f64,
    /// What everything else waits for.
    pub bound_by: Bound,
    /// The slowest stage of the moving.
    pub slowest: Bound,
    /// Seconds of the moving alone.
    pub moving_s: f64,
    /// The spread of `moving_s`, as a share.
    pub noise: f64,
    /// Where moving and computing take the same: segments of up to so many bytes are hidden behind this computing.
    pub break_even_bytes: f64,
}

/// What the computing of a segment takes, by the rows (tokens) that are computed at once.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Cost {
    /// Seconds whatever the number of rows.
    pub fixed_s: f64,
    /// Seconds for each row.
    pub per_row_s: f64,
}

impl Cost {
    /// Seconds for so many rows.
    pub fn seconds(&self, rows: u64) -> f64 {
        self.fixed_s + self.per_row_s * rows as f64
    }
}

/// Where a segment is computed with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Place {
    /// By the host's processor, from the host's memory.
    InPlace,
    /// On the device, after the segment was moved there.
    Device,
}

/// The two places beside each other.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct Comparison {
    /// Seconds in place: the computing, or the reading of the file if that takes longer.
    pub in_place_s: f64,
    /// Seconds on the device: the computing, or the moving if that takes longer.
    pub device_s: f64,
    /// The faster one; in place if they are equal.
    pub faster: Place,
    /// Whether the difference is more than the noise of the measured rates.
    pub is_certain: bool,
    /// What the device waits for.
    pub bound_by: Bound,
    /// From how many rows on the device is the faster place; `None` if it never is.
    pub break_even_rows: Option<u64>,
}

/// What was achieved of what is possible.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct Achieved {
    /// Bytes a second.
    pub bytes_per_s: f64,
    /// The slowest stage.
    pub slowest: Bound,
    /// What it does alone, in bytes a second.
    pub slowest_bytes_per_s: f64,
    /// The one as a share of the other; above 1 where the stage was faster than when it was measured.
    pub share_of_slowest: f64,
}

impl fmt::Display for Achieved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (got, of) = (self.bytes_per_s / 1e9, self.slowest_bytes_per_s / 1e9);
        write!(
            f,
            "{got:.2} GB/s, {:.0} % of the {} ({of:.2} GB/s)",
            self.share_of_slowest * 100.0,
            self.slowest
        )
    }
}

impl Rates {
    /// The slowest stage from `origin` to the device. Stages work at once, so this is the rate of the whole.
    ///
    /// # Errors
    /// [`Error::Setting`] if a stage on the way was not measured.
    pub fn slowest(&self, origin: Origin) -> Result<(Bound, Measured)> {
        let drive = (Bound::Drive, self.drive);
        let copy = (Bound::HostCopy, self.host_copy);
        let link = (Bound::Link, self.link);
        let stages: &[_] = match origin {
            Origin::Drive if self.drive_is_direct => &[drive],
            Origin::Drive => &[drive, link],
            Origin::Memory if self.memory_is_direct => &[copy],
            Origin::Memory => &[copy, link],
            Origin::Staging => &[link],
        };
        let mut slowest: Option<(Bound, Measured)> = None;
        for &(bound, rate) in stages {
            let rate = rate.ok_or_else(|| Error::Setting {
                name: "rates",
                got: format!("no figure for the {bound}"),
                expected: format!("bytes from {origin:?} go that way: measure it"),
            })?;
            if slowest.is_none_or(|(_, slowest)| rate.bytes_per_s < slowest.bytes_per_s) {
                slowest = Some((bound, rate));
            }
        }
        slowest.ok_or(Error::Closed)
    }

    /// The way from `origin` as the planner of a layer stream sees it.
    ///
    /// # Errors
    /// As [`Self::slowest`].
    pub fn as_link(&self, origin: Origin) -> Result<Link> {
        let (_, rate) = self.slowest(origin)?;
        Ok(Link { bytes_per_s: rate.bytes_per_s, latency_s: self.latency_s(origin) })
    }

    /// What a stream of segments of `bytes` bytes does that are each computed with for `compute_s` seconds.
    ///
    /// # Errors
    /// As [`Self::slowest`]; [`Error::Setting`] if the time is negative or not finite.
    pub fn predict(&self, origin: Origin, bytes: u64, compute_s: f64) -> Result<Prediction> {
        check("compute_s", compute_s)?;
        let (slowest, rate) = self.slowest(origin)?;
        let moving_s = self.latency_s(origin) + bytes as f64 / rate.bytes_per_s;
        let seconds = moving_s.max(compute_s);
        Ok(Prediction {
            seconds,
            rate_bytes_per_s: if seconds > 0.0 { bytes as f64 / seconds } else { 0.0 },
            bound_by: if compute_s >= moving_s { Bound::Compute } else { slowest },
            slowest,
            moving_s,
            noise: rate.noise,
            break_even_bytes: (compute_s - self.latency_s(origin)).max(0.0) * rate.bytes_per_s,
        })
    }

    /// Whether a segment of `bytes` bytes is better computed with where it is, or on the device after it was moved, for
    /// `rows` rows at once.
    ///
    /// # Errors
    /// As [`Self::predict`].
    pub fn compare(
        &self,
        origin: Origin,
        bytes: u64,
        rows: u64,
        in_place: Cost,
        device: Cost,
    ) -> Result<Comparison> {
        for cost in [in_place, device] {
            check("fixed_s", cost.fixed_s)?;
            check("per_row_s", cost.per_row_s)?;
        }
        let moved = self.predict(origin, bytes, device.seconds(rows))?;
        // What comes from a drive is read for either place.
        let (read_s, read_noise) = match (origin, self.drive) {
            (Origin::Drive, Some(drive)) => {
                (self.drive_latency_s + bytes as f64 / drive.bytes_per_s, drive.noise)
            }
            _ => (0.0, 0.0),
        };
        let in_place_s = in_place.seconds(rows).max(read_s);
        let noise_s = moved.noise * moved.moving_s + read_noise * read_s;
        Ok(Comparison {
            in_place_s,
            device_s: moved.seconds,
            faster: if moved.seconds < in_place_s { Place::Device } else { Place::InPlace },
            is_certain: (moved.seconds - in_place_s).abs() > noise_s,
            bound_by: moved.bound_by,
            break_even_rows: first_below((moved.moving_s, device), (read_s, in_place)),
        })
    }

    /// What a transfer of `bytes` bytes in `seconds` seconds is of what the slowest stage does.
    ///
    /// # Errors
    /// As [`Self::predict`].
    pub fn achieved(&self, origin: Origin, bytes: u64, seconds: f64) -> Result<Achieved> {
        check("seconds", seconds)?;
        let (slowest, rate) = self.slowest(origin)?;
        let bytes_per_s = if seconds > 0.0 { bytes as f64 / seconds } else { 0.0 };
        Ok(Achieved {
            bytes_per_s,
            slowest,
            slowest_bytes_per_s: rate.bytes_per_s,
            share_of_slowest: bytes_per_s / rate.bytes_per_s,
        })
    }

    /// [`Self::achieved`] of a transfer's report, from its first chunk on.
    ///
    /// # Errors
    /// As [`Self::slowest`].
    pub fn achieved_by(&self, origin: Origin, report: &Report) -> Result<Achieved> {
        self.achieved(origin, report.bytes, report.wall.saturating_sub(report.queued).as_secs_f64())
    }

    fn latency_s(&self, origin: Origin) -> f64 {
        if origin == Origin::Drive { self.drive_latency_s } else { self.latency_s }
    }
}

fn check(name: &'static str, seconds: f64) -> Result<()> {
    if seconds.is_finite() && seconds >= 0.0 {
        return Ok(());
    }
    Err(Error::Setting {
        name,
        got: format!("{seconds} s"),
        expected: "a time that is finite and not negative is needed".to_owned(),
    })
}

/// The least number of rows, at least one, at which `a` takes less than `b`. Each takes its first number of seconds or
/// its cost, whichever is more.
///
/// Both are straight between the rows where the cost overtakes the other; so the difference is looked at there.
fn first_below(a: (f64, Cost), b: (f64, Cost)) -> Option<u64> {
    let below = |rows: u64| a.0.max(a.1.seconds(rows)) < b.0.max(b.1.seconds(rows));
    let bends = [a, b].map(|(least_s, cost)| {
        let rows = (least_s - cost.fixed_s) / cost.per_row_s;
        if rows >= 1.0 && rows < ROWS_MAX as f64 { rows.ceil() as u64 } else { 1 }
    });
    let mut ends = [
        1,
        bends[0].saturating_sub(1).max(1),
        bends[0],
        bends[1].saturating_sub(1).max(1),
        bends[1],
        ROWS_MAX,
    ];
    ends.sort_unstable();
    for pair in ends.windows(2) {
        let (mut low, mut high) = (pair[0], pair[1]);
        if below(low) {
            return Some(low);
        }
        if !below(high) {
            continue;
        }
        while low + 1 < high {
            let middle = low + (high - low) / 2;
            if below(middle) { high = middle } else { low = middle }
        }
        return Some(high);
    }
    None
}

/// More rows than anyone computes at once.
const ROWS_MAX: u64 = 1 << 32;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn rate(bytes_per_s: f64) -> Option<Measured> {
        Some(Measured { bytes_per_s, noise: 0.1, samples: 5 })
    }

    fn rates() -> Rates {
        Rates {
            drive: rate(1e9),
            host_copy: rate(8e9),
            link: rate(4e9),
            drive_is_direct: false,
            memory_is_direct: false,
            latency_s: 0.0,
            drive_latency_s: 0.0,
        }
    }

    #[test]
    fn the_median_and_half_the_distance_of_the_quartiles() {
        assert_eq!(Measured::of(vec![]), None);
        assert_eq!(Measured::of(vec![f64::NAN, 0.0, -1.0]), None);
        let one = Measured::of(vec![5.0]).unwrap();
        assert_eq!((one.bytes_per_s, one.noise, one.samples), (5.0, 0.0, 1));
        let five = Measured::of(vec![10.0, 80.0, 20.0, 30.0, 40.0]).unwrap();
        assert_eq!((five.bytes_per_s, five.samples), (30.0, 5));
        assert!((five.noise - 10.0 / 30.0).abs() < 1e-12);
        assert!((five.at_least() - 20.0).abs() < 1e-9 && (five.at_most() - 40.0).abs() < 1e-9);
        assert!((Measured::of(vec![1.0, 2.0]).unwrap().bytes_per_s - 1.5).abs() < 1e-12);
    }

    #[test]
    fn the_slowest_stage_on_the_way_counts() {
        let rates = rates();
        let slowest = |rates: &Rates, origin| rates.slowest(origin).unwrap().0;
        assert_eq!(slowest(&rates, Origin::Drive), Bound::Drive);
        assert_eq!(slowest(&rates, Origin::Memory), Bound::Link);
        assert_eq!(slowest(&rates, Origin::Staging), Bound::Link);
        let fast_drive = Rates { drive: rate(7e9), ..rates };
        assert_eq!(slowest(&fast_drive, Origin::Drive), Bound::Link);
        assert_eq!(slowest(&Rates { drive_is_direct: true, ..fast_drive }, Origin::Drive), Bound::Drive);
        assert_eq!(slowest(&Rates { memory_is_direct: true, ..rates }, Origin::Memory), Bound::HostCopy);
        let error = Rates { link: None, ..rates }.slowest(Origin::Memory).unwrap_err();
        assert!(error.to_string().contains("no figure for the link"), "{error}");
    }

    #[test]
    fn a_segment_takes_the_slower_of_moving_and_computing() {
        let rates = Rates { drive_latency_s: 0.5, latency_s: 0.25, ..rates() };
        let of = |compute_s| rates.predict(Origin::Drive, 1_000_000_000, compute_s).unwrap();
        let moving = of(1.0);
        assert_eq!((moving.seconds, moving.bound_by, moving.moving_s), (1.5, Bound::Drive, 1.5));
        assert!((moving.break_even_bytes - 0.5e9).abs() < 1.0);
        let computing = of(2.0);
        assert_eq!(
            (computing.seconds, computing.bound_by, computing.slowest),
            (2.0, Bound::Compute, Bound::Drive)
        );
        assert!((computing.rate_bytes_per_s - 0.5e9).abs() < 1.0);
        assert_eq!(
            rates.predict(Origin::Drive, computing.break_even_bytes as u64, 2.0).unwrap().moving_s,
            2.0
        );
        assert!(rates.predict(Origin::Drive, 1, f64::NAN).is_err());
        assert!(rates.predict(Origin::Drive, 1, -1.0).is_err());
        let link = rates.as_link(Origin::Memory).unwrap();
        assert_eq!((link.bytes_per_s, link.latency_s), (4e9, 0.25));
    }

    #[test]
    fn a_few_rows_are_computed_in_place_and_many_on_the_device() {
        // 400 MB over 4 GB/s are 100 ms; a row takes the host 10 ms and the device 1 ms.
        let (host, device) =
            (Cost { fixed_s: 0.0, per_row_s: 0.010 }, Cost { fixed_s: 0.0, per_row_s: 0.001 });
        let of = |rows| rates().compare(Origin::Memory, 400_000_000, rows, host, device).unwrap();
        let few = of(1);
        assert_eq!((few.faster, few.break_even_rows, few.bound_by), (Place::InPlace, Some(11), Bound::Link));
        assert!(few.is_certain && !of(10).is_certain && !of(11).is_certain);
        assert_eq!((of(10).faster, of(11).faster), (Place::InPlace, Place::Device));
        assert_eq!((of(500).faster, of(500).bound_by), (Place::Device, Bound::Compute));
        // From a drive both are read first: the device wins as soon as the host's computing takes longer than that.
        let from_drive = rates().compare(Origin::Drive, 400_000_000, 1, host, device).unwrap();
        assert_eq!((from_drive.in_place_s, from_drive.break_even_rows), (0.4, Some(41)));
        let slow = Cost { fixed_s: 1.0, per_row_s: 0.02 };
        assert_eq!(rates().compare(Origin::Memory, 1, 1, host, slow).unwrap().break_even_rows, None);
        let wrong = Cost { fixed_s: 0.0, per_row_s: f64::INFINITY };
        assert!(rates().compare(Origin::Memory, 1, 1, host, wrong).is_err());
    }

    #[test]
    fn what_was_achieved_is_a_share_of_the_slowest() {
        let achieved = rates().achieved(Origin::Drive, 450_000_000, 0.5).unwrap();
        assert_eq!(achieved.slowest, Bound::Drive);
        assert!((achieved.share_of_slowest - 0.9).abs() < 1e-12);
        assert_eq!(achieved.to_string(), "0.90 GB/s, 90 % of the drive (1.00 GB/s)");
        assert_eq!(rates().achieved(Origin::Drive, 1, 0.0).unwrap().bytes_per_s, 0.0);
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn the_break_even_is_what_a_search_finds(
            a in (0_u32..200, 0_u32..200, 0_u32..12),
            b in (0_u32..200, 0_u32..200, 0_u32..12),
        ) {
            let of = |(least, fixed, per_row): (u32, u32, u32)| {
                (f64::from(least), Cost { fixed_s: f64::from(fixed), per_row_s: f64::from(per_row) })
            };
            let (a, b) = (of(a), of(b));
            let s = |of: (f64, Cost), rows| of.0.max(of.1.seconds(rows));
            let found = (1..2000).find(|&rows| s(a, rows) < s(b, rows));
            prop_assert_eq!(first_below(a, b), found);
        }
    }
}
