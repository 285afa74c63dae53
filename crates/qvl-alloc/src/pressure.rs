//! How short of memory the machine is.
//!
//! [`Pressure`] reads what the kernel says about the machine and about the groups that this process is in;
//! [`Reading::share`] is one figure for it; [`Levels`] makes three words of it that do not go back and forth;
//! [`Watch`] looks all the time at next to no cost and calls back.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::system::{Live, System};
use crate::{Error, Result};

mod levels;
mod pace;
pub mod parse;
#[cfg(target_os = "linux")]
mod trigger;
#[cfg(target_os = "linux")]
#[path = "pressure/wait_linux.rs"]
mod wait;
#[cfg(not(target_os = "linux"))]
#[path = "pressure/wait_plain.rs"]
mod wait;
mod watch;

pub use levels::{Level, Levels, Thresholds};
pub use pace::Pace;
use parse::{Events, Meminfo, Mounts, Psi};
pub use watch::{Change, How, Settings, Watch, WatchBuilder, WatchStats};

/// How much memory there is, by the limits that hold here: each figure is the least of all of them.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Limits {
    /// The most that can ever be had, in bytes.
    pub total_bytes: u64,
    /// What can be had now, in bytes: free, or of files that are in memory and can be dropped.
    pub available_bytes: u64,
    /// What runs out first.
    pub limited_by: LimitedBy,
}

/// What bounds the memory.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum LimitedBy {
    /// The machine has no more.
    Machine,
    /// A group that this process is in may have no more.
    Group {
        /// The file with the limit.
        file: PathBuf,
    },
}

impl fmt::Display for LimitedBy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Machine => f.write_str("the machine"),
            Self::Group { file } => write!(f, "{}", file.display()),
        }
    }
}

/// Memory that this crate cannot see by itself, such as that of a card.
///
/// A closure `Fn() -> Result<DeviceMemory>` is one.
pub trait Source: Send + Sync + 'static {
    /// What there is now. Called at each look, so it should take microseconds.
    ///
    /// # Errors
    /// Whatever is in the way; the rest of the reading goes on.
    fn read(&self) -> Result<DeviceMemory>;
}

impl<F: Fn() -> Result<DeviceMemory> + Send + Sync + 'static> Source for F {
    fn read(&self) -> Result<DeviceMemory> {
        self()
    }
}

/// The memory of a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceMemory {
    /// Which device.
    pub name: String,
    /// What it has.
    pub total_bytes: u64,
    /// What is free.
    pub available_bytes: u64,
}

impl DeviceMemory {
    /// How short it is, 0 to 1, from the available share alone: see [`Reading::share`].
    pub fn share(&self) -> f64 {
        shortness(self.total_bytes, self.available_bytes)
    }
}

/// A source of a reading.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum SourceKind {
    /// `/proc/meminfo`.
    Machine,
    /// `/proc/self/mountinfo`: where groups are.
    Mounts,
    /// `/proc/self/cgroup`: in which this process is.
    Membership,
    /// A file of a group.
    Group,
    /// How long tasks waited for memory.
    Psi,
    /// A [`Source`] that was given.
    Device,
}

/// Whether a file gave what it should.
#[derive(Debug)]
#[non_exhaustive]
pub struct SourceReport {
    /// What it is for.
    pub source: SourceKind,
    /// The file; empty for a device.
    pub path: PathBuf,
    /// Whether it worked, and why not.
    pub outcome: Result<()>,
}

/// How short of memory the machine is, at one moment.
#[derive(Debug, Default)]
#[non_exhaustive]
pub struct Reading {
    /// How much there is; `None` if no source said.
    pub limits: Option<Limits>,
    /// Each limit that holds: the machine's, then those of groups, this process's own first.
    pub all_limits: Vec<Limits>,
    /// How long tasks waited for memory: of the group of this process, or of the machine if groups do not say.
    pub psi: Option<Psi>,
    /// What befell the group of this process, where groups are of version 2.
    pub events: Option<Events>,
    /// Free swap in bytes. It is not counted as available: what waits for swap is as good as stopped.
    pub swap_free_bytes: Option<u64>,
    /// Memory of devices. It is not in [`share`](Self::share): what the host gives back is of no use to a card.
    pub devices: Vec<DeviceMemory>,
    /// Which sources worked and which did not, and why.
    pub sources: Vec<SourceReport>,
    /// How short memory is, from 0 (plenty) to 1 (about to be killed); `None` if neither limits nor waits are known.
    /// See [`share`].
    pub share: Option<f64>,
}

impl Reading {
    /// The sources that did not work.
    pub fn failures(&self) -> impl Iterator<Item = (&SourceReport, &Error)> {
        self.sources.iter().filter_map(|report| Some((report, report.outcome.as_ref().err()?)))
    }
}

/// How short memory is, from 0 (plenty) to 1 (about to be killed).
///
/// ```text
/// a     = available / total                    of each limit
/// short = (0.30 - a) / (0.30 - 0.02)           clamped to 0..1, the greatest of all limits
/// waits = max(full avg10 / 60, some avg10 / 120)   clamped to 0..1
/// share = 1 - (1 - short) (1 - waits)
/// ```
///
/// With 30 % available nothing is short: caches of files fill the rest of any machine that runs for long. At 2 % the
/// next large request may be the last. What is available counts pages of files, which may be just those that are
/// needed again and again (a model that is mapped): then memory looks free, and only the waits show that it is not.
/// They are a mean of 10 s, so what they say fades over some 20 s after there is room again.
/// 60 % of `full` is where systemd-oomd begins to kill; that some task waits is half as bad. Neither hides the other,
/// and both together are worse than each.
pub fn share(limits: &[Limits], psi: Option<&Psi>) -> Option<f64> {
    let short = limits
        .iter()
        .map(|limits| shortness(limits.total_bytes, limits.available_bytes))
        .max_by(f64::total_cmp);
    let waits =
        psi.map(|psi| (psi.full.avg10 / FULL_PERCENT).max(psi.some.avg10 / SOME_PERCENT).clamp(0.0, 1.0));
    match (short, waits) {
        (None, None) => None,
        (short, waits) => Some(1.0 - (1.0 - short.unwrap_or(0.0)) * (1.0 - waits.unwrap_or(0.0))),
    }
}

fn shortness(total_bytes: u64, available_bytes: u64) -> f64 {
    // A limit of 0 leaves nothing.
    let available = available_bytes as f64 / (total_bytes as f64).max(1.0);
    ((PLENTY - available) / (PLENTY - LAST)).clamp(0.0, 1.0)
}

/// The bytes in use of a limit at which [`share`] says this much, if there are no waits.
#[cfg(target_os = "linux")]
fn used_at(total_bytes: u64, share: f64) -> u64 {
    let available = PLENTY - share * (PLENTY - LAST);
    (total_bytes as f64 * (1.0 - available)) as u64
}

/// Reads how short of memory the machine is.
///
/// ```
/// use qvl_alloc::Pressure;
///
/// let reading = Pressure::live().read();
/// if let Some(limits) = &reading.limits {
///     assert!(limits.available_bytes <= limits.total_bytes);
/// }
/// for (source, why) in reading.failures() {
///     eprintln!("{:?}: {why}", source.source);
/// }
/// ```
pub struct Pressure {
    system: Arc<dyn System>,
    devices: Vec<Box<dyn Source>>,
    /// Mounts of groups do not move while a process runs.
    mounts: Result<Mounts>,
}

impl fmt::Debug for Pressure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pressure").field("mounts", &self.mounts).finish_non_exhaustive()
    }
}

impl Pressure {
    /// Reads of this system. Looks up once where groups are mounted.
    pub fn new(system: impl System) -> Self {
        let path = Path::new(MOUNTS);
        let mounts = get(&system, path, |text| parse::mounts(path, text));
        Self { system: Arc::new(system), devices: Vec::new(), mounts }
    }

    /// Reads of the machine that this runs on.
    pub fn live() -> Self {
        Self::new(Live)
    }

    /// Adds the memory of a device to readings.
    pub fn with_device(mut self, source: impl Source) -> Self {
        self.devices.push(Box::new(source));
        self
    }

    /// What there is now. Opens three files, and for each group with a limit three more: some 40 us each, never
    /// blocking on a drive. What cannot be read is in [`Reading::sources`]; the rest goes on.
    pub fn read(&self) -> Reading {
        let mut reading = Reading::default();
        let mut draft = Draft { system: &*self.system, sources: Vec::new() };
        let machine = draft.take(SourceKind::Machine, Path::new(MEMINFO), parse::meminfo);
        if let Some(Meminfo { total_bytes, available_bytes, swap_free_bytes }) = machine {
            let limited_by = LimitedBy::Machine;
            reading.all_limits.push(Limits { total_bytes, available_bytes, limited_by });
            reading.swap_free_bytes = Some(swap_free_bytes);
        }
        let groups = self.groups(&mut draft);
        let machine_bytes = machine.map_or(u64::MAX, |machine| machine.total_bytes);
        match &groups {
            Some(Groups::V2(levels)) => {
                for level in levels {
                    draft.v2(level, machine_bytes, &mut reading.all_limits);
                }
                if let Some(own) = levels.first() {
                    reading.psi = draft.try_take(SourceKind::Psi, &own.join("memory.pressure"), parse::psi);
                    let events = own.join("memory.events");
                    reading.events = draft.try_take(SourceKind::Group, &events, parse::events);
                }
            }
            Some(Groups::V1(levels)) => {
                for level in levels {
                    draft.v1(level, machine_bytes, &mut reading.all_limits);
                }
            }
            None => {}
        }
        if reading.psi.is_none() {
            reading.psi = draft.take(SourceKind::Psi, Path::new(PSI), parse::psi);
        }
        for device in &self.devices {
            let outcome = device.read().map(|memory| reading.devices.push(memory));
            draft.sources.push(SourceReport { source: SourceKind::Device, path: PathBuf::new(), outcome });
        }
        reading.sources = draft.sources;
        reading.limits = tightest(&reading.all_limits);
        reading.share = share(&reading.all_limits, reading.psi.as_ref());
        reading
    }

    /// The folders of the groups that this process is in, its own first.
    fn groups(&self, draft: &mut Draft<'_>) -> Option<Groups> {
        let mounts = match &self.mounts {
            Ok(mounts) => {
                draft.report(SourceKind::Mounts, Path::new(MOUNTS), Ok(()));
                mounts
            }
            Err(error) => {
                draft.report(SourceKind::Mounts, Path::new(MOUNTS), Err(again(error)));
                return None;
            }
        };
        let path = Path::new(MEMBERSHIP);
        let membership = draft.take(SourceKind::Membership, path, parse::membership)?;
        let (mount, group, groups): (_, _, fn(Vec<PathBuf>) -> Groups) = match membership {
            // Where version 1 has the memory controller, version 2 may be mounted too, but knows nothing of memory.
            parse::Membership { memory_v1: Some(group), .. } => {
                (mounts.memory_v1.as_ref()?, group, Groups::V1)
            }
            parse::Membership { v2: Some(group), .. } => (mounts.v2.as_ref()?, group, Groups::V2),
            _ => return None,
        };
        let group = Path::new(&group);
        let inside = group.strip_prefix(&mount.root).ok();
        let inside = inside.filter(|inside| !inside.components().any(|part| part.as_os_str() == ".."));
        let Some(inside) = inside else {
            // The group is not in what is mounted, as in a container of which only the inside of its own group is
            // seen. That is the group at the mount, and it is said.
            let got = group.to_string_lossy();
            let wrong =
                parse::content(path, "group", &got, "a group in what is mounted, whose top is taken instead");
            draft.report(SourceKind::Membership, path, Err(wrong));
            return Some(groups(vec![mount.point.clone()]));
        };
        Some(groups(inside.ancestors().map(|level| mount.point.join(level)).collect()))
    }
}

/// The groups of a process by the version, its own first.
enum Groups {
    V1(Vec<PathBuf>),
    V2(Vec<PathBuf>),
}

/// A reading as it is made.
struct Draft<'a> {
    system: &'a dyn System,
    sources: Vec<SourceReport>,
}

impl Draft<'_> {
    fn report(&mut self, source: SourceKind, path: &Path, outcome: Result<()>) {
        self.sources.push(SourceReport { source, path: path.to_owned(), outcome });
    }

    /// A file that should be there.
    fn take<T>(&mut self, source: SourceKind, path: &Path, parse: fn(&Path, &str) -> Result<T>) -> Option<T> {
        let got = get(self.system, path, |text| parse(path, text));
        let (value, outcome) = split(got);
        self.report(source, path, outcome);
        value
    }

    /// A file that there need not be: that it is not there is no failure.
    fn try_take<T>(
        &mut self,
        source: SourceKind,
        path: &Path,
        parse: fn(&Path, &str) -> Result<T>,
    ) -> Option<T> {
        match get(self.system, path, |text| parse(path, text)) {
            Err(Error::File { source, .. }) if source.kind() == io::ErrorKind::NotFound => None,
            got => {
                let (value, outcome) = split(got);
                self.report(source, path, outcome);
                value
            }
        }
    }

    fn v2(&mut self, level: &Path, machine_bytes: u64, limits: &mut Vec<Limits>) {
        let max = level.join("memory.max");
        let high = level.join("memory.high");
        // The topmost group of a machine has neither.
        let max_bytes =
            self.try_take(SourceKind::Group, &max, |path, text| parse::limit(path, "memory.max", text));
        let high_bytes =
            self.try_take(SourceKind::Group, &high, |path, text| parse::limit(path, "memory.high", text));
        // Over high a group is slowed until it hardly moves: for who has to answer in time that is the end as well.
        let max = max_bytes.flatten().map(|bytes| (bytes, max));
        let high = high_bytes.flatten().map(|bytes| (bytes, high));
        let Some((total_bytes, file)) = max.into_iter().chain(high).min_by_key(|(bytes, _)| *bytes) else {
            return;
        };
        if total_bytes >= machine_bytes {
            return;
        }
        let current = level.join("memory.current");
        let Some(used) =
            self.take(SourceKind::Group, &current, |path, text| parse::bytes(path, "memory.current", text))
        else {
            return;
        };
        let stat = level.join("memory.stat");
        let spare = self.take(SourceKind::Group, &stat, |path, text| parse::reclaimable(path, text, ""));
        limits.push(group_limits(total_bytes, used, spare, file));
    }

    fn v1(&mut self, level: &Path, machine_bytes: u64, limits: &mut Vec<Limits>) {
        let file = level.join("memory.limit_in_bytes");
        let limit = self
            .take(SourceKind::Group, &file, |path, text| parse::limit(path, "memory.limit_in_bytes", text));
        let Some(total_bytes) = limit.flatten().filter(|bytes| *bytes < machine_bytes) else { return };
        let usage = level.join("memory.usage_in_bytes");
        let Some(used) = self
            .take(SourceKind::Group, &usage, |path, text| parse::bytes(path, "memory.usage_in_bytes", text))
        else {
            return;
        };
        let stat = level.join("memory.stat");
        let spare =
            self.take(SourceKind::Group, &stat, |path, text| parse::reclaimable(path, text, "total_"));
        limits.push(group_limits(total_bytes, used, spare, file));
    }
}

/// If it is not known what is reclaimable, nothing is: that is reported, and the error is on the safe side.
fn group_limits(total_bytes: u64, used: u64, spare: Option<u64>, file: PathBuf) -> Limits {
    let held = used.saturating_sub(spare.unwrap_or(0));
    let available_bytes = total_bytes.saturating_sub(held);
    Limits { total_bytes, available_bytes, limited_by: LimitedBy::Group { file } }
}

/// The least of each figure, and what runs out first; of limits that run out together, the smaller one.
fn tightest(all: &[Limits]) -> Option<Limits> {
    let first = all.iter().min_by_key(|limits| (limits.available_bytes, limits.total_bytes))?;
    let total_bytes = all.iter().map(|limits| limits.total_bytes).min()?;
    Some(Limits { total_bytes, ..first.clone() })
}

fn get<T>(system: &dyn System, path: &Path, parse: impl FnOnce(&str) -> Result<T>) -> Result<T> {
    let text = system.read(path).map_err(|source| Error::File { path: path.to_owned(), source })?;
    parse(&text)
}

fn split<T>(got: Result<T>) -> (Option<T>, Result<()>) {
    match got {
        Ok(value) => (Some(value), Ok(())),
        Err(error) => (None, Err(error)),
    }
}

/// The same error once more, for each reading.
fn again(error: &Error) -> Error {
    match error {
        Error::Content { path, field, got, expected } => {
            Error::Content { path: path.clone(), field, got: got.clone(), expected }
        }
        Error::File { path, source } => {
            let source = match source.raw_os_error() {
                Some(code) => io::Error::from_raw_os_error(code),
                None => source.kind().into(),
            };
            Error::File { path: path.clone(), source }
        }
        other => Error::File { path: MOUNTS.into(), source: io::Error::other(other.to_string()) },
    }
}

const MEMINFO: &str = "/proc/meminfo";
const MOUNTS: &str = "/proc/self/mountinfo";
const MEMBERSHIP: &str = "/proc/self/cgroup";
const PSI: &str = "/proc/pressure/memory";

/// Shares of a limit that are available; see [`share`].
const PLENTY: f64 = 0.30;
const LAST: f64 = 0.02;
/// `avg10` of PSI in percent; see [`share`].
const FULL_PERCENT: f64 = 60.0;
const SOME_PERCENT: f64 = 120.0;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn limits(total_bytes: u64, available_bytes: u64) -> Limits {
        Limits { total_bytes, available_bytes, limited_by: LimitedBy::Machine }
    }

    fn psi(some: f64, full: f64) -> Psi {
        let mut psi = Psi::default();
        psi.some.avg10 = some;
        psi.full.avg10 = full;
        psi
    }

    #[test]
    fn ends_of_the_share() {
        assert_eq!(share(&[], None), None);
        assert_eq!(share(&[limits(100, 30)], None), Some(0.0));
        assert_eq!(share(&[limits(100, 2)], None), Some(1.0));
        assert_eq!(share(&[limits(0, 0)], None), Some(1.0));
        assert_eq!(share(&[], Some(&psi(60.0, 0.0))), Some(0.5));
        assert_eq!(share(&[limits(100, 90)], Some(&psi(60.0, 60.0))), Some(1.0));
        assert_eq!(share(&[limits(100, 90), limits(100, 2)], None), Some(1.0), "the worst limit counts");
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// Less memory, or more waiting, is never less short.
        #[test]
        fn the_share_only_grows_with_what_is_bad(
            total in 1_u64..u64::MAX,
            (less, more) in (0.0_f64..=1.0, 0.0_f64..=1.0),
            (some, full) in (0.0_f64..=100.0, 0.0_f64..=100.0),
            worse in 0.0_f64..=100.0,
        ) {
            let (less, more) = (less.min(more), less.max(more));
            let at = |available: f64, some: f64, full: f64| {
                let available = (total as f64 * available) as u64;
                share(&[limits(total, available.min(total))], Some(&psi(some, full))).unwrap()
            };
            let before = at(more, some, full);
            prop_assert!((0.0..=1.0).contains(&before));
            prop_assert!(at(less, some, full) >= before);
            prop_assert!(at(more, some.max(worse), full) >= before);
            prop_assert!(at(more, some, full.max(worse)) >= before);
        }
    }
}
